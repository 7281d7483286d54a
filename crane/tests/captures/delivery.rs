//! Where content comes from: a CDN that redirects lead to, or a web server in front.

use http::Method;
use pulp_crane::{Cdn, Crane, CraneConfig, Mode, Sendfile, Token};

use crate::{
    C,
    common::{Client, S2, Site},
    good,
};

#[tokio::test]
async fn urls_of_v2_go_through_the_cdn_and_those_of_v1_do_not() {
    let (old, _) = good();
    let open = |cdn| {
        let config = CraneConfig {
            cdn,
            ..old.config(Mode::Redirect)
        };
        Client(Crane::open(config).router())
    };
    let rewrite = Some(("cdn.redhat.com".to_owned(), "cdn.fedora.com".to_owned()));
    let client = open(Cdn { rewrite, token: None });
    for (path, location) in [
        (
            "/v2/redhat/zoo/manifests/latest",
            format!("http://cdn.fedora.com/zoo/bar/manifests/1/{C}"),
        ),
        (
            "/v2/redhat/foo/tags/list",
            "http://cdn.fedora.com/foo/bar/tags/list".into(),
        ),
        (
            "/v2/redhat/zoo/blobs/a%20b",
            "http://cdn.fedora.com/zoo/bar/blobs/a%20b".into(),
        ),
        (
            "/v2/redhat/zoo/blobs/cdn.redhat.com",
            "http://cdn.fedora.com/zoo/bar/blobs/cdn.fedora.com".into(),
        ),
        (
            "/v2/registry/blobs/x",
            "https://cdn.example.com/pulp/docker/v2/registry/blobs/x".into(),
        ),
        (
            "/v1/images/abc123/json",
            "http://cdn.redhat.com/foo/bar/images/abc123/json".into(),
        ),
    ] {
        let reply = client.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("location")),
            (302, Some(location.as_str()))
        );
    }
    assert_eq!(client.get("/v2/protected/blobs/x").await.status, 404);
    let client = open(Cdn {
        rewrite: None,
        token: Some(Token::new(vec![0xab, 0xc1, 0x23])),
    });
    let reply = client.get("/v2/redhat/foo/tags/list").await;
    let location = reply.header("location").unwrap();
    let (url, token) = location.split_once("?_auth_=exp=").unwrap();
    assert_eq!(url, "http://cdn.redhat.com/foo/bar/tags/list");
    let (expires, code) = token.split_once("~hmac=").unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((now..=now + 300).contains(&expires.parse().unwrap()), "{expires}");
    assert_eq!(code.len(), 64);
    let reply = client.get("/v1/images/abc123/json").await;
    assert_eq!(
        reply.header("location"),
        Some("http://cdn.redhat.com/foo/bar/images/abc123/json")
    );
}

#[tokio::test]
async fn a_web_server_in_front_is_named_the_file_to_send() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let accel = Sendfile::XAccelRedirect {
        prefix: "/files".into(),
    };
    for (sendfile, name, prefix) in [
        (Sendfile::XSendfile, "x-sendfile", ""),
        (accel, "x-accel-redirect", "/files"),
    ] {
        let config = CraneConfig {
            sendfile: Some(sendfile),
            max_age: Some(std::time::Duration::from_mins(1)),
            ..site.config(Mode::SERVE)
        };
        let client = Client(Crane::open(config).router());
        for (path, content_type, cache) in [
            (
                "/v2/busybox/manifests/latest".to_owned(),
                S2,
                "public, max-age=60",
            ),
            (
                format!("/v2/busybox/manifests/{}", image.manifest),
                S2,
                "public, max-age=31536000, immutable",
            ),
            (
                format!("/v2/busybox/blobs/{}", image.layer),
                "application/octet-stream",
                "public, max-age=31536000, immutable",
            ),
            (
                format!("/v1/images/{}/layer", image.image_id),
                "application/octet-stream",
                "public, max-age=60",
            ),
            (
                format!("/v1/images/{}/json", image.image_id),
                "application/json",
                "public, max-age=60",
            ),
        ] {
            for method in [Method::GET, Method::HEAD] {
                let reply = client.ask(method, &path, &[]).await;
                assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 0), "{path}");
                assert_eq!(reply.header("content-type"), Some(content_type), "{path}");
                assert_eq!(reply.header("cache-control"), Some(cache), "{path}");
                assert!(reply.header("expires").unwrap().ends_with(" GMT"));
                let file = reply.header(name).unwrap().strip_prefix(prefix).unwrap();
                let bytes = std::fs::read(file).unwrap();
                assert!(!path.ends_with(&image.layer.to_string()) || bytes == image.layer_bytes);
                if path.starts_with("/v2/") {
                    let digest: pulp_model::Digest =
                        reply.header("docker-content-digest").unwrap().parse().unwrap();
                    assert!(digest.matches(&bytes), "{path}");
                }
            }
        }
        let etag = format!("\"{}\"", image.layer);
        let held = [("if-none-match", etag.as_str())];
        let reply = client
            .ask(Method::GET, &format!("/v2/busybox/blobs/{}", image.layer), &held)
            .await;
        assert_eq!((reply.status.as_u16(), reply.header(name)), (304, None));
        assert_eq!(client.get("/v2/busybox/manifests/unknown").await.status, 404);
    }
}
