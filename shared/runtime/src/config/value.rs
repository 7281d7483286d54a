//! Values of settings: urls that hold passwords, secrets, durations in seconds.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Deserializer};
use url::Url;

/// The url of a service. `Display` and `Debug` leave the password out; [`expose`](Self::expose) has it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ConnectionUrl(String);

impl ConnectionUrl {
    /// Takes any text; the configuration's check says whether it is one that the system knows.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The whole url, password and all.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What stands before the first colon.
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or("", |(scheme, _)| scheme)
    }
}

impl fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Url::parse(&self.0) {
            Ok(mut url) if url.has_host() => {
                if url.password().is_some() && url.set_password(Some("***")).is_err() {
                    return f.write_str("***");
                }
                // Drivers take passwords as parameters, too.
                if url.query().is_some() {
                    url.set_query(Some("***"));
                }
                f.write_str(url.as_str())
            }
            // `sqlite:/path` and `memory:` hold no secret; text that is no url may be anything.
            Ok(_) => f.write_str(self.0.split_once('?').map_or(self.0.as_str(), |(path, _)| path)),
            Err(_) => f.write_str("***"),
        }
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"***\"")
    }
}

/// Seconds, whole or with a fraction, above zero and at most a year.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number of seconds")]
    enum Number {
        Whole(u64),
        Part(f64),
    }
    let given = match Number::deserialize(deserializer)? {
        Number::Whole(n) => n as f64,
        Number::Part(n) => n,
    };
    if given > 0.0 && given <= 31_536_000.0 {
        Ok(Duration::from_secs_f64(given))
    } else {
        Err(serde::de::Error::custom(
            "expected seconds above 0 and at most 31536000 (a year)",
        ))
    }
}

/// Weights by owner: a table, or text such as `user:ann=4,scheduler=1` as a variable has it. Each is 1 to 1000.
pub(super) fn weights<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u32>, D::Error> {
    const EXPECTED: &str = "expected a table of owners with weights from 1 to 1000, for example {\"user:ann\" = 4, scheduler = 1}; \
                            in a variable user:ann=4,scheduler=1";
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Table(BTreeMap<String, u32>),
        Text(String),
    }
    let wrong = || serde::de::Error::custom(EXPECTED);
    let given = match Given::deserialize(deserializer).map_err(|_| wrong())? {
        Given::Table(weights) => weights,
        Given::Text(text) => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (owner, weight) = part.rsplit_once('=').ok_or_else(wrong)?;
                Ok((
                    owner.trim().to_owned(),
                    weight.trim().parse().map_err(|_| wrong())?,
                ))
            })
            .collect::<Result<_, D::Error>>()?,
    };
    if given.values().all(|weight| (1..=1000).contains(weight)) {
        Ok(given)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        for url in [
            "postgres://pulp:hunter2@db/pulp",
            "postgres://db/pulp?user=pulp&password=hunter2",
            "amqp://u:hunter2@broker:5672/%2f",
            "hunter2 is no url",
            "sqlite:/var/lib/pulp/pulp.db?key=hunter2",
        ] {
            let url = ConnectionUrl::new(url);
            assert!(!format!("{url} {url:?}").contains("hunter2"), "{url}");
        }
        assert_eq!(
            ConnectionUrl::new("postgres://u:p@db:5432/pulp").to_string(),
            "postgres://u:***@db:5432/pulp"
        );
        assert_eq!(ConnectionUrl::new("sqlite:/a/b.db").to_string(), "sqlite:/a/b.db");
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}
