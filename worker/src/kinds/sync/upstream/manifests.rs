//! Manifests of an upstream on their way here, several at a time, and no more than the upstream allows.

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_model::{
    Digest, MediaType, TagName,
    image::{MAX_MANIFEST_BYTES, Manifest},
};
use pulp_registry::{Reference, Referrer, RegistryError};

use super::{KEEPING, TO_DISK, TRIES, UpstreamRepository};
use crate::error::TaskError;

/// A manifest to fetch.
#[derive(Debug, Clone)]
pub(in super::super) struct WantedManifest {
    pub(in super::super) reference: Reference,
    /// The type that a list says it has.
    pub(in super::super) media_type: Option<MediaType>,
}

/// A manifest that is here now.
pub(in super::super) struct Came {
    /// What it was asked for by.
    pub(in super::super) reference: Reference,
    /// The manifest; its digest is the one that it is kept under.
    pub(in super::super) manifest: Manifest,
    /// The digest that the upstream knows it by; another one for a signed manifest of schema 1.
    pub(in super::super) known_as: Digest,
    /// Whether it came from the upstream, and not from an earlier try.
    pub(in super::super) fetched: bool,
}

/// What came, by all that it may be asked for by.
pub(in super::super) struct Arrivals<'a> {
    by_tag: HashMap<&'a TagName, &'a Manifest>,
    /// By the upstream's digests and by those that manifests are kept under.
    by_digest: HashMap<&'a Digest, &'a Manifest>,
}

impl<'a> Arrivals<'a> {
    pub(in super::super) fn of(came: &'a [Came]) -> Self {
        let tag_of = |c: &'a Came| match &c.reference {
            Reference::Tag(name) => Some((name, &c.manifest)),
            Reference::Digest(_) => None,
        };
        let digests_of = |c: &'a Came| [(&c.known_as, &c.manifest), (c.manifest.digest(), &c.manifest)];
        Self {
            by_tag: came.iter().filter_map(tag_of).collect(),
            by_digest: came.iter().flat_map(digests_of).collect(),
        }
    }

    /// The manifest that has this digest, here or upstream.
    pub(in super::super) fn called(&self, digest: &Digest) -> Option<&'a Manifest> {
        self.by_digest.get(digest).copied()
    }

    /// The manifest that a tag names: by the digest that it was planned with, or where that was unknown by its name.
    pub(in super::super) fn named_by(&self, tag: &TagName, digest: Option<&Digest>) -> Option<&'a Manifest> {
        match digest {
            Some(digest) => self.called(digest),
            None => self.by_tag.get(tag).copied(),
        }
    }
}

impl UpstreamRepository {
    /// Brings manifests here, several at a time. If the upstream allows less than that, those that it allows are kept
    /// for the next try, which comes when it allows more.
    pub(in super::super) async fn manifests(
        &self,
        wanted: Vec<WantedManifest>,
    ) -> Result<Vec<Came>, TaskError> {
        let looked: Vec<(WantedManifest, Option<Came>)> = stream::iter(wanted)
            .map(|one| async move {
                let kept = self.kept_manifest(&one).await?;
                Ok::<_, TaskError>((one, kept))
            })
            .buffer_unordered(self.at_once)
            .try_collect()
            .await?;
        let (mut came, mut missing) = (Vec::new(), Vec::new());
        for (one, kept) in looked {
            match kept {
                Some(kept) => came.push(kept),
                None => missing.push(one),
            }
        }
        if missing.is_empty() {
            return Ok(came);
        }
        let allowance = self.account.take(missing.len() as u64).await?;
        let allowed = usize::try_from(allowance.granted).unwrap_or(usize::MAX);
        let later = missing.split_off(allowed.min(missing.len()));
        let fetched: Result<Vec<Came>, TaskError> = stream::iter(missing)
            .map(|wanted| self.manifest(wanted))
            .buffer_unordered(self.at_once + KEEPING)
            .try_collect()
            .await;
        self.note_limits().await?;
        came.extend(fetched?);
        if !later.is_empty() {
            return Err(self.account.parked(allowance, later.len()));
        }
        Ok(came)
    }

    async fn manifest(&self, wanted: WantedManifest) -> Result<Came, TaskError> {
        // It is never closed.
        let place = self.places.acquire().await;
        let mut tries = 0;
        let found = loop {
            tries += 1;
            let span = self.span("download.manifest");
            span.set("oci.reference", &wanted.reference);
            let fetched = span
                .run(self.client.manifest(&self.name, &wanted.reference))
                .await;
            match &fetched {
                Ok(found) => {
                    span.set("oci.digest", &found.digest);
                    span.count("bytes", found.bytes.len() as u64);
                }
                Err(error) => span.fail(error),
            }
            match fetched {
                Ok(found) => break found,
                Err(RegistryError::Mismatch { .. }) if tries < TRIES => {}
                Err(error) => return Err(self.unreadable(&error)),
            }
        };
        let _to_disk = TO_DISK.acquire().await;
        drop(place);
        let declared = found.media_type.as_ref().or(wanted.media_type.as_ref());
        let mut manifest =
            Manifest::parse(&found.bytes, declared).map_err(|e| self.unfit(&found.digest, &e.to_string()))?;
        // Kept and named by what the upstream calls it, unless that is the digest of a part of its bytes.
        if found.digest.matches(&found.bytes) {
            set_digest(&mut manifest, &found.digest);
        }
        let digest = manifest.digest();
        self.content.put_bytes(&self.owner, digest, found.bytes).await?;
        Ok(Came {
            reference: wanted.reference,
            manifest,
            known_as: found.digest,
            fetched: true,
        })
    }

    /// A manifest that an earlier try, or another repository's sync, brought here.
    async fn kept_manifest(&self, wanted: &WantedManifest) -> Result<Option<Came>, TaskError> {
        let Reference::Digest(digest) = &wanted.reference else {
            return Ok(None);
        };
        if self.content.size(digest).await?.is_none() {
            return Ok(None);
        }
        let bytes = self.content.read_bytes(digest, MAX_MANIFEST_BYTES).await?;
        let Ok(mut manifest) = Manifest::parse(&bytes, wanted.media_type.as_ref()) else {
            return Ok(None);
        };
        set_digest(&mut manifest, digest);
        Ok(Some(Came {
            reference: wanted.reference.clone(),
            manifest,
            known_as: digest.clone(),
            fetched: false,
        }))
    }

    /// What refers to these manifests, of the types wanted; kinds that no repository here can hold are left out.
    pub(in super::super) async fn referrers(
        &self,
        subjects: Vec<Digest>,
        types: &[String],
    ) -> Result<Vec<WantedManifest>, TaskError> {
        let lists: Vec<_> = stream::iter(subjects)
            .map(|subject| async move {
                let found = self.client.referrers(&self.name, &subject).await;
                found.map_err(|e| self.unreadable(&e))
            })
            .buffer_unordered(self.at_once)
            .try_collect()
            .await?;
        let wanted = |r: &Referrer| {
            let fits = r.media_type.is_image_manifest() || r.media_type.is_index();
            fits && (types.is_empty() || r.artifact_type.as_ref().is_some_and(|t| types.contains(t)))
        };
        let found = lists.into_iter().flatten().filter(wanted);
        Ok(found
            .map(|r| WantedManifest {
                reference: Reference::Digest(r.digest),
                media_type: Some(r.media_type),
            })
            .collect())
    }
}

fn set_digest(manifest: &mut Manifest, digest: &Digest) {
    match manifest {
        Manifest::Image(m) => m.digest = digest.clone(),
        Manifest::List(l) => l.digest = digest.clone(),
    }
}
