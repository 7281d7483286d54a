//! The tables: every published repository by the name that clients use.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use pulp_publication::redirect::Variants;
use tokio::sync::OnceCell;

use super::{Holdings, v1_images::V1Images};
use crate::clients::Viewer;

/// A repository with v1 content.
#[derive(Debug)]
pub(crate) struct V1Repo {
    /// Name for clients.
    pub(crate) registry_id: String,
    /// Pulp's repository id.
    pub(crate) repository: String,
    /// Base url, ends with `/`.
    pub(crate) url: String,
    pub(crate) protected: bool,
    pub(crate) images: V1Images,
    /// Directory with a directory an image, if the content is here.
    pub(crate) web: Option<PathBuf>,
}

/// A repository with v2 content.
#[derive(Debug)]
pub(crate) struct V2Repo {
    /// Name for clients.
    pub(crate) registry_id: String,
    /// Pulp's repository id.
    pub(crate) repository: String,
    /// Base url, ends with `/`.
    pub(crate) url: String,
    pub(crate) protected: bool,
    pub(crate) content: V2Content,
}

/// What is known of a repository's v2 content.
#[derive(Debug)]
pub(crate) enum V2Content {
    /// Everything, from our index file.
    Indexed(Arc<Holdings>),
    /// Only the redirect file of an old Pulp.
    Legacy {
        /// How manifests are found by the original rules; none for version 2.
        variants: Option<Variants>,
        /// Where the files are, if they are here.
        dir: Option<PathBuf>,
        /// What lies in `dir`, read when first asked for.
        holdings: OnceCell<Arc<Holdings>>,
    },
}

impl V2Repo {
    /// What the repository holds, if its files are here.
    pub(crate) async fn holdings(&self) -> Option<Arc<Holdings>> {
        match &self.content {
            V2Content::Indexed(holdings) => Some(Arc::clone(holdings)),
            V2Content::Legacy { dir: None, .. } => None,
            V2Content::Legacy {
                dir: Some(dir),
                holdings,
                ..
            } => {
                let read = || async {
                    let of = dir.clone();
                    let read = tokio::task::spawn_blocking(move || Holdings::read_tree(&of)).await;
                    match read {
                        Ok(Ok(holdings)) => Ok(Arc::new(holdings)),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                };
                match holdings.get_or_try_init(read).await {
                    Ok(holdings) => Some(Arc::clone(holdings)),
                    Err(error) => {
                        tracing::error!(dir = %dir.display(), error, "can't read published files");
                        None
                    }
                }
            }
        }
    }
}

/// All that can be asked for. Never changed; new data make new tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) v1: BTreeMap<String, Arc<V1Repo>>,
    pub(crate) v2: BTreeMap<String, Arc<V2Repo>>,
    v1_by_repository: HashMap<String, Arc<V1Repo>>,
    v2_by_repository: HashMap<String, Arc<V2Repo>>,
    /// Whether credentials can be of any use.
    pub(crate) any_protected: bool,
}

impl Tables {
    pub(crate) fn new(v1: BTreeMap<String, Arc<V1Repo>>, v2: BTreeMap<String, Arc<V2Repo>>) -> Self {
        Self {
            any_protected: v1.values().any(|r| r.protected) || v2.values().any(|r| r.protected),
            v1_by_repository: v1
                .values()
                .map(|r| (r.repository.clone(), Arc::clone(r)))
                .collect(),
            v2_by_repository: v2
                .values()
                .map(|r| (r.repository.clone(), Arc::clone(r)))
                .collect(),
            v1,
            v2,
        }
    }

    /// A v1 repository that the client may see. Others are as if absent.
    pub(crate) fn v1(&self, registry_id: &str, viewer: &Viewer) -> Option<&Arc<V1Repo>> {
        self.v1.get(registry_id).filter(|r| r.shown_to(viewer))
    }

    /// A v2 repository that the client may see.
    pub(crate) fn v2(&self, registry_id: &str, viewer: &Viewer) -> Option<&Arc<V2Repo>> {
        self.v2.get(registry_id).filter(|r| r.shown_to(viewer))
    }

    /// A v1 repository that the client may see, by Pulp's id.
    pub(crate) fn v1_repository(&self, id: &str, viewer: &Viewer) -> Option<&Arc<V1Repo>> {
        self.v1_by_repository.get(id).filter(|r| r.shown_to(viewer))
    }

    /// A v2 repository that the client may see, by Pulp's id.
    pub(crate) fn v2_repository(&self, id: &str, viewer: &Viewer) -> Option<&Arc<V2Repo>> {
        self.v2_by_repository.get(id).filter(|r| r.shown_to(viewer))
    }

    /// The first repository, by name, that holds the image and may be seen; open ones first, so that a certificate
    /// is looked at only if it matters. Each is asked: a table of all images would be made anew with each publication.
    pub(crate) fn with_image(&self, image_id: &str, viewer: &Viewer) -> Option<&Arc<V1Repo>> {
        let holding = || self.v1.values().filter(|r| r.images.get(image_id).is_some());
        let open = holding().find(|r| !r.protected);
        open.or_else(|| holding().find(|r| r.shown_to(viewer)))
    }
}

impl V1Repo {
    pub(crate) fn shown_to(&self, viewer: &Viewer) -> bool {
        viewer.may_see(self.protected, &self.url, &self.registry_id)
    }
}

impl V2Repo {
    pub(crate) fn shown_to(&self, viewer: &Viewer) -> bool {
        viewer.may_see(self.protected, &self.url, &self.registry_id)
    }
}
