//! `[token]`: tokens for clients that pull from protected repositories.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer};
use url::Url;

use super::{Config, value};

/// `[token]`: the api signs tokens with the private key, crane checks them with the public ones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// Url of the token endpoint as clients reach it; none means `/token` of the host by which they reach crane.
    pub realm: Option<Url>,
    /// The registry's name in tokens; the same for the api and for crane.
    pub service: String,
    /// The name of who gives tokens out; the same for the api and for crane.
    pub issuer: String,
    /// The api's private key (P-256, PKCS #8, PEM). Without it no tokens are given out.
    pub key_file: Option<PathBuf>,
    /// Crane's public keys (PEM), one or more in each file. Without them no token counts.
    #[serde(deserialize_with = "paths")]
    pub public_keys: Vec<PathBuf>,
    /// How long a token holds.
    #[serde(rename = "lifetime_seconds", deserialize_with = "value::seconds")]
    pub lifetime: Duration,
    /// When crane asks for tokens.
    pub challenge: TokenChallenge,
}

/// When crane tells clients at their first request that tokens may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenChallenge {
    /// As long as a protected repository is published.
    #[default]
    Protected,
    /// Always.
    Always,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            realm: None,
            service: "pulp-registry".to_owned(),
            issuer: "pulp".to_owned(),
            key_file: None,
            public_keys: Vec::new(),
            lifetime: Duration::from_mins(5),
            challenge: TokenChallenge::Protected,
        }
    }
}

/// A list, or a text with commas.
fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a list of files, or a text of files with commas between them"
    )]
    enum Given {
        List(Vec<PathBuf>),
        Text(String),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::List(files) => files,
        Given::Text(text) => text
            .split(',')
            .map(str::trim)
            .filter(|file| !file.is_empty())
            .map(PathBuf::from)
            .collect(),
    })
}

/// What is wrong with the values together.
pub(super) fn check(config: &Config, demand: &mut impl FnMut(bool, &'static str, String)) {
    let token = &config.token;
    if let Some(realm) = &token.realm {
        demand(
            matches!(realm.scheme(), "http" | "https"),
            "token.realm",
            format!("{realm} must begin with https:// or http://"),
        );
    }
    for (key, text) in [("token.service", &token.service), ("token.issuer", &token.issuer)] {
        let fits = !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        demand(
            fits,
            key,
            format!("{text:?} must be a word without blanks and quotes"),
        );
    }
    // Clients of the distribution project take less than a minute for a minute.
    let (least, most) = (Duration::from_mins(1), Duration::from_hours(24));
    demand(
        (least..=most).contains(&token.lifetime),
        "token.lifetime_seconds",
        "must be 60 to 86400 (a day)".into(),
    );
}
