//! The v2/OCI API over publications of our own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Client, LIST, OCI_IMAGE, OCI_INDEX, S2, Site};
use http::Method;
use pulp_crane::{Crane, Mode};
use pulp_model::Digest;
use serde_json::json;

#[tokio::test]
async fn ping_says_which_api_this_is() {
    let client = Site::new().client();
    let reply = client.get("/v2/").await;
    assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({})));
    assert_eq!(
        reply.header("docker-distribution-api-version"),
        Some("registry/2.0")
    );
    assert_eq!(client.get("/v2").await.header("location"), Some("/v2/"));
}

#[tokio::test]
async fn a_manifest_is_sent_as_stored_by_tag_and_by_digest() {
    let site = Site::new();
    let image = site.image("busybox", "pulpdemo/busybox", "a");
    site.publish(&image.contents);
    let client = site.client();
    for (reference, cache) in [
        ("latest".to_owned(), "no-cache"),
        (image.manifest.to_string(), "public, max-age=31536000, immutable"),
    ] {
        let uri = format!("/v2/pulpdemo/busybox/manifests/{reference}");
        let reply = client.get(&uri).await;
        assert_eq!(reply.status, 200);
        assert!(image.manifest.matches(&reply.body));
        assert_eq!(reply.header("content-type"), Some(S2));
        assert_eq!(
            reply.header("docker-content-digest"),
            Some(image.manifest.to_string().as_str())
        );
        assert_eq!(
            reply.header("etag"),
            Some(format!("\"{}\"", image.manifest).as_str())
        );
        assert_eq!(
            reply.header("content-length"),
            Some(reply.body.len().to_string().as_str())
        );
        assert_eq!(reply.header("cache-control"), Some(cache));
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            Some("registry/2.0")
        );

        let head = client.ask(Method::HEAD, &uri, &[]).await;
        assert!(head.body.is_empty());
        assert_eq!(head.headers, reply.headers);

        let etag = reply.header("etag").unwrap();
        let known = client.ask(Method::GET, &uri, &[("if-none-match", etag)]).await;
        assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
        assert_eq!(known.header("etag"), Some(etag));
    }
}

#[tokio::test]
async fn a_tag_is_negotiated_by_what_the_client_accepts() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let client = site.client();
    let all = [S2, LIST, OCI_IMAGE, OCI_INDEX].join(", ");
    let containerd = format!("{S2}, {LIST}, */*");
    for (tag, accept, digest, content_type) in [
        ("multi", LIST, &image.list, LIST),
        ("multi", OCI_INDEX, &image.list, LIST),
        ("multi", "*/*", &image.list, LIST),
        ("multi", &all, &image.list, LIST),
        ("multi", &containerd, &image.list, LIST),
        ("multi", S2, &image.manifest, S2),
        ("multi", OCI_IMAGE, &image.manifest, S2),
        ("latest", S2, &image.manifest, S2),
        ("latest", LIST, &image.manifest, S2),
        ("oci", &all, &image.oci, OCI_IMAGE),
        ("oci", S2, &image.oci, OCI_IMAGE),
        ("tags", LIST, &image.list, LIST),
    ] {
        let reply = client
            .accepting(&format!("/v2/busybox/manifests/{tag}"), accept)
            .await;
        assert_eq!(
            reply.header("docker-content-digest"),
            Some(digest.to_string().as_str()),
            "{tag} {accept}"
        );
        assert_eq!(reply.header("content-type"), Some(content_type), "{tag} {accept}");
        assert_eq!(reply.header("vary"), Some("Accept"));
        assert!(digest.matches(&reply.body));
    }
    // A digest names one thing, whatever is accepted.
    let by_digest = client
        .accepting(&format!("/v2/busybox/manifests/{}", image.list), S2)
        .await;
    assert!(image.list.matches(&by_digest.body));
    // One header a type, as docker sends them.
    let headers = [("accept", S2), ("accept", LIST)];
    let reply = client
        .ask(Method::GET, "/v2/busybox/manifests/multi", &headers)
        .await;
    assert_eq!(reply.header("content-type"), Some(LIST));
}

#[tokio::test]
async fn a_blob_is_sent_whole_and_in_ranges() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "abc");
    site.publish(&image.contents);
    let client = site.client();
    let uri = format!("/v2/busybox/blobs/{}", image.layer);
    let bytes = &image.layer_bytes;

    let whole = client.get(&uri).await;
    assert_eq!(whole.status, 200);
    assert!(whole.body == bytes[..]);
    assert_eq!(whole.header("content-type"), Some("application/octet-stream"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(
        whole.header("docker-content-digest"),
        Some(image.layer.to_string().as_str())
    );
    let head = client.ask(Method::HEAD, &uri, &[]).await;
    assert_eq!((head.headers, head.body.len()), (whole.headers.clone(), 0));

    let length = bytes.len();
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=262143-262144", 262_143..262_145),
        ("bytes=5-", 5..length),
        ("bytes=-7", length - 7..length),
    ] {
        let reply = client.ask(Method::GET, &uri, &[("range", range)]).await;
        assert_eq!(reply.status, 206, "{range}");
        assert!(reply.body == bytes[part.clone()], "{range}");
        let content_range = format!("bytes {}-{}/{length}", part.start, part.end - 1);
        assert_eq!(reply.header("content-range"), Some(content_range.as_str()));
        assert_eq!(
            reply.header("content-length"),
            Some(part.len().to_string().as_str())
        );
    }
    let beyond = client
        .ask(Method::GET, &uri, &[("range", &format!("bytes={length}-"))])
        .await;
    assert_eq!(beyond.status, 416);
    assert_eq!(
        beyond.header("content-range"),
        Some(format!("bytes */{length}").as_str())
    );
    let stale = client
        .ask(
            Method::GET,
            &uri,
            &[("range", "bytes=0-0"), ("if-range", "\"other\"")],
        )
        .await;
    assert_eq!((stale.status.as_u16(), stale.body.len()), (200, length));
}

#[tokio::test]
async fn tags_come_in_order_and_in_pages() {
    let site = Site::new();
    site.publish(&site.image("busybox", "a/b", "x").contents);
    let client = site.client();
    let all = ["latest", "multi", "oci", "only-x", "tags"];
    let reply = client.get("/v2/a/b/tags/list").await;
    assert_eq!(reply.json(), json!({ "name": "a/b", "tags": all }));
    assert_eq!(reply.header("link"), None);

    let mut next = "/v2/a/b/tags/list?n=2".to_owned();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let page = client.get(&next).await;
        seen.extend(
            page.json()["tags"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap().to_owned()),
        );
        let Some(link) = page.header("link") else { break };
        next = link
            .strip_prefix('<')
            .unwrap()
            .strip_suffix(">; rel=\"next\"")
            .unwrap()
            .to_owned();
    }
    assert_eq!(seen, all);

    let tags = async |uri| client.get(uri).await.json()["tags"].clone();
    assert_eq!(tags("/v2/a/b/tags/list?n=0").await, json!([]));
    assert_eq!(
        tags("/v2/a/b/tags/list?last=nowhere").await,
        json!(["oci", "only-x", "tags"])
    );
    assert_eq!(client.get("/v2/a/b/tags/list?n=0").await.header("link"), None);
    assert_eq!(client.get("/v2/a/b/tags/list?n=-1").await.error().0, 400);
    assert_eq!(
        client.get("/v2/_catalog").await.json(),
        json!({ "repositories": ["a/b"] })
    );
}

#[tokio::test]
async fn errors_have_the_codes_of_the_specification() {
    let site = Site::new();
    site.publish(&site.image("busybox", "a/b", "x").contents);
    let client = site.client();
    let digest = Digest::sha256("nothing");
    for (uri, status, code) in [
        ("/v2/unknown/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v2/unknown/manifests/latest".into(), 404, "NAME_UNKNOWN"),
        ("/v2/UPPER/manifests/latest".into(), 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/latest".into(), 400, "NAME_INVALID"),
        ("/v2/a/../a/b/manifests/latest".into(), 400, "NAME_INVALID"),
        ("/v2/a/b/manifests/unknown".into(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/b/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/b/manifests/sha256:12".into(), 400, "DIGEST_INVALID"),
        ("/v2/a/b/manifests/.x".into(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/b/blobs/{digest}"), 404, "BLOB_UNKNOWN"),
        ("/v2/a/b/blobs/x".into(), 400, "DIGEST_INVALID"),
        ("/v2/a/b/referrers/x".into(), 400, "DIGEST_INVALID"),
    ] {
        let reply = client.get(&uri).await;
        assert_eq!(reply.error(), (status, code.to_owned()), "{uri}");
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            Some("registry/2.0"),
            "{uri}"
        );
        let head = client.ask(Method::HEAD, &uri, &[]).await;
        assert_eq!((head.status.as_u16(), head.body.len()), (status, 0), "{uri}");
    }
}

#[tokio::test]
async fn whoever_pushes_is_told_that_this_registry_is_read_only() {
    let client = Site::new().client();
    for (method, uri) in [
        (Method::POST, "/v2/a/blobs/uploads/"),
        (Method::PUT, "/v2/a/manifests/latest"),
        (Method::PATCH, "/v2/a/blobs/uploads/1"),
        (Method::DELETE, "/v2/a/manifests/latest"),
    ] {
        let reply = client.ask(method.clone(), uri, &[]).await;
        assert_eq!(reply.error(), (405, "UNSUPPORTED".to_owned()), "{method} {uri}");
        assert!(reply.header("allow").unwrap().contains("GET, HEAD"));
    }
}

#[tokio::test]
async fn no_path_of_a_client_reaches_the_file_system() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let client = site.client();
    for path in [
        "/v2/busybox/blobs/../../../../../../etc/passwd",
        "/v2/busybox/blobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v2/busybox/manifests/..%2f..%2findex.pulp",
        "/v2/busybox/blobs/../index.pulp",
        "/pulp/docker/v2/busybox/index.pulp",
        "/pulp/docker/v2/busybox/busybox.json",
        "/pulp/docker/v2/../v2/busybox/tags/list",
        "/pulp/docker/v2/busybox/manifests/2/..%2f..%2findex.pulp",
        "/pulp/docker/v1/busybox/..%2f..%2fbusybox.json/json",
        "/pulp/docker/v1/busybox/%2e%2e/layer",
        "/v1/images/..%2f..%2f..%2fetc/passwd",
        "/v1/images/%2e%2e/json",
        "/v2/%ff/manifests/latest",
    ] {
        let reply = client.get(path).await;
        assert!(reply.status.is_client_error(), "{path}: {}", reply.status);
    }
}

#[tokio::test]
async fn referrers_are_what_has_the_digest_as_subject() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let client = site.client();
    let uri = format!("/v2/busybox/referrers/{}", image.oci);
    let reply = client.get(&uri).await;
    assert_eq!(
        (reply.status.as_u16(), reply.header("content-type")),
        (200, Some(OCI_INDEX))
    );
    let bytes = image
        .contents
        .manifests
        .iter()
        .find(|m| m.unit.digest == image.sbom)
        .unwrap()
        .unit
        .size;
    assert_eq!(
        reply.json(),
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
            "mediaType": OCI_IMAGE, "digest": image.sbom, "size": bytes,
            "artifactType": "application/spdx+json", "annotations": { "about": "a" },
        }]})
    );
    let other = client.get(&format!("{uri}?artifactType=text%2Fplain")).await;
    assert_eq!(other.json()["manifests"], json!([]));
    assert_eq!(other.header("oci-filters-applied"), Some("artifactType"));
    let same = client
        .get(&format!("{uri}?artifactType=application%2Fspdx%2Bjson"))
        .await;
    assert_eq!(same.json()["manifests"].as_array().unwrap().len(), 1);
    let none = client
        .get(&format!("/v2/busybox/referrers/{}", Digest::sha256("unknown")))
        .await;
    assert_eq!(
        (none.status.as_u16(), none.json()["manifests"].clone()),
        (200, json!([]))
    );
}

#[tokio::test]
async fn a_protected_repository_is_as_if_it_were_absent() {
    let site = Site::new();
    let mut image = site.image("busybox", "secret", "a");
    image.contents.protected = true;
    site.publish(&image.contents);
    let client = site.client();
    for path in [
        "/v2/secret/tags/list".to_owned(),
        "/v2/secret/manifests/latest".into(),
        format!("/v2/secret/blobs/{}", image.layer),
        format!("/v2/secret/referrers/{}", image.oci),
        "/v1/repositories/secret/images".into(),
        "/v1/repositories/secret/tags".into(),
        "/v1/repositories/secret/tags/latest".into(),
        format!("/v1/images/{}/layer", image.image_id),
        "/pulp/docker/v2/busybox/tags/list".into(),
        format!("/pulp/docker/v2/busybox/blobs/{}", image.layer),
        format!("/pulp/docker/v1/busybox/{}/layer", image.image_id),
    ] {
        let (there, absent) = (
            client.get(&path).await,
            client.get(&path.replace("secret", "absent")).await,
        );
        assert_eq!(there.status, 404, "{path}");
        let same = String::from_utf8_lossy(&absent.body).replace("absent", "secret");
        assert_eq!(String::from_utf8_lossy(&there.body), same, "{path}");
    }
    assert_eq!(
        client.get("/v2/_catalog").await.json(),
        json!({ "repositories": [] })
    );
    assert_eq!(
        client.get("/v1/search?q=secret").await.json()["results"],
        json!([])
    );
    for path in ["/crane/repositories/v1", "/crane/repositories/v2"] {
        assert_eq!(client.accepting(path, "application/json").await.json(), json!({}));
    }
}

#[tokio::test]
async fn redirects_lead_to_files_that_this_same_server_has() {
    let site = Site::new();
    let image = site.image("busybox", "pulpdemo/busybox", "a");
    site.publish(&image.contents);
    let client = Client(Crane::open(site.config(Mode::Redirect)).router());
    let manifest = image.manifest.to_string();
    for (path, accept, location, digest) in [
        (
            "manifests/latest".to_owned(),
            "*/*",
            format!("manifests/2/{manifest}"),
            &image.manifest,
        ),
        (
            "manifests/multi".into(),
            LIST,
            format!("manifests/list/{}", image.list),
            &image.list,
        ),
        (
            "manifests/multi".into(),
            S2,
            format!("manifests/2/{manifest}"),
            &image.manifest,
        ),
        (
            format!("blobs/{}", image.layer),
            "*/*",
            format!("blobs/{}", image.layer),
            &image.layer,
        ),
    ] {
        let reply = client
            .accepting(&format!("/v2/pulpdemo/busybox/{path}"), accept)
            .await;
        let url = format!("https://pulp.example.com/pulp/docker/v2/busybox/{location}");
        assert_eq!(
            (reply.status.as_u16(), reply.header("location")),
            (302, Some(url.as_str())),
            "{path}"
        );
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            Some("registry/2.0")
        );
        let followed = client
            .accepting(url.strip_prefix("https://pulp.example.com").unwrap(), accept)
            .await;
        assert_eq!(followed.status, 200, "{url}");
        assert!(digest.matches(&followed.body), "{url}");
    }
    // What is known to be absent isn't redirected to.
    let unknown = client.get("/v2/pulpdemo/busybox/manifests/unknown").await;
    assert_eq!(unknown.error(), (404, "MANIFEST_UNKNOWN".to_owned()));
    let tags = client.get("/pulp/docker/v2/busybox/tags/list").await;
    assert_eq!(tags.json()["name"], "pulpdemo/busybox");
    let by_tag = client.get("/pulp/docker/v2/busybox/manifests/list/multi").await;
    assert!(image.list.matches(&by_tag.body));
    assert_eq!(
        client
            .get("/pulp/docker/v2/busybox/manifests/1/multi")
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn a_request_that_meets_a_removed_publication_is_answered_from_the_next() {
    let site = Site::new();
    site.publish(&site.image("busybox", "busybox", "a").contents);
    let mut crane = Crane::open(site.config(Mode::SERVE));
    let client = Client(crane.router());
    let next = site.image("busybox", "busybox", "b");
    site.publish(&next.contents);
    site.root
        .prune(&next.contents.repository, "tidy", 0, std::time::Duration::ZERO)
        .unwrap();
    let reload = tokio::task::spawn_blocking(move || crane.reload());
    let (reply, reloaded) = tokio::join!(client.get("/v2/busybox/manifests/latest"), reload);
    reloaded.unwrap();
    assert_eq!(reply.status, 200);
    assert!(next.manifest.matches(&reply.body));
}

#[tokio::test]
async fn content_that_is_damaged_is_not_sent_as_if_it_were_whole() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let client = site.client();
    std::fs::write(&image.contents.blobs[0].path, "short").unwrap();
    std::fs::remove_file(&image.contents.manifests[0].path).unwrap();
    for path in [format!("blobs/{}", image.layer), "manifests/latest".into()] {
        let reply = client.get(&format!("/v2/busybox/{path}")).await;
        assert_eq!(reply.error(), (503, "UNAVAILABLE".to_owned()));
        assert!(reply.header("retry-after").is_some());
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            Some("registry/2.0")
        );
    }
}

#[tokio::test]
async fn a_client_that_takes_schema_1_alone_gets_one_made_for_it() {
    let site = Site::new();
    let mut image = site.image("busybox", "org/busybox", "a");
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "history": [{ "created_by": "ADD a" }, { "created_by": "CMD sh", "empty_layer": true }],
    });
    let config = site.put(config.to_string().as_bytes());
    image.relabel(&site, config);
    site.publish(&image.contents);
    let client = site.client();
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let old_docker = [("user-agent", "docker/1.9.1 go/go1.4.2")];
    let accept = [("accept", signed)];
    let mut digests = Vec::new();
    for headers in [&old_docker, &accept] {
        let reply = client
            .ask(Method::GET, "/v2/org/busybox/manifests/latest", headers)
            .await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("content-type")),
            (200, Some(signed))
        );
        let made = reply.json();
        assert_eq!(made["schemaVersion"], 1);
        assert_eq!(
            (&made["name"], &made["tag"]),
            (&json!("org/busybox"), &json!("latest"))
        );
        assert!(made["signatures"][0]["signature"].is_string());
        // All of it can be fetched.
        for layer in made["fsLayers"].as_array().unwrap() {
            let digest = layer["blobSum"].as_str().unwrap();
            let blob = client.get(&format!("/v2/org/busybox/blobs/{digest}")).await;
            assert_eq!(blob.status, 200, "{digest}");
            assert!(digest.parse::<Digest>().unwrap().matches(&blob.body));
        }
        digests.push(reply.header("docker-content-digest").unwrap().to_owned());
    }
    assert_eq!(digests[0], digests[1], "the payload is the same each time");
    // Of a list its image for amd64.
    let of_list = client
        .ask(Method::GET, "/v2/org/busybox/manifests/multi", &accept)
        .await;
    assert_eq!(of_list.header("content-type"), Some(signed));
    // Others get what is stored.
    let reply = client.accepting("/v2/org/busybox/manifests/latest", S2).await;
    assert_eq!(reply.header("content-type"), Some(S2));
    assert!(image.manifest.matches(&reply.body));
}
