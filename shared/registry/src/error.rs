//! What can go wrong at a registry, by what the caller can do about it.

use std::{error::Error, time::Duration};

use pulp_model::{CodedError, Digest, ErrorCode};

/// A fault of a registry or on the way to it. Each names the url that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry's address or the client's options can't be used.
    #[error("registry {url:?}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No answer: name, connection, TLS, timeout. Trying again may help.
    #[error("{url}: no answer: {}", chain(.source))]
    Transport {
        /// The url.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The body ended before it was whole. Trying again may help.
    #[error("{url}: the body broke off after {received} bytes{}: {reason}", of(*.expected))]
    Interrupted {
        /// The url.
        url: String,
        /// Bytes that came.
        received: u64,
        /// Bytes that should have come, where known.
        expected: Option<u64>,
        /// Why.
        reason: String,
    },
    /// The registry wants other credentials, or none will do.
    #[error("{url}: access denied: {reason}")]
    Unauthorized {
        /// The url.
        url: String,
        /// What it wants, or what it said.
        reason: String,
    },
    /// The repository, tag, manifest or blob is not there.
    #[error("{url}: not found{}", paren(.reason))]
    NotFound {
        /// The url.
        url: String,
        /// What the registry said.
        reason: String,
    },
    /// Another status than expected.
    #[error("{url}: status {status}{}", paren(.reason))]
    Status {
        /// The url.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        reason: String,
    },
    /// The registry wants us to ask later. Trying again then may help.
    #[error("{url}: too many requests{}{}", later(*.retry_after), paren(.reason))]
    RateLimited {
        /// The url.
        url: String,
        /// When to ask again, if it said so.
        retry_after: Option<Duration>,
        /// What the registry said.
        reason: String,
    },
    /// The bytes are others than their digest promises.
    #[error("{url}: the bytes hash to {got}, not to {expected} as they should")]
    Mismatch {
        /// The url.
        url: String,
        /// What was promised.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// There are more or fewer bytes than the descriptor says.
    #[error("{url}: {got} bytes came where the descriptor says {expected}")]
    Size {
        /// The url.
        url: String,
        /// What the descriptor says.
        expected: u64,
        /// What came; where more came, reading ended there.
        got: u64,
    },
    /// An answer that the protocol doesn't allow, or that is larger than anything sensible.
    #[error("{url}: {reason}")]
    Protocol {
        /// The url.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// What the caller does with the content failed.
    #[error("{digest}: {source}")]
    Visitor {
        /// The content at hand.
        digest: Digest,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Interrupted { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// The url that was asked for; empty if it is no fault of the registry.
    pub fn url(&self) -> &str {
        match self {
            Self::Url { url, .. }
            | Self::Transport { url, .. }
            | Self::Interrupted { url, .. }
            | Self::Unauthorized { url, .. }
            | Self::NotFound { url, .. }
            | Self::Status { url, .. }
            | Self::RateLimited { url, .. }
            | Self::Mismatch { url, .. }
            | Self::Size { url, .. }
            | Self::Protocol { url, .. } => url,
            Self::Visitor { .. } => "",
        }
    }

    /// As the REST API and a failed task's row have it.
    pub fn coded(&self) -> CodedError {
        match self {
            Self::Mismatch { url, expected, got } => {
                CodedError::new(ErrorCode::DIGEST_MISMATCH, format!("{self}; nothing was kept"))
                    .with("expected", expected)
                    .with("got", got)
                    .with("file", url)
            }
            _ => CodedError::new(ErrorCode::INTERNAL, self.to_string()),
        }
    }
}

/// An error and what caused it, in one line: reqwest's own text leaves the cause out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

fn of(expected: Option<u64>) -> String {
    expected.map(|n| format!(" of {n}")).unwrap_or_default()
}

fn later(retry_after: Option<Duration>) -> String {
    retry_after
        .map(|d| format!("; asked to come back in {} s", d.as_secs()))
        .unwrap_or_default()
}

fn paren(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}
