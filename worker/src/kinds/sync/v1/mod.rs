//! Syncs by version 1 of the registry API: v1 images and tags, and the manifests that stand for them in version 2, the
//! same that an import of the saved images makes.
//!
//! An image of version 1 is known by its id, which is no digest: one that any repository here has is not fetched again.
//! Steps and their texts: pulp_docker 1.0 and 2.x, `importers/v1_sync.py`.

mod faces;
mod images;
mod layers;
mod plan;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_model::{
    CodedError, ErrorCode, RepositoryId, TagName,
    image::Manifest,
    importer::ImporterSettings,
    unit::{ImageId, ImageUnit, Unit, UnitType, V1Tag},
};
use pulp_registry::{RegistryError, V1Repository};
use pulp_store::FencedTx;

use self::{
    faces::Faces,
    images::Images,
    plan::{Held, Line, Plan, Rules},
};
use super::{Context, Fetched, StepHandle, UpstreamRepository, plan::PlanReport};
use crate::error::TaskError;

/// Images that one sync takes in at most.
const MAX_IMAGES: usize = 100_000;
/// Images of all ancestries, each counted as often as it is named: so many ids are held at once.
const MAX_HELD: usize = 10 * MAX_IMAGES;

/// Which versions of the registry's API a sync uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) v1: bool,
    pub(super) v2: bool,
}

impl Versions {
    /// Those that the settings ask for. Where that is more than one, those of them that are there.
    pub(super) async fn of(
        settings: &ImporterSettings,
        upstream: &UpstreamRepository,
    ) -> Result<Self, TaskError> {
        let (v1, v2) = (settings.enable_v1, settings.enable_v2);
        if !v1 && !v2 {
            let text = "enable_v1 and enable_v2 are both false, so that there is nothing to sync by; set one of them";
            let error = CodedError::new(ErrorCode::UNSUPPORTED_VALUE, text);
            return Err(error.with("property_names", ["enable_v1", "enable_v2"]).into());
        }
        if !(v1 && v2) {
            return Ok(Self { v1, v2 });
        }
        let found = Self {
            v2: is_there(upstream, upstream.client.ping().await)?,
            v1: is_there(upstream, upstream.client.v1_ping().await)?,
        };
        if !found.v1 && !found.v2 {
            return Err(no_api(upstream, "v1 or v2"));
        }
        Ok(found)
    }
}

/// Whether an API answers. One that lets us in nowhere but at a repository is one (pulp_docker 2.x).
fn is_there(upstream: &UpstreamRepository, asked: Result<(), RegistryError>) -> Result<bool, TaskError> {
    match asked {
        Ok(()) | Err(RegistryError::Unauthorized { .. }) => Ok(true),
        Err(
            RegistryError::NotFound { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Status {
                status: 400..=499, ..
            },
        ) => Ok(false),
        Err(error) => Err(upstream.unreadable(&error)),
    }
}

fn no_api(upstream: &UpstreamRepository, which: &str) -> TaskError {
    let registry = upstream.client.base_url();
    let text = format!("there is no registry of the API {which} at {registry}; check the importer's feed");
    let error = CodedError::new(ErrorCode::UPSTREAM_NO_API, text);
    error.with("registry", registry).into()
}

/// The steps of a sync by version 1.
pub(super) struct Steps {
    metadata: StepHandle,
    known: StepHandle,
    download: StepHandle,
    save: StepHandle,
}

impl Steps {
    pub(super) fn announce(context: &Context) -> Self {
        let step = |step_type, description| context.report.step(step_type, description, 0);
        Self {
            metadata: step("v1_sync_step_metadata", "Retrieving v1 metadata"),
            known: step("v1_sync_step_get_local", "Copying units already in pulp"),
            download: step("v1_sync_step_download", "Downloading remote files"),
            save: step("v1_sync_step_save", "Saving v1 images and tags"),
        }
    }
}

/// What becomes visible of version 1.
pub(super) struct Visible {
    images: Vec<ImageUnit>,
    tags: Vec<V1Tag>,
    gone: BTreeSet<TagName>,
    /// What a person should know.
    pub(super) notices: Vec<String>,
    steps: Steps,
    remembered_as: String,
}

impl Visible {
    /// The images, as units.
    pub(super) fn units(&self) -> impl Iterator<Item = Unit> {
        self.images.iter().cloned().map(Unit::Image)
    }

    /// The images that go in mirror mode, of those in `current`; `tags` are those of version 1 as they are.
    pub(super) fn what_goes(&self, current: &[Unit], tags: &[V1Tag]) -> Vec<Unit> {
        let images = current.iter().filter_map(|unit| match unit {
            Unit::Image(image) => Some((image.image_id.clone(), image.clone())),
            _ => None,
        });
        let kept: Vec<V1Tag> = tags
            .iter()
            .filter(|t| !self.gone.contains(&t.tag))
            .cloned()
            .collect();
        let after = pulp_model::unit::merge_v1_tags(&kept, &self.tags);
        let gone = plan::what_goes(&images.collect(), tags, &after);
        gone.into_iter().map(Unit::Image).collect()
    }

    /// Sets the tags; the images come with the other units.
    pub(super) async fn tag(&self, tx: &mut FencedTx, repo: &RepositoryId) -> Result<(), TaskError> {
        self.steps.save.begin();
        if !self.tags.is_empty() || !self.gone.is_empty() {
            tx.change_v1_tags(repo, &self.tags, &self.gone).await?;
        }
        tx.forget_images(&self.remembered_as).await?;
        let items = self.images.len() + self.tags.len();
        self.steps.save.all(items as u64);
        Ok(())
    }
}

/// Looks, plans, fetches what is missing (for a plan alone no more than ancestries), and puts it to what version 2 has
/// brought. `other_face` are the tags that version 2 of the upstream has, if that is synced.
pub(super) async fn fetch(
    context: &Context,
    repo: &RepositoryId,
    settings: &ImporterSettings,
    upstream: &UpstreamRepository,
    dry_run: bool,
    all: &mut Fetched,
) -> Result<(), TaskError> {
    let steps = Steps::announce(context);
    steps.metadata.begin();
    let held = held(context, repo).await?;
    let rules = Rules {
        mask: settings.mask_id.clone(),
        remove_missing: settings.remove_missing,
        other_face: all.there.clone(),
    };
    let index = open(upstream).await?;
    let there = tags(upstream, &index, settings).await?;
    let plan = plan::plan_tags(&there, &held, &rules);
    let lines = lines(upstream, &index, &plan, &rules, &steps.metadata).await?;
    steps.metadata.finish();

    let images = Images::new(context, upstream, &index, &held);
    let wanted: BTreeSet<&ImageId> = lines.values().flat_map(Line::taken).collect();
    steps.known.begin();
    let (here, missing) = images.here_already(wanted).await?;
    steps.known.all(here.len() as u64);

    let mut made = Faces::default();
    let mut brought = here;
    let (fetching, reused) = (missing.len(), brought.len());
    if !dry_run {
        steps.download.add_total(fetching as u64);
        steps.download.begin();
        let came = images
            .fetch(missing, &lines, &mut brought, &steps.download)
            .await?;
        let named = plan
            .changed()
            .filter(|(name, _)| !rules.other_face.contains(*name));
        made = Faces::make(context, upstream, repo, named, &lines, &brought, came).await?;
        steps.download.finish();
    }

    // In mirror mode a tag of version 2 stays as long as one of the APIs has it.
    let is_there = |name: &TagName| there.get(name).is_some_and(Option::is_some);
    let is_first = all.steps.is_none();
    if settings.remove_missing {
        if is_first && settings.enable_v2 {
            // Version 2 may be back tomorrow with what only it had.
            all.removed.extend(plan.removed.iter().cloned());
        } else if is_first {
            all.removed.extend(held.faces.keys().cloned());
        }
        all.removed.retain(|name| !is_there(name));
    }
    let mut told = report(&plan, &rules, fetching, reused, &made);
    if !is_first {
        all.plan.tags_absent.retain(|name| plan.absent.contains(name));
        told.tags_absent.clear();
    }
    all.plan.tags_removed = all.removed.iter().cloned().collect();
    all.plan.add(told);
    all.moved += made
        .tags
        .iter()
        .filter(|t| held.faces.contains_key(&t.name))
        .count() as u64;
    all.blobs.extend(made.blobs);
    all.manifests
        .extend(made.manifests.into_iter().map(Manifest::Image));
    all.tags.extend(made.tags);
    all.v1 = Some(Visible {
        tags: plan
            .changed()
            .filter(|(_, id)| brought.contains_key(*id))
            .map(|(tag, id)| V1Tag {
                tag: tag.clone(),
                image_id: id.clone(),
            })
            .collect(),
        images: brought.into_values().collect(),
        gone: plan.removed,
        notices: made.notices,
        remembered_as: images::remembered_as(upstream),
        steps,
    });
    Ok(())
}

/// The plan as people and programs read it.
fn report(plan: &Plan, rules: &Rules, fetching: usize, reused: usize, made: &Faces) -> PlanReport {
    let of_v1 = |name: &&TagName| !rules.other_face.contains(*name);
    PlanReport {
        tags_added: plan.added.keys().cloned().collect(),
        tags_moved: plan.moved.keys().cloned().collect(),
        tags_removed: plan.removed.iter().cloned().collect(),
        tags_absent: plan.absent.iter().cloned().collect(),
        tags_unchanged: plan.unchanged.iter().filter(of_v1).count(),
        manifests: made.manifests.len(),
        images: fetching,
        images_reused: reused,
        ..PlanReport::default()
    }
}

/// The repository as it is.
async fn held(context: &Context, repo: &RepositoryId) -> Result<Held, TaskError> {
    let store = &context.worker.store;
    let tags = context.repository_uncounted(repo).await?.v1_tags();
    let types = [
        UnitType::DockerImage,
        UnitType::DockerManifest,
        UnitType::DockerTag,
    ];
    let mut held = Held {
        tags: tags.into_iter().map(|t| (t.tag, t.image_id)).collect(),
        ..Held::default()
    };
    let (mut layers, mut named) = (BTreeMap::new(), Vec::new());
    for association in store.associations(repo, &types).await? {
        match association.unit {
            Unit::Image(image) => drop(held.images.insert(image.image_id.clone(), image)),
            Unit::Manifest(m) => {
                let blobs = m.fs_layers.into_iter().map(|l| l.blob_sum);
                layers.insert(m.digest, blobs.collect::<Vec<_>>());
            }
            Unit::Tag(tag) => named.push(tag),
            _ => {}
        }
    }
    for tag in named {
        let face = layers.get(&tag.manifest_digest).cloned();
        // A tag of several variants has no one face.
        let several = held.faces.contains_key(&tag.name);
        held.faces.insert(tag.name, face.filter(|_| !several));
    }
    Ok(held)
}

/// Asks the index for the repository.
async fn open(upstream: &UpstreamRepository) -> Result<V1Repository, TaskError> {
    match upstream.client.v1(&upstream.name).await {
        Ok(index) => Ok(index),
        Err(error @ (RegistryError::NotFound { .. } | RegistryError::Protocol { .. })) => {
            // Is it the repository that is not there, or is there no such API at all?
            if is_there(upstream, upstream.client.v1_ping().await)? {
                Err(upstream.unreadable(&error))
            } else {
                Err(no_api(upstream, "v1"))
            }
        }
        Err(error) => Err(upstream.unreadable(&error)),
    }
}

/// The tags that the settings take, with the images that they name; none where a tag is not there.
async fn tags(
    upstream: &UpstreamRepository,
    index: &V1Repository,
    settings: &ImporterSettings,
) -> Result<BTreeMap<TagName, Option<ImageId>>, TaskError> {
    let mut there = index.tags().await.map_err(|e| upstream.unreadable(&e))?;
    let taken = match settings.tags.plain() {
        Some(names) => names,
        None => settings.tags.select(there.keys().cloned()),
    };
    let mut tags = BTreeMap::new();
    for name in taken {
        let id = match there.remove(&name) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(reason)) => return Err(unfit(upstream, &format!("tag {name}: {reason}"))),
        };
        tags.insert(name, id);
    }
    Ok(tags)
}

/// An answer that contradicts others.
fn unfit(upstream: &UpstreamRepository, reason: &str) -> TaskError {
    let (name, registry) = (&upstream.name, upstream.client.base_url());
    let text = format!("{name} can't be taken in from {registry}: {reason}");
    CodedError::new(ErrorCode::UPSTREAM_UNREADABLE, text)
        .with("repo", name)
        .with("registry", registry)
        .with("reason", reason)
        .into()
}

/// The ancestries of the images that changed tags name.
async fn lines(
    upstream: &UpstreamRepository,
    index: &V1Repository,
    plan: &Plan,
    rules: &Rules,
    step: &StepHandle,
) -> Result<BTreeMap<ImageId, Line>, TaskError> {
    let heads: BTreeSet<ImageId> = plan.changed().map(|(_, id)| id.clone()).collect();
    step.add_total(heads.len() as u64);
    let mut fetched = stream::iter(heads)
        .map(|id| async move {
            let ids = index.ancestry(&id).await.map_err(|e| upstream.unreadable(&e))?;
            step.advance(1);
            Ok::<_, TaskError>((id, Line::new(ids, rules.mask.as_ref())))
        })
        .buffer_unordered(upstream.at_once);
    let (mut lines, mut held) = (BTreeMap::new(), 0);
    while let Some((id, line)) = fetched.try_next().await? {
        held += line.taken().len();
        if held > MAX_HELD {
            let reason =
                format!("the ancestries of its tags name more than {MAX_HELD} images; filter the tags");
            return Err(unfit(upstream, &reason));
        }
        lines.insert(id, line);
    }
    let count = lines
        .values()
        .flat_map(Line::taken)
        .collect::<BTreeSet<_>>()
        .len();
    if count > MAX_IMAGES {
        let reason = format!("its tags reach more than {MAX_IMAGES} images; filter the tags");
        return Err(unfit(upstream, &reason));
    }
    Ok(lines)
}
