//! `/crane/`: what is loaded, for who runs it.

use std::collections::BTreeMap;

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    data::Tables,
    http_api::{self, Call},
};

/// Answers a request for `path` below `/crane/`.
pub(crate) fn answer(call: &Call, tables: &Tables, path: &str) -> Response {
    if call.is_options() {
        return http_api::options();
    }
    if !call.is_read() {
        return http_api::method_not_allowed();
    }
    let all = sees_all(call);
    let listed: BTreeMap<&str, Value> = match path {
        "repositories" | "repositories/v1" => {
            let shown = tables.v1.iter().filter(|(_, r)| all || !r.protected);
            shown
                .map(|(id, r)| {
                    let ids: Vec<&Value> = r.images.iter().filter_map(|i| i.get("id")).collect();
                    (
                        id.as_str(),
                        json!({ "image_ids": ids, "protected": r.protected, "tags": r.tags }),
                    )
                })
                .collect()
        }
        "repositories/v2" => {
            let shown = tables.v2.iter().filter(|(_, r)| all || !r.protected);
            shown
                .map(|(id, r)| (id.as_str(), json!({ "protected": r.protected })))
                .collect()
        }
        _ => return http_api::not_found(),
    };
    http_api::json(StatusCode::OK, &listed)
}

/// Names of protected repositories are for the host itself, as the original's sample configuration had it. What a
/// proxy on this host forwards is not from this host.
fn sees_all(call: &Call) -> bool {
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
    call.peer.is_some_and(|p| p.ip().to_canonical().is_loopback())
        && forwarded.iter().all(|name| !call.headers.contains_key(*name))
}
