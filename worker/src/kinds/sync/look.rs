//! What an upstream has of what the settings name; looked at once a task, however many attempts that takes.
//!
//! What was seen is the task's journal: an attempt that takes over from a lost one, or goes on after a pause that the
//! upstream wanted, begins with what it has seen, and so with the same plan. It asks for nothing but what is still missing.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pulp_model::{Attempt, Digest, TagName, importer::ImporterSettings};
use pulp_store::journals::Journal;
use serde::{Deserialize, Serialize};

use super::{before::Before, known, plan::Upstream, upstream::UpstreamRepository};
use crate::{error::TaskError, kinds::Context, progress::StepHandle};

/// For so long a later attempt goes by what an earlier one has seen. Whoever waits longer than that wants to have what is
/// there now.
const HOLDS: Duration = Duration::from_hours(1);

/// What was seen, in the upstream's own terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
    /// Of the tags that the filter takes.
    pub(super) tags: BTreeMap<TagName, Upstream>,
    /// Of the manifests that the settings name by digest and the repository lacks.
    pub(super) digests: BTreeMap<Digest, Upstream>,
    /// Whether the journal has it. It is not written twice, for its age counts.
    #[serde(skip)]
    is_noted: bool,
}

/// What a journal says, and of what.
#[derive(Serialize, Deserialize)]
struct Note<'a> {
    /// Where, and what was looked for: with other settings there is something else to see.
    of: Cow<'a, str>,
    look: Cow<'a, Look>,
}

impl Look {
    /// By what an earlier attempt has seen, or by asking the upstream.
    pub(super) async fn take(
        context: &Context,
        upstream: &UpstreamRepository,
        settings: &ImporterSettings,
        held: &Before,
        step: &StepHandle,
    ) -> Result<Self, TaskError> {
        if context.lease.attempt() > Attempt(1)
            && let Some(journal) = context.worker.store.journal(context.lease.task_id()).await?
            && let Some(look) = Self::noted(&journal, &scope(upstream, settings), &lacking(settings, held))
        {
            let seen = (look.tags.len() + look.digests.len()) as u64;
            step.add_total(seen);
            step.advance(seen);
            return Ok(look);
        }
        Self::anew(upstream, settings, held, step).await
    }

    /// What a journal tells, if it is of the same thing and not too old.
    fn noted(journal: &Journal, of: &str, lacking: &BTreeSet<Digest>) -> Option<Self> {
        if journal.age > HOLDS {
            return None;
        }
        let note: Note<'_> = serde_json::from_str(&journal.note).ok()?;
        let is_whole = lacking.iter().all(|d| note.look.digests.contains_key(d));
        (note.of == of && is_whole).then(|| Self {
            is_noted: true,
            ..note.look.into_owned()
        })
    }

    async fn anew(
        upstream: &UpstreamRepository,
        settings: &ImporterSettings,
        held: &Before,
        step: &StepHandle,
    ) -> Result<Self, TaskError> {
        let lacking = lacking(settings, held);
        let holds_one = lacking.len() < settings.tags.digests().len();
        let plain = settings.tags.plain();
        let listed = plain.is_none();
        let names = match plain {
            Some(names) => names,
            None => settings.tags.select(upstream.list_tags().await?),
        };
        step.add_total((names.len() + lacking.len()) as u64);
        let called = held.known.iter().map(|(called, known)| (called, &known.digest));
        let names = known::as_named_before(names, &held.plan.tags, called);
        let look = Self {
            tags: upstream.look(names, step).await?,
            digests: upstream.look_for(lacking, step).await?,
            is_noted: false,
        };
        if !listed && look.may_be_of_no_repository(holds_one) {
            upstream.list_tags().await?;
        }
        Ok(look)
    }

    /// Whether the upstream may have no such repository: nothing that was asked for is there. Tags that are gone go here as
    /// well in mirror mode, so that has to be known. Digests that are gone change nothing if another one is here.
    fn may_be_of_no_repository(&self, holds_a_digest: bool) -> bool {
        let matters = !self.tags.is_empty() || (!self.digests.is_empty() && !holds_a_digest);
        let mut seen = self.tags.values().chain(self.digests.values());
        matters && seen.all(|s| *s == Upstream::Absent)
    }

    /// Notes what was seen for the attempts after this one.
    pub(super) async fn note(
        &self,
        context: &Context,
        upstream: &UpstreamRepository,
        settings: &ImporterSettings,
    ) -> Result<(), TaskError> {
        if !self.is_noted {
            // Straight into text: there may be many thousands of tags.
            let note = self.text(&scope(upstream, settings));
            context.worker.store.write_journal(&context.lease, note).await?;
        }
        Ok(())
    }

    fn text(&self, of: &str) -> String {
        // Names and digests are texts; so this can't fail.
        let (of, look) = (Cow::Borrowed(of), Cow::Borrowed(self));
        serde_json::to_string(&Note { of, look }).unwrap_or_default()
    }

    /// The tags, with what the repository keeps under another digest than the upstream's called as it is here.
    pub(super) fn tags_as_kept(&self, held: &Before) -> BTreeMap<TagName, Upstream> {
        let as_kept = |state: &Upstream| match state {
            Upstream::Digest(digest) => {
                let kept = held.known.get(digest).map_or(digest, |known| &known.digest);
                Upstream::Digest(kept.clone())
            }
            other => other.clone(),
        };
        self.tags
            .iter()
            .map(|(name, state)| (name.clone(), as_kept(state)))
            .collect()
    }
}

/// The manifests that the settings name by digest and the repository lacks. Of the others nothing is asked: what a digest
/// stands for does not change.
fn lacking(settings: &ImporterSettings, held: &Before) -> BTreeSet<Digest> {
    let named = settings.tags.digests().into_iter();
    named.filter(|d| !held.holds(d)).collect()
}

/// What decides about what there is to see.
fn scope(upstream: &UpstreamRepository, settings: &ImporterSettings) -> String {
    format!(
        "{} {} {:?}",
        upstream.client.base_url(),
        upstream.name,
        settings.tags
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seen() -> Look {
        Look {
            tags: BTreeMap::from([
                ("a".parse().unwrap(), Upstream::Digest(Digest::sha256("a"))),
                ("b".parse().unwrap(), Upstream::Unknown),
                ("c".parse().unwrap(), Upstream::Absent),
            ]),
            digests: BTreeMap::from([(Digest::sha256("d"), Upstream::Absent)]),
            is_noted: false,
        }
    }

    fn journal(age: Duration) -> Journal {
        Journal {
            age,
            note: seen().text("all of it"),
        }
    }

    fn lacking(names: &[&str]) -> BTreeSet<Digest> {
        names.iter().map(Digest::sha256).collect()
    }

    #[test]
    fn a_later_attempt_sees_what_the_one_before_has_seen() {
        let found = Look::noted(&journal(HOLDS), "all of it", &lacking(&["d"])).unwrap();
        assert!(found.is_noted);
        assert_eq!((found.tags, found.digests), (seen().tags, seen().digests));
    }

    #[test]
    fn whether_there_is_a_repository_is_asked_if_nothing_of_it_was_seen() {
        let absent = |tags: &[&str], digests: &[&str]| Look {
            tags: tags
                .iter()
                .map(|t| (t.parse().unwrap(), Upstream::Absent))
                .collect(),
            digests: digests
                .iter()
                .map(|d| (Digest::sha256(d), Upstream::Absent))
                .collect(),
            is_noted: false,
        };
        for holds_a_digest in [false, true] {
            assert!(!seen().may_be_of_no_repository(holds_a_digest));
            assert!(!absent(&[], &[]).may_be_of_no_repository(holds_a_digest));
            assert!(absent(&["a"], &[]).may_be_of_no_repository(holds_a_digest));
            assert!(absent(&["a"], &["d"]).may_be_of_no_repository(holds_a_digest));
            assert_eq!(
                absent(&[], &["d"]).may_be_of_no_repository(holds_a_digest),
                !holds_a_digest
            );
        }
        let mut found = absent(&["a"], &["d"]);
        found.digests.insert(Digest::sha256("e"), Upstream::Unknown);
        assert!(!found.may_be_of_no_repository(false));
    }

    #[test]
    fn what_was_seen_long_ago_or_of_something_else_or_not_as_a_whole_is_not_gone_by() {
        let late = journal(HOLDS + Duration::from_micros(1));
        assert_eq!(Look::noted(&late, "all of it", &lacking(&[])), None);
        assert_eq!(
            Look::noted(&journal(Duration::ZERO), "other tags", &lacking(&[])),
            None
        );
        assert_eq!(
            Look::noted(&journal(Duration::ZERO), "all of it", &lacking(&["d", "e"])),
            None
        );
        let foreign = Journal {
            age: Duration::ZERO,
            note: r#"{"of": "all of it", "look": {"tags": ["a list"]}}"#.to_owned(),
        };
        assert_eq!(Look::noted(&foreign, "all of it", &lacking(&[])), None);
    }
}
