//! What a filter of platforms leaves of what came: tags without any image of the platforms are skipped, and lists of
//! which members were left out say so, or have others made of them in their place.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pulp_content::ContentStore;
use pulp_model::{
    CodedError, Digest, ErrorCode, TagName,
    image::{MAX_MANIFEST_BYTES, Manifest},
    importer::ImporterSettings,
    platform::{ORIGINAL_DIGEST, Platforms, PlatformsMode, platforms_of},
    unit::{MadeFrom, ManifestListUnit},
};
use serde_json::{Value, json};

use super::{
    before::Before,
    members::{self, Members},
    plan::TagPlan,
    upstream::{Arrivals, Came},
};
use crate::error::TaskError;

/// What is taken.
pub(super) struct Choice {
    /// Of what came.
    pub(super) came: Vec<Came>,
    /// How many members of lists were left out.
    pub(super) left_out: usize,
}

/// Applies the filter to what came for `tags`, and takes the tags from the plan of which nothing is left. One that the
/// settings name plainly, or by digest, is an error then; and so is a digest that would not be there afterwards.
pub(super) async fn choose(
    content: &ContentStore,
    owner: &str,
    settings: &ImporterSettings,
    held: &Before,
    tags: &mut TagPlan,
    came: Vec<Came>,
) -> Result<Choice, TaskError> {
    let platforms = settings.platforms.as_ref();
    let Reach {
        skipped,
        useless,
        reached,
    } = reach(platforms, held, tags, &came);
    let named = skipped.iter().filter(|(tag, _)| settings.tags.names(tag));
    let named = named.map(|(tag, has)| (tag.to_string(), has));
    let named: BTreeMap<String, _> = named
        .chain(useless.iter().map(|(d, has)| (d.to_string(), has)))
        .collect();
    refuse_named(platforms, &named)?;
    tags.skip(skipped.into_keys(), &held.plan, settings.remove_missing);
    let mut came: Vec<Came> = came
        .into_iter()
        .filter(|c| reached.contains(c.manifest.digest()))
        .collect();

    let left_out = match platforms {
        Some(platforms) if platforms.mode == PlatformsMode::Rewrite => {
            let made = rewrite(content, owner, platforms, &came, &reached).await?;
            let replaced = |d: &&Digest| made.lists.contains_key(*d) || held.is_replaced(d);
            if let Some(digest) = tags.by_digest.iter().find(replaced) {
                return Err(rewritten_by_digest(digest).into());
            }
            for one in &mut came {
                if let Some(list) = made.lists.get(one.manifest.digest()) {
                    one.manifest = Manifest::List(list.clone());
                }
            }
            made.left_out
        }
        _ => {
            let present = held.present();
            let mut left_out = 0;
            for one in &mut came {
                if let Manifest::List(list) = &mut one.manifest {
                    let before = held.lists.get(&list.digest);
                    list.selection.absent =
                        members::absent(platforms, list, before, &present, settings.remove_missing);
                    left_out += list.selection.absent.len();
                }
            }
            left_out
        }
    };
    Ok(Choice { came, left_out })
}

/// An index that was asked for by its digest would get another one.
fn rewritten_by_digest(digest: &Digest) -> CodedError {
    let text = format!(
        "tags names the index {digest} by its digest, and platforms_mode \"rewrite\" would make another one of it; \
         set platforms_mode to \"sparse\", or name a tag"
    );
    CodedError::new(ErrorCode::INVALID_VALUE, text).with("property_names", ["tags", "platforms_mode"])
}

/// Where tags, and digests that the settings name, lead to.
struct Reach {
    /// The tags of whose lists nothing is left, each with the platforms that there are.
    skipped: BTreeMap<TagName, Vec<String>>,
    /// Lists named by digest of which nothing is left, likewise.
    useless: BTreeMap<Digest, Vec<String>>,
    /// What the others lead to.
    reached: HashSet<Digest>,
}

fn reach(platforms: Option<&Platforms>, held: &Before, tags: &TagPlan, came: &[Came]) -> Reach {
    let lists = came.iter().filter_map(|c| as_list(&c.manifest));
    let members = Members::of(platforms, held.lists.values().chain(lists.clone()));
    let of_use = members.of_use();
    let rewrites = platforms.is_some_and(|p| p.mode == PlatformsMode::Rewrite);
    let arrivals = Arrivals::of(came);
    let left_of = |root: &Manifest| match as_list(root) {
        Some(list) if !of_use.contains(&list.digest) => Err(platforms_of(list)),
        _ => Ok(()),
    };
    let (mut skipped, mut useless, mut todo) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (tag, digest) in tags.added.iter().chain(&tags.moved) {
        // What else a tag names is here, and as it is to be.
        let Some(root) = arrivals.named_by(tag, digest.as_ref()) else {
            continue;
        };
        match left_of(root) {
            Ok(()) => todo.push(root.digest()),
            Err(has) => drop(skipped.insert(tag.clone(), has)),
        }
    }
    for root in tags.by_digest.iter().filter_map(|d| arrivals.called(d)) {
        match left_of(root) {
            Ok(()) => todo.push(root.digest()),
            Err(has) => drop(useless.insert(root.digest().clone(), has)),
        }
    }
    let lists: HashMap<&Digest, &ManifestListUnit> = lists.map(|l| (&l.digest, l)).collect();
    let mut reached: HashSet<&Digest> = HashSet::new();
    while let Some(digest) = todo.pop() {
        if reached.insert(digest)
            && let Some(list) = lists.get(digest)
        {
            // A list that stays what it is keeps its members that are lists, a new one only those of use.
            let leads_on = |d: &&Digest| !rewrites || !members.has(d) || of_use.contains(d);
            todo.extend(members.taken(list).into_iter().filter(leads_on));
        }
    }
    // A signed manifest may be kept under another name than a list has for it.
    let names = |c: &Came| reached.contains(&c.known_as).then(|| c.manifest.digest().clone());
    let renamed: Vec<Digest> = came.iter().filter_map(names).collect();
    Reach {
        skipped,
        useless,
        reached: reached.into_iter().cloned().chain(renamed).collect(),
    }
}

fn as_list(manifest: &Manifest) -> Option<&ManifestListUnit> {
    match manifest {
        Manifest::List(list) => Some(list),
        Manifest::Image(_) => None,
    }
}

/// Whoever names a tag or a digest wants it. `named` has the platforms that there are.
fn refuse_named(
    platforms: Option<&Platforms>,
    named: &BTreeMap<String, &Vec<String>>,
) -> Result<(), CodedError> {
    let (Some((name, has)), Some(platforms)) = (named.first_key_value(), platforms) else {
        return Ok(());
    };
    let what = match named.len() {
        1 => format!("{name} has"),
        more => format!("{more} of the tags named have"),
    };
    let has = match has.len() {
        0 => "none at all".to_owned(),
        _ => has.join(", "),
    };
    let text = format!(
        "{what} upstream no image for {}; {name} has: {has}; add a platform, or take it from the setting tags",
        platforms.filter,
    );
    let tags: Vec<&String> = named.keys().collect();
    Err(CodedError::new(ErrorCode::NO_SUCH_PLATFORM, text)
        .with("tags", tags)
        .with("platforms", platforms.filter.to_string()))
}

/// Lists that take the place of others.
struct Made {
    /// By what they were made of.
    lists: HashMap<Digest, ManifestListUnit>,
    left_out: usize,
}

/// Makes new lists of those of which not all members are `reached`, members first. They are kept from now on.
async fn rewrite(
    content: &ContentStore,
    owner: &str,
    platforms: &Platforms,
    came: &[Came],
    reached: &HashSet<Digest>,
) -> Result<Made, TaskError> {
    let members = Members::of(Some(platforms), came.iter().filter_map(|c| as_list(&c.manifest)));
    let mut made = Made {
        lists: HashMap::new(),
        left_out: 0,
    };
    for list in members.in_order() {
        let mut taken = members.taken(list);
        taken.retain(|d| reached.contains(*d));
        let left_out = list
            .manifests
            .iter()
            .filter(|m| !taken.contains(&m.digest))
            .count();
        made.left_out += left_out;
        if left_out == 0 && !taken.iter().any(|d| made.lists.contains_key(d)) {
            continue;
        }
        let bytes = content.read_bytes(&list.digest, MAX_MANIFEST_BYTES).await?;
        let rewritten = rewritten(&bytes, &list.digest, &taken, &made.lists);
        let parsed = rewritten.map_err(Into::into).and_then(|bytes| {
            Manifest::parse(&bytes, Some(&list.media_type)).map(|manifest| (bytes, manifest))
        });
        let (bytes, mut new) = match parsed {
            Ok((bytes, Manifest::List(new))) => (bytes, new),
            Ok((_, Manifest::Image(_))) => {
                return Err(TaskError::Bug("an index was made an image".to_owned()));
            }
            Err(error) => {
                let text = format!(
                    "index {} can't be made one of {}: {error}",
                    list.digest, platforms.filter
                );
                let error = CodedError::new(ErrorCode::UPSTREAM_MANIFEST, text.clone());
                return Err(error.with("digest", &list.digest).with("reason", text).into());
            }
        };
        new.selection.made_from = Some(MadeFrom {
            digest: list.digest.clone(),
            platforms: platforms.filter.to_string(),
        });
        content.put_bytes(owner, &new.digest, bytes.into()).await?;
        made.lists.insert(list.digest.clone(), new);
    }
    Ok(made)
}

/// An index that has of another one's members those `taken`, or what was `made` of them, and says what it was made of.
/// Everything else is as it was; the same gives the same bytes.
fn rewritten(
    original: &[u8],
    digest: &Digest,
    taken: &BTreeSet<&Digest>,
    made: &HashMap<Digest, ManifestListUnit>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut index: serde_json::Map<String, Value> = serde_json::from_slice(original)?;
    if let Some(Value::Array(members)) = index.get_mut("manifests") {
        let digest_of = |member: &Value| member.get("digest")?.as_str()?.parse::<Digest>().ok();
        members.retain(|member| digest_of(member).is_some_and(|d| taken.contains(&d)));
        for member in members {
            if let Some(new) = digest_of(member).and_then(|d| made.get(&d))
                && let Some(member) = member.as_object_mut()
            {
                member.insert("digest".to_owned(), json!(new.digest));
                member.insert("size".to_owned(), json!(new.size));
                // Both are the old one's.
                member.remove("data");
                member.remove("urls");
            }
        }
    }
    let annotations = index.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(ORIGINAL_DIGEST.to_owned(), json!(digest));
    }
    serde_json::to_vec(&index)
}

#[cfg(test)]
mod tests;
