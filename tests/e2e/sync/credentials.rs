//! Registries that let in only those who show who they are.

use anyhow::Result;
use pulp_testkit::{Guard, Registry};
use pulp_tests::{Server as _, Standalone};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::{OCI_MANIFEST, begin, create, noise, pusher::Pusher, sync, tags_of};

/// An authority, and a certificate and key that it signed for a registry on loopback and for a client of it.
struct Pki {
    authority: String,
    server: (String, String),
    client: (String, String),
}

impl Pki {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let signed = |names: &[&str]| -> Result<(String, String)> {
            let key = KeyPair::generate()?;
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (server, client) = (signed(&["127.0.0.1"])?, signed(&["client"])?);
        Ok(Self {
            authority,
            server,
            client,
        })
    }
}

#[test]
fn a_registry_that_wants_a_certificate_and_a_password_is_shown_both() -> Result<()> {
    // `secret`, by the cheapest bcrypt.
    const ACCOUNT: &str = "user:$2b$04$qpeTgmos1zyS0F50Fsj3luEl0rKOivZp4HAkkERM2xpmq2v6tcGlm";
    let pki = Pki::new()?;
    let registry = Registry::guarded(&Guard {
        certificate: Some((&pki.server.0, &pki.server.1)),
        clients_of: Some(&pki.authority),
        htpasswd: Some(ACCOUNT),
    })?;
    let identity = format!("{}\n{}", pki.client.0, pki.client.1);
    let mut headers = reqwest::header::HeaderMap::new();
    // user:secret
    headers.insert("authorization", "Basic dXNlcjpzZWNyZXQ=".parse()?);
    let http = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(pki.authority.as_bytes())?])
        .identity(reqwest::Identity::from_pem(identity.as_bytes())?)
        .default_headers(headers)
        .build()?;
    let to = Pusher::with(registry.url(), http)?;
    to.image("t", OCI_MANIFEST, &[noise(1, 1000)])?;

    let server = Standalone::start()?;
    let settings = json!({
        "ssl_ca_cert": pki.authority, "ssl_client_cert": pki.client.0, "ssl_client_key": pki.client.1,
        "basic_auth_username": "user", "basic_auth_password": "secret",
    });
    create(&server, "m", &registry.url(), &settings)?;
    sync(&server, "m")?;
    assert_eq!(tags_of(&server, "m")?, ["t"]);
    let (_, importer) = server.call("GET", "/repositories/m/importers/docker_importer/", None)?;
    let shown = importer.to_string();
    assert!(
        !shown.contains("secret") && !shown.contains("PRIVATE KEY"),
        "{shown}"
    );

    for (overrides, code) in [
        (json!({"basic_auth_password": "n0t-it"}), "DKR1114"),
        (json!({"ssl_ca_cert": pki.client.0, "tags": ["t"]}), "DKR1007"),
    ] {
        let failed = server.wait_for_task(&begin(&server, "m", &overrides)?)?;
        assert_eq!(failed["error"]["code"], code, "{failed}");
        assert!(!failed["error"].to_string().contains("n0t-it"), "{failed}");
    }
    let unchecked = json!({"ssl_ca_cert": pki.client.0, "ssl_validation": false});
    server.wait_until_finished(&begin(&server, "m", &unchecked)?)?;
    Ok(())
}
