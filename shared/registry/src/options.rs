//! How a registry is talked to: credentials, TLS, proxy, time and patience.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use url::Url;

use crate::{Credentials, RegistryError, Result, error::chain};

/// How a registry is talked to.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Login and password; none means anonymous.
    pub credentials: Option<Credentials>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long nothing may come on a connection, in the midst of a blob too.
    pub idle_timeout: Duration,
    /// A blob of which fewer than 16 KiB come in this time is taken up anew, a few times.
    pub slow_for: Duration,
    /// How long a small document (token, tags, manifest) may take as a whole.
    pub document_timeout: Duration,
    /// Requests for content at a time; 1 or more.
    pub concurrency: usize,
    /// Sent as `User-Agent`.
    pub user_agent: String,
    /// Certificates, ours and theirs.
    pub tls: Tls,
    /// What stands between us and the registry.
    pub proxy: Option<ProxyOptions>,
    /// What is tried again, and when.
    pub retries: Retries,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credentials: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            slow_for: Duration::from_mins(2),
            document_timeout: Duration::from_mins(1),
            concurrency: 4,
            user_agent: concat!("pulp/", env!("CARGO_PKG_VERSION")).to_owned(),
            tls: Tls::default(),
            proxy: None,
            retries: Retries::default(),
        }
    }
}

/// Certificates of a connection by `https`.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM text of the authorities that may have signed the registry's certificate; none means the system's.
    pub ca: Option<String>,
    /// PEM texts of our certificate (with its chain) and its key, for a registry that wants one.
    pub client: Option<(String, String)>,
    /// Whether the registry's certificate is checked at all.
    pub verify: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            ca: None,
            client: None,
            verify: true,
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.is_some())
            .field("client", &self.client.is_some())
            .field("verify", &self.verify)
            .finish()
    }
}

/// A proxy that all requests go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyOptions {
    /// `http://`, `https://`, `socks5://` or `socks5h://` with host and port, without a password.
    pub url: Url,
    /// Login and password at the proxy.
    pub credentials: Option<Credentials>,
}

/// What is tried again: connections that fail or break, and the statuses 408, 425, 429, 500, 502, 503 and 504.
#[derive(Debug, Clone)]
pub struct Retries {
    /// Times that a request is sent at most; 1 or more. Of a blob: in a row without a byte that is new.
    pub attempts: u32,
    /// The pause after the first failure; it doubles each time, and a random part of it is taken off.
    pub first: Duration,
    /// The longest such pause.
    pub longest: Duration,
    /// The longest pause that a registry may ask for by `Retry-After`; if it asks for more, the request fails.
    pub longest_asked: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 5,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            longest_asked: Duration::from_mins(5),
        }
    }
}

impl Retries {
    /// How long to wait after `failures` failures in a row, the last of which was `error`; none means to give up.
    /// `random` is from 0 to 1.
    pub(crate) fn pause(&self, failures: u32, error: &RegistryError, random: f64) -> Option<Duration> {
        if failures >= self.attempts.max(1) || !error.is_retryable() {
            return None;
        }
        if let RegistryError::RateLimited {
            retry_after: Some(asked),
            ..
        } = error
        {
            return (*asked <= self.longest_asked).then_some(*asked);
        }
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        Some(
            doubled
                .min(self.longest)
                .mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0),
        )
    }
}

/// How long HTTP clients are shared: what the system trusts is read anew after that.
const SHARED_FOR: Duration = Duration::from_mins(5);
/// So many are shared at most.
const SHARED: usize = 64;
/// How long a connection that nobody uses stays open.
const KEPT_OPEN: Duration = Duration::from_secs(30);

/// What an HTTP client is made of.
#[derive(Clone, PartialEq, Eq)]
struct Made {
    user_agent: String,
    connect_timeout: Duration,
    idle_timeout: Duration,
    tls: Tls,
    proxy: Option<ProxyOptions>,
}

/// The HTTP client for these options, shared by all who have the same: to read what the system trusts takes longer
/// than all that a sync of few tags needs, and a connection of the last sync may still be open.
pub(crate) fn shared(options: &ClientOptions) -> Result<reqwest::Client, String> {
    static CLIENTS: Mutex<Vec<(Made, Instant, reqwest::Client)>> = Mutex::new(Vec::new());
    let made = Made {
        user_agent: options.user_agent.clone(),
        connect_timeout: options.connect_timeout,
        idle_timeout: options.idle_timeout,
        tls: options.tls.clone(),
        proxy: options.proxy.clone(),
    };
    let find = |clients: &[(Made, Instant, reqwest::Client)]| {
        let fits = clients
            .iter()
            .find(|(of, at, _)| *of == made && at.elapsed() < SHARED_FOR);
        fits.map(|(_, _, client)| client.clone())
    };
    let lock = || CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = find(&lock()) {
        return Ok(client);
    }
    // Nobody else has to wait for this.
    let client = build(options)?;
    let mut clients = lock();
    clients.retain(|(of, at, _)| *of != made && at.elapsed() < SHARED_FOR);
    if clients.len() >= SHARED {
        clients.remove(0);
    }
    clients.push((made, Instant::now(), client.clone()));
    Ok(client)
}

fn build(options: &ClientOptions) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .user_agent(&options.user_agent)
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.idle_timeout)
        .pool_idle_timeout(KEPT_OPEN)
        .tls_danger_accept_invalid_certs(!options.tls.verify);
    if let Some(pem) = &options.tls.ca {
        let authorities = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|e| format!("the CA certificate: {}", chain(&e)))?;
        if authorities.is_empty() {
            return Err("the CA certificate: there is no certificate in the PEM text".to_owned());
        }
        builder = builder.tls_certs_only(authorities);
    }
    if let Some((certificate, key)) = &options.tls.client {
        let identity = reqwest::Identity::from_pem(format!("{certificate}\n{key}").as_bytes())
            .map_err(|e| format!("the client certificate or its key: {}", chain(&e)))?;
        builder = builder.identity(identity);
    }
    if let Some(proxy) = &options.proxy {
        let mut url = proxy.url.clone();
        if let Some(credentials) = &proxy.credentials {
            let set = url.set_username(&credentials.login);
            set.and_then(|()| url.set_password(Some(&credentials.password)))
                .map_err(|()| "the proxy takes no login".to_owned())?;
        }
        let proxy =
            reqwest::Proxy::all(url).map_err(|e| format!("the proxy: {}", chain(&e.without_url())))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|e| chain(&e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn status(status: u16) -> RegistryError {
        RegistryError::Status {
            url: "u".to_owned(),
            status,
            reason: String::new(),
        }
    }

    fn limited(seconds: u64) -> RegistryError {
        RegistryError::RateLimited {
            url: "u".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
            reason: String::new(),
        }
    }

    #[test]
    fn pauses_grow_up_to_a_limit_and_end() {
        let retries = Retries {
            attempts: 10,
            ..Retries::default()
        };
        let pauses: Vec<_> = (1..=10)
            .map(|n| retries.pause(n, &status(503), 0.0).map(|d| d.as_millis()))
            .collect();
        assert_eq!(
            pauses,
            [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]
                .into_iter()
                .map(Some)
                .chain([None])
                .collect::<Vec<_>>()
        );
        assert_eq!(retries.pause(1, &status(404), 0.0), None);
        assert_eq!(retries.pause(1, &status(501), 0.0), None);
    }

    #[test]
    fn a_pause_asked_for_is_kept_to_unless_it_is_too_long() {
        let retries = Retries::default();
        assert_eq!(
            retries.pause(1, &limited(7), 0.9),
            Some(Duration::from_secs(7)),
            "not a moment less"
        );
        assert_eq!(retries.pause(1, &limited(3600), 0.0), None);
    }

    proptest! {
        #[test]
        fn no_pause_is_longer_than_the_longest(failures in 0u32..5000, random in 0.0f64..1.0) {
            let retries = Retries { attempts: u32::MAX, ..Retries::default() };
            let pause = retries.pause(failures, &status(500), random).unwrap();
            prop_assert!(pause <= retries.longest && pause >= retries.first / 2);
        }
    }
}
