//! The client against an upstream that follows a script: each fault ends well or in its error, in bounded time.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{StatusCode, header};
use pulp_model::Digest;
use pulp_registry::{Client, ClientOptions, Credentials, ProxyOptions, Reference, RegistryError, Retries};

use crate::upstream::{name, ok, status, upstream};

fn options() -> ClientOptions {
    ClientOptions {
        retries: Retries {
            first: Duration::from_millis(1),
            ..Retries::default()
        },
        ..ClientOptions::default()
    }
}

fn latest() -> Reference {
    "latest".parse().unwrap()
}

fn manifest() -> Response {
    ok(r#"{"schemaVersion":2,"layers":[]}"#)
}

fn unauthorized(challenge: &str) -> Response {
    let refused = Response::builder()
        .status(401)
        .header(header::WWW_AUTHENTICATE, challenge);
    refused.body(Body::empty()).unwrap()
}

/// A body of `length` bytes that breaks off after `bytes`.
fn broken(status: u16, length: usize, bytes: Bytes) -> Response {
    let first = stream::iter([Ok(bytes)]);
    let cut = stream::once(async {
        // So that what came before gets out first.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    });
    Response::builder()
        .status(status)
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(first.chain(cut)))
        .unwrap()
}

async fn read(client: &Client, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
    let mut reader = client.blob(&name(), digest).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[tokio::test]
async fn a_burst_of_server_errors_is_waited_out() {
    let (base, log) = upstream(|earlier, _| match earlier {
        0 => status(500),
        1 => status(502),
        2 => status(503),
        _ => manifest(),
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    client.manifest(&name(), &latest()).await.unwrap();
    assert_eq!(log.lock().unwrap().len(), 4);
    assert_eq!(client.requests().manifests, 4);
}

#[tokio::test]
async fn errors_that_do_not_end_are_given_up_after_the_attempts_allowed() {
    let (base, log) = upstream(|_, _| status(503)).await;
    let client = Client::new(&base, options()).unwrap();
    let error = client.manifest(&name(), &latest()).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Status { status: 503, .. }),
        "{error}"
    );
    assert_eq!(log.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn too_many_requests_are_asked_again_when_the_registry_wants_it() {
    let (base, _) = upstream(|earlier, seen| {
        if earlier > 0 || !seen.target.ends_with("latest") {
            return manifest();
        }
        let refused = Response::builder().status(429).header(header::RETRY_AFTER, "1");
        refused.body(Body::empty()).unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let begun = Instant::now();
    client.manifest(&name(), &latest()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn too_many_requests_without_a_time_are_backed_off_from() {
    let (base, log) = upstream(|earlier, _| if earlier < 2 { status(429) } else { manifest() }).await;
    let client = Client::new(&base, options()).unwrap();
    client.manifest(&name(), &latest()).await.unwrap();
    assert_eq!(log.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_registry_that_asks_for_an_hour_is_an_error_that_says_so() {
    let (base, log) = upstream(|_, _| {
        let refused = Response::builder()
            .status(429)
            .header(header::RETRY_AFTER, "3600");
        refused.body(Body::from("toomanyrequests: slow down")).unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = client.manifest(&name(), &latest()).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, RegistryError::RateLimited { retry_after: Some(d), .. } if d.as_secs() == 3600),
        "{text}"
    );
    assert!(text.contains("3600 s") && text.contains("slow down"), "{text}");
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_broke() {
    let whole = noise(300_000);
    let digest = Digest::sha256(&whole);
    let content = Bytes::from(whole.clone());
    let (base, log) = upstream(move |_, seen| {
        let Some(range) = seen.header("range") else {
            return broken(200, content.len(), content.slice(..100_000));
        };
        let from: usize = range
            .strip_prefix("bytes=")
            .unwrap()
            .trim_end_matches('-')
            .parse()
            .unwrap();
        let rest = content.slice(from..);
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        let part = Response::builder()
            .status(206)
            .header(header::CONTENT_RANGE, range);
        part.body(Body::from(rest)).unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    assert_eq!(read(&client, &digest).await.unwrap(), whole);
    assert_eq!(log.lock().unwrap().len(), 2);
    assert_eq!(client.requests().bytes, 300_000, "nothing came twice");
}

#[tokio::test]
async fn a_registry_without_ranges_sends_anew_and_the_blob_is_right_all_the_same() {
    let whole = noise(300_000);
    let digest = Digest::sha256(&whole);
    let content = Bytes::from(whole.clone());
    let (base, log) = upstream(move |earlier, _| {
        if earlier == 0 {
            broken(200, content.len(), content.slice(..100_000))
        } else {
            ok(content.clone())
        }
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    assert_eq!(read(&client, &digest).await.unwrap(), whole);
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_part_that_begins_too_late_is_refused() {
    let whole = noise(300_000);
    let digest = Digest::sha256(&whole);
    let content = Bytes::from(whole);
    let (base, _) = upstream(move |_, seen| {
        if seen.header("range").is_none() {
            return broken(200, content.len(), content.slice(..100_000));
        }
        let part = Response::builder()
            .status(206)
            .header(header::CONTENT_RANGE, "bytes 200000-299999/300000");
        part.body(Body::from(content.slice(200_000..))).unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = read(&client, &digest).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn other_bytes_after_a_break_are_found_out_at_the_end() {
    let whole = noise(300_000);
    let digest = Digest::sha256(&whole);
    let content = Bytes::from(whole);
    let (base, _) = upstream(move |earlier, _| {
        if earlier == 0 {
            broken(200, content.len(), content.slice(..100_000))
        } else {
            ok(vec![0; 300_000])
        }
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = read(&client, &digest).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_socket_that_falls_silent_in_a_blob_is_given_up_and_the_blob_goes_on() {
    let whole = noise(200_000);
    let digest = Digest::sha256(&whole);
    let content = Bytes::from(whole.clone());
    let (base, _) = upstream(move |earlier, _| {
        if earlier > 0 {
            return ok(content.clone());
        }
        let first = stream::iter([Ok::<_, std::io::Error>(content.slice(..50_000))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let silent = Response::builder().header(header::CONTENT_LENGTH, content.len());
        silent.body(body).unwrap()
    })
    .await;
    let options = ClientOptions {
        idle_timeout: Duration::from_millis(300),
        ..options()
    };
    let client = Client::new(&base, options).unwrap();
    assert_eq!(read(&client, &digest).await.unwrap(), whole);
}

#[tokio::test]
async fn a_blob_that_only_drips_is_given_up_in_bounded_time() {
    let content = Bytes::from(noise(200_000));
    let digest = Digest::sha256(&content);
    let (base, log) = upstream(move |_, _| {
        // A byte each time, and never an end: nothing that a time-out of silence would notice.
        let drip = stream::unfold(content.clone(), |mut left| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok::<_, std::io::Error>(left.split_to(1)), left))
        });
        let dripping = Response::builder().header(header::CONTENT_LENGTH, 200_000);
        dripping.body(Body::from_stream(drip)).unwrap()
    })
    .await;
    let options = ClientOptions {
        slow_for: Duration::from_millis(100),
        ..options()
    };
    let client = Client::new(&base, options).unwrap();
    let patience = Duration::from_secs(30);
    let read = tokio::time::timeout(patience, read(&client, &digest)).await;
    let error = read.expect("it is given up").unwrap_err();
    assert!(matches!(error, RegistryError::Interrupted { .. }), "{error}");
    assert!(error.to_string().contains("hardly anything came"), "{error}");
    assert_eq!(log.lock().unwrap().len(), 6, "once, and five times anew");
}

#[tokio::test]
async fn a_blob_that_was_packed_on_the_way_is_found_out() {
    let digest = Digest::sha256("as it is");
    // gzip's beginning, as a proxy that packs what it is asked not to pack would send it.
    let (base, _) = upstream(|_, _| {
        let labelled = Response::builder().header(header::CONTENT_ENCODING, "gzip");
        labelled.body(Body::from(&b"\x1f\x8b\x08\0\0\0\0\0"[..])).unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = read(&client, &digest).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains(&digest.to_string()), "{error}");
}

#[tokio::test]
async fn a_manifest_without_end_is_read_no_farther_than_a_manifest_may_be_long() {
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let (base, _) = upstream(move |_, _| {
        let counter = Arc::clone(&counter);
        let megabytes = stream::repeat_with(move || {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 20]))
        });
        Response::new(Body::from_stream(megabytes.take(100)))
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = client.manifest(&name(), &latest()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent < 50, "{sent} of 100 MiB were taken");
}

#[tokio::test]
async fn one_token_does_for_all_requests_that_begin_together() {
    let (base, log) = upstream(|_, seen| {
        if seen.target.starts_with("/token") {
            return ok(r#"{"access_token":"t","expires_in":300}"#);
        }
        match seen.header("authorization") {
            Some("Bearer t") => manifest(),
            _ => unauthorized(r#"Bearer realm="/token",service="s""#),
        }
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let name = name();
    let references: Vec<Reference> = (0..50).map(|n| format!("tag{n}").parse().unwrap()).collect();
    let heads = references.iter().map(|r| client.head_manifest(&name, r, None));
    for head in futures::future::join_all(heads).await {
        assert!(head.unwrap().is_some());
    }
    let requests = client.requests();
    assert_eq!((requests.tokens, requests.manifest_heads), (1, 51));
    assert_eq!(log.lock().unwrap().len(), 52);
}

#[tokio::test]
async fn a_token_that_ends_in_the_midst_is_replaced_once() {
    let good = Arc::new(Mutex::new("first"));
    let (wanted, given) = (good.clone(), good.clone());
    let (base, _) = upstream(move |_, seen| {
        if seen.target.starts_with("/token") {
            return ok(format!(r#"{{"token":"{}"}}"#, given.lock().unwrap()));
        }
        if seen.header("authorization") == Some(&format!("Bearer {}", wanted.lock().unwrap())) {
            manifest()
        } else {
            unauthorized(r#"Bearer realm="/token",error="invalid_token""#)
        }
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    client.manifest(&name(), &latest()).await.unwrap();
    *good.lock().unwrap() = "second";
    let (name, latest) = (name(), latest());
    let all = (0..20).map(|_| client.manifest(&name, &latest));
    for one in futures::future::join_all(all).await {
        one.unwrap();
    }
    assert_eq!(client.requests().tokens, 2);
}

#[tokio::test]
async fn a_registry_that_refuses_every_token_is_an_error_and_no_loop() {
    let (base, log) = upstream(|_, seen| {
        if seen.target.starts_with("/token") {
            ok(r#"{"token":"t"}"#)
        } else {
            unauthorized(r#"Bearer realm="/token""#)
        }
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = client.manifest(&name(), &latest()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert_eq!(log.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn our_password_does_not_follow_a_redirect_to_another_host() {
    let content = Bytes::from(noise(1000));
    let digest = Digest::sha256(&content);
    let (elsewhere, seen_elsewhere) = upstream(move |_, _| ok(content.clone())).await;
    let (base, seen) = upstream(move |_, seen| {
        if seen.header("authorization").is_none() {
            return unauthorized(r#"Basic realm="r""#);
        }
        let moved = Response::builder()
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header(header::LOCATION, format!("{elsewhere}/storage?signature=x"));
        moved.body(Body::empty()).unwrap()
    })
    .await;
    let credentials = Credentials {
        login: "user".to_owned(),
        password: "secret".to_owned(),
    };
    let options = ClientOptions {
        credentials: Some(credentials),
        ..options()
    };
    let client = Client::new(&base, options).unwrap();
    read(&client, &digest).await.unwrap();
    assert!(seen.lock().unwrap()[1].header("authorization").is_some());
    let elsewhere = seen_elsewhere.lock().unwrap();
    assert_eq!(elsewhere.len(), 1);
    assert_eq!(elsewhere[0].header("authorization"), None);
}

#[tokio::test]
async fn a_blob_that_is_labelled_as_packed_comes_as_it_is() {
    let content = Bytes::from(noise(1000));
    let digest = Digest::sha256(&content);
    let (base, log) = upstream(move |_, _| {
        let labelled = Response::builder().header(header::CONTENT_ENCODING, "gzip");
        labelled.body(Body::from(content.clone())).unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    assert_eq!(read(&client, &digest).await.unwrap(), noise(1000));
    assert_eq!(log.lock().unwrap()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn a_proxy_gets_its_password_and_the_registry_does_not() {
    let (proxy, log) = upstream(|_, _| manifest()).await;
    let options = ClientOptions {
        proxy: Some(ProxyOptions {
            url: proxy.parse().unwrap(),
            credentials: Some(Credentials {
                login: "me".to_owned(),
                password: "p@ss:word".to_owned(),
            }),
        }),
        ..options()
    };
    let client = Client::new("http://registry.invalid/prefix", options).unwrap();
    client.manifest(&name(), &latest()).await.unwrap();
    let log = log.lock().unwrap();
    assert_eq!(
        log[0].target,
        "http://registry.invalid/prefix/v2/a/b/manifests/latest"
    );
    // me:p@ss:word
    assert_eq!(
        log[0].header("proxy-authorization"),
        Some("Basic bWU6cEBzczp3b3Jk")
    );
    assert_eq!(log[0].header("authorization"), None);
}

#[test]
fn certificates_that_are_none_are_told_before_anything_is_asked() {
    let with = |ca: Option<&str>, client: Option<(&str, &str)>| {
        let mut options = options();
        options.tls.ca = ca.map(ToOwned::to_owned);
        options.tls.client = client.map(|(c, k)| (c.to_owned(), k.to_owned()));
        Client::new("https://registry.invalid", options)
            .unwrap_err()
            .to_string()
    };
    let ca = with(Some("no certificate"), None);
    assert!(ca.contains("CA certificate"), "{ca}");
    let client = with(None, Some(("x", "y")));
    assert!(client.contains("client certificate"), "{client}");
}

#[tokio::test]
async fn referrers_come_from_the_api_in_pages_or_from_the_tag_that_stands_in() {
    let subject = Digest::sha256("subject");
    let (one, two) = (Digest::sha256("one"), Digest::sha256("two"));
    let list = |digest: &Digest| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1,"artifactType":"a/b"}}]}}"#
        )
    };
    let (first, second, tagged) = (list(&one), list(&two), list(&two));
    let (base, _) = upstream(move |_, seen| {
        if seen.target.contains("referrers") && !seen.target.contains("page=2") {
            let link = format!("<{}?page=2>; rel=\"next\"", seen.target);
            return Response::builder()
                .header("link", link)
                .body(Body::from(first.clone()))
                .unwrap();
        }
        ok(second.clone())
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let found = client.referrers(&name(), &subject).await.unwrap();
    let digests: Vec<_> = found.iter().map(|r| r.digest.clone()).collect();
    assert_eq!(digests, [one, two.clone()]);
    assert_eq!(found[0].artifact_type.as_deref(), Some("a/b"));

    let tag = format!("/v2/a/b/manifests/sha256-{}", subject.hex());
    let (base, _) = upstream(move |_, seen| {
        if seen.target == tag {
            ok(tagged.clone())
        } else {
            status(404)
        }
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let found = client.referrers(&name(), &subject).await.unwrap();
    assert_eq!(found[0].digest, two);
    assert!(client.referrers(&name(), &two).await.unwrap().is_empty());
}

#[tokio::test]
async fn pages_of_referrers_that_go_round_end_in_an_error() {
    let (base, log) = upstream(|_, seen| {
        let link = format!("<{}>; rel=\"next\"", seen.target);
        Response::builder()
            .header("link", link)
            .body(Body::from(r#"{"manifests":[]}"#))
            .unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = client.referrers(&name(), &Digest::sha256("x")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_list_of_tags_without_end_is_not_read_until_memory_is_full() {
    // 300,000 a page, in less than what a page may have.
    let page = format!(r#"{{"tags":[{}]}}"#, vec![r#""a.1.2.3.4""#; 300_000].join(","));
    let (base, log) = upstream(move |_, seen| {
        let next = seen.target.len();
        Response::builder()
            .header("link", format!("<{}&{next}>; rel=\"next\"", seen.target))
            .body(Body::from(page.clone()))
            .unwrap()
    })
    .await;
    let client = Client::new(&base, options()).unwrap();
    let error = client.tags(&name()).await.unwrap_err();
    assert!(error.to_string().contains("more than 1000000 tags"), "{error}");
    assert_eq!(log.lock().unwrap().len(), 4);
}
