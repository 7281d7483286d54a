//! The list of repositories, as JSON and as a page.

use http::Method;
use pulp_crane::{Crane, Mode};
use serde_json::json;

use crate::{common::Client, good, v1};

#[tokio::test]
async fn the_list_of_repositories_is_json_for_who_asks_for_just_that_and_a_page_for_others() {
    let (old, client) = good();
    let listed = client.accepting("/crane/repositories", "application/json").await;
    // Without protected ones, which the original named to anybody that its web server let through.
    assert_eq!(
        listed.json(),
        json!({
            "bar": { "image_ids": ["def456"], "protected": false, "tags": { "latest": "def456", "test": "ghi789" } },
            "nop": { "image_ids": ["def4561"], "protected": false, "tags": { "ab": "def456" } },
            "redhat/foo": { "image_ids": ["abc123", "xyz789"], "protected": false, "tags": { "latest": "abc123", "test": "def234" } },
        })
    );
    let listed = client
        .accepting("/crane/repositories/v2", "application/json")
        .await;
    let open = json!({ "protected": false });
    assert_eq!(
        listed.json(),
        json!({ "redhat/foo": open, "redhat/zoo": open, "registry": open, "v2/bar": open })
    );
    for accept in [
        "application/json, text/html",
        "application/json;q=1",
        "*/*",
        "text/html",
        "Application/JSON",
    ] {
        for path in [
            "/crane/repositories",
            "/crane/repositories/v1",
            "/crane/repositories/v2",
        ] {
            let reply = client.accepting(path, accept).await;
            assert_eq!(reply.status, 200);
            assert_eq!(
                reply.header("content-type"),
                Some("text/html; charset=utf-8"),
                "{accept}"
            );
            let page = String::from_utf8(reply.body.to_vec()).unwrap();
            assert!(
                page.contains("Repository id: redhat/foo") && page.contains("Protected: False"),
                "{page}"
            );
            assert!(page.contains("abc123") || path.ends_with("v2"));
            assert!(!page.contains("://"), "nothing from elsewhere: {page}");
        }
    }
    let head = client.ask(Method::HEAD, "/crane/repositories", &[]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let post = client.ask(Method::POST, "/crane/repositories", &[]).await;
    assert_eq!(
        (post.status.as_u16(), post.header("allow")),
        (405, Some("GET, HEAD, OPTIONS"))
    );

    v1(
        &old,
        "evil",
        false,
        "http://x/",
        &["i"],
        &json!({ "<script>alert('&\")</script>": "<b>" }),
    );
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    let page = client.get("/crane/repositories").await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;&amp;&quot;)"));
}
