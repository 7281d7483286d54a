//! Settings of the importer, which says where a repository's content comes from, checked when they are set.

use std::time::Duration;

use serde_json::{Map, Value};
use url::Url;

use crate::{
    CodedError, ErrorCode, RegistryId,
    platform::{PlatformFilter, Platforms},
    tag_filter::TagFilter,
    unit::ImageId,
};

/// Downloads at a time unless set otherwise.
pub const DEFAULT_MAX_DOWNLOADS: usize = 5;
/// The most downloads at a time that may be set.
pub const MOST_DOWNLOADS: u64 = 200;

/// A login and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The login.
    pub login: String,
    /// The password, maybe empty.
    pub password: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("login", &self.login)
            .finish_non_exhaustive()
    }
}

/// PEM texts of a connection by TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Authorities that may have signed the upstream's certificate; none means the system's.
    pub ca: Option<String>,
    /// Our certificate.
    pub client: Option<String>,
    /// Its key; none if it stands in the same text as the certificate.
    pub key: Option<String>,
}

/// An importer's settings after merging and checking.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // Each is a setting of its own, by its documented name.
pub struct ImporterSettings {
    /// Base url of the upstream registry.
    pub feed: Option<Url>,
    /// The repository's name upstream.
    pub upstream_name: Option<RegistryId>,
    /// Sync by the registry API v1.
    pub enable_v1: bool,
    /// Sync by the registry API v2.
    pub enable_v2: bool,
    /// Which tags are taken.
    pub tags: TagFilter,
    /// Which platforms' images are taken of lists and indexes; none means all.
    pub platforms: Option<Platforms>,
    /// Whether tags go that the upstream has no more, or that the filter doesn't take any more.
    pub remove_missing: bool,
    /// Whether what refers to the manifests that tags name (signatures, SBOMs, attestations) is taken as well.
    pub referrers: bool,
    /// Artifact types of the referrers that are taken; empty means all.
    pub referrer_types: Vec<String>,
    /// Certificates.
    pub certificates: Certificates,
    /// Whether the upstream's certificate is checked.
    pub ssl_validation: bool,
    /// The proxy, and the account there.
    pub proxy: Option<(Url, Option<Account>)>,
    /// The account at the upstream.
    pub account: Option<Account>,
    /// Downloads at a time.
    pub max_downloads: usize,
    /// Bytes a second of all downloads of a sync together; none means no limit.
    pub max_speed: Option<f64>,
    /// How long a connection may take to be made.
    pub connect_timeout: Option<Duration>,
    /// How long nothing may come on a connection.
    pub read_timeout: Option<Duration>,
    /// Uploads of v1 images: the image that is left out with its ancestors.
    pub mask_id: Option<ImageId>,
}

impl ImporterSettings {
    /// Where a sync fetches from, or the error that names all that is not set.
    pub fn upstream(&self) -> Result<(&Url, &RegistryId), CodedError> {
        if let (Some(feed), Some(name)) = (&self.feed, &self.upstream_name) {
            return Ok((feed, name));
        }
        let missing: Vec<&str> = [
            ("feed", self.feed.is_none()),
            ("upstream_name", self.upstream_name.is_none()),
        ]
        .into_iter()
        .filter_map(|(key, missing)| missing.then_some(key))
        .collect();
        let text = format!(
            "the importer lacks {}; set it, for example by pulp-admin docker repo update",
            missing.join(" and ")
        );
        Err(CodedError::new(ErrorCode::MISSING_VALUE, text).with("property_names", missing))
    }
}

/// Checks an importer's merged settings; all faults are reported at once. Keys that are not known are passed over,
/// as Pulp does.
pub fn importer_settings(config: &Map<String, Value>) -> Result<ImporterSettings, CodedError> {
    let mut read = Reader {
        config,
        faults: Vec::new(),
    };
    let settings = ImporterSettings {
        feed: read.feed(),
        upstream_name: read.parsed("upstream_name"),
        enable_v1: read.flag("enable_v1", false),
        enable_v2: read.flag("enable_v2", true),
        tags: read.tags(),
        platforms: read.platforms(),
        remove_missing: read.flag("remove_missing", false),
        referrers: read.flag("referrers", false),
        referrer_types: read.list("referrer_types").unwrap_or_default(),
        certificates: read.certificates(),
        ssl_validation: read.flag("ssl_validation", true),
        proxy: read.proxy(),
        account: read.account("basic_auth_username", "basic_auth_password"),
        max_downloads: read
            .whole("max_downloads", MOST_DOWNLOADS)
            .map_or(DEFAULT_MAX_DOWNLOADS, |n| n as usize),
        max_speed: read.positive("max_speed"),
        connect_timeout: read.seconds("connect_timeout"),
        read_timeout: read.seconds("read_timeout"),
        mask_id: read.parsed("mask_id"),
    };
    read.flag("validate", false);
    match CodedError::all(read.faults) {
        None => Ok(settings),
        Some(error) => Err(error),
    }
}

struct Reader<'a> {
    config: &'a Map<String, Value>,
    faults: Vec<CodedError>,
}

impl Reader<'_> {
    fn fault(&mut self, field: &str, text: &str) {
        let error = CodedError::new(ErrorCode::INVALID_VALUE, format!("{field}: {text}"));
        self.faults.push(error.with("property_names", [field]));
    }

    /// A value that is there and not empty, which is how clients take one away.
    fn value(&self, field: &str) -> Option<&Value> {
        let value = self.config.get(field)?;
        (!value.is_null() && value.as_str() != Some("")).then_some(value)
    }

    fn text(&mut self, field: &str) -> Option<String> {
        match self.value(field)? {
            Value::String(text) => Some(text.clone()),
            other => {
                let text = format!("{other} is no text");
                self.fault(field, &text);
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, field: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(field)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.fault(field, &e.to_string());
                None
            }
        }
    }

    fn flag(&mut self, field: &str, default: bool) -> bool {
        if self.value(field).is_none() {
            return default;
        }
        match crate::config::boolean(self.config, field) {
            Ok(value) => value,
            Err(error) => {
                self.faults.push(error.with("property_names", [field]));
                default
            }
        }
    }

    /// A number, or a text that is one.
    fn number(&mut self, field: &str) -> Option<f64> {
        let value = self.value(field)?.clone();
        let number = match &value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        if number.is_none_or(|n| !n.is_finite()) {
            self.fault(field, &format!("{value} is no number"));
            return None;
        }
        number
    }

    fn positive(&mut self, field: &str) -> Option<f64> {
        let number = self.number(field)?;
        if number <= 0.0 {
            self.fault(field, &format!("{number} is not above 0"));
            return None;
        }
        Some(number)
    }

    fn whole(&mut self, field: &str, most: u64) -> Option<u64> {
        let number = self.number(field)?;
        if number.fract() != 0.0 || number < 1.0 || number > most as f64 {
            self.fault(field, &format!("{number} is no whole number from 1 to {most}"));
            return None;
        }
        Some(number as u64)
    }

    fn seconds(&mut self, field: &str) -> Option<Duration> {
        let number = self.positive(field)?;
        if number > 86_400.0 {
            self.fault(field, &format!("{number} seconds are more than a day"));
            return None;
        }
        Some(Duration::from_secs_f64(number))
    }

    fn feed(&mut self) -> Option<Url> {
        let text = self.text("feed")?;
        let url = Url::parse(&text).ok();
        let url = url.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        if url.is_none() {
            // It may hold a password.
            self.fault(
                "feed",
                "give the url of a registry, like https://registry.example.com",
            );
        }
        url
    }

    /// A list of texts, or one text with commas.
    fn list(&mut self, field: &str) -> Option<Vec<String>> {
        match self.value(field)?.clone() {
            Value::String(text) => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|t| !t.is_empty())
                    .map(ToOwned::to_owned)
                    .collect(),
            ),
            Value::Array(list) if list.iter().all(Value::is_string) => Some(
                list.iter()
                    .filter_map(Value::as_str)
                    .map(ToOwned::to_owned)
                    .collect(),
            ),
            other => {
                self.fault(field, &format!("{other} is no list of texts"));
                None
            }
        }
    }

    fn tags(&mut self) -> TagFilter {
        let include = self.list("tags");
        let exclude = self.list("tags_exclude").unwrap_or_default();
        let versions = self.text("tags_semver");
        let newest = self.whole("tags_newest", 1_000_000).map(|n| n as usize);
        match TagFilter::new(include.as_deref(), &exclude, versions.as_deref(), newest) {
            Ok(filter) => filter,
            Err(faults) => {
                for (field, text) in faults {
                    self.fault(field, &text);
                }
                TagFilter::default()
            }
        }
    }

    fn platforms(&mut self) -> Option<Platforms> {
        let mode = self.parsed("platforms_mode").unwrap_or_default();
        match PlatformFilter::new(&self.list("platforms")?) {
            Ok(filter) => Some(Platforms { filter, mode }),
            Err(faults) => {
                for text in faults {
                    self.fault("platforms", &text);
                }
                None
            }
        }
    }

    fn certificates(&mut self) -> Certificates {
        let certificates = Certificates {
            ca: self.pem("ssl_ca_cert", "CERTIFICATE-----"),
            client: self.pem("ssl_client_cert", "CERTIFICATE-----"),
            key: self.pem("ssl_client_key", "PRIVATE KEY-----"),
        };
        let holds_key = |pem: &String| pem.contains("PRIVATE KEY-----");
        match (&certificates.client, &certificates.key) {
            (None, Some(_)) => self.fault("ssl_client_cert", "a key is given without its certificate"),
            (Some(client), None) if !holds_key(client) => {
                self.fault("ssl_client_key", "a certificate is given without its key");
            }
            _ => {}
        }
        certificates
    }

    fn pem(&mut self, field: &str, what: &str) -> Option<String> {
        let text = self.text(field)?;
        if text.contains(what) {
            return Some(text);
        }
        let what = what.trim_end_matches('-').to_ascii_lowercase();
        self.fault(
            field,
            &format!("there is no {what} in it; give the PEM text itself, not its path"),
        );
        None
    }

    fn account(&mut self, login: &str, password: &str) -> Option<Account> {
        let (user, pass) = (self.text(login), self.text(password));
        if user.is_none() && pass.is_some() {
            self.fault(login, "a password is given without a login");
        }
        Some(Account {
            login: user?,
            password: pass.unwrap_or_default(),
        })
    }

    fn proxy(&mut self) -> Option<(Url, Option<Account>)> {
        let host = self.text("proxy_host");
        let port = self.whole("proxy_port", 65_535);
        let account = self.account("proxy_username", "proxy_password");
        let Some(host) = host else {
            if port.is_some() || account.is_some() {
                self.fault(
                    "proxy_host",
                    "the proxy's port or login is given without its host",
                );
            }
            return None;
        };
        let text = if host.contains("://") {
            host
        } else {
            format!("http://{host}")
        };
        let known = ["http", "https", "socks5", "socks5h"];
        let url = Url::parse(&text).ok();
        let url = url.filter(|u| known.contains(&u.scheme()) && u.has_host() && u.username().is_empty());
        let Some(mut url) = url else {
            self.fault(
                "proxy_host",
                "give a host, or http://, https://, socks5:// or socks5h:// and a host",
            );
            return None;
        };
        if let Some(port) = port {
            // Can't fail for these schemes.
            let _ = url.set_port(Some(port as u16));
        }
        Some((url, account))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::platform::PlatformsMode;

    fn settings(config: &Value) -> Result<ImporterSettings, CodedError> {
        importer_settings(config.as_object().unwrap())
    }

    fn faults(config: &Value) -> Vec<String> {
        let error = settings(config).unwrap_err();
        let all = if error.sub_errors.is_empty() {
            vec![error]
        } else {
            error.sub_errors
        };
        all.iter()
            .map(|e| e.data["property_names"][0].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn nothing_set_is_valid_and_has_defaults() {
        let s = settings(&json!({"validate": null, "feed": ""})).unwrap();
        assert!(s.enable_v2 && !s.enable_v1 && s.ssl_validation && !s.remove_missing);
        assert_eq!(s.max_downloads, 5);
        let error = s.upstream().unwrap_err();
        assert_eq!(error.data["property_names"], json!(["feed", "upstream_name"]));
        let error = settings(&json!({"feed": "http://x"}))
            .unwrap()
            .upstream()
            .unwrap_err();
        assert_eq!(error.data["property_names"], json!(["upstream_name"]));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let config = json!({
            "feed": "registry.example.com", "upstream_name": "Upper/case", "enable_v2": "perhaps",
            "tags": ["-a"], "tags_newest": 0, "ssl_client_key": "-----BEGIN PRIVATE KEY-----",
            "basic_auth_password": "x", "max_downloads": 0, "max_speed": "fast", "proxy_port": 8080,
        });
        assert_eq!(
            faults(&config),
            [
                "feed",
                "upstream_name",
                "enable_v2",
                "tags_newest",
                "tags",
                "ssl_client_cert",
                "proxy_host",
                "basic_auth_username",
                "max_downloads",
                "max_speed",
            ]
        );
    }

    #[test]
    fn numbers_may_come_as_texts() {
        let s = settings(&json!({"max_downloads": "7", "max_speed": "1.5", "read_timeout": 2})).unwrap();
        assert_eq!(
            (s.max_downloads, s.max_speed, s.read_timeout),
            (7, Some(1.5), Some(Duration::from_secs(2)))
        );
        assert_eq!(faults(&json!({"max_downloads": 1.5})), ["max_downloads"]);
        assert_eq!(faults(&json!({"max_downloads": 100_000})), ["max_downloads"]);
        assert_eq!(faults(&json!({"connect_timeout": 1e300})), ["connect_timeout"]);
    }

    #[test]
    fn tags_come_as_a_list_or_with_commas() {
        for tags in [json!(["a", "b"]), json!("a, b,")] {
            let s = settings(&json!({ "tags": tags })).unwrap();
            assert_eq!(s.tags.plain().unwrap().len(), 2);
        }
        assert_eq!(faults(&json!({"tags": [1]})), ["tags"]);
    }

    #[test]
    fn platforms_are_checked_each_and_so_is_their_mode() {
        let s = settings(&json!({"platforms": "linux/arm64, linux/amd64", "platforms_mode": "rewrite"}));
        let platforms = s.unwrap().platforms.unwrap();
        assert_eq!(platforms.mode, PlatformsMode::Rewrite);
        assert_eq!(platforms.filter.to_string(), "linux/amd64, linux/arm64");
        let s = settings(&json!({"platforms": ["linux/amd64"]})).unwrap();
        assert_eq!(s.platforms.unwrap().mode, PlatformsMode::Sparse);
        assert_eq!(settings(&json!({"platforms": null})).unwrap().platforms, None);
        assert_eq!(
            faults(&json!({"platforms": ["linux", "linux/x86_64"], "platforms_mode": "thin"})),
            ["platforms_mode", "platforms", "platforms"]
        );
        assert_eq!(
            faults(&json!({"platforms": [], "platforms_mode": 1})),
            ["platforms_mode", "platforms"]
        );
    }

    #[test]
    fn a_proxy_is_a_host_or_a_url() {
        let url = |config: &Value| settings(config).unwrap().proxy.unwrap().0.to_string();
        assert_eq!(
            url(&json!({"proxy_host": "p", "proxy_port": "3128"})),
            "http://p:3128/"
        );
        assert_eq!(
            url(&json!({"proxy_host": "socks5h://p:1080"})),
            "socks5h://p:1080"
        );
        assert_eq!(faults(&json!({"proxy_host": "ftp://p"})), ["proxy_host"]);
    }

    #[test]
    fn a_password_does_not_show_in_an_error() {
        let error = settings(&json!({"feed": "htp://me:secret@x"})).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        let account =
            settings(&json!({"basic_auth_username": "me", "basic_auth_password": "secret"})).unwrap();
        assert!(!format!("{account:?}").contains("secret"));
    }
}
