//! TLS, HTTP/2, and protected repositories by client certificate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/authority.rs"]
mod authority;
mod common;

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use authority::{Ca, entitlement};
use common::Site;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pulp_crane::{CraneConfig, CraneError, Entitlements, Mode, TlsFiles, run};
use rcgen::{CertificateParams, date_time_ymd};
use reqwest::{Certificate, Client, Identity, Version};
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);
/// Path of the url of a protected repository called `secret`.
const ENTITLED: &str = "/pulp/docker/v2/secret";

struct Crane {
    site: Site,
    ca: Ca,
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), CraneError>>,
}

impl Crane {
    fn file(site: &Site, name: &str, text: &str) -> PathBuf {
        let path = site.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    async fn start(tls: bool, change: impl FnOnce(&Site, &Ca, &mut CraneConfig)) -> Self {
        let site = Site::new();
        site.publish(&site.image("open", "open", "a").contents);
        let mut secret = site.image("secret", "secret", "b").contents;
        secret.protected = true;
        site.publish(&secret);
        let ca = Ca::new();
        let mut config = site.config(Mode::SERVE);
        config.reload_interval = Duration::from_millis(20);
        if tls {
            let (certificate, key) = ca.sign(&CertificateParams::new(["localhost".to_owned()]).unwrap());
            config.tls = Some(TlsFiles {
                certificate: Self::file(&site, "server.pem", &certificate),
                key: Self::file(&site, "server.key", &key),
            });
        }
        config.entitlements = Some(Entitlements {
            ca: Self::file(&site, "ca.pem", &ca.pem),
            crl: Some(Self::file(&site, "crl.pem", &ca.revoking(&[13]))),
            trusted_proxies: Vec::new(),
        });
        change(&site, &ca, &mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(config, listener, shutdown.clone()));
        Self {
            site,
            ca,
            address,
            shutdown,
            running,
        }
    }

    fn client(&self, ca: &str, identity: Option<&(String, String)>) -> Client {
        let mut builder = Client::builder()
            .tls_certs_only([Certificate::from_pem(ca.as_bytes()).unwrap()])
            .resolve("localhost", self.address)
            .timeout(LIMIT);
        if let Some((certificate, key)) = identity {
            builder = builder.identity(Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }

    async fn get(&self, client: &Client, path: &str) -> (u16, String) {
        let reply = client
            .get(format!("https://localhost:{}{path}", self.address.port()))
            .send()
            .await
            .unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(LIMIT, self.running).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_speaks_http_2_and_1_and_takes_a_new_certificate_without_a_restart() {
    let crane = Crane::start(true, |_, _, _| {}).await;
    let client = crane.client(&crane.ca.pem, None);
    let url = format!(
        "https://localhost:{}/v2/open/manifests/latest",
        crane.address.port()
    );
    let reply = client.get(&url).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.version()), (200, Version::HTTP_2));
    let old = Client::builder()
        .tls_certs_only([Certificate::from_pem(crane.ca.pem.as_bytes()).unwrap()])
        .resolve("localhost", crane.address)
        .http1_only()
        .build()
        .unwrap();
    let reply = old.get(&url).send().await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), reply.version()),
        (200, Version::HTTP_11)
    );

    let other = Ca::new();
    let (certificate, key) = other.sign(&CertificateParams::new(["localhost".to_owned()]).unwrap());
    // The key comes later than the certificate: until then the pair before is used.
    Crane::file(&crane.site, "server.pem", &certificate);
    let reply = crane.client(&crane.ca.pem, None).get(&url).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    Crane::file(&crane.site, "server.key", &key);
    let taken = async {
        while crane.client(&other.pem, None).get(&url).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, taken).await.unwrap();
    assert!(crane.client(&crane.ca.pem, None).get(&url).send().await.is_err());
    crane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_repository_is_there_for_the_entitled_alone() {
    let crane = Crane::start(true, |_, _, _| {}).await;
    let good = crane.ca.sign(&entitlement(ENTITLED, 7));
    let mut expired = entitlement(ENTITLED, 8);
    (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let mut later = entitlement(ENTITLED, 9);
    (later.not_before, later.not_after) = (date_time_ymd(2080, 1, 1), date_time_ymd(2090, 1, 1));
    for (who, identity, entitled) in [
        ("the entitled", Some(good.clone()), true),
        ("without a certificate", None, false),
        (
            "self-made",
            Some(Ca::new().sign(&entitlement(ENTITLED, 7))),
            false,
        ),
        ("expired", Some(crane.ca.sign(&expired)), false),
        ("not yet valid", Some(crane.ca.sign(&later)), false),
        ("revoked", Some(crane.ca.sign(&entitlement(ENTITLED, 13))), false),
        (
            "another path",
            Some(crane.ca.sign(&entitlement("/pulp/docker/v2/secretary", 7))),
            false,
        ),
        (
            "half a part",
            Some(crane.ca.sign(&entitlement("/pulp/docker/v2/sec", 7))),
            false,
        ),
        (
            "no entitlement",
            Some(crane.ca.sign(&CertificateParams::default())),
            false,
        ),
    ] {
        let client = crane.client(&crane.ca.pem, identity.as_ref());
        assert_eq!(
            crane.get(&client, "/v2/open/manifests/latest").await.0,
            200,
            "{who}"
        );
        for path in ["/v2/secret/manifests/latest", "/v2/secret/tags/list"] {
            let (status, body) = crane.get(&client, path).await;
            assert_eq!(status, if entitled { 200 } else { 404 }, "{who} {path}");
            let absent = crane.get(&client, &path.replace("secret", "absent")).await;
            let same = absent.1.replace("absent", "secret");
            assert_eq!((status, body) == (absent.0, same), !entitled, "{who} {path}");
        }
        let (_, catalog) = crane.get(&client, "/v2/_catalog").await;
        assert_eq!(catalog.contains("secret"), entitled, "{who}");
        let (_, found) = crane.get(&client, "/v1/search?q=secret").await;
        assert_eq!(found.contains("\"name\":\"secret\""), entitled, "{who}");
    }
    // Shared caches don't keep what is for some.
    let client = crane.client(&crane.ca.pem, Some(&good));
    let url = format!(
        "https://localhost:{}/v2/secret/manifests/latest",
        crane.address.port()
    );
    let reply = client.get(&url).send().await.unwrap();
    assert_eq!(reply.headers()["cache-control"], "private, no-cache");

    // Revoked while the connection is open: its next requests see nothing.
    Crane::file(&crane.site, "crl.pem", &crane.ca.revoking(&[7, 13]));
    let gone = async { while crane.get(&client, "/v2/secret/tags/list").await.0 != 404 {} };
    timeout(LIMIT, gone).await.unwrap();
    crane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_hands_a_certificate_on_only_if_it_is_trusted() {
    for (trusted, proxies) in [(true, "127.0.0.0/8"), (false, "192.0.2.0/24")] {
        let crane = Crane::start(false, |_, _, config| {
            let entitlements = config.entitlements.as_mut().unwrap();
            entitlements.trusted_proxies = vec![proxies.parse().unwrap()];
        })
        .await;
        let url = format!("http://{}/v2/secret/manifests/latest", crane.address);
        let header = |params| utf8_percent_encode(&crane.ca.sign(&params).0, NON_ALPHANUMERIC).to_string();
        let good = header(entitlement(ENTITLED, 7));
        let status = async |values: &[&str]| {
            let mut request = Client::new().get(&url);
            for value in values {
                request = request.header("ssl-client-cert", *value);
            }
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(
            status(&[&good]).await,
            if trusted { 200 } else { 404 },
            "{proxies}"
        );
        assert_eq!(status(&[]).await, 404);
        assert_eq!(status(&["garbage"]).await, 404);
        assert_eq!(
            status(&[&header(entitlement(ENTITLED, 13))]).await,
            404,
            "revoked"
        );
        assert_eq!(
            status(&[&good, &good]).await,
            404,
            "a client's beside the proxy's"
        );
        crane.stop().await;
    }
}

#[tokio::test]
async fn a_silent_client_is_not_waited_for() {
    for tls in [false, true] {
        let crane = Crane::start(tls, |_, _, config| {
            config.header_timeout = Duration::from_millis(100);
        })
        .await;
        let mut silent = tokio::net::TcpStream::connect(crane.address).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(LIMIT, silent.read_to_end(&mut answer)).await.unwrap();
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"),
            "{read:?}"
        );
        crane.stop().await;
    }
}

#[tokio::test]
async fn without_a_certificate_of_its_own_it_does_not_start() {
    let crane = Crane::start(false, |site, _, config| {
        let nowhere = site.dir.path().join("nowhere");
        config.tls = Some(TlsFiles {
            certificate: nowhere.clone(),
            key: nowhere,
        });
    })
    .await;
    let ended = timeout(LIMIT, crane.running).await.unwrap().unwrap();
    assert!(matches!(ended, Err(CraneError::Tls(_))), "{ended:?}");
}
