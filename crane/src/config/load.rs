//! `/etc/crane.conf` and the environment, put over settings of any origin.

mod access;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use super::{
    CraneConfig, Mode, Sendfile, TlsFiles, Token,
    ini::{self, IniError},
};

/// Where the file is if the environment doesn't say.
const DEFAULT_FILE: &str = "/etc/crane.conf";

/// Every key, by section. In the environment they are `CRANE_<SECTION>_<KEY>`.
const KEYS: [(&str, &[&str]); 8] = [
    (
        "general",
        &[
            "debug",
            "data_dir",
            "data_dir_polling_interval",
            "endpoint",
            "listen",
            "namespaces",
            "header_timeout",
        ],
    ),
    (
        "cdn",
        &[
            "url_match",
            "url_replace",
            "url_auth_secret",
            "url_auth_ttl",
            "url_auth_param",
            "url_auth_algo",
        ],
    ),
    (
        "serve_content",
        &[
            "enable",
            "content_dir_v1",
            "content_dir_v2",
            "use_x_sendfile",
            "x_accel_prefix",
        ],
    ),
    ("tls", &["certificate", "key"]),
    ("entitlements", &["ca", "crl", "trusted_proxies"]),
    (
        "token",
        &["realm", "service", "issuer", "public_keys", "challenge"],
    ),
    ("gsa", &["url"]),
    ("solr", &["url"]),
];

/// Why Crane can't start with these settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no INI file.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IniError,
    },
    /// A value that its key can't have.
    #[error("{place}: {key} {problem}")]
    Value {
        /// File and line, or the variable.
        place: String,
        /// Section and key.
        key: String,
        /// What it is and what it should be.
        problem: String,
    },
}

/// A value and where it stands.
struct Setting {
    text: String,
    place: String,
}

/// What was found, by section and key.
#[derive(Default)]
struct Settings(BTreeMap<(&'static str, &'static str), Setting>);

impl CraneConfig {
    /// What the original Crane has where its file says nothing.
    fn original() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/crane/metadata/"),
            mode: Mode::Redirect,
            sendfile: Some(Sendfile::XSendfile),
            max_age: Some(Duration::from_mins(1)),
            ..Self::default()
        }
    }

    /// The settings of `$CRANE_CONFIG_PATH`, else of `/etc/crane.conf`, and of the environment, which wins. None if
    /// there is no such file, so that settings come from elsewhere.
    pub fn from_crane_conf(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Option<Self>, ConfigError> {
        let environment: Vec<_> = environment.into_iter().collect();
        let named = variable(&environment, "CRANE_CONFIG_PATH").filter(|path| !path.is_empty());
        let path = PathBuf::from(named.unwrap_or(DEFAULT_FILE));
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if named.is_none() && e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let mut settings = Settings::default();
        settings.file(&path, &text)?;
        settings.environment(&environment);
        let config = settings.put_over(Self::original())?;
        Ok(Some(config))
    }

    /// These settings with those of the environment over them.
    pub fn with_environment(
        self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Settings::default();
        settings.environment(&environment.into_iter().collect::<Vec<_>>());
        settings.put_over(self)
    }
}

fn variable<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a str> {
    environment.iter().find(|(n, _)| n == name)?.1.to_str()
}

impl Settings {
    fn file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let sections = ini::parse(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        for (section, keys) in KEYS {
            for key in keys {
                if let Some((text, line)) = sections.get(section).and_then(|s| s.get(*key)) {
                    let place = format!("{}:{line}", path.display());
                    let text = text.clone();
                    self.0.insert((section, key), Setting { text, place });
                }
            }
        }
        let known =
            |section: &str, key: &str| KEYS.iter().any(|(s, keys)| *s == section && keys.contains(&key));
        for (section, keys) in &sections {
            for (key, (_, line)) in keys.iter().filter(|(key, _)| !known(section, key)) {
                tracing::warn!(
                    "{}:{line}: [{section}] {key} is not known, passed over",
                    path.display()
                );
            }
        }
        Ok(())
    }

    fn environment(&mut self, environment: &[(OsString, OsString)]) {
        for (section, keys) in KEYS {
            for key in keys {
                let name = format!("CRANE_{}_{}", section.to_uppercase(), key.to_uppercase());
                if let Some(text) = variable(environment, &name) {
                    let text = text.trim().to_owned();
                    self.0.insert((section, key), Setting { text, place: name });
                }
            }
        }
        // The original's one: it turns on, never off.
        if variable(environment, "CRANE_DEBUG").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            let place = "CRANE_DEBUG".to_owned();
            let text = "true".to_owned();
            self.0.insert(("general", "debug"), Setting { text, place });
        }
    }

    fn get(&self, section: &'static str, key: &'static str) -> Option<&str> {
        Some(self.0.get(&(section, key))?.text.as_str())
    }

    /// A text that is not empty.
    fn text(&self, section: &'static str, key: &'static str) -> Option<&str> {
        self.get(section, key).filter(|text| !text.is_empty())
    }

    fn wrong(&self, section: &'static str, key: &'static str, wanted: &str) -> ConfigError {
        let setting = self.0.get(&(section, key));
        // A secret is none any more once it is in a log.
        let shown = match setting {
            Some(_) if key.contains("secret") => "its value".to_owned(),
            Some(setting) => format!("{:?}", setting.text),
            None => "nothing".to_owned(),
        };
        ConfigError::Value {
            place: setting.map_or_else(String::new, |s| s.place.clone()),
            key: format!("[{section}] {key}"),
            problem: format!("is {shown}, not {wanted}"),
        }
    }

    fn parsed<T: FromStr>(
        &self,
        section: &'static str,
        key: &'static str,
        wanted: &str,
    ) -> Result<Option<T>, ConfigError> {
        let parsed = self.get(section, key).map(str::parse).transpose();
        parsed.map_err(|_| self.wrong(section, key, wanted))
    }

    fn seconds(&self, section: &'static str, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let seconds = self.parsed::<u32>(section, key, "a whole number of seconds")?;
        Ok(seconds.map(|s| Duration::from_secs(u64::from(s))))
    }

    fn boolean(&self, section: &'static str, key: &'static str) -> Result<Option<bool>, ConfigError> {
        let Some(text) = self.get(section, key) else {
            return Ok(None);
        };
        match text.to_lowercase().as_str() {
            "1" | "yes" | "true" | "on" => Ok(Some(true)),
            "0" | "no" | "false" | "off" => Ok(Some(false)),
            _ => Err(self.wrong(section, key, "true or false")),
        }
    }

    fn list<T: FromStr>(
        &self,
        section: &'static str,
        key: &'static str,
        wanted: &str,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(text) = self.get(section, key) else {
            return Ok(None);
        };
        let parts = text.split([',', ' ', '\n']).filter(|part| !part.is_empty());
        let parts: Result<Vec<T>, _> = parts.map(str::parse).collect();
        parts.map(Some).map_err(|_| self.wrong(section, key, wanted))
    }

    fn put_over(&self, mut config: CraneConfig) -> Result<CraneConfig, ConfigError> {
        self.general(&mut config)?;
        self.cdn(&mut config)?;
        self.serve_content(&mut config)?;
        match (self.text("tls", "certificate"), self.text("tls", "key")) {
            (Some(certificate), Some(key)) => {
                config.tls = Some(TlsFiles {
                    certificate: certificate.into(),
                    key: key.into(),
                });
            }
            (Some(_), None) => return Err(self.wrong("tls", "key", "the private key of [tls] certificate")),
            (None, Some(_)) => return Err(self.wrong("tls", "certificate", "the certificate of [tls] key")),
            (None, None) => {}
        }
        self.access(&mut config)?;
        for service in ["gsa", "solr"] {
            if self.text(service, "url").is_some() {
                tracing::warn!("[{service}] url is passed over: /v1/search answers from Crane's own index");
            }
        }
        Ok(config)
    }

    fn general(&self, config: &mut CraneConfig) -> Result<(), ConfigError> {
        set(&mut config.debug, self.boolean("general", "debug")?);
        set(
            &mut config.data_dir,
            self.text("general", "data_dir").map(PathBuf::from),
        );
        if let Some(interval) = self.seconds("general", "data_dir_polling_interval")? {
            config.polling_interval = interval;
            // The original lets caches keep tags as long as it may not have noticed that they changed.
            config.max_age = config.max_age.map(|_| interval);
        }
        if let Some(endpoint) = self.get("general", "endpoint") {
            config.endpoint = Some(endpoint.to_owned()).filter(|e| !e.is_empty());
        }
        let wanted = "an address with a port such as 0.0.0.0:5000";
        set(&mut config.listen, self.parsed("general", "listen", wanted)?);
        set(
            &mut config.namespaces,
            self.list("general", "namespaces", "a list of hosts")?,
        );
        set(
            &mut config.header_timeout,
            self.seconds("general", "header_timeout")?,
        );
        Ok(())
    }

    fn cdn(&self, config: &mut CraneConfig) -> Result<(), ConfigError> {
        let pair = (self.text("cdn", "url_match"), self.text("cdn", "url_replace"));
        if let (Some(wanted), Some(instead)) = pair {
            config.cdn.rewrite = Some((wanted.to_owned(), instead.to_owned()));
        }
        let Some(secret) = self.text("cdn", "url_auth_secret") else {
            return Ok(());
        };
        // The original went on without tokens; a CDN that should have been closed was open then, or the other way.
        let secret = hex::decode(secret)
            .map_err(|_| self.wrong("cdn", "url_auth_secret", "an even number of hexadecimal digits"))?;
        let mut token = Token::new(secret);
        set(&mut token.ttl, self.seconds("cdn", "url_auth_ttl")?);
        set(
            &mut token.parameter,
            self.text("cdn", "url_auth_param").map(ToOwned::to_owned),
        );
        set(
            &mut token.algorithm,
            self.parsed("cdn", "url_auth_algo", "sha256, sha1 or md5")?,
        );
        config.cdn.token = Some(token);
        Ok(())
    }

    fn serve_content(&self, config: &mut CraneConfig) -> Result<(), ConfigError> {
        match self.boolean("serve_content", "enable")? {
            Some(false) => config.mode = Mode::Redirect,
            Some(true) => {
                let dirs = [
                    ("content_dir_v1", "/var/www/pub/docker/v1/web/"),
                    ("content_dir_v2", "/var/www/pub/docker/v2/web/"),
                ];
                let dirs = dirs.map(|(key, default)| {
                    (
                        key,
                        PathBuf::from(self.get("serve_content", key).unwrap_or(default)),
                    )
                });
                let missing = dirs.iter().find(|(_, dir)| !dir.is_dir());
                if let Some((key, dir)) = missing {
                    tracing::error!(
                        "[serve_content] {key}: there is no directory {:?}; content is not served, but redirected to",
                        dir.display()
                    );
                    config.mode = Mode::Redirect;
                } else {
                    let [(_, v1), (_, v2)] = dirs;
                    config.mode = Mode::Serve {
                        content_dir_v1: Some(v1),
                        content_dir_v2: Some(v2),
                    };
                }
            }
            None => {}
        }
        match self.boolean("serve_content", "use_x_sendfile")? {
            Some(true) => config.sendfile = Some(Sendfile::XSendfile),
            Some(false) => config.sendfile = None,
            None => {}
        }
        if let Some(prefix) = self.text("serve_content", "x_accel_prefix") {
            if !prefix.starts_with('/') {
                return Err(self.wrong("serve_content", "x_accel_prefix", "a path such as /crane-files"));
            }
            config.sendfile = Some(Sendfile::XAccelRedirect {
                prefix: prefix.trim_end_matches('/').to_owned(),
            });
        }
        Ok(())
    }
}

fn set<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::net::SocketAddr;

    use super::*;
    use crate::config::TokenAlgorithm;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<CraneConfig, ConfigError> {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("crane.conf");
        fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let of_file = [("CRANE_CONFIG_PATH", path)];
        let environment = environment.iter().chain(&of_file);
        let environment: Vec<(OsString, OsString)> = environment.map(|(k, v)| (k.into(), v.into())).collect();
        CraneConfig::from_crane_conf(environment).map(Option::unwrap)
    }

    #[test]
    fn an_empty_file_means_the_originals_defaults() {
        assert_eq!(load("", &[]).unwrap(), CraneConfig::original());
    }

    #[test]
    fn every_key_of_the_original_is_read() {
        let dir = tempfile::TempDir::new().unwrap();
        let web = dir.path().display();
        let config = load(
            &format!(
                "[general]\ndebug: yes\ndata_dir: /srv/data\ndata_dir_polling_interval: 5\nendpoint: here:5000\n\
                 [cdn]\nurl_match: a\nurl_replace: b\nurl_auth_secret: abc123\nurl_auth_ttl: 600\n\
                 url_auth_param: hdnea\nurl_auth_algo: sha1\n\
                 [serve_content]\nenable: true\ncontent_dir_v1: {web}\ncontent_dir_v2: {web}\nuse_x_sendfile: false\n\
                 [solr]\nurl: http://solr/{{0}}\n[unknown]\nkey: value\n"
            ),
            &[],
        )
        .unwrap();
        let token = Token {
            secret: vec![0xab, 0xc1, 0x23],
            ttl: Duration::from_mins(10),
            parameter: "hdnea".into(),
            algorithm: TokenAlgorithm::Sha1,
        };
        let expected = CraneConfig {
            debug: true,
            data_dir: "/srv/data".into(),
            polling_interval: Duration::from_secs(5),
            max_age: Some(Duration::from_secs(5)),
            endpoint: Some("here:5000".into()),
            cdn: crate::Cdn {
                rewrite: Some(("a".into(), "b".into())),
                token: Some(token),
            },
            mode: Mode::Serve {
                content_dir_v1: Some(dir.path().into()),
                content_dir_v2: Some(dir.path().into()),
            },
            sendfile: None,
            ..CraneConfig::original()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_environment_has_the_same_keys_and_wins() {
        let config = load(
            "[general]\ndata_dir: /file\nendpoint: file\n[serve_content]\nx_accel_prefix: /files/",
            &[
                ("CRANE_GENERAL_DATA_DIR", "/environment"),
                ("CRANE_GENERAL_LISTEN", "[::1]:7000"),
                ("CRANE_DEBUG", "TRUE"),
                ("CRANE_TLS_CERTIFICATE", "/c.pem"),
                ("CRANE_TLS_KEY", "/k.pem"),
                ("CRANE_ENTITLEMENTS_CA", "/ca.pem"),
                ("CRANE_ENTITLEMENTS_TRUSTED_PROXIES", "192.0.2.1, 10.0.0.0/8"),
                ("CRANE_SERVICE_PORT", "80"),
            ],
        )
        .unwrap();
        assert_eq!(config.data_dir, Path::new("/environment"));
        assert_eq!(config.endpoint.as_deref(), Some("file"));
        assert_eq!(config.listen, SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7000)));
        assert!(config.debug);
        assert_eq!(config.tls.unwrap().key, Path::new("/k.pem"));
        let proxies = config.entitlements.unwrap().trusted_proxies;
        assert_eq!(
            proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1/32", "10.0.0.0/8"]
        );
        let prefix = "/files".to_owned();
        assert_eq!(config.sendfile, Some(Sendfile::XAccelRedirect { prefix }));
        // Over settings of another origin only what is said changes.
        let over = CraneConfig::default()
            .with_environment([("CRANE_GENERAL_ENDPOINT".into(), "e".into())])
            .unwrap();
        let endpoint = Some("e".to_owned());
        assert_eq!(
            over,
            CraneConfig {
                endpoint,
                ..CraneConfig::default()
            }
        );
    }

    #[test]
    fn debug_of_the_environment_is_true_or_nothing() {
        for value in ["1", "yes", "false"] {
            assert!(!load("", &[("CRANE_DEBUG", value)]).unwrap().debug, "{value}");
        }
        assert!(
            load("[general]\ndebug: on", &[("CRANE_DEBUG", "no")])
                .unwrap()
                .debug
        );
        // The original refused a section without it.
        assert!(!load("[general]\ndata_dir: /x", &[]).unwrap().debug);
    }

    #[test]
    fn a_value_that_can_not_be_is_told_with_its_place() {
        for (text, key) in [
            ("[general]\ndebug: maybe", "[general] debug is \"maybe\""),
            (
                "[general]\ndata_dir_polling_interval: 1m",
                "data_dir_polling_interval is \"1m\"",
            ),
            (
                "[general]\ndata_dir_polling_interval: 0.5",
                "data_dir_polling_interval is \"0.5\"",
            ),
            (
                "[general]\ndata_dir_polling_interval:",
                "data_dir_polling_interval is \"\"",
            ),
            (
                "[cdn]\nurl_auth_secret: xyz",
                "url_auth_secret is its value, not an even number",
            ),
            ("[cdn]\nurl_auth_secret: abc", "url_auth_secret is its value"),
            (
                "[cdn]\nurl_auth_secret: ab\nurl_auth_ttl: 5m",
                "url_auth_ttl is \"5m\"",
            ),
            (
                "[cdn]\nurl_auth_secret: ab\nurl_auth_algo: sha3",
                "url_auth_algo is \"sha3\"",
            ),
            ("[serve_content]\nenable:", "[serve_content] enable is \"\""),
            ("[tls]\ncertificate: /c", "[tls] key is nothing"),
            (
                "[entitlements]\nca: /c\ntrusted_proxies: here",
                "trusted_proxies is \"here\"",
            ),
            (
                "[token]\npublic_keys: /k\nrealm: here",
                "[token] realm is \"here\"",
            ),
            (
                "[token]\npublic_keys: /k\nservice: a b",
                "[token] service is \"a b\"",
            ),
            (
                "[token]\npublic_keys: /k\nchallenge: no",
                "[token] challenge is \"no\"",
            ),
        ] {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(
            load("[general]\ndebug: maybe", &[])
                .unwrap_err()
                .to_string()
                .contains("crane.conf:2: ")
        );
    }

    #[test]
    fn a_content_directory_that_is_not_there_switches_to_redirects() {
        let config = load("[serve_content]\nenable: true\ncontent_dir_v1: /nonexistent", &[]).unwrap();
        assert_eq!(config.mode, Mode::Redirect);
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let environment = [("CRANE_CONFIG_PATH".into(), "/nonexistent/crane.conf".into())];
        assert!(matches!(
            CraneConfig::from_crane_conf(environment),
            Err(ConfigError::Read { .. })
        ));
    }
}
