//! Authentication as far as pulling needs it: challenges, Basic, Bearer tokens.
//!
//! Sources: RFC 7235 section 2.1 and 4.1 (challenges), RFC 7617 (Basic), RFC 6750 (Bearer), and Docker's "Token
//! Authentication Specification" for how the token is fetched.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use url::Url;

/// A login and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The login.
    pub login: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("login", &self.login)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.login, self.password))
        )
    }
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case, for example `bearer`.
    pub scheme: String,
    /// Parameters with lower-case names, in their order.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All challenges of a header's value. What can't be understood is left out.
    ///
    /// The grammar is ambiguous at commas: `a, b` is a parameter of the scheme before it if `=` follows `b`,
    /// else the next scheme.
    pub fn parse(header: &str) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([',', ' ', '\t']);
            let Some((word, after)) = token(rest) else { break };
            let spaced = after.trim_start_matches([' ', '\t']);
            let parameter = spaced.strip_prefix('=').filter(|_| !challenges.is_empty());
            if let (Some(value), Some(current)) = (parameter, challenges.last_mut()) {
                let Some((value, after)) = value_of(value.trim_start_matches([' ', '\t'])) else {
                    break;
                };
                current.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            } else {
                challenges.push(Self {
                    scheme: word.to_ascii_lowercase(),
                    parameters: Vec::new(),
                });
                rest = skip_token68(spaced);
            }
        }
        challenges
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    if end == 0 { None } else { Some(text.split_at(end)) }
}

/// A token or a quoted string, and what follows.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Not all servers quote urls, which are no tokens.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return if value.is_empty() {
            None
        } else {
            Some((value.to_owned(), rest))
        };
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// Some schemes have one opaque text in place of parameters; it ends at a comma.
fn skip_token68(text: &str) -> &str {
    let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let opaque = word.trim_end_matches('=');
    let is_opaque = !opaque.is_empty()
        && opaque.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c))
        && (rest.is_empty() || rest.starts_with(','))
        // `realm=` with an empty value is a parameter that lacks its value, no opaque text; either way it's useless.
        && !opaque.contains('=');
    if is_opaque { rest } else { text }
}

/// Where and for what a bearer token is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRequest {
    pub(crate) url: Url,
    /// Whether our credentials may go there.
    pub(crate) trusted: bool,
}

/// Reads a bearer challenge. `scope` is used where the challenge names none.
pub(crate) fn token_request(
    challenge: &Challenge,
    registry: &Url,
    scope: Option<&str>,
) -> Result<TokenRequest, String> {
    let realm = challenge.parameter("realm").ok_or("the challenge has no realm")?;
    let mut url = registry
        .join(realm)
        .map_err(|e| format!("the challenge's realm {realm:?}: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!(
            "the challenge's realm {realm:?} is no url of a web server"
        ));
    }
    let kept: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    url.set_query(None);
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(kept);
        if let Some(service) = challenge.parameter("service") {
            query.append_pair("service", service);
        }
        for scope in challenge
            .parameter("scope")
            .or(scope)
            .unwrap_or_default()
            .split(' ')
            .filter(|s| !s.is_empty())
        {
            query.append_pair("scope", scope);
        }
    }
    if url.query() == Some("") {
        url.set_query(None);
    }
    // A registry reached by https must not lure the password onto an open line.
    let trusted = url.scheme() == "https" || registry.scheme() == "http";
    Ok(TokenRequest { url, trusted })
}

/// What a token server answers.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What is sent as `Authorization`, and until when it is good.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: String,
    pub(crate) until: Option<Instant>,
}

impl Authorization {
    pub(crate) fn is_good(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// Tokens live 60 seconds unless said otherwise; we let go of them a little earlier.
    pub(crate) fn bearer(answer: TokenAnswer, now: Instant) -> Option<Self> {
        let token = answer.token.or(answer.access_token).filter(|t| !t.is_empty())?;
        let is_header = token.bytes().all(|b| b.is_ascii_graphic());
        let seconds = answer.expires_in.unwrap_or(60).clamp(1, 86_400);
        let until = now + Duration::from_secs(seconds).mul_f64(0.8);
        is_header.then(|| Self {
            header: format!("Bearer {token}"),
            until: Some(until),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn one(header: &str) -> Challenge {
        let all = Challenge::parse(header);
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().unwrap()
    }

    #[test]
    fn a_bearer_challenge_is_read_with_commas_inside_its_scope() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let challenge = one(header);
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.parameter("scope"), Some("repository:a/b:pull,push"));
        let url = token_request(&challenge, &"https://r.example/".parse().unwrap(), None).unwrap();
        assert_eq!(
            url.url.as_str(),
            "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull%2Cpush"
        );
        assert!(url.trusted);
    }

    #[test]
    fn several_challenges_in_one_header_are_told_apart() {
        let all = Challenge::parse(
            r#"Negotiate abc==, Basic realm="a \"b\"", charset = UTF-8 , BEARER Realm=http://x/t , foo"#,
        );
        let schemes: Vec<_> = all.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer", "foo"]);
        assert_eq!(all[1].parameter("realm"), Some(r#"a "b""#));
        assert_eq!(all[1].parameter("charset"), Some("UTF-8"));
        assert_eq!(all[2].parameter("realm"), Some("http://x/t"));
        assert!(all[0].parameters.is_empty() && all[3].parameters.is_empty());
    }

    #[test]
    fn a_realm_may_have_a_query_and_be_relative_but_is_a_web_address() {
        let registry: Url = "https://r.example/".parse().unwrap();
        let at = |realm: &str| {
            token_request(
                &one(&format!("Bearer realm=\"{realm}\"")),
                &registry,
                Some("s:a:pull"),
            )
        };
        assert_eq!(
            at("https://a/t?x=1").unwrap().url.as_str(),
            "https://a/t?x=1&scope=s%3Aa%3Apull"
        );
        assert_eq!(
            at("/token").unwrap().url.as_str(),
            "https://r.example/token?scope=s%3Aa%3Apull"
        );
        assert!(at("file:///etc/passwd").is_err());
        assert!(token_request(&one("Bearer foo=1"), &registry, None).is_err());
    }

    #[test]
    fn a_password_does_not_go_from_https_to_http() {
        let challenge = one(r#"Bearer realm="http://evil.example/t""#);
        assert!(
            !token_request(&challenge, &"https://r.example/".parse().unwrap(), None)
                .unwrap()
                .trusted
        );
        assert!(
            token_request(&challenge, &"http://r.example/".parse().unwrap(), None)
                .unwrap()
                .trusted
        );
    }

    #[test]
    fn a_token_of_either_name_is_taken_and_one_that_is_no_header_is_not() {
        let now = Instant::now();
        let read = |text: &str| Authorization::bearer(serde_json::from_str(text).unwrap(), now);
        let token = read(r#"{"access_token":"abc","expires_in":100}"#).unwrap();
        assert_eq!(token.header, "Bearer abc");
        assert!(
            token.is_good(now + Duration::from_secs(79)) && !token.is_good(now + Duration::from_secs(81))
        );
        assert!(read(r#"{"token":"a\r\nX: y"}"#).is_none());
        assert!(read("{}").is_none());
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_fail(header in ".{0,200}") {
            let _ = Challenge::parse(&header);
        }
    }
}
