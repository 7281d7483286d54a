//! A repository's content as a publication: units of its newest version with the files that hold them.

use std::{collections::HashSet, path::PathBuf};

use pulp_model::{
    Digest, RepositoryId, VersionNumber,
    config::DistributorSettings,
    unit::{BlobUnit, Unit},
};
use pulp_publication::{BlobFile, Change, Contents, ImageFiles, ListFile, ManifestFile};
use pulp_store::{repositories::Repository, versions::VersionDifference};

use super::Context;
use crate::error::TaskError;

/// What is published of `repository` as it is now.
pub(crate) async fn contents(
    context: &Context,
    repository: &Repository,
    settings: &DistributorSettings,
) -> Result<Contents, TaskError> {
    let store = &context.worker.store;
    let units = store.units_of_version(&repository.id, repository.version).await?;
    let mut contents = described(context, repository, settings);
    add(context, &mut contents, units).await?;
    // A client may have written a tag for an image that is not here (any more); it would lead nowhere.
    let images: HashSet<_> = contents.images.iter().map(|i| &i.image_id).collect();
    contents.v1_tags.retain(|t| {
        let present = images.contains(&t.image_id);
        if !present {
            tracing::warn!(repository = %repository.id, tag = %t.tag, image = %t.image_id, "v1 tag of an absent image, not published");
        }
        present
    });
    Ok(contents)
}

/// What `repository` differs in from its version `published`. None if that can't be published as a change: it takes
/// something away that something else still needs, which only a look at the whole can tell exactly.
pub(crate) async fn change(
    context: &Context,
    repository: &Repository,
    settings: &DistributorSettings,
    published: VersionNumber,
) -> Result<Option<Change>, TaskError> {
    let store = &context.worker.store;
    let VersionDifference { added, removed } = store
        .version_difference(&repository.id, published, repository.version)
        .await?;
    if store.any_is_referred_to(&repository.id, &removed).await? {
        return Ok(None);
    }
    let mut contents = described(context, repository, settings);
    add(context, &mut contents, added).await?;
    Ok(Some(Change {
        added: contents,
        removed,
    }))
}

/// A repository's names, urls and v1 tags, without any content yet.
pub(crate) fn described(
    context: &Context,
    repository: &Repository,
    settings: &DistributorSettings,
) -> Contents {
    let (v1_url, v2_url) = urls(&context.worker.settings.redirect_base, &repository.id, settings);
    Contents {
        repository: repository.id.clone(),
        registry_id: settings.registry_id.clone(),
        protected: settings.protected,
        v1_url,
        v2_url,
        images: Vec::new(),
        v1_tags: repository.v1_tags(),
        blobs: Vec::new(),
        manifests: Vec::new(),
        lists: Vec::new(),
        tags: Vec::new(),
    }
}

async fn add(context: &Context, contents: &mut Contents, units: Vec<Unit>) -> Result<(), TaskError> {
    for unit in units {
        match unit {
            Unit::Image(image) => contents.images.push(ImageFiles {
                json: file(context, &image.json_digest).await?,
                ancestry: file(context, &image.ancestry_digest).await?,
                layer: file(context, &image.layer_digest).await?,
                image_id: image.image_id,
            }),
            Unit::Blob(BlobUnit { digest, size }) => {
                contents.blobs.push(BlobFile {
                    path: file(context, &digest).await?,
                    digest,
                    size,
                });
            }
            Unit::Manifest(unit) => {
                contents.manifests.push(ManifestFile {
                    path: file(context, &unit.digest).await?,
                    unit,
                });
            }
            Unit::ManifestList(unit) => {
                contents.lists.push(ListFile {
                    path: file(context, &unit.digest).await?,
                    unit,
                });
            }
            Unit::Tag(tag) => contents.tags.push(tag),
        }
    }
    Ok(())
}

/// The file of a blob. Published trees are links to files, so content in an object store is brought beside them first.
async fn file(context: &Context, digest: &Digest) -> Result<PathBuf, TaskError> {
    if let Some(path) = context.worker.content.local_path(digest) {
        return Ok(path);
    }
    let place = context.worker.published.path().join("content");
    let local = pulp_content::ContentStore::open_directory(&place, &pulp_content::ContentOptions::default())?;
    if local.size(digest).await?.is_none() {
        let mut reader = context.worker.content.read(digest, None).await?;
        let mut writer = local
            .writer_with(&context.attempt_name(), digest.algorithm())
            .await?;
        while let Some(chunk) = futures::StreamExt::next(&mut reader.stream).await {
            writer.write(chunk?).await?;
        }
        writer.commit(digest).await?;
    }
    local
        .local_path(digest)
        .ok_or_else(|| TaskError::Bug("a directory has no path".to_owned()))
}

/// Base urls of the v1 and v2 files. A configured one serves both.
fn urls(base: &str, repo: &RepositoryId, settings: &DistributorSettings) -> (String, String) {
    if let Some(url) = &settings.redirect_url {
        return (url.to_string(), url.to_string());
    }
    let base = base.trim_end_matches('/');
    (format!("{base}/v1/{repo}/"), format!("{base}/v2/{repo}/"))
}
