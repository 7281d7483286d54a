//! Debian's nginx in front, set up as docs/crane.md has it: it ends TLS, hands clients' certificates on, and sends
//! the files that Crane names.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/authority.rs"]
mod authority;
mod common;
#[path = "common/nginx.rs"]
mod nginx;

use std::fs;

use authority::{Ca, entitlement};
use common::Site;
use nginx::{LIMIT, Nginx, header};
use pulp_crane::{CraneConfig, Entitlements, Mode, Sendfile};
use pulp_model::Digest;
use rcgen::CertificateParams;
use reqwest::{Certificate, Client, Identity};

fn configuration(dir: &str, port: u16, crane: std::net::SocketAddr) -> String {
    format!(
        r"  sendfile on;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {dir}/server.pem; ssl_certificate_key {dir}/server.key;
    ssl_verify_client optional_no_ca;
    location / {{
      proxy_pass http://{crane};
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_set_header Host $http_host;
      proxy_set_header SSL-Client-Cert $ssl_client_escaped_cert;
    }}
    location /crane-files/ {{
      internal;
      alias /;
      etag off;
      add_header ETag $upstream_http_etag;
      add_header Vary $upstream_http_vary;
      add_header Docker-Content-Digest $upstream_http_docker_content_digest;
      add_header Docker-Distribution-API-Version $upstream_http_docker_distribution_api_version;
    }}
  }}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_sends_the_files_that_crane_names_and_hands_certificates_on() {
    let Some(program) = nginx::program() else {
        return;
    };
    let site = Site::new();
    let image = site.image("open", "open", "a");
    site.publish(&image.contents);
    let mut secret = site.image("secret", "secret", "b").contents;
    secret.protected = true;
    site.publish(&secret);

    let ca = Ca::new();
    let dir = site.dir.path();
    let (certificate, key) = ca.sign(&CertificateParams::new(["localhost".to_owned()]).unwrap());
    for (name, text) in [
        ("server.pem", &certificate),
        ("server.key", &key),
        ("ca.pem", &ca.pem),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }

    let config = CraneConfig {
        sendfile: Some(Sendfile::XAccelRedirect {
            prefix: "/crane-files".into(),
        }),
        entitlements: Some(Entitlements {
            ca: dir.join("ca.pem"),
            crl: None,
            trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
        }),
        ..site.config(Mode::SERVE)
    };
    let nginx = Nginx::start(program, dir, config, |port, crane| {
        configuration(dir.to_str().unwrap(), port, crane)
    })
    .await;
    let port = nginx.port;

    let client = |identity: Option<(String, String)>| {
        let mut builder = Client::builder()
            .tls_certs_only([Certificate::from_pem(ca.pem.as_bytes()).unwrap()])
            .timeout(LIMIT);
        if let Some((certificate, key)) = identity {
            let pem = format!("{certificate}{key}");
            builder = builder.identity(Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.build().unwrap()
    };
    let base = format!("https://localhost:{port}/v2");
    let anybody = client(None);
    nginx.is_up(&anybody, &format!("{base}/")).await;

    let digest = image.layer.to_string();
    let url = format!("{base}/open/blobs/{digest}");
    let reply = anybody.get(&url).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(header(&reply, "docker-content-digest"), digest);
    assert_eq!(header(&reply, "etag"), format!("\"{digest}\""));
    assert_eq!(header(&reply, "content-type"), "application/octet-stream");
    assert_eq!(
        header(&reply, "cache-control"),
        "public, max-age=31536000, immutable"
    );
    assert_eq!(
        header(&reply, "content-length"),
        image.layer_bytes.len().to_string()
    );
    assert_eq!(header(&reply, "x-accel-redirect"), "");
    assert_eq!(reply.bytes().await.unwrap(), image.layer_bytes);
    let head = anybody.head(&url).send().await.unwrap();
    assert_eq!(
        header(&head, "content-length"),
        image.layer_bytes.len().to_string()
    );
    let part = anybody
        .get(&url)
        .header("range", "bytes=5-9")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), image.layer_bytes[5..10]);
    let held = anybody.get(&url).header("if-none-match", format!("\"{digest}\""));
    assert_eq!(held.send().await.unwrap().status(), 304);
    let manifest = anybody
        .get(format!("{base}/open/manifests/latest"))
        .send()
        .await
        .unwrap();
    assert_eq!(header(&manifest, "content-type"), common::S2);
    assert_eq!(
        header(&manifest, "docker-distribution-api-version"),
        "registry/2.0"
    );
    let named: Digest = header(&manifest, "docker-content-digest").parse().unwrap();
    assert!(named.matches(&manifest.bytes().await.unwrap()));
    // The files have no url of their own.
    let direct = anybody.get(format!("https://localhost:{port}/crane-files/etc/hostname"));
    assert_eq!(direct.send().await.unwrap().status(), 404);

    let entitled = entitlement("/pulp/docker/v2/secret", 1);
    for (who, identity, status) in [
        ("the entitled", Some(ca.sign(&entitled)), 200),
        ("others", Some(ca.sign(&CertificateParams::default())), 404),
        ("nobody", None, 404),
    ] {
        let request = client(identity).get(format!("{base}/secret/manifests/latest"));
        // What a client sends itself the proxy replaces.
        let reply = request
            .header("ssl-client-cert", "of-my-own")
            .send()
            .await
            .unwrap();
        assert_eq!(reply.status(), status, "{who}");
    }
    nginx.stop().await;
}
