//! Where an index says that images are kept, and the token for there.

use reqwest::header::HeaderMap;
use url::Url;

/// Endpoints that are tried at most.
const MAX_ENDPOINTS: usize = 16;
/// Longest token taken, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

/// What an index's answer says beyond its body.
pub(super) struct Index {
    /// Addresses that requests begin with, in the order in which to try them; one at least.
    pub(super) endpoints: Vec<Url>,
    /// What the endpoints want to see.
    pub(super) token: Option<String>,
}

impl Index {
    /// Reads `X-Docker-Endpoints` and `X-Docker-Token` of the answer of the index at `base`. An index that names no
    /// endpoint is one itself. An error says why nothing that it names can be asked.
    pub(super) fn read(headers: &HeaderMap, base: &Url) -> Result<Self, String> {
        let texts = |name| headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        let named: Vec<&str> = texts("x-docker-endpoints")
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|host| !host.is_empty())
            .collect();
        let mut endpoints: Vec<Url> = Vec::new();
        for host in &named {
            match endpoint(host, base) {
                Some(url) if endpoints.contains(&url) => {}
                Some(url) => endpoints.push(url),
                None => tracing::warn!(endpoint = ?host, "no host, passed over"),
            }
        }
        endpoints.truncate(MAX_ENDPOINTS);
        if endpoints.is_empty() {
            if !named.is_empty() {
                return Err("none of the endpoints that the index names is a host".to_owned());
            }
            endpoints.push(base.clone());
        }
        let token: Vec<&str> = texts("x-docker-token")
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .collect();
        let token = token.join(",");
        let fits = token.len() <= MAX_TOKEN && token.bytes().all(|b| (b' '..=b'~').contains(&b));
        Ok(Self {
            endpoints,
            token: Some(token).filter(|t| !t.is_empty() && fits),
        })
    }
}

/// The address of `host[:port]`, by the index's scheme: nobody may lure a token onto an open line. The index's own host
/// keeps its path prefix.
fn endpoint(host: &str, base: &Url) -> Option<Url> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    if !host.chars().all(plain) {
        return None;
    }
    let url = Url::parse(&format!("{}://{host}/", base.scheme())).ok()?;
    if !url.has_host() || url.path() != "/" {
        return None;
    }
    Some(if url.origin() == base.origin() {
        base.clone()
    } else {
        url
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn read(base: &str, lines: &[(&'static str, &str)]) -> Result<Index, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        Index::read(&headers, &base.parse().unwrap())
    }

    fn urls(base: &str, lines: &[(&'static str, &str)]) -> Vec<String> {
        let index = read(base, lines).unwrap();
        index.endpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn several_endpoints_are_told_apart_in_their_order() {
        let lines = [
            ("x-docker-endpoints", "one.example, two.example:5000,one.example"),
            ("x-docker-endpoints", "[::1]:80"),
        ];
        assert_eq!(
            urls("http://index.example/", &lines),
            ["http://one.example/", "http://two.example:5000/", "http://[::1]/"]
        );
    }

    #[test]
    fn an_index_that_names_no_endpoint_is_one_itself_and_keeps_its_prefix() {
        assert_eq!(urls("https://i.example/a/", &[]), ["https://i.example/a/"]);
        let own = [("x-docker-endpoints", "i.example")];
        assert_eq!(urls("https://i.example/a/", &own), ["https://i.example/a/"]);
    }

    #[test]
    fn what_is_no_host_is_no_endpoint() {
        for bad in [
            "http://x.example",
            "u:p@x.example",
            "x.example/path",
            "x?y",
            "x#y",
            "x y",
            ":",
            "a:99999",
        ] {
            let lines = [("x-docker-endpoints", bad)];
            assert!(read("https://i.example/", &lines).is_err(), "{bad}");
        }
        let lines = [("x-docker-endpoints", "x/../y, good.example")];
        assert_eq!(urls("https://i.example/", &lines), ["https://good.example/"]);
    }

    #[test]
    fn a_token_is_kept_verbatim() {
        let token = "signature=abc,repository=\"library/x\",access=read";
        let index = read("https://i.example/", &[("x-docker-token", token)]).unwrap();
        assert_eq!(index.token.as_deref(), Some(token));
        let long = "x".repeat(MAX_TOKEN + 1);
        assert!(
            read("https://i.example/", &[("x-docker-token", &long)])
                .unwrap()
                .token
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn every_endpoint_is_a_bare_host_of_the_indexs_scheme(header in "[ -~]{0,60}") {
            if let Ok(index) = read("https://i.example/prefix/", &[("x-docker-endpoints", &header)]) {
                prop_assert!(!index.endpoints.is_empty());
                for url in index.endpoints {
                    prop_assert_eq!(url.scheme(), "https");
                    prop_assert!(url.username().is_empty() && url.password().is_none() && url.query().is_none());
                    prop_assert!(url.path() == "/" || url.as_str() == "https://i.example/prefix/");
                }
            }
        }
    }
}
