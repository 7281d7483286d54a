//! Listings in pages: `n`, `last` and the `Link` to the next page.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::error::ApiError;
use crate::http_api::{self, Call};

/// Names in one page; that many fit in any client's memory.
pub(super) const NAMES: usize = 10_000;
/// Referrers in one page. Annotations have any length, and clients read 4 MiB of an index as a rule.
pub(super) const REFERRERS: usize = 500;

/// `n` and `last` of a listing. Names are in the order of their bytes; `last` need not be one of them.
pub(super) struct Page {
    n: usize,
    last: Option<String>,
}

impl Page {
    /// `most` is the number that a page has if the client gives none, and at most.
    pub(super) fn of(call: &Call, most: usize) -> Result<Self, ApiError> {
        let n = match call.query("n") {
            None => most,
            Some(n) => match n.parse::<usize>() {
                Ok(number) => number.min(most),
                Err(_) => return Err(ApiError::page_invalid(&n)),
            },
        };
        Ok(Self {
            n,
            last: call.query("last").filter(|l| !l.is_empty()),
        })
    }

    /// This page of things sorted by name, and whether there is another.
    pub(super) fn cut<T>(
        &self,
        things: impl Iterator<Item = T>,
        name: impl Fn(&T) -> &str,
    ) -> (Vec<T>, bool) {
        let seen = |thing: &T| self.last.as_deref().is_some_and(|last| name(thing) <= last);
        let mut rest = things.skip_while(seen);
        let page: Vec<T> = rest.by_ref().take(self.n).collect();
        // With n=0 there is nothing to go on from.
        let more = self.n > 0 && rest.next().is_some();
        (page, more)
    }

    /// The link to the page after `last`; `also` are the query's other parameters.
    pub(super) fn next(&self, path: &str, last: &str, also: &[(&str, &str)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("n", &self.n.to_string())
            .append_pair("last", last)
            .extend_pairs(also);
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
