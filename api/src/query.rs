//! Query strings.

use axum::extract::{FromRequestParts, RawQuery};
use http::request::Parts;
use pulp_model::Timestamp;

use crate::ApiError;

/// The pairs of a query string, in order; a name may come several times.
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let RawQuery(text) = RawQuery::from_request_parts(parts, state).await?;
        let text = text.unwrap_or_default();
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        Ok(Self(pairs.into_owned().collect()))
    }
}

impl Query {
    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// The first value of a name.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All values of a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(n, _)| n.as_str())
    }

    /// Whether a flag is set; absent is false.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.first(name) {
            None => Ok(false),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(other) => Err(ApiError::invalid(
                name,
                format!("{name} is {other:?}; give true or false"),
            )),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let Some(text) = self.first(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            ApiError::invalid(name, format!("{name} is {text:?}; give a whole number from 0 on"))
        })
    }

    /// An instant in ISO 8601.
    pub(crate) fn instant(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.first(name) else {
            return Ok(None);
        };
        instant(text).map(Some).ok_or_else(|| {
            ApiError::invalid(
                name,
                format!("{name} is {text:?}; give an instant like 2015-01-02T20:39:58Z"),
            )
        })
    }
}

/// Reads `2015-01-02T20:39:58Z`, with an offset instead of the Z, or a day alone.
pub(crate) fn instant(text: &str) -> Option<Timestamp> {
    // In a query a plus sign is a space unless the client encoded it.
    let text = text.replace(' ', "+");
    if let Ok(instant) = chrono::DateTime::parse_from_rfc3339(&text) {
        return Some(Timestamp(instant.timestamp_micros()));
    }
    let day = text.parse::<chrono::NaiveDate>().ok()?;
    Some(Timestamp(
        day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros(),
    ))
}
