//! Who gets protected repositories: `[entitlements]` and `[token]`.

use std::{path::PathBuf, str::FromStr};

use url::Url;

use super::{ConfigError, Settings, set};
use crate::config::{Challenge, CraneConfig, Entitlements, TokenService};

impl Settings {
    pub(super) fn access(&self, config: &mut CraneConfig) -> Result<(), ConfigError> {
        if let Some(ca) = self.text("entitlements", "ca") {
            config.entitlements = Some(Entitlements {
                ca: ca.into(),
                crl: self.text("entitlements", "crl").map(PathBuf::from),
                trusted_proxies: self.proxies()?,
            });
        }
        self.tokens(config)
    }

    /// Over those of another origin, key by key. Without public keys there are none.
    fn tokens(&self, config: &mut CraneConfig) -> Result<(), ConfigError> {
        let mut tokens = config.tokens.take().unwrap_or_else(|| TokenService {
            realm: None,
            service: TokenService::SERVICE.to_owned(),
            issuer: TokenService::ISSUER.to_owned(),
            public_keys: Vec::new(),
            challenge: Challenge::default(),
        });
        set(
            &mut tokens.public_keys,
            self.list("token", "public_keys", "a list of files")?,
        );
        set(&mut tokens.service, self.quotable("service")?);
        set(&mut tokens.issuer, self.quotable("issuer")?);
        tokens.realm = self.realm()?.or(tokens.realm);
        tokens.challenge = match self.text("token", "challenge") {
            None => tokens.challenge,
            Some("protected") => Challenge::Protected,
            Some("always") => Challenge::Always,
            Some(_) => return Err(self.wrong("token", "challenge", "protected or always")),
        };
        config.tokens = Some(tokens).filter(|tokens| !tokens.public_keys.is_empty());
        Ok(())
    }

    fn realm(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.text("token", "realm") else {
            return Ok(None);
        };
        let url = Url::parse(text).ok();
        let url = url.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        match url {
            Some(url) => Ok(Some(url.to_string())),
            None => Err(self.wrong("token", "realm", "a url such as https://pulp.example.com/token")),
        }
    }

    /// A text that can stand in quotes in a header.
    fn quotable(&self, key: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.text("token", key) else {
            return Ok(None);
        };
        let fits = text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        let wanted = "a word without blanks and quotes";
        fits.then(|| Some(text.to_owned()))
            .ok_or_else(|| self.wrong("token", key, wanted))
    }

    fn proxies(&self) -> Result<Vec<ipnet::IpNet>, ConfigError> {
        struct Proxy(ipnet::IpNet);
        impl FromStr for Proxy {
            type Err = ();

            /// A network, or an address alone.
            fn from_str(text: &str) -> Result<Self, ()> {
                let net = text.parse().ok();
                net.or_else(|| Some(text.parse::<std::net::IpAddr>().ok()?.into()))
                    .map(Self)
                    .ok_or(())
            }
        }
        let wanted = "addresses or networks such as 192.0.2.1 and 10.0.0.0/8";
        let proxies = self.list::<Proxy>("entitlements", "trusted_proxies", wanted)?;
        Ok(proxies.unwrap_or_default().into_iter().map(|p| p.0).collect())
    }
}
