//! The v1 API.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Client, Old, Site};
use http::Method;
use pulp_crane::{Crane, CraneConfig, Mode};
use serde_json::json;

#[tokio::test]
async fn an_old_docker_finds_its_way_to_a_layer() {
    let site = Site::new();
    let image = site.image("busybox", "pulpdemo/busybox", "a");
    site.publish(&image.contents);
    let client = site.client();

    let ping = client.get("/v1/_ping").await;
    assert_eq!(
        (ping.json(), ping.header("x-docker-registry-standalone")),
        (json!(true), Some("True"))
    );
    let images = client.get("/v1/repositories/pulpdemo/busybox/images").await;
    assert_eq!(images.json(), json!([{ "id": image.image_id }]));
    assert_eq!(
        images.header("x-docker-endpoints"),
        Some("registry.example.com:5000")
    );
    let tags = client.get("/v1/repositories/pulpdemo/busybox/tags").await;
    assert_eq!(tags.json(), json!({ "latest": image.image_id }));
    let tag = client.get("/v1/repositories/pulpdemo/busybox/tags/latest").await;
    assert_eq!(tag.json(), json!(image.image_id));

    for (file, content_type) in [
        ("json", "application/json"),
        ("ancestry", "application/json"),
        ("layer", "application/octet-stream"),
    ] {
        let uri = format!("/v1/images/{}/{file}", image.image_id);
        let reply = client.get(&uri).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("content-type")),
            (200, Some(content_type)),
            "{file}"
        );
        let head = client.ask(Method::HEAD, &uri, &[]).await;
        assert_eq!(
            (head.headers, head.body.len()),
            (reply.headers.clone(), 0),
            "{file}"
        );
        let same = client
            .get(&format!("/pulp/docker/v1/busybox/{}/{file}", image.image_id))
            .await;
        assert!(same.body == reply.body && !same.body.is_empty());
        if file == "layer" {
            assert!(reply.body == image.layer_bytes[..]);
        }
        for (name, value) in [
            ("x-docker-registry-version", "0.6.6"),
            ("x-docker-registry-config", "common"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{file}");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_404_with_the_headers_of_the_api() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let client = site.client();
    for path in [
        "repositories/unknown/images".to_owned(),
        "repositories/busybox/tags/unknown".into(),
        "repositories/busybox".into(),
        "images/unknown/json".into(),
        format!("images/{}/secret", image.image_id),
        "_ping/".into(),
        "nonsense".into(),
    ] {
        let reply = client.get(&format!("/v1/{path}")).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (404, &b"Not Found"[..]),
            "{path}"
        );
        assert_eq!(reply.header("x-docker-registry-version"), Some("0.6.6"), "{path}");
    }
    let push = client.ask(Method::PUT, "/v1/repositories/busybox/", &[]).await;
    assert_eq!(push.status, 405);
    assert_eq!(client.ask(Method::POST, "/v1/users/", &[]).await.status, 201);
    assert_eq!(client.get("/v1/users/").await.json(), json!("OK"));
    assert_eq!(
        client.get("/v1/users").await.header("location"),
        Some("/v1/users/")
    );
    for path in ["/", "/v1", "/v1/", "/crane", "/crane/"] {
        assert_eq!(client.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn official_names_come_with_and_without_library() {
    let site = Site::new();
    site.publish(&site.image("busybox", "busybox", "a").contents);
    site.publish(&site.image("odd", "org/tags", "b").contents);
    let client = site.client();
    for path in [
        "library/busybox/tags/latest",
        "busybox/tags/latest",
        "org/tags/tags/latest",
        "org/tags/tags",
        "org/tags/images",
    ] {
        assert_eq!(
            client.get(&format!("/v1/repositories/{path}")).await.status,
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn search_looks_at_the_names() {
    let site = Site::new();
    site.publish(&site.image("one", "pulpdemo/busybox", "a").contents);
    site.publish(&site.image("two", "other", "b").contents);
    let client = site.client();
    let found = client.get("/v1/search?q=BUSY").await.json();
    assert_eq!(found["num_results"], 1);
    assert_eq!(found["results"][0]["name"], "pulpdemo/busybox");
    assert_eq!(client.get("/v1/search").await.status, 400);
    assert_eq!(client.get("/v1/search?q=").await.status, 400);
}

#[tokio::test]
async fn redirects_and_endpoint_are_those_of_the_file_and_the_configuration() {
    let old = Old::new();
    old.write(
        "foo.json",
        json!({
            "version": 1, "repository": "foo", "repo-registry-id": "redhat/foo",
            "url": "http://cdn.redhat.com/foo/bar/images",
            "images": [{ "id": "abc123", "checksum": "x" }],
            "tags": { "latest": "abc123", "test": "def234", "none": null },
        })
        .to_string(),
    );
    let config = CraneConfig {
        endpoint: Some("localhost:5000".into()),
        ..old.config(Mode::Redirect)
    };
    let client = Client(Crane::open(config).router());
    for file in ["ancestry", "json", "layer"] {
        let reply = client.get(&format!("/v1/images/abc123/{file}")).await;
        let url = format!("http://cdn.redhat.com/foo/bar/images/abc123/{file}");
        assert_eq!(
            (reply.status.as_u16(), reply.header("location")),
            (302, Some(url.as_str()))
        );
    }
    let images = client.get("/v1/repositories/redhat/foo/images").await;
    assert_eq!(images.header("x-docker-endpoints"), Some("localhost:5000"));
    assert_eq!(images.json(), json!([{ "id": "abc123", "checksum": "x" }]));
    // An image that a tag names need not be among the images.
    assert_eq!(
        client.get("/v1/repositories/redhat/foo/tags/test").await.json(),
        json!("def234")
    );
    assert_eq!(
        client.get("/v1/repositories/redhat/foo/tags/none").await.status,
        404
    );
}

#[tokio::test]
async fn search_finds_names_first_then_tags_then_labels() {
    let site = Site::new();
    site.publish(&site.image("one", "pulpdemo/busybox", "a").contents);
    site.publish(&site.image("two", "other", "busybox").contents);
    let mut labelled = site.image("three", "third", "c");
    let labels =
        json!({ "maintainer": "The BusyBox people", "org.opencontainers.image.description": "Small" });
    let config = site.put(json!({ "config": { "Labels": labels } }).to_string().as_bytes());
    labelled.relabel(&site, config);
    site.publish(&labelled.contents);
    let client = site.client();
    let found = client.get("/v1/search?q=busybox").await.json();
    let names: Vec<_> = found["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].clone())
        .collect();
    assert_eq!(names, ["pulpdemo/busybox", "other", "third"]);
    assert_eq!(found["results"][2]["description"], "Small");
    assert_eq!(
        client.get("/v1/search?q=caf%C3%A9").await.json()["num_results"],
        0
    );
}
