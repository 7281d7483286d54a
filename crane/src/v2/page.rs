//! Listings in pages: `n`, `last` and the `Link` to the next page.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::error::ApiError;
use crate::http_api::{self, Call};

/// Names in one page if the client gives no number, and at most; that many fit in any client's memory.
const PAGE: usize = 10_000;

/// `n` and `last` of a listing. Names are in the order of their bytes; `last` need not be one of them.
pub(super) struct Page {
    n: usize,
    last: Option<String>,
}

impl Page {
    pub(super) fn of(call: &Call) -> Result<Self, ApiError> {
        let n = match call.query("n") {
            None => PAGE,
            Some(n) => match n.parse::<usize>() {
                Ok(number) => number.min(PAGE),
                Err(_) => return Err(ApiError::page_invalid(&n)),
            },
        };
        Ok(Self {
            n,
            last: call.query("last").filter(|l| !l.is_empty()),
        })
    }

    /// This page of sorted names, and whether there is another.
    pub(super) fn cut<'a>(&self, names: impl Iterator<Item = &'a String>) -> (Vec<&'a str>, bool) {
        let seen = |name: &&'a str| self.last.as_deref().is_some_and(|last| *name <= last);
        let mut rest = names.map(String::as_str).skip_while(seen);
        let page: Vec<&str> = rest.by_ref().take(self.n).collect();
        // With n=0 there is nothing to go on from.
        let more = self.n > 0 && rest.next().is_some();
        (page, more)
    }

    pub(super) fn next(&self, path: &str, last: Option<&&str>) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("n", &self.n.to_string())
            .append_pair("last", last.copied().unwrap_or_default());
        format!("<{path}?{}>; rel=\"next\"", query.finish())
    }
}

/// A page as the answer, with the link to the next one.
pub(super) fn paged(body: &impl Serialize, next: Option<String>) -> Response {
    let mut response = http_api::json(StatusCode::OK, body);
    if let Some(Ok(next)) = next.map(|n| HeaderValue::from_str(&n)) {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}
