//! OCI layouts (`skopeo` and `podman` `oci-archive:`, `docker save` since Docker 25) and skopeo's `dir:`.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{
    Digest, TagName,
    image::{Descriptor, Manifest},
    unit::{ImageId, ListMember, ManifestUnit},
};
use serde::Deserialize;

use crate::{
    ArchiveError, Rejection, UploadKind,
    closure::{Closure, Naming, V1Source},
    docker::{self, Saved},
    index::too_large,
    json,
    layer::Session,
    names::Repositories,
    output::Output,
    v1,
};

pub(crate) const INDEX: &str = "index.json";

/// `index.json`: what the layout is about, each with the names given to it.
#[derive(Debug, Deserialize)]
pub(crate) struct LayoutIndex {
    pub(crate) manifests: Vec<Descriptor>,
}

/// Imports skopeo's `dir:`, whose `manifest.json` is the image's manifest or list itself. It has no tags.
pub(crate) fn import_dir(session: &Session<'_>, out: &mut Output) -> Result<(), ArchiveError> {
    let mut closure = Closure::new(Naming::Dir);
    let root = closure.read_file(session, docker::MANIFEST)?;
    require_complete(&closure, &root)?;
    out.v2_head(root.clone());
    closure.store(session, &[root], out)
}

/// Imports an OCI layout. `saved` is the `manifest.json` that Docker writes beside it.
pub(crate) fn import_oci(
    session: &mut Session<'_>,
    index: &LayoutIndex,
    saved: &[Saved],
    out: &mut Output,
) -> Result<(), ArchiveError> {
    let limits = &session.options.limits;
    if index.manifests.len() as u64 > limits.members {
        return Err(too_large(
            INDEX,
            index.manifests.len() as u64,
            limits.members,
            "manifests",
        ));
    }
    let mut closure = Closure::new(Naming::Oci);
    let mut roots: BTreeMap<Digest, BTreeSet<TagName>> = BTreeMap::new();
    let mut repositories = Repositories::default();
    for descriptor in &index.manifests {
        let tags = names(descriptor, &mut repositories)?;
        closure.read(
            session,
            &descriptor.digest,
            Some(descriptor.size),
            Some(&descriptor.media_type),
        )?;
        roots.entry(descriptor.digest.clone()).or_default().extend(tags);
    }
    docker::read_repositories(session, &mut repositories)?;
    // The annotations say of each root what it is called. `manifest.json` knows only configs, which several roots
    // may share, so it has a say only on tags that no annotation has.
    let annotated: BTreeSet<TagName> = roots.values().flatten().cloned().collect();
    let mut by_config: BTreeMap<&str, Vec<TagName>> = BTreeMap::new();
    for image in saved {
        let tags = image.tags(&mut repositories)?;
        let rest = tags.into_iter().filter(|tag| !annotated.contains(tag));
        by_config.entry(hex_of(&image.config)).or_default().extend(rest);
    }
    repositories.check()?;
    if roots.is_empty() {
        return Err(Rejection::NoImages {
            reason: format!("{INDEX} lists none"),
        }
        .into());
    }

    let mut chosen = Vec::new();
    for (digest, tags) in roots {
        chosen.push(choose(&closure, digest, tags, &by_config, out)?);
    }
    let stored: Vec<Digest> = chosen
        .iter()
        .flat_map(|root| root.stored.iter().cloned())
        .collect();
    closure.store(session, &stored, out)?;
    for root in &chosen {
        root.stored.iter().for_each(|digest| out.v2_head(digest.clone()));
        for tag in &root.tags {
            out.tag(tag, &session.options.repo_id, &root.tagged, INDEX)?;
        }
    }
    if session.options.unit_type == UploadKind::DockerImage {
        store_v1(session, &closure, &chosen, out)?;
    }
    if chosen.iter().all(|root| root.tags.is_empty()) {
        out.notice("the archive was saved without a tag; its image is imported without one");
    }
    Ok(())
}

/// A root of the layout as it is taken in.
struct Root {
    /// The root itself; of a list that can't be complete, its complete members.
    stored: Vec<Digest>,
    /// What the tags name.
    tagged: Manifest,
    tags: BTreeSet<TagName>,
}

/// Takes the root if it is complete.
///
/// Docker saves a list as it came from the registry, but only the platforms it has. There, and only there,
/// members may be absent; those that are complete are taken, and the tags name the one that `manifest.json`
/// names.
fn choose(
    closure: &Closure,
    digest: Digest,
    mut tags: BTreeSet<TagName>,
    by_config: &BTreeMap<&str, Vec<TagName>>,
    out: &mut Output,
) -> Result<Root, ArchiveError> {
    let images = closure.complete_images(&digest);
    let saved_as = |image: &ManifestUnit| {
        image
            .config_layer
            .as_ref()
            .and_then(|config| by_config.get(config.hex()))
    };
    tags.extend(
        images
            .iter()
            .filter_map(|(image, _)| saved_as(image))
            .flatten()
            .cloned(),
    );
    let missing = closure.missing(&digest);
    match closure.get(&digest) {
        Some(manifest) if missing.is_empty() => Ok(Root {
            stored: vec![digest],
            tagged: manifest.clone(),
            tags,
        }),
        Some(Manifest::List(_)) if !by_config.is_empty() && !images.is_empty() => {
            let named = images.iter().find(|(image, _)| saved_as(image).is_some());
            let Some((image, _)) = named.or_else(|| preferred(&images)).or_else(|| images.first()) else {
                return Err(missing_of(&digest, missing));
            };
            out.notice(format!(
                "list {digest} was saved without all of its platforms ({} missing); the images that are there \
                 are imported without it",
                missing.join(", ")
            ));
            Ok(Root {
                tagged: Manifest::Image((*image).clone()),
                stored: images.iter().map(|(image, _)| image.digest.clone()).collect(),
                tags,
            })
        }
        _ => Err(missing_of(&digest, missing)),
    }
}

fn require_complete(closure: &Closure, digest: &Digest) -> Result<(), ArchiveError> {
    match closure.missing(digest) {
        [] => Ok(()),
        missing => Err(missing_of(digest, missing)),
    }
}

fn missing_of(digest: &Digest, missing: &[String]) -> ArchiveError {
    let layer = missing.first().cloned().unwrap_or_else(|| digest.to_string());
    Rejection::LayerMissing { layer }.into()
}

/// The image for linux on amd64.
fn preferred<'a, 'b>(
    images: &'b [(&'a ManifestUnit, Option<&'a ListMember>)],
) -> Option<&'b (&'a ManifestUnit, Option<&'a ListMember>)> {
    images.iter().find(|(_, member)| {
        member.is_some_and(|m| m.os.as_deref() == Some("linux") && m.arch.as_deref() == Some("amd64"))
    })
}

/// Stores v1 images for each root; of a list, for its image for linux on amd64.
fn store_v1(
    session: &mut Session<'_>,
    closure: &Closure,
    roots: &[Root],
    out: &mut Output,
) -> Result<(), ArchiveError> {
    let mut sources: Vec<(V1Source<'_>, Vec<ImageId>, &BTreeSet<TagName>)> = Vec::new();
    for root in roots {
        let images = closure.complete_images(root.tagged.digest());
        let image = match (&root.tagged, images.as_slice()) {
            (Manifest::Image(_), [(image, _)]) => Some(*image),
            _ => preferred(&images).map(|(image, _)| *image),
        };
        let Some(image) = image else {
            out.notice(format!(
                "{} has no image for linux on amd64, and so no v1 images",
                root.tagged.digest()
            ));
            continue;
        };
        if let Some(source) = closure.v1_source(session, image, out)? {
            let line = source.line()?;
            sources.push((source, line, &root.tags));
        }
    }
    let mask = session.options.mask_id.clone();
    let masked = v1::masked_of_made(mask.as_ref(), sources.iter().map(|(_, line, _)| line), out);
    for (source, line, tags) in &sources {
        source.store(session, line, &masked, out)?;
        if let Some(top) = line.last().filter(|top| !masked.contains(*top)) {
            tags.iter().for_each(|tag| out.v1_tag(tag.clone(), top.clone()));
        }
    }
    Ok(())
}

/// The tags that a descriptor's annotations give it.
fn names(descriptor: &Descriptor, repositories: &mut Repositories) -> Result<Vec<TagName>, ArchiveError> {
    let annotation = |key: &str| descriptor.annotations.get(key).filter(|text| !text.is_empty());
    let mut tags = Vec::new();
    if let Some(name) = annotation("io.containerd.image.name") {
        tags.extend(repositories.add_reference(name)?);
    }
    if let Some(name) = annotation("org.opencontainers.image.ref.name") {
        tags.extend(repositories.add_ref_name(name)?);
    }
    Ok(tags)
}

/// The digest's digits in a config's file name.
fn hex_of(file: &str) -> &str {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.strip_suffix(".json").unwrap_or(base)
}

/// Reads `index.json` if the archive has one.
pub(crate) fn read_index(session: &Session<'_>) -> Result<Option<LayoutIndex>, ArchiveError> {
    let Some(place) = session.index.find(INDEX)? else {
        return Ok(None);
    };
    let bytes = session
        .index
        .bytes(INDEX, place, session.options.limits.metadata_bytes)?;
    json::parse(INDEX, &bytes).map(Some)
}
