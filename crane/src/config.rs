//! Settings of Crane.

mod ini;
mod load;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

pub use crate::cdn::{Cdn, Token, TokenAlgorithm};
pub use load::ConfigError;

/// How a request for content is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// With a redirect to the url in the redirect file.
    Redirect,
    /// With the bytes.
    Serve {
        /// Where v1 content lies as `<repository>/<image id>/…`; none means beside each redirect file.
        content_dir_v1: Option<PathBuf>,
        /// Where v2 content lies as `<repository>/{blobs,manifests,tags}/…`, for redirect files of an old Pulp;
        /// none means beside each redirect file.
        content_dir_v2: Option<PathBuf>,
    },
}

impl Mode {
    /// Send the bytes of what lies beside each redirect file.
    pub const SERVE: Self = Self::Serve {
        content_dir_v1: None,
        content_dir_v2: None,
    };
}

/// A web server in front that sends files which it is named in a header, so that no byte of them passes Crane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sendfile {
    /// Apache with `mod_xsendfile`: `X-Sendfile: <path>`.
    XSendfile,
    /// nginx: `X-Accel-Redirect: <prefix><path>`.
    XAccelRedirect {
        /// Of an `internal` location, such as `/crane-files`; the absolute path of the file is put behind it.
        prefix: String,
    },
}

/// Files of the server's certificate. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and what leads from it to its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Whose certificates entitle to protected repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlements {
    /// Certificates of the authorities, PEM.
    pub ca: PathBuf,
    /// Revocation lists, PEM. With one, certificates of an authority that has no list here count for nothing.
    pub crl: Option<PathBuf>,
    /// Proxies that end TLS themselves and hand the client's certificate on in `SSL-Client-Cert`. From anybody else
    /// the header is passed over.
    pub trusted_proxies: Vec<IpNet>,
}

/// When clients are told that credentials may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Challenge {
    /// As long as a protected repository is published. Elsewise clients need no tokens at all.
    #[default]
    Protected,
    /// Always, so that logins are checked from the beginning.
    Always,
}

/// Whose tokens open protected repositories, and where clients get them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenService {
    /// Url of the token endpoint as clients reach it; none means `/token` of the host they came to.
    pub realm: Option<String>,
    /// This registry's name: tokens for others count for nothing.
    pub service: String,
    /// Who gives them out.
    pub issuer: String,
    /// Public keys, PEM, one or more in each file. They are read again when they change.
    pub public_keys: Vec<PathBuf>,
    /// When clients are told of it.
    pub challenge: Challenge,
}

impl TokenService {
    /// The name of the registry that is asked for, where nothing is said.
    pub const SERVICE: &str = "pulp-registry";
    /// Who gives tokens out, where nothing is said.
    pub const ISSUER: &str = "pulp";
}

/// Settings of Crane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CraneConfig {
    /// Where clients connect. For who binds the listener; [`run`](crate::run) takes it bound.
    pub listen: SocketAddr,
    /// Where the redirect files are: a publish directory, or any directory with `*.json` below it.
    pub data_dir: PathBuf,
    /// How often the data directory is looked through for changes that were not noticed at once.
    pub polling_interval: Duration,
    /// Redirect or serve.
    pub mode: Mode,
    /// `host[:port]` for `X-Docker-Endpoints` of the v1 API; none means the request's host.
    pub endpoint: Option<String>,
    /// Registries whose repositories are here under their own names, such as `docker.io`: to clients that use this
    /// one as a mirror and name one of these in `ns`, `OCI-Namespace` confirms it.
    pub namespaces: Vec<String>,
    /// Serve mode: who sends the bytes, if not Crane itself.
    pub sendfile: Option<Sendfile>,
    /// Redirect mode: what becomes of a v2 url before it is sent.
    pub cdn: Cdn,
    /// How long caches may keep what may change, such as a manifest by tag; none means to ask each time.
    pub max_age: Option<Duration>,
    /// TLS; none means plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Certificates for protected repositories; none means that no certificate counts.
    pub entitlements: Option<Entitlements>,
    /// Tokens for protected repositories; none means that no token counts, and none is asked for.
    pub tokens: Option<TokenService>,
    /// How long a client may take to send a request's headers, and to shake hands over TLS.
    pub header_timeout: Duration,
    /// How often the files of TLS and entitlements are looked at for changes.
    pub reload_interval: Duration,
    /// Log everything.
    pub debug: bool,
}

impl Default for CraneConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 5000)),
            data_dir: PathBuf::from("/var/lib/pulp/published/docker"),
            polling_interval: Duration::from_mins(1),
            mode: Mode::SERVE,
            endpoint: None,
            namespaces: Vec::new(),
            sendfile: None,
            cdn: Cdn::default(),
            max_age: None,
            tls: None,
            entitlements: None,
            tokens: None,
            header_timeout: Duration::from_secs(30),
            reload_interval: Duration::from_secs(10),
            debug: false,
        }
    }
}
