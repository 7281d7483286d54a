//! A repository as a sync finds it.

use std::collections::{HashMap, HashSet};

use pulp_content::ContentError;
use pulp_model::{
    Digest, RepositoryId, TagName,
    image::{MAX_MANIFEST_BYTES, Manifest},
    importer::ImporterSettings,
    platform::PlatformsMode,
    unit::{ManifestKind, ManifestListUnit, TagUnit, Unit, UnitType},
};
use pulp_registry::signed_digest;

use super::{members::Members, plan::Held, upstream::Came};
use crate::{error::TaskError, kinds::Context};

/// The repository before the sync.
pub(super) struct Before {
    /// What need not be fetched.
    pub(super) plan: Held,
    /// Manifests and lists by every digest that an upstream may call them by.
    pub(super) known: HashMap<Digest, Known>,
    /// Lists and indexes by their own digests, complete or not.
    pub(super) lists: HashMap<Digest, ManifestListUnit>,
}

/// A manifest of the repository, as far as a tag needs to know it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) digest: Digest,
    schema_version: u8,
    kind: ManifestKind,
}

impl Known {
    pub(super) fn tag(&self, repo: &RepositoryId, name: &TagName) -> TagUnit {
        TagUnit {
            name: name.clone(),
            repo_id: repo.clone(),
            manifest_digest: self.digest.clone(),
            schema_version: self.schema_version,
            manifest_type: self.kind,
        }
    }

    fn list(list: &ManifestListUnit) -> Self {
        Self {
            digest: list.digest.clone(),
            schema_version: list.schema_version,
            kind: ManifestKind::List,
        }
    }
}

impl Before {
    pub(super) async fn read(
        context: &Context,
        repo: &RepositoryId,
        settings: &ImporterSettings,
    ) -> Result<Self, TaskError> {
        let types = [
            UnitType::DockerManifest,
            UnitType::DockerManifestList,
            UnitType::DockerTag,
        ];
        let mut before = Self {
            plan: Held::default(),
            known: HashMap::new(),
            lists: HashMap::new(),
        };
        for association in context.worker.store.associations(repo, &types).await? {
            match association.unit {
                Unit::Tag(tag) => {
                    before
                        .plan
                        .tags
                        .entry(tag.name)
                        .or_default()
                        .insert(tag.manifest_digest);
                }
                Unit::Manifest(m) => {
                    let known = Known {
                        digest: m.digest.clone(),
                        schema_version: m.schema_version,
                        kind: ManifestKind::Image,
                    };
                    if m.media_type.is_schema1()
                        && let Some(signed) = signed_as(context, &m.digest).await?
                    {
                        before.hold(signed, known.clone());
                    }
                    before.hold(m.digest, known);
                }
                Unit::ManifestList(l) => drop(before.lists.insert(l.digest.clone(), l)),
                Unit::Blob(_) | Unit::Image(_) => {}
            }
        }
        before.hold_lists(settings);
        Ok(before)
    }

    /// Lists need not be fetched if they are as this sync would leave them. One that was made of an upstream's is
    /// known by that one's digest as well, as long as the same filter would make it again.
    fn hold_lists(&mut self, settings: &ImporterSettings) {
        let platforms = settings.platforms.as_ref();
        let present: HashSet<&Digest> = self.plan.manifests.iter().chain(self.lists.keys()).collect();
        let complete =
            Members::of(platforms, self.lists.values()).complete(&present, settings.remove_missing);
        let complete: HashSet<Digest> = complete.into_iter().cloned().collect();
        let rewrites = platforms.filter(|p| p.mode == PlatformsMode::Rewrite);
        let filter = rewrites.map(|p| p.filter.to_string());
        for (digest, list) in &self.lists {
            self.known.insert(digest.clone(), Known::list(list));
        }
        for digest in complete {
            let Some(list) = self.lists.get(&digest) else {
                continue;
            };
            if let Some(from) = &list.selection.made_from
                && filter.as_ref() == Some(&from.platforms)
            {
                self.known.insert(from.digest.clone(), Known::list(list));
            }
            self.plan.manifests.insert(digest);
        }
    }

    fn hold(&mut self, digest: Digest, known: Known) {
        self.plan.manifests.insert(digest.clone());
        self.known.insert(digest, known);
    }

    /// Signed manifests that came under another name than they are kept under may be held under that already.
    pub(super) fn hold_as_known(&mut self, came: &[Came]) {
        let images = came.iter().filter(|c| matches!(c.manifest, Manifest::Image(_)));
        for one in images {
            if let Some(known) = self.known.get(one.manifest.digest()).cloned() {
                self.hold(one.known_as.clone(), known);
            }
        }
    }

    /// Whether the repository has what an upstream calls by this digest, complete.
    pub(super) fn holds(&self, called: &Digest) -> bool {
        let known = self.known.get(called).map_or(called, |known| &known.digest);
        self.plan.manifests.contains(known)
    }

    /// Whether the repository has a manifest just so; a list also with the members that it needs.
    pub(super) fn has(&self, manifest: &Manifest) -> bool {
        match manifest {
            Manifest::Image(image) => self.plan.manifests.contains(&image.digest),
            Manifest::List(list) => self.lists.get(&list.digest) == Some(list),
        }
    }

    /// All manifests and lists that are there, by their own digests.
    pub(super) fn present(&self) -> HashSet<&Digest> {
        self.plan.manifests.iter().chain(self.lists.keys()).collect()
    }

    /// Whether what an upstream calls by this digest is here as an index made of it.
    pub(super) fn is_replaced(&self, called: &Digest) -> bool {
        self.known
            .get(called)
            .is_some_and(|k| k.digest != *called && self.is_made_here(&k.digest))
    }

    /// Whether a digest is that of an index that was made here of another one.
    pub(super) fn is_made_here(&self, digest: &Digest) -> bool {
        let list = self.lists.get(digest);
        list.is_some_and(|l| l.selection.made_from.is_some())
    }
}

/// The digest by which a registry knows a signed manifest of schema 1; none if its file is lost.
async fn signed_as(context: &Context, digest: &Digest) -> Result<Option<Digest>, TaskError> {
    match context
        .worker
        .content
        .read_bytes(digest, MAX_MANIFEST_BYTES)
        .await
    {
        Ok(bytes) => Ok(signed_digest(&bytes)),
        Err(ContentError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
