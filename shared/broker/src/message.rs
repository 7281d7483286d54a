//! What is said, and how it looks on the wire.
//!
//! Bodies are JSON objects with a version `v` and a `type`. A reader ignores fields that it doesn't know, and
//! hands a body of another version, or of no known type, to the dead letters: a newer sender bumps `v`
//! only when an older reader would misunderstand.

use std::{fmt, sync::Arc};

use pulp_model::{
    id::{Attempt, Epoch, TaskId},
    task::{Newcomer, TaskClass},
};
use pulp_trace::TraceContext;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of every body that this release writes and reads.
const VERSION: u64 = 1;

/// Where messages wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// To the resource manager.
    Intake,
    /// To the workers that serve a class; each message goes to one of them.
    Class(TaskClass),
    /// Unreadable, rejected, or returned too often.
    Dead,
}

impl Queue {
    /// All of them, in the order in which a session declares them: dead letters need a place first.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Dead, Self::Intake]
            .into_iter()
            .chain(TaskClass::ALL.into_iter().map(Self::Class))
    }

    /// The name without prefix, as outbox rows keep it: `intake`, `tasks.import`, `dead`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Intake => "intake",
            Self::Class(TaskClass::Interactive) => "tasks.interactive",
            Self::Class(TaskClass::Import) => "tasks.import",
            Self::Class(TaskClass::Publish) => "tasks.publish",
            Self::Class(TaskClass::Sync) => "tasks.sync",
            Self::Class(TaskClass::Maintenance) => "tasks.maintenance",
            Self::Dead => "dead",
        }
    }

    /// Reads a [`Queue::key`].
    pub fn parse(key: &str) -> Option<Self> {
        Self::all().find(|queue| queue.key() == key)
    }

    /// The name on the broker: `pulp.tasks.import` for the prefix `pulp`.
    pub fn name(self, prefix: &str) -> String {
        format!("{prefix}.{}", self.key())
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// A body for a queue. Identifiers, for the receiver reads the row, and of a task that was just made what never changes: whoever
/// does not know it yet need not look at its row before it changes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// A task was accepted and waits for its resources.
    Submitted {
        /// Which.
        task_id: TaskId,
        /// What it is, if it was just made. A sender that leaves it out may mean a task that waits again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        made: Option<Arc<Newcomer>>,
    },
    /// A task holds its resources no more.
    Ended {
        /// Which.
        task_id: TaskId,
        /// Whether it is certain that its state is a terminal one, which no row can tell otherwise any more. A sender that
        /// leaves it out may mean a task that waits again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        terminal: bool,
    },
    /// Several of these at once, sent together because they came together.
    Changed {
        /// Which.
        task_ids: Vec<TaskId>,
        /// Those of them that are certain to be in a terminal state.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        terminal: Vec<TaskId>,
        /// Those of them that were just made.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        made: Vec<Arc<Newcomer>>,
    },
    /// A task holds its resources: whoever claims this attempt first may run it.
    Grant {
        /// Which task.
        task_id: TaskId,
        /// Which attempt.
        attempt: Attempt,
        /// In which class.
        class: TaskClass,
        /// The leadership that granted it.
        epoch: Epoch,
    },
}

impl Message {
    /// The queue where it belongs.
    pub const fn queue(&self) -> Queue {
        match self {
            Self::Submitted { .. } | Self::Ended { .. } | Self::Changed { .. } => Queue::Intake,
            Self::Grant { class, .. } => Queue::Class(*class),
        }
    }

    /// The tasks it speaks of.
    pub fn task_ids(&self) -> &[TaskId] {
        match self {
            Self::Submitted { task_id, .. } | Self::Ended { task_id, .. } | Self::Grant { task_id, .. } => {
                std::slice::from_ref(task_id)
            }
            Self::Changed { task_ids, .. } => task_ids,
        }
    }

    /// Those of them that are in a terminal state: to know that, nobody has to look at their rows.
    pub fn terminal(&self) -> &[TaskId] {
        match self {
            Self::Ended {
                task_id,
                terminal: true,
            } => std::slice::from_ref(task_id),
            Self::Changed { terminal, .. } => terminal,
            Self::Submitted { .. } | Self::Ended { .. } | Self::Grant { .. } => &[],
        }
    }

    /// Those of them that were just made, as they were then.
    pub fn made(&self) -> &[Arc<Newcomer>] {
        match self {
            Self::Submitted { made: Some(made), .. } => std::slice::from_ref(made),
            Self::Changed { made, .. } => made,
            Self::Submitted { made: None, .. } | Self::Ended { .. } | Self::Grant { .. } => &[],
        }
    }

    /// Tells also what other news tell.
    pub fn tell_also(&mut self, more: &Self) {
        if !matches!(self, Self::Changed { .. }) {
            *self = Self::Changed {
                task_ids: self.task_ids().to_vec(),
                terminal: self.terminal().to_vec(),
                made: self.made().to_vec(),
            };
        }
        if let Self::Changed {
            task_ids,
            terminal,
            made,
        } = self
        {
            task_ids.extend_from_slice(more.task_ids());
            terminal.extend_from_slice(more.terminal());
            made.extend_from_slice(more.made());
        }
    }

    /// The `type`, also in the AMQP property of this name.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::Ended { .. } => "ended",
            Self::Changed { .. } => "changed",
            Self::Grant { .. } => "grant",
        }
    }

    /// The body on the wire and in outbox rows.
    pub fn to_json(&self) -> String {
        encode(self)
    }

    /// Reads a body.
    ///
    /// # Errors
    ///
    /// When it is no JSON object, of another version, of an unknown type, or lacks a field.
    pub fn from_json(body: &[u8]) -> Result<Self, Undecodable> {
        decode(body)
    }
}

/// What every worker and manager may want to know at once; lost ones are made up for by reading the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// The cancel of a task was asked for: whoever runs it, look.
    Cancel {
        /// Which.
        task_id: TaskId,
    },
    /// Something changed that has no message of its own: look at the rows now, not at the next tick.
    Wake,
}

impl Control {
    /// The body on the wire.
    pub fn to_json(&self) -> String {
        encode(self)
    }

    /// Reads a body.
    ///
    /// # Errors
    ///
    /// As [`Message::from_json`].
    pub fn from_json(body: &[u8]) -> Result<Self, Undecodable> {
        decode(body)
    }
}

/// One message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To where.
    pub queue: Queue,
    /// What.
    pub message: Message,
    /// The sender's id of it: the outbox row's.
    pub message_id: String,
    /// The trace that it belongs to; in AMQP the headers `traceparent` and `tracestate`.
    pub trace: Option<TraceContext>,
}

impl Outgoing {
    /// A message to the queue where it belongs.
    pub fn new(message: Message, message_id: impl Into<String>) -> Self {
        Self {
            queue: message.queue(),
            message,
            message_id: message_id.into(),
            trace: None,
        }
    }

    /// The same as a part of this trace.
    #[must_use]
    pub fn within(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }
}

/// A message that ended in the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The queue it was taken from, if the broker says.
    pub queue: Option<String>,
    /// Why, in the broker's words: `rejected`, `delivery_limit`, …
    pub reason: Option<String>,
    /// The sender's id.
    pub message_id: Option<String>,
    /// The body, which need not be readable.
    pub body: Vec<u8>,
}

/// A body that this release can't read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable body: {0}")]
pub struct Undecodable(String);

#[derive(Serialize)]
struct Envelope<'a, T> {
    v: u64,
    #[serde(flatten)]
    content: &'a T,
}

fn encode<T: Serialize>(content: &T) -> String {
    // Strings, integers and unit-free enums only: nothing here can fail to become JSON.
    serde_json::to_string(&Envelope { v: VERSION, content }).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Undecodable> {
    #[derive(Deserialize)]
    struct Head {
        v: u64,
    }
    let head: Head = serde_json::from_slice(body).map_err(|e| Undecodable(e.to_string()))?;
    if head.v != VERSION {
        return Err(Undecodable(format!(
            "version {}, this release reads {VERSION}",
            head.v
        )));
    }
    serde_json::from_slice(body).map_err(|e| Undecodable(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pulp_model::{
        Timestamp,
        task::{Claim, Owner, ResourceKey},
    };

    use super::*;

    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    const MADE: &str = r#"{"task_id":"0190163d-8694-739b-aea5-966c26f8ad91","class":"import","owner":"user:ann","kind_name":"import_upload","schema_version":3,"claims":[{"resource":"repository:r","mode":"exclusive"}],"created":1700000000000000}"#;

    fn id() -> TaskId {
        ID.parse().unwrap()
    }

    fn newcomer() -> Newcomer {
        Newcomer {
            task_id: id(),
            class: TaskClass::Import,
            owner: Owner::from_stored("user:ann"),
            kind_name: "import_upload".to_owned(),
            schema_version: 3,
            claims: vec![Claim::exclusive(ResourceKey::from_stored("repository:r"))],
            created: Timestamp(1_700_000_000_000_000),
        }
    }

    /// Bodies that any release, past or future, may find in a queue. A line may be added, none changed.
    #[test]
    fn bodies_look_the_same_in_every_release() {
        let corpus = [
            (
                Message::Submitted {
                    task_id: id(),
                    made: None,
                },
                format!(r#"{{"v":1,"type":"submitted","task_id":"{ID}"}}"#),
            ),
            (
                Message::Submitted {
                    task_id: id(),
                    made: Some(Arc::new(newcomer())),
                },
                format!(r#"{{"v":1,"type":"submitted","task_id":"{ID}","made":{MADE}}}"#),
            ),
            (
                Message::Ended {
                    task_id: id(),
                    terminal: false,
                },
                format!(r#"{{"v":1,"type":"ended","task_id":"{ID}"}}"#),
            ),
            (
                Message::Ended {
                    task_id: id(),
                    terminal: true,
                },
                format!(r#"{{"v":1,"type":"ended","task_id":"{ID}","terminal":true}}"#),
            ),
            (
                Message::Changed {
                    task_ids: vec![id()],
                    terminal: Vec::new(),
                    made: Vec::new(),
                },
                format!(r#"{{"v":1,"type":"changed","task_ids":["{ID}"]}}"#),
            ),
            (
                Message::Changed {
                    task_ids: vec![id()],
                    terminal: vec![id()],
                    made: Vec::new(),
                },
                format!(r#"{{"v":1,"type":"changed","task_ids":["{ID}"],"terminal":["{ID}"]}}"#),
            ),
            (
                Message::Changed {
                    task_ids: vec![id()],
                    terminal: Vec::new(),
                    made: vec![Arc::new(newcomer())],
                },
                format!(r#"{{"v":1,"type":"changed","task_ids":["{ID}"],"made":[{MADE}]}}"#),
            ),
            (
                Message::Grant {
                    task_id: id(),
                    attempt: Attempt(2),
                    class: TaskClass::Import,
                    epoch: Epoch(7),
                },
                format!(
                    r#"{{"v":1,"type":"grant","task_id":"{ID}","attempt":2,"class":"import","epoch":7}}"#
                ),
            ),
        ];
        for (message, json) in corpus {
            assert_eq!(message.to_json(), json);
            assert_eq!(Message::from_json(json.as_bytes()).unwrap(), message);
        }
        let corpus = [
            (
                Control::Cancel { task_id: id() },
                format!(r#"{{"v":1,"type":"cancel","task_id":"{ID}"}}"#),
            ),
            (Control::Wake, r#"{"v":1,"type":"wake"}"#.to_owned()),
        ];
        for (control, json) in corpus {
            assert_eq!(control.to_json(), json);
            assert_eq!(Control::from_json(json.as_bytes()).unwrap(), control);
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let body = format!(r#"{{"hint":[1],"type":"ended","task_id":"{ID}","v":1,"later":{{}}}}"#);
        assert_eq!(
            Message::from_json(body.as_bytes()).unwrap(),
            Message::Ended {
                task_id: id(),
                terminal: false
            }
        );
    }

    #[test]
    fn another_version_an_unknown_type_and_rubbish_are_unreadable() {
        for body in [
            format!(r#"{{"v":2,"type":"ended","task_id":"{ID}"}}"#),
            format!(r#"{{"type":"ended","task_id":"{ID}"}}"#),
            format!(r#"{{"v":1,"type":"exploded","task_id":"{ID}"}}"#),
            r#"{"v":1,"type":"ended","task_id":"x"}"#.to_owned(),
            r#"{"v":1,"type":"ended"}"#.to_owned(),
            String::new(),
            "[]".to_owned(),
            "\u{0}\u{1}".to_owned(),
        ] {
            assert!(Message::from_json(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_queue_is_found_by_its_key_and_named_by_its_prefix() {
        for queue in Queue::all() {
            assert_eq!(Queue::parse(queue.key()), Some(queue));
        }
        assert_eq!(Queue::parse("tasks.nonsense"), None);
        assert_eq!(Queue::Intake.name("pulp"), "pulp.intake");
        assert_eq!(Queue::Class(TaskClass::Import).name("pulp"), "pulp.tasks.import");
        assert_eq!(Queue::Dead.name("pulp"), "pulp.dead");
    }

    #[test]
    fn each_message_knows_its_queue() {
        let grant = Message::Grant {
            task_id: id(),
            attempt: Attempt(1),
            class: TaskClass::Sync,
            epoch: Epoch(1),
        };
        assert_eq!(grant.queue(), Queue::Class(TaskClass::Sync));
        let ended = Message::Ended {
            task_id: id(),
            terminal: true,
        };
        assert_eq!(ended.queue(), Queue::Intake);
    }
}
