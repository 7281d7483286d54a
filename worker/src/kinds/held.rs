//! Which content files are here.

use futures::{StreamExt as _, TryStreamExt as _};
use pulp_content::ContentError;
use pulp_model::Digest;

use super::Context;

/// Files looked for at a time: in an object store each is a request, and they are many.
const AT_ONCE: usize = 16;

/// The size of each file that is here, in the order of the digests; none for one that isn't.
pub(crate) async fn sizes(context: &Context, digests: Vec<Digest>) -> Result<Vec<Option<u64>>, ContentError> {
    futures::stream::iter(digests)
        .map(|digest| {
            let (content, report) = (context.worker.content.clone(), context.report.clone());
            async move {
                let size = content.size(&digest).await;
                report.beat();
                size
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}
