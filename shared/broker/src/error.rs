//! Errors, by what the caller can do.

/// Why the broker could not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No connection now, or it broke during the call. Keep the intent and try again: the connection is
    /// made again in the background.
    #[error("no connection to the broker: {reason}")]
    Disconnected {
        /// The last failure, without credentials.
        reason: String,
    },
    /// The delivery belongs to a session that is over, or was settled before. Forget it: if it was not
    /// settled, it comes again.
    #[error("the delivery belongs to a session that is over, or is settled already")]
    Stale,
    /// The broker answers, and says no; an operator must act.
    #[error("the broker refuses {what}: {reason}")]
    Refused {
        /// What was asked.
        what: String,
        /// What the broker said, and what to do.
        reason: String,
    },
    /// The settings are wrong.
    #[error("broker settings: {reason}")]
    Config {
        /// Which, and why.
        reason: String,
    },
}

impl BrokerError {
    pub(crate) fn consume_dead() -> Self {
        Self::Refused {
            what: "a consumer of the dead letters".to_owned(),
            reason: "their bodies need not be readable; take them one by one instead".to_owned(),
        }
    }
}
