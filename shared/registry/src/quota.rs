//! What a registry says about its limit, in whichever of the ways that are in use:
//!
//! * Docker Hub: `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600`;
//! * drafts of the IETF's "`RateLimit` header fields for HTTP": `RateLimit-Limit`, `-Remaining`, `-Reset` (to 06),
//!   `RateLimit: limit=…, remaining=…, reset=…` (07), `RateLimit: "name";r=…;t=…` and `RateLimit-Policy` (from 08);
//! * GitHub and others: `X-RateLimit-Limit`, `-Remaining`, `-Reset` (an instant, or seconds).
//!
//! What can't be read counts as not told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pulp_model::budget::Quota;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use sfv::{BareItem, Dictionary, KeyRef, List, ListEntry, Parameters, Parser};

/// Larger values of `X-RateLimit-Reset` are instants, smaller ones seconds from now.
const AN_INSTANT: i64 = 1_000_000_000;

/// What the headers of an answer say that came at `now`.
pub(crate) fn quota(headers: &HeaderMap, now: SystemTime) -> Quota {
    let told = [
        newest(headers),
        dictionary(headers),
        docker_or_older(headers),
        github(headers, now),
    ];
    let mut quota = told.into_iter().find(Quota::is_told).unwrap_or_default();
    let retry_after = text(headers, RETRY_AFTER.as_str()).and_then(|text| asked_pause(text, now));
    quota.retry_after = retry_after.map(|pause| i64::try_from(pause.as_micros()).unwrap_or(i64::MAX));
    quota
}

/// The pause that `Retry-After` asks for: seconds or a date (RFC 9110 section 10.2.3).
pub(crate) fn asked_pause(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// `RateLimit: "name";r=…;t=…`, of several the one of which least is left.
fn newest(headers: &HeaderMap) -> Quota {
    let policies = list(headers, "ratelimit-policy");
    let limits = list(headers, "ratelimit")
        .into_iter()
        .filter_map(|(name, parameters)| {
            let policy = policies.iter().find(|(policy, _)| *policy == name);
            let of_policy = |key| policy.and_then(|(_, p)| parameter(p, key));
            Some(Quota {
                remaining: Some(count(parameter(&parameters, "r")?)?),
                reset_after: parameter(&parameters, "t").and_then(seconds),
                limit: of_policy("q").and_then(count),
                window: of_policy("w").and_then(seconds),
                retry_after: None,
            })
        });
    limits.min_by_key(|q| q.remaining).unwrap_or_default()
}

/// `RateLimit: limit=…, remaining=…, reset=…`.
fn dictionary(headers: &HeaderMap) -> Quota {
    let Some(text) = text(headers, "ratelimit") else {
        return Quota::default();
    };
    let Ok(members) = Parser::new(text).parse::<Dictionary>() else {
        return Quota::default();
    };
    let member = |key: &str| match members.get(KeyRef::from_str(key).ok()?)? {
        ListEntry::Item(item) => item.bare_item.as_integer().map(i64::from),
        ListEntry::InnerList(_) => None,
    };
    Quota {
        limit: member("limit").and_then(count),
        remaining: member("remaining").and_then(count),
        reset_after: member("reset").and_then(seconds),
        ..Quota::default()
    }
}

/// `RateLimit-Limit: 100;w=21600` and its like; where there are several, the first is the one that counts.
fn docker_or_older(headers: &HeaderMap) -> Quota {
    let first = |name| list(headers, name).into_iter().next();
    let number = |name| {
        first(name).and_then(|(item, parameters)| Some((item.as_integer().map(i64::from)?, parameters)))
    };
    let limit = number("ratelimit-limit");
    let remaining = number("ratelimit-remaining");
    let window = |told: &Option<(i64, Parameters)>| told.as_ref().and_then(|(_, p)| parameter(p, "w"));
    Quota {
        window: window(&remaining).or_else(|| window(&limit)).and_then(seconds),
        limit: limit.and_then(|(n, _)| count(n)),
        remaining: remaining.and_then(|(n, _)| count(n)),
        reset_after: number("ratelimit-reset").and_then(|(n, _)| seconds(n)),
        retry_after: None,
    }
}

fn github(headers: &HeaderMap, now: SystemTime) -> Quota {
    let number = |name| text(headers, name)?.trim().parse::<i64>().ok();
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let after = |reset: i64| {
        if reset > AN_INSTANT {
            (reset - now).max(0)
        } else {
            reset
        }
    };
    Quota {
        limit: number("x-ratelimit-limit").and_then(count),
        remaining: number("x-ratelimit-remaining").and_then(count),
        reset_after: number("x-ratelimit-reset").map(after).and_then(seconds),
        ..Quota::default()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn list(headers: &HeaderMap, name: &str) -> Vec<(BareItem, Parameters)> {
    let lists = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| Parser::new(value.as_bytes()).parse::<List>().ok());
    let items = lists.flatten().filter_map(|entry| match entry {
        ListEntry::Item(item) => Some((item.bare_item, item.params)),
        ListEntry::InnerList(_) => None,
    });
    items.collect()
}

fn parameter(parameters: &Parameters, key: &str) -> Option<i64> {
    parameters
        .get(KeyRef::from_str(key).ok()?)?
        .as_integer()
        .map(i64::from)
}

fn count(n: i64) -> Option<u64> {
    u64::try_from(n).ok()
}

/// As microseconds.
fn seconds(n: i64) -> Option<i64> {
    (n >= 0).then(|| n.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn of(lines: &[(&str, &str)]) -> Quota {
        let headers = lines.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        quota(&headers.collect(), at(1_800_000_000))
    }

    fn told(limit: u64, remaining: u64, window: Option<i64>, reset: Option<i64>) -> Quota {
        Quota {
            limit: Some(limit),
            remaining: Some(remaining),
            window: window.map(|s| s * 1_000_000),
            reset_after: reset.map(|s| s * 1_000_000),
            retry_after: None,
        }
    }

    #[test]
    fn docker_hub_tells_a_window_that_moves() {
        let quota = of(&[
            ("RateLimit-Limit", "100;w=21600"),
            ("RateLimit-Remaining", "76;w=21600"),
        ]);
        assert_eq!(quota, told(100, 76, Some(21_600), None));
    }

    #[test]
    fn each_draft_of_the_standard_is_read() {
        let quota = of(&[
            ("RateLimit-Limit", "100, 100;w=60"),
            ("RateLimit-Remaining", "7"),
            ("RateLimit-Reset", "30"),
        ]);
        assert_eq!(quota, told(100, 7, None, Some(30)));
        assert_eq!(
            of(&[("RateLimit", "limit=100, remaining=50, reset=5")]),
            told(100, 50, None, Some(5))
        );
        let quota = of(&[
            (
                "RateLimit-Policy",
                "\"burst\";q=100;w=60, \"daily\";q=1000;w=86400",
            ),
            ("RateLimit", "\"burst\";r=40;t=20, \"daily\";r=12;t=3600"),
        ]);
        assert_eq!(quota, told(1000, 12, Some(86_400), Some(3600)));
    }

    #[test]
    fn github_tells_an_instant_and_others_seconds() {
        let lines = |reset| {
            [
                ("X-RateLimit-Limit", "60"),
                ("X-RateLimit-Remaining", "0"),
                ("X-RateLimit-Reset", reset),
            ]
        };
        assert_eq!(of(&lines("1800000090")), told(60, 0, None, Some(90)));
        assert_eq!(of(&lines("1700000000")), told(60, 0, None, Some(0)));
        assert_eq!(of(&lines("15")), told(60, 0, None, Some(15)));
    }

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_by_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let asked = |text| asked_pause(text, now).map(|d| d.as_secs());
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(asked("Sun, 06 Nov 1994 08:40:37 GMT"), Some(0));
        assert_eq!(asked("soon"), None);
        assert_eq!(of(&[("Retry-After", "60")]).retry_after, Some(60_000_000));
    }

    proptest! {
        #[test]
        fn nonsense_is_not_told(value in "[ -~]{0,30}") {
            for name in ["ratelimit", "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "x-ratelimit-remaining", "retry-after"] {
                of(&[(name, &value)]);
            }
        }
    }
}
