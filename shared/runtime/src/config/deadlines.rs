//! `[tasks.deadlines]`: how long a run of each kind may take.

use std::{collections::BTreeMap, fmt, time::Duration};

use pulp_model::{
    deadline::{Deadline, Deadlines},
    task::KINDS,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

/// The deadlines that are set, by the name of the kind; the others have those of the release.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadlinesConfig(BTreeMap<&'static str, KindDeadline>);

/// What is set of one kind: `"6h"`, or `{ soft = "6h", hard = "7h" }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KindDeadline {
    soft: Duration,
    hard: Option<Duration>,
}

impl DeadlinesConfig {
    /// The deadlines of all kinds; where no hard one is set it is `margin` after the soft one.
    pub fn with_margin(&self, margin: Duration) -> Deadlines {
        let mut deadlines = Deadlines::of_this_release(margin);
        for (kind, KindDeadline { soft, hard }) in &self.0 {
            let hard = hard.unwrap_or_else(|| soft.saturating_add(margin));
            deadlines.set(kind, Deadline { soft: *soft, hard });
        }
        deadlines
    }
}

impl<'de> Deserialize<'de> for DeadlinesConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Kinds;

        impl<'de> Visitor<'de> for Kinds {
            type Value = DeadlinesConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of task kinds with durations, for example sync = \"6h\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut deadlines = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
                        return Err(A::Error::unknown_field(&name, names()));
                    };
                    let set: KindDeadline = map.next_value()?;
                    // The release's own says as much as none, so that a file may state it.
                    let own = Duration::from_secs(kind.deadline_seconds);
                    if set.soft != own || set.hard.is_some() {
                        deadlines.insert(kind.name, set);
                    }
                }
                Ok(DeadlinesConfig(deadlines))
            }
        }

        deserializer.deserialize_map(Kinds)
    }
}

/// The names of all kinds.
fn names() -> &'static [&'static str] {
    static NAMES: std::sync::OnceLock<Vec<&'static str>> = std::sync::OnceLock::new();
    NAMES.get_or_init(|| KINDS.iter().map(|kind| kind.name).collect())
}

impl<'de> Deserialize<'de> for KindDeadline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Both {
            soft: String,
            hard: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a duration such as \"6h\", or { soft = \"6h\", hard = \"7h\" }"
        )]
        enum Given {
            Soft(String),
            Both(Both),
        }
        let (soft, hard) = match Given::deserialize(deserializer)? {
            Given::Soft(soft) => (soft, None),
            Given::Both(Both { soft, hard }) => (soft, hard),
        };
        let soft = parsed(&soft).map_err(D::Error::custom)?;
        let hard = hard
            .as_deref()
            .map(parsed)
            .transpose()
            .map_err(D::Error::custom)?;
        if hard.is_some_and(|hard| hard < soft) {
            return Err(D::Error::custom("the hard deadline is before the soft one"));
        }
        Ok(Self { soft, hard })
    }
}

/// A duration as people write it.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)
        .map_err(|_| D::Error::custom("expected a duration such as \"90s\", \"15m\", \"6h\" or \"1day\""))?;
    parsed(&text).map_err(D::Error::custom)
}

/// A duration, or `never`.
pub(super) fn duration_or_never<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)
        .map_err(|_| D::Error::custom("expected a duration such as \"15m\" or \"6h\", or \"never\""))?;
    if text.trim() == "never" {
        return Ok(None);
    }
    parsed(&text).map(Some).map_err(D::Error::custom)
}

/// Above zero and at most a year.
fn parsed(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|e| format!("{text:?} is no duration such as \"90s\", \"15m\", \"6h\" or \"1day\": {e}"))?;
    if duration.is_zero() || duration > Duration::from_hours(365 * 24) {
        return Err(format!("{text:?} must be above 0 and at most a year"));
    }
    Ok(duration)
}
