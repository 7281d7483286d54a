//! Every url of the v2 API, and those of neither.

use serde_json::json;

use crate::{
    A1,
    Body::{Anything, Error, Json, Text, To},
    C, expect, good,
};

#[tokio::test]
async fn answers_of_v2_are_the_originals() {
    let (_old, client) = good();
    let foo = |path: &str| To(format!("http://cdn.redhat.com/foo/bar/{path}"));
    let zoo = |path: &str| To(format!("http://cdn.redhat.com/zoo/bar/{path}"));
    let (name, invalid) = (|| Error("NAME_UNKNOWN"), || Error("NAME_INVALID"));
    for (method, path, status, body) in [
        ("GET", "", 200, Json(json!({}))),
        ("HEAD", "", 200, Text("")),
        ("OPTIONS", "", 200, Text("")),
        ("POST", "", 405, Error("UNSUPPORTED")),
        ("PUT", "", 405, Error("UNSUPPORTED")),
        ("DELETE", "redhat/foo/manifests/latest", 405, Error("UNSUPPORTED")),
        ("POST", "redhat/foo/blobs/uploads/", 405, Error("UNSUPPORTED")),
        ("PUT", "redhat/foo/manifests/latest", 405, Error("UNSUPPORTED")),
        ("PATCH", "redhat/foo/blobs/uploads/x", 405, Error("UNSUPPORTED")),
        // The original had none.
        (
            "GET",
            "_catalog",
            200,
            Json(json!({ "repositories": ["redhat/foo", "redhat/zoo", "registry", "v2/bar"] })),
        ),
        ("GET", "no/name/test", 404, name()),
        ("GET", "foo/test", 404, name()),
        ("GET", "tags", 404, name()),
        ("GET", "tags/list", 404, name()),
        ("GET", "manifests/latest", 404, name()),
        ("GET", "idontexist/tags/list", 404, name()),
        ("GET", "idontexist/manifests/latest", 404, name()),
        ("HEAD", "idontexist/manifests/latest", 404, Text("")),
        ("GET", "idontexist/blobs/x", 404, name()),
        ("GET", "redhat/foo/tags/list", 302, foo("tags/list")),
        ("GET", "redhat/foo/tags/latest", 302, foo("tags/latest")),
        ("GET", "redhat/foo/tags", 302, foo("tags")),
        ("GET", "redhat/foo/tags/", 302, foo("tags/")),
        ("GET", "redhat/foo/tags/list?n=5&last=x", 302, foo("tags/list")),
        ("GET", "redhat/foo/tags/list/", 302, foo("tags/list/")),
        ("GET", "redhat/foo/blobs/123", 302, foo("blobs/123")),
        ("HEAD", "redhat/foo/blobs/123", 302, foo("blobs/123")),
        (
            "GET",
            &format!("redhat/foo/blobs/{C}"),
            302,
            foo(&format!("blobs/{C}")),
        ),
        ("GET", "redhat/foo/manifests/latest", 302, foo("manifests/latest")),
        (
            "GET",
            "redhat/foo/manifests/123456789",
            302,
            foo("manifests/123456789"),
        ),
        (
            "GET",
            &format!("redhat/foo/manifests/{A1}"),
            302,
            foo(&format!("manifests/{A1}")),
        ),
        (
            "GET",
            "registry/blobs/123",
            302,
            To("https://cdn.example.com/pulp/docker/v2/registry/blobs/123".into()),
        ),
        (
            "GET",
            "registry/tags/list",
            302,
            To("https://cdn.example.com/pulp/docker/v2/registry/tags/list".into()),
        ),
        (
            "GET",
            "v2/bar/manifests/latest",
            302,
            To("http://cdn.redhat.com/bar/baz/images/manifests/latest".into()),
        ),
        ("GET", "bar/manifests/latest", 404, name()),
        ("GET", "library/registry/manifests/latest", 404, name()),
        ("GET", "library/registry/tags/list", 404, name()),
        ("GET", "redhat/zoo/blobs/a/b", 302, zoo("blobs/a/b")),
        ("GET", "redhat/zoo/blobs", 302, zoo("blobs")),
        ("GET", "redhat/zoo/blobs/", 302, zoo("blobs/")),
        ("GET", "redhat/zoo/blobs/a%20b", 302, zoo("blobs/a%20b")),
        ("GET", "redhat/zoo/blobs/caf%C3%A9", 302, zoo("blobs/caf%C3%A9")),
        ("GET", "redhat/zoo/blobs/a?b=c", 302, zoo("blobs/a")),
        ("GET", "redhat%2Fzoo/blobs/x", 302, zoo("blobs/x")),
        ("GET", "redhat/zoo/tags/blobs/x", 404, name()),
        ("GET", "protected/manifests/latest", 404, name()),
        ("GET", "protected/tags/list", 404, name()),
        ("GET", "protected/blobs/x", 404, name()),
        // The original: 404. The specification has a code for names that can be none.
        ("GET", "redhat//zoo/blobs/x", 400, invalid()),
        ("GET", "REDHAT/zoo/blobs/x", 400, invalid()),
        // The original led out of the repository's url, broke down, or split the header.
        ("GET", "redhat/zoo/blobs/../x", 400, Anything),
        ("GET", "redhat/zoo/blobs/%2e%2e/x", 400, Anything),
        ("GET", "redhat/zoo/blobs/a%0d%0aX-Evil:%201", 400, Anything),
        ("GET", "redhat/zoo/manifests", 404, Anything),
        ("GET", "redhat/zoo/manifests/a/b", 404, Anything),
    ] {
        let row = format!("{method} /v2/{path}");
        let reply = client
            .ask(method.parse().unwrap(), &format!("/v2/{path}"), &[])
            .await;
        expect(&row, &reply, status, &body);
        // The original had it on 200 alone.
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            Some("registry/2.0"),
            "{row}"
        );
        assert_eq!(reply.header("x-evil"), None);
    }
    for (path, location) in [("/v2", "/v2/"), ("/v1/users", "/v1/users/")] {
        let reply = client.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("location")),
            (301, Some(location))
        );
    }
    for path in [
        "/",
        "/favicon.ico",
        "/v1",
        "/v1/",
        "/crane",
        "/crane/",
        "/crane/repositories/",
        "/crane/repositories/v3",
    ] {
        assert_eq!(client.get(path).await.status, 404, "{path}");
    }
}
