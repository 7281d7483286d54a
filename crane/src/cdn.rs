//! A content delivery network: urls rewritten to it, and its token.

use std::{fmt, str::FromStr, time::Duration};

use hmac::Hmac;

/// What becomes of the url of a redirect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cdn {
    /// Text that is replaced wherever it occurs in the url, and what by.
    pub rewrite: Option<(String, String)>,
    /// Put behind the url.
    pub token: Option<Token>,
}

/// A token that lets a client fetch one path for a while, as Akamai's edge servers check it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Shared with the network.
    pub secret: Vec<u8>,
    /// How long it holds.
    pub ttl: Duration,
    /// Name of the query parameter.
    pub parameter: String,
    /// What the code is made with.
    pub algorithm: TokenAlgorithm,
}

/// Hash below the message authentication code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-1, which as a code under a key is not broken.
    Sha1,
    /// MD5, likewise.
    Md5,
}

/// Not the name of an algorithm.
#[derive(Debug, thiserror::Error)]
#[error("not sha256, sha1 or md5")]
pub struct UnknownAlgorithm;

impl FromStr for TokenAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        match text.to_ascii_lowercase().as_str() {
            "sha256" => Ok(Self::Sha256),
            "sha1" => Ok(Self::Sha1),
            "md5" => Ok(Self::Md5),
            _ => Err(UnknownAlgorithm),
        }
    }
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("ttl", &self.ttl)
            .field("parameter", &self.parameter)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// With the original's defaults: five minutes, `_auth_`, SHA-256.
    pub fn new(secret: Vec<u8>) -> Self {
        Self {
            secret,
            ttl: Duration::from_mins(5),
            parameter: "_auth_".into(),
            algorithm: TokenAlgorithm::Sha256,
        }
    }

    /// The code of a path until a time in seconds since 1970.
    fn code(&self, path: &str, expires: u64) -> String {
        let message = format!("exp={expires}~url={path}");
        match self.algorithm {
            TokenAlgorithm::Sha256 => code::<Hmac<sha2::Sha256>>(&self.secret, &message),
            TokenAlgorithm::Sha1 => code::<Hmac<sha1::Sha1>>(&self.secret, &message),
            TokenAlgorithm::Md5 => code::<Hmac<md5::Md5>>(&self.secret, &message),
        }
    }
}

fn code<M: hmac::Mac + hmac::KeyInit>(secret: &[u8], message: &str) -> String {
    // A key of any length is a key.
    let Ok(mac) = <M as hmac::KeyInit>::new_from_slice(secret) else {
        return String::new();
    };
    hex::encode(mac.chain_update(message).finalize().into_bytes())
}

impl Cdn {
    /// The url to send, at `now` in seconds since 1970.
    pub(crate) fn url(&self, url: String, now: u64) -> String {
        let url = match &self.rewrite {
            Some((wanted, instead)) => url.replace(wanted, instead),
            None => url,
        };
        match &self.token {
            Some(token) => {
                let expires = now + token.ttl.as_secs();
                let code = token.code(path_of(&url), expires);
                format!("{url}?{}=exp={expires}~hmac={code}", token.parameter)
            }
            None => url,
        }
    }
}

/// The path of a url as it is, not decoded, without query and fragment.
fn path_of(url: &str) -> &str {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default(),
        None => url,
    };
    rest.split(['?', '#']).next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_token(algorithm: TokenAlgorithm) -> Cdn {
        Cdn {
            rewrite: None,
            token: Some(Token {
                algorithm,
                ..Token::new(vec![0xab, 0xc1, 0x23])
            }),
        }
    }

    /// Of the original's tests, and captured from it with the time of the request.
    #[test]
    fn tokens_are_the_originals() {
        let token = Token::new(vec![0xab, 0xc1, 0x23]);
        assert_eq!(
            token.code("/content/repo/manifests/123", 1_933_027_200),
            "d039ac10e019fd13824a3f861b4f55df40e2a402d102b5266194fff6f3a24ed0"
        );
        for (algorithm, url, now, tail) in [
            (
                TokenAlgorithm::Sha256,
                "http://cdn.redhat.com/foo/bar/tags/list",
                1_795_499_285,
                "?_auth_=exp=1795499585~hmac=80b02a3c812a5dc2eea0bc7473b6747ff42cff4846755e62fa4ea0413b294c00",
            ),
            (
                TokenAlgorithm::Sha256,
                "http://cdn.redhat.com/zoo/bar/blobs/a b",
                1_795_499_285,
                "?_auth_=exp=1795499585~hmac=331f8e460f658609a5d7156f07874ddb0d65736b40c58a3e2e06f42edb7104f0",
            ),
            (
                TokenAlgorithm::Sha1,
                "http://cdn.redhat.com/zoo/bar/blobs/x",
                1_795_498_986,
                "?_auth_=exp=1795499286~hmac=dcab8019dc13c346e875c8d2213ef9fd068cd868",
            ),
            (
                TokenAlgorithm::Md5,
                "https://cdn.example.com/p?x=1/blobs/x",
                1_795_498_987,
                "?_auth_=exp=1795499287~hmac=9dda59b0d18f5234e27509039adf1845",
            ),
        ] {
            let expected = format!("{url}{tail}");
            assert_eq!(with_token(algorithm).url(url.into(), now), expected);
        }
    }

    #[test]
    fn every_occurrence_is_replaced_before_the_token_is_made() {
        let mut cdn = Cdn {
            rewrite: Some(("cdn.redhat.com".into(), "cdn.fedora.com".into())),
            token: None,
        };
        assert_eq!(
            cdn.url("http://cdn.redhat.com/blobs/cdn.redhat.com".into(), 0),
            "http://cdn.fedora.com/blobs/cdn.fedora.com"
        );
        cdn.token = with_token(TokenAlgorithm::Sha256).token;
        let direct = with_token(TokenAlgorithm::Sha256).url("http://cdn.fedora.com/x".into(), 7);
        assert_eq!(cdn.url("http://cdn.redhat.com/x".into(), 7), direct);
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", with_token(TokenAlgorithm::Md5)).contains("171"));
    }
}
