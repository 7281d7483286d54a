//! Settings: built-in values, then `/etc/pulp/admin/admin.conf`, `conf.d/*`, `~/.pulp/admin.conf`,
//! `--config`, the environment, the command line; the later wins.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use ini::{Ini, ParseOption};
use url::Url;

use crate::{error::AdminError, io::Io};

/// Everything settled before the first request.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Scheme, host and port.
    pub(crate) server: Url,
    /// `/pulp/api`.
    pub(crate) api_prefix: String,
    /// Whether the server's certificate is checked.
    pub(crate) verify_ssl: bool,
    /// CA certificates besides the system's: a PEM file, or a folder of them.
    pub(crate) ca_path: Option<PathBuf>,
    /// `http://host:port` of a proxy.
    pub(crate) proxy: Option<String>,
    /// Bytes sent with one request of an upload.
    pub(crate) chunk_size: usize,
    /// Login and password of `[auth]`.
    pub(crate) auth: Option<(String, String)>,
    /// How often a task is looked at.
    pub(crate) poll: Duration,
    /// Escapes for green and red.
    pub(crate) color: bool,
    /// `~/.pulp`.
    pub(crate) home: PathBuf,
    /// Folder of the upload trackers.
    pub(crate) upload_dir: PathBuf,
}

/// One configuration file's text and what may stand in it.
#[derive(Debug)]
struct Layer {
    path: PathBuf,
    text: String,
    /// Whether it is the user's own file, where a password may stand.
    private: bool,
}

/// Reads all layers. Creates `~/.pulp` (0700) if it is not there.
pub(crate) fn load(io: &Io, file: Option<&Path>, server: Option<&str>) -> Result<Config, AdminError> {
    let home = io
        .var("HOME")
        .map(|h| Path::new(h).join(".pulp"))
        .ok_or_else(|| {
            AdminError::Config("HOME is not set; pulp-admin keeps its session there".to_owned())
        })?;
    make_home(&home, io)?;
    let mut layers = Vec::new();
    for path in system_files(&io.system_config)? {
        layers.extend(read(&path, false)?);
    }
    layers.extend(read(&home.join("admin.conf"), true)?);
    if let Some(path) = file {
        layers.push(read(path, true)?.ok_or_else(|| AdminError::File {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })?);
    }
    let values = Values::merged(&layers)?;
    values.config(home, server.or_else(|| io.var("PULP_SERVER")))
}

fn make_home(home: &Path, io: &Io) -> Result<(), AdminError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    match std::fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(home)
    {
        Ok(()) => {
            let mode = std::fs::metadata(home)
                .map_err(AdminError::file(home))?
                .permissions()
                .mode();
            if mode & 0o077 != 0 {
                io.write_err(&format!(
                    "warning: {} may be read by others (mode {:o}); make it private by: chmod 700 {0}\n",
                    home.display(),
                    mode & 0o777
                ));
            }
            Ok(())
        }
        Err(source) => Err(AdminError::File {
            path: home.to_owned(),
            source,
        }),
    }
}

fn system_files(folder: &Path) -> Result<Vec<PathBuf>, AdminError> {
    let mut files = vec![folder.join("admin.conf")];
    let more = folder.join("conf.d");
    match std::fs::read_dir(&more) {
        Ok(entries) => {
            let mut found = Vec::new();
            for entry in entries {
                let path = entry.map_err(AdminError::file(&more))?.path();
                if path.is_file() {
                    found.push(path);
                }
            }
            found.sort();
            files.extend(found);
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(AdminError::File { path: more, source }),
    }
    Ok(files)
}

fn read(path: &Path, private: bool) -> Result<Option<Layer>, AdminError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(Layer {
            path: path.to_owned(),
            text,
            private,
        })),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AdminError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Values of all layers, each with the file it came from.
#[derive(Debug, Default)]
struct Values(BTreeMap<(String, String), (String, PathBuf)>);

impl Values {
    fn merged(layers: &[Layer]) -> Result<Self, AdminError> {
        let mut values = BTreeMap::new();
        for layer in layers {
            let options = ParseOption {
                enabled_escape: false,
                enabled_quote: false,
                ..ParseOption::default()
            };
            let ini = Ini::load_from_str_opt(&layer.text, options)
                .map_err(|e| AdminError::Config(format!("{} is no INI file: {e}", layer.path.display())))?;
            for (section, properties) in &ini {
                let section = section.unwrap_or_default();
                if section == "auth" && !properties.is_empty() {
                    check_private(layer)?;
                }
                for (key, value) in properties {
                    values.insert(
                        (section.to_owned(), key.to_owned()),
                        (value.trim().to_owned(), layer.path.clone()),
                    );
                }
            }
        }
        Ok(Self(values))
    }

    fn config(&self, home: PathBuf, server: Option<&str>) -> Result<Config, AdminError> {
        let server = match server {
            Some(text) => parse_server(text)?,
            None => self.server()?,
        };
        let poll: f64 = self.parsed("output", "poll_frequency_in_seconds", 1.0)?;
        if !(0.001..=3600.0).contains(&poll) {
            return Err(self.fault(
                "output",
                "poll_frequency_in_seconds",
                "must be between 0.001 and 3600",
            ));
        }
        // Each chunk waits for the server's disk; four times Pulp 2's size halves that, and every server takes it.
        let chunk_size: usize = self.parsed("server", "upload_chunk_size", 4 << 20)?;
        // Servers take no larger bodies than 5 MiB.
        if !(1..=5 << 20).contains(&chunk_size) {
            return Err(self.fault(
                "server",
                "upload_chunk_size",
                "must be between 1 and 5242880 bytes",
            ));
        }
        let proxy = match self.text("server", "proxy_host") {
            None => None,
            Some(host) => Some(format!(
                "http://{host}:{}",
                self.parsed::<u16>("server", "proxy_port", 3128)?
            )),
        };
        let auth = match (self.text("auth", "username"), self.text("auth", "password")) {
            (Some(user), Some(password)) => Some((user.to_owned(), password.to_owned())),
            (None, None) => None,
            _ => {
                return Err(self.fault(
                    "auth",
                    "username",
                    "and password go together; one of them is missing",
                ));
            }
        };
        Ok(Config {
            server,
            api_prefix: self
                .text("server", "api_prefix")
                .unwrap_or("/pulp/api")
                .to_owned(),
            verify_ssl: self.boolean("server", "verify_ssl", true)?,
            ca_path: self.text("server", "ca_path").map(|p| expanded(p, &home)),
            proxy,
            chunk_size,
            auth,
            poll: Duration::from_secs_f64(poll),
            color: self.boolean("output", "enable_color", true)?,
            upload_dir: self
                .text("filesystem", "upload_working_dir")
                .map_or_else(|| home.join("uploads"), |p| expanded(p, &home))
                .join("default"),
            home,
        })
    }

    fn server(&self) -> Result<Url, AdminError> {
        if let Some(url) = self.text("server", "url") {
            return parse_server(url);
        }
        let host = self.text("server", "host").unwrap_or("localhost");
        let port: u16 = self.parsed("server", "port", 443)?;
        parse_server(&format!("https://{host}:{port}"))
    }

    fn text(&self, section: &str, key: &str) -> Option<&str> {
        self.0
            .get(&(section.to_owned(), key.to_owned()))
            .map(|(value, _)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn parsed<T: std::str::FromStr>(&self, section: &str, key: &str, default: T) -> Result<T, AdminError> {
        match self.text(section, key) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| self.fault(section, key, &format!("is {text:?}, which is no such number"))),
        }
    }

    fn boolean(&self, section: &str, key: &str, default: bool) -> Result<bool, AdminError> {
        match self.text(section, key).map(str::to_lowercase).as_deref() {
            None => Ok(default),
            Some("true" | "yes" | "1" | "on") => Ok(true),
            Some("false" | "no" | "0" | "off") => Ok(false),
            Some(other) => Err(self.fault(section, key, &format!("is {other:?}; give true or false"))),
        }
    }

    fn fault(&self, section: &str, key: &str, what: &str) -> AdminError {
        let file = self.0.get(&(section.to_owned(), key.to_owned())).map_or_else(
            || "the settings".to_owned(),
            |(_, path)| path.display().to_string(),
        );
        AdminError::Config(format!("{file}: [{section}] {key} {what}"))
    }
}

/// A password is taken only from the user's own file, and only if nobody else can read it.
fn check_private(layer: &Layer) -> Result<(), AdminError> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = layer.path.display();
    if !layer.private {
        return Err(AdminError::Config(format!(
            "{path}: [auth] may only stand in ~/.pulp/admin.conf or the file of --config"
        )));
    }
    let mode = std::fs::metadata(&layer.path)
        .map_err(AdminError::file(&layer.path))?
        .permissions()
        .mode()
        & 0o777;
    if matches!(mode, 0o400 | 0o600 | 0o700) {
        Ok(())
    } else {
        Err(AdminError::Config(format!(
            "{path} holds a password and has mode {mode:o}; make it private by: chmod 600 {path}"
        )))
    }
}

/// `http://host:port`, `https://host`, or `host[:port]`, which means https.
pub(crate) fn parse_server(text: &str) -> Result<Url, AdminError> {
    let wrong = |why: &str| {
        AdminError::Config(format!(
            "server {text:?} {why}; give it like https://pulp.example.com or http://host:8080"
        ))
    };
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let url = Url::parse(&whole).map_err(|e| wrong(&format!("is no address ({e})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("is neither http nor https"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a login; use -u and -p"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has a path; [server] api_prefix is for that"));
    }
    Ok(url)
}

/// `~/x` below the user's home; `home` is `~/.pulp`.
fn expanded(path: &str, home: &Path) -> PathBuf {
    match (path.strip_prefix("~/"), home.parent()) {
        (Some(rest), Some(user)) => user.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn layer(name: &str, text: &str) -> Layer {
        Layer {
            path: name.into(),
            text: text.to_owned(),
            private: false,
        }
    }

    fn config(layers: &[Layer], server: Option<&str>) -> Result<Config, AdminError> {
        Values::merged(layers)?.config("/h/.pulp".into(), server)
    }

    #[test]
    fn a_later_file_wins_key_by_key() {
        let layers = [
            layer("/etc/a", "[server]\nhost: one\nport: 8443\nverify_ssl: False\n"),
            layer(
                "/home/b",
                "[server]\nhost = two\n[output]\npoll_frequency_in_seconds = 0.5\n",
            ),
        ];
        let config = config(&layers, None).unwrap();
        assert_eq!(config.server.as_str(), "https://two:8443/");
        assert!(!config.verify_ssl);
        assert_eq!(config.poll, Duration::from_millis(500));
        assert_eq!(config.chunk_size, 4_194_304, "the built-in value stays");
    }

    #[test]
    fn the_command_line_wins_over_every_file() {
        let layers = [layer("/etc/a", "[server]\nurl = https://file.example\n")];
        let of = |server| config(&layers, server).unwrap().server.to_string();
        assert_eq!(of(None), "https://file.example/");
        assert_eq!(of(Some("http://127.0.0.1:24817")), "http://127.0.0.1:24817/");
        assert_eq!(of(Some("pulp.example")), "https://pulp.example/");
    }

    #[test]
    fn without_any_file_the_server_is_this_host() {
        let config = config(&[], None).unwrap();
        assert_eq!(config.server.as_str(), "https://localhost/");
        assert_eq!(config.upload_dir, Path::new("/h/.pulp/uploads/default"));
        assert!(config.auth.is_none() && config.color && config.verify_ssl);
    }

    #[test]
    fn a_wrong_value_names_its_file_and_key() {
        let error = config(&[layer("/etc/a", "[server]\nport = many\n")], None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/a: [server] port is \"many\", which is no such number"
        );
        assert_eq!(error.exit(), crate::Exit::Config);
        for text in [
            "[output]\npoll_frequency_in_seconds = -1",
            "[server]\nupload_chunk_size = 0",
            "[server]\nverify_ssl = maybe",
        ] {
            assert!(config(&[layer("/etc/a", text)], None).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_are_no_server_are_refused() {
        for bad in [
            "ftp://h",
            "https://",
            "http://u:p@h",
            "http://h/pulp",
            "http://h?x",
        ] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_may_hold_a_backslash_and_a_hash() {
        let values = Values::merged(&[layer("/etc/a", "[server]\nca_path = C:\\n#x\n")]).unwrap();
        assert_eq!(values.text("server", "ca_path"), Some("C:\\n#x"));
    }

    #[test]
    fn a_password_in_a_file_that_others_may_read_or_share_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.conf");
        let text = "[auth]\nusername = admin\npassword = secret\n";
        std::fs::write(&path, text).unwrap();
        let auth = |mode, private| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let layer = Layer {
                path: path.clone(),
                text: text.to_owned(),
                private,
            };
            Values::merged(&[layer])
                .and_then(|v| v.config("/h".into(), None))
                .map(|c| c.auth)
        };
        assert_eq!(
            auth(0o600, true).unwrap(),
            Some(("admin".to_owned(), "secret".to_owned()))
        );
        assert!(auth(0o644, true).unwrap_err().to_string().contains("chmod 600"));
        assert!(auth(0o600, false).is_err(), "not in the machine's settings");
    }
}
