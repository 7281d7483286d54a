//! Which manifest is redirected to, by what a client accepts.

use http::Method;
use pulp_crane::{Crane, Mode};
use serde_json::{Value, json};

use crate::{
    A1, C, L3, OCI, S1,
    common::{Client, LIST, Old, S2},
    good, v2,
};

/// Rows: a reference. Columns: what is accepted. Cells: what follows the url and `manifests/`.
async fn table(client: &Client, id: &str, url: &str, accepts: &[Option<&str>], rows: &[(&str, &[&str])]) {
    for (reference, cells) in rows {
        for (accept, cell) in accepts.iter().zip(*cells) {
            let headers: Vec<_> = accept.iter().map(|a| ("accept", *a)).collect();
            let path = format!("/v2/{id}/manifests/{reference}");
            let reply = client.ask(Method::GET, &path, &headers).await;
            assert_eq!(
                (reply.status.as_u16(), reply.header("location")),
                (302, Some(format!("{url}/manifests/{cell}").as_str())),
                "{id} {reference} {accept:?}"
            );
        }
        assert_eq!(accepts.len(), cells.len(), "{id} {reference}");
    }
}

#[tokio::test]
async fn manifests_are_chosen_as_the_original_chose_them() {
    let (_old, client) = good();
    let (both, junk) = (format!("{LIST}, {S2}"), format!("{LIST}junk, {S2}"));
    let (weighted, upper) = (format!("{LIST};q=0.5, {S2};q=0.9"), LIST.to_uppercase());
    let accepts = [
        None,
        Some("*/*"),
        Some(S1),
        Some(S2),
        Some(LIST),
        Some(&both),
        Some(OCI),
        Some(&junk),
        Some(&weighted),
        Some(&upper),
    ];
    let c1 = format!("1/{C}");
    let c2 = format!("2/{C}");
    let (a1, a2) = (format!("1/{A1}"), format!("2/{A1}"));
    let (l1, l) = (format!("1/{L3}"), format!("list/{L3}"));
    table(
        &client,
        "redhat/zoo",
        "http://cdn.redhat.com/zoo/bar",
        &accepts,
        &[
            (
                "latest",
                &[
                    &c1,
                    &c1,
                    &c1,
                    &c1,
                    "list/latest",
                    "list/latest",
                    &c1,
                    &c1,
                    "list/latest",
                    &c1,
                ],
            ),
            (
                "bar",
                &[
                    "1/bar", "1/bar", "1/bar", &c2, "list/bar", "list/bar", "1/bar", &c2, "list/bar", "1/bar",
                ],
            ),
            (
                "1.25.1-musl",
                &[
                    "1/1.25.1-musl",
                    "1/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                ],
            ),
            ("unknown", &["1/unknown"; 10]),
            (A1, &[&a1, &a1, &a1, &a2, &a1, &a2, &a1, &a2, &a2, &a1]),
            (L3, &[&l1, &l1, &l1, &l1, &l, &l, &l1, &l1, &l, &l1]),
            (C, &[c1.as_str(); 10]),
        ],
    )
    .await;

    let old = Old::new();
    let digest = |n: char| format!("sha256:{}", n.to_string().repeat(64));
    let (d1, d2, d3, d4, da, d9) = (
        digest('1'),
        digest('2'),
        digest('3'),
        digest('4'),
        digest('a'),
        digest('9'),
    );
    let cdn = |id: &str| format!("https://cdn.example.com/{}", id.replace('/', "-"));
    let put = |id: &str, also: Value| v2(&old, id, &cdn(id), also);
    put(
        "v4/full",
        json!({
            "version": 4, "schema2_data": ["both", "s2only", d2],
            "manifest_list_data": ["multi", "multi1", "noamd", "both", da],
            "manifest_list_amd64_tags": { "multi": [d2, 2], "multi1": [d1, 1], "amdonly": [d3, 2], "amdonly1": [d4, 1] },
        }),
    );
    put(
        "v4/nos2",
        json!({
            "version": 4, "schema2_data": [], "manifest_list_data": ["multi"], "manifest_list_amd64_tags": { "multi": [d2, 2] },
        }),
    );
    put(
        "v4/nolist",
        json!({ "version": 4, "schema2_data": ["s2"], "manifest_list_data": [], "manifest_list_amd64_tags": {} }),
    );
    put(
        "v4/empty",
        json!({ "version": 4, "schema2_data": [], "manifest_list_data": [], "manifest_list_amd64_tags": {} }),
    );
    put("v3/full", json!({ "version": 3, "schema2_data": ["s2only", d2] }));
    put("v3/empty", json!({ "version": 3, "schema2_data": [] }));
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    let m = |folder: &str, digest: &str| format!("{folder}/{digest}");
    table(
        &client,
        "v4/full",
        &cdn("v4/full"),
        &[None, Some(S2), Some(LIST), Some(&both)],
        &[
            ("multi", &["1/multi", &m("2", &d2), "list/multi", "list/multi"]),
            (
                "multi1",
                &[&m("1", &d1), &m("1", &d1), "list/multi1", "list/multi1"],
            ),
            ("noamd", &["1/noamd", "1/noamd", "list/noamd", "list/noamd"]),
            ("both", &["1/both", "2/both", "list/both", "list/both"]),
            ("s2only", &["1/s2only", "2/s2only", "1/s2only", "2/s2only"]),
            ("amdonly", &["1/amdonly", &m("2", &d3), "1/amdonly", &m("2", &d3)]),
            (
                "amdonly1",
                &[&m("1", &d4), &m("1", &d4), &m("1", &d4), &m("1", &d4)],
            ),
            ("unknown", &["1/unknown"; 4]),
            (&d2, &[&m("1", &d2), &m("2", &d2), &m("1", &d2), &m("2", &d2)]),
            (&d1, &[&m("1", &d1), &m("1", &d1), &m("1", &d1), &m("1", &d1)]),
            (
                &da,
                &[&m("1", &da), &m("1", &da), &m("list", &da), &m("list", &da)],
            ),
            (&d9, &[&m("1", &d9), &m("1", &d9), &m("1", &d9), &m("1", &d9)]),
        ],
    )
    .await;
    let three = [None, Some(S2), Some(both.as_str())];
    let (m2, all1): (String, [[&str; 3]; 4]) = (
        m("2", &d2),
        [["1/multi"; 3], ["1/s2"; 3], ["1/s2only"; 3], ["1/unknown"; 3]],
    );
    for (id, row, cells) in [
        ("v4/nos2", "multi", ["1/multi", &m2, "list/multi"]),
        ("v4/nolist", "s2", ["1/s2", "2/s2", "2/s2"]),
        ("v4/empty", "", [""; 3]),
        ("v3/full", "s2only", ["1/s2only", "2/s2only", "2/s2only"]),
        ("v3/empty", "", [""; 3]),
    ] {
        for (reference, plain) in ["multi", "s2", "s2only", "unknown"].iter().zip(&all1) {
            let cells = if *reference == row { &cells } else { plain };
            table(&client, id, &cdn(id), &three, &[(reference, cells)]).await;
        }
    }
}
