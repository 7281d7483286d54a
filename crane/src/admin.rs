//! `/crane/`: what is loaded, for who runs it.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    clients::Viewer,
    data::{Tables, V1Repo, V2Repo},
    http_api::{self, Call},
};

/// Answers a request for `path` below `/crane/`: JSON for `Accept: application/json` to the letter, as the original
/// has it, else a page.
pub(crate) fn answer(call: &Call, tables: &Tables, path: &str) -> Response {
    let page = match path {
        "repositories" | "repositories/v1" => page_v1,
        "repositories/v2" => page_v2,
        _ => return http_api::not_found(),
    };
    if call.is_options() {
        return http_api::options();
    }
    if !call.is_read() {
        return http_api::method_not_allowed();
    }
    let wants_json = call.header(header::ACCEPT) == Some("application/json");
    let (viewer, all) = (&call.viewer, sees_all(call));
    if !wants_json {
        let mut response = http_api::bytes(
            StatusCode::OK,
            "text/html; charset=utf-8",
            page(tables, viewer, all),
        );
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
        return response;
    }
    let listed: BTreeMap<&str, Value> = if path == "repositories/v2" {
        shown_v2(tables, viewer, all)
            .map(|(id, r)| (id, json!({ "protected": r.protected })))
            .collect()
    } else {
        shown_v1(tables, viewer, all)
            .map(|(id, r)| {
                let tags: BTreeMap<&str, &str> = r.images.tags().collect();
                (
                    id,
                    json!({ "image_ids": r.images.ids(), "protected": r.protected, "tags": tags }),
                )
            })
            .collect()
    };
    http_api::json(StatusCode::OK, &listed)
}

fn shown_v1<'a>(
    tables: &'a Tables,
    viewer: &'a Viewer,
    all: bool,
) -> impl Iterator<Item = (&'a str, &'a V1Repo)> {
    let shown = tables.v1.iter().filter(move |(_, r)| all || r.shown_to(viewer));
    shown.map(|(id, r)| (id.as_str(), &**r))
}

fn shown_v2<'a>(
    tables: &'a Tables,
    viewer: &'a Viewer,
    all: bool,
) -> impl Iterator<Item = (&'a str, &'a V2Repo)> {
    let shown = tables.v2.iter().filter(move |(_, r)| all || r.shown_to(viewer));
    shown.map(|(id, r)| (id.as_str(), &**r))
}

/// Writes to a text can't fail.
macro_rules! put {
    ($page:expr, $($text:tt)*) => {
        let _ = write!($page, $($text)*);
    };
}

fn page_v1(tables: &Tables, viewer: &Viewer, all: bool) -> String {
    let mut page = head("v1");
    for (id, repo) in shown_v1(tables, viewer, all) {
        repository(&mut page, id, repo.protected);
        put!(page, "<table><tr><th>Tag</th><th>Image Id</th></tr>\n");
        for (tag, image) in repo.images.tags() {
            put!(
                page,
                "<tr><td>{}</td><td>{}</td></tr>\n",
                Escaped(tag),
                Escaped(image)
            );
        }
        put!(page, "</table>\n");
    }
    page + TAIL
}

fn page_v2(tables: &Tables, viewer: &Viewer, all: bool) -> String {
    let mut page = head("v2");
    for (id, repo) in shown_v2(tables, viewer, all) {
        repository(&mut page, id, repo.protected);
    }
    page + TAIL
}

/// No style sheets or scripts from elsewhere: it has to look the same in a closed network.
fn head(api: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{api} Repositories</title>\n\
         <style>body{{font-family:sans-serif;margin:2em}}table{{border-collapse:collapse}}\
         td,th{{border:1px solid #999;padding:.2em .6em;text-align:left}}</style></head>\n<body>\n\
         <nav><a href=\"/crane/repositories\">Repositories</a> <a href=\"/crane/repositories/v2\">Repositories v2</a></nav>\n\
         <h1>Crane: {api} repositories</h1>\n"
    )
}

const TAIL: &str = "</body>\n</html>\n";

fn repository(page: &mut String, id: &str, protected: bool) {
    let protected = if protected { "True" } else { "False" };
    put!(
        page,
        "<hr>\n<h3>Repository id: {}</h3>\n<p>Protected: {protected}</p>\n",
        Escaped(id)
    );
}

/// A text within HTML: ids and tags come from files that anybody may have written.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Names of protected repositories are for the host itself, as the original's sample configuration had it. What a
/// proxy on this host forwards is not from this host.
fn sees_all(call: &Call) -> bool {
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
    call.peer.is_some_and(|p| p.ip().to_canonical().is_loopback())
        && forwarded.iter().all(|name| !call.headers.contains_key(*name))
}
