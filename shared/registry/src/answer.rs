//! What a registry answers: statuses, errors in its own words, small bodies, the next page.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use reqwest::{
    Response, StatusCode,
    header::{HeaderMap, LINK, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use crate::{RegistryError, Result, auth::Challenge, error::chain, quota::asked_pause};

/// Largest answer of a token server or of a tag page, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// Of an error's words so many bytes are read.
const MAX_ERROR: u64 = 64 * 1024;

/// A small document with what was said of it.
pub(crate) struct Document {
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Document {
    /// Reads an answer whole; more than `limit` bytes are an error.
    pub(crate) async fn read(response: Response, url: &Url, limit: u64) -> Result<Self> {
        let headers = response.headers().clone();
        let bytes = read_document(response, url, limit).await?;
        Ok(Self { headers, bytes })
    }
}

pub(crate) fn transport(url: &Url, error: reqwest::Error) -> RegistryError {
    // The url within may be that of a redirect, with a signature in it.
    RegistryError::Transport {
        url: url.to_string(),
        source: error.without_url(),
    }
}

/// What the registry wants to see before it answers.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).into_iter();
    values
        .filter_map(|v| v.to_str().ok())
        .flat_map(Challenge::parse)
        .collect()
}

/// Turns a status that is no success into an error with the registry's own words.
pub(crate) async fn checked(response: Response, url: &Url) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // The words are a courtesy: whatever happens to them, the status is told.
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let retry_after = retry_after.and_then(|text| asked_pause(text, SystemTime::now()));
    let body = read_document(response, url, MAX_ERROR).await.unwrap_or_default();
    let (url, reason) = (url.to_string(), reason_of(&body));
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
            url,
            reason: if reason.is_empty() {
                status.to_string()
            } else {
                reason
            },
        },
        StatusCode::NOT_FOUND => RegistryError::NotFound { url, reason },
        StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited {
            url,
            retry_after,
            reason,
        },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => RegistryError::RateLimited {
            url,
            retry_after,
            reason,
        },
        _ => RegistryError::Status {
            url,
            status: status.as_u16(),
            reason,
        },
    })
}

/// `CODE: message` of an error body as the distribution specification has it; of others the beginning.
fn reason_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(it) => it
            .errors
            .iter()
            .map(|e| format!("{}: {}", e.code, e.message))
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Reads a body that is small; more than `limit` bytes are an error.
pub(crate) async fn read_document(mut response: Response, url: &Url, limit: u64) -> Result<Bytes> {
    let expected = response.content_length();
    let too_large = || RegistryError::Protocol {
        url: url.to_string(),
        reason: format!("the answer has more than the {limit} bytes allowed"),
    };
    if expected.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if (body.len() + chunk.len()) as u64 > limit => return Err(too_large()),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(e) => {
                let (received, reason) = (body.len() as u64, chain(&e.without_url()));
                return Err(RegistryError::Interrupted {
                    url: url.to_string(),
                    received,
                    expected,
                    reason,
                });
            }
        }
    }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
pub(crate) fn next_page(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(LINK)
        .into_iter()
        .filter_map(|v| v.to_str().ok())
        .find_map(next_of)
}

fn next_of(header: &str) -> Option<String> {
    let mut rest = header;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        let end = after.find('<').unwrap_or(after.len());
        let (parameters, next) = after.split_at(end);
        let is_next = parameters.split([';', ',']).any(|p| {
            let (name, value) = p.split_once('=').unwrap_or((p, ""));
            name.trim().eq_ignore_ascii_case("rel")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        });
        if is_next {
            return Some(target.to_owned());
        }
        rest = next;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        assert_eq!(
            next_of(r#"</v2/a/tags/list?n=1&last=x,y>; rel="next""#).unwrap(),
            "/v2/a/tags/list?n=1&last=x,y"
        );
        assert_eq!(
            next_of(r#"<a>; rel="prev", <b>; title="t"; Rel=next"#).unwrap(),
            "b"
        );
        assert_eq!(next_of(r#"<a>; rel="prev""#), None);
        assert_eq!(next_of("rel=next"), None);
    }

    #[test]
    fn the_registrys_own_words_are_told_in_one_line() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\nsuch"},{"code":"X"}]}"#;
        assert_eq!(reason_of(body), "MANIFEST_UNKNOWN: no such; X:");
        assert_eq!(reason_of(b"<html>"), "<html>");
    }
}
