//! Bodies of requests: as they stream in, and as JSON.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    extract::{FromRequest, Request},
};
use bytes::Bytes;
use futures::StreamExt as _;
use pulp_model::{CodedError, ErrorCode};
use serde_json::{Map, Value};

use crate::ApiError;

/// The largest JSON body taken; Pulp 2's own limit.
pub(crate) const MAX_JSON: usize = 5 * 1024 * 1024;

/// A body that must be a JSON object.
pub(crate) struct JsonObject(pub(crate) Map<String, Value>);

/// A body that is a JSON object, or empty, which stands for an empty object.
pub(crate) struct OptionalJsonObject(pub(crate) Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for OptionalJsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = collect(request.into_body(), MAX_JSON).await?;
        if bytes.is_empty() {
            return Ok(Self(Map::new()));
        }
        Ok(Self(object(&bytes)?))
    }
}

/// A body that is a JSON object or empty, and of which nothing is needed.
pub(crate) struct UnusedJsonObject;

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        Ok(Self(object(&collect(request.into_body(), MAX_JSON).await?)?))
    }
}

impl<S: Send + Sync> FromRequest<S> for UnusedJsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = collect(request.into_body(), MAX_JSON).await?;
        if !bytes.is_empty() {
            object(&bytes)?;
        }
        Ok(Self)
    }
}

/// A body as it comes, piece by piece, up to a limit. A client that falls silent is given up: it must not hold a
/// lock or a connection for ever.
pub(crate) struct Pieces {
    stream: BodyDataStream,
    received: usize,
    limit: usize,
    patience: Duration,
}

impl Pieces {
    /// How long a client may be silent within a body.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// What is read of a body that is refused as too large, at most: bytes, and time.
    const DISCARD: (usize, Duration) = (64 * 1024 * 1024, Duration::from_secs(10));

    pub(crate) fn of(body: Body, limit: usize) -> Self {
        Self {
            stream: body.into_data_stream(),
            received: 0,
            limit,
            patience: Self::PATIENCE,
        }
    }

    /// The next piece; none at the body's end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let piece = match tokio::time::timeout(self.patience, self.stream.next()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(_))) | Err(_) => return Err(ApiError::BodyBrokeOff),
        };
        self.received = self.received.saturating_add(piece.len());
        if self.received > self.limit {
            return Err(self.too_large().await);
        }
        Ok(Some(piece))
    }

    /// Refuses the body, once the client has got rid of it: a connection closed under a client that still sends
    /// looks broken to it, and the answer is lost. What is very large or slow is cut off all the same.
    pub(crate) async fn too_large(&mut self) -> ApiError {
        let (most, time) = Self::DISCARD;
        let discard = async {
            let mut discarded = 0;
            while let Some(Ok(piece)) = self.stream.next().await {
                discarded += piece.len();
                if discarded > most {
                    return;
                }
            }
        };
        // Over or not: the answer is the same.
        let _ = tokio::time::timeout(time, discard).await;
        ApiError::TooLarge { limit: self.limit }
    }

    /// How many bytes have come.
    pub(crate) const fn received(&self) -> usize {
        self.received
    }
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut pieces = Pieces::of(body, limit);
    while let Some(piece) = pieces.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Reads an object out of bytes.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, CodedError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let shown: String = String::from_utf8_lossy(bytes).chars().take(100).collect();
        CodedError::new(
            ErrorCode::NOT_UTF8,
            format!("the body is not UTF-8 ({e}); JSON is sent in UTF-8"),
        )
        .with("value", shown)
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let found = type_name(&other);
            let text = format!("the body is a JSON {found}; this path takes an object");
            Err(CodedError::new(ErrorCode::WRONG_JSON_TYPE, text).with("data_type", found))
        }
        Err(e) => Err(CodedError::new(
            ErrorCode::BAD_JSON,
            format!("the body is not valid JSON: {e}"),
        )),
    }
}

/// The JSON name of a value's type.
pub(crate) const fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_object_is_refused_by_its_own_code() {
        let code = |bytes: &[u8]| object(bytes).unwrap_err().code;
        assert_eq!(code(b"{"), ErrorCode::BAD_JSON);
        assert_eq!(code(b""), ErrorCode::BAD_JSON);
        assert_eq!(code(b"[1]"), ErrorCode::WRONG_JSON_TYPE);
        assert_eq!(code(b"{\"a\":\"\xff\"}"), ErrorCode::NOT_UTF8);
        assert_eq!(code("[".repeat(100_000).as_bytes()), ErrorCode::BAD_JSON);
    }

    #[tokio::test]
    async fn a_client_that_falls_silent_is_given_up() {
        let silent = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        let mut pieces = Pieces::of(Body::from_stream(silent), 10);
        pieces.patience = Duration::from_millis(1);
        assert!(matches!(pieces.next().await, Err(ApiError::BodyBrokeOff)));
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_read_to_its_end_so_that_the_answer_arrives() {
        let read = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&read);
        let stream = futures::stream::iter(0..5).map(move |_| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(b"12345678"))
        });
        let mut pieces = Pieces::of(Body::from_stream(stream), 10);
        assert!(matches!(pieces.next().await, Ok(Some(_))));
        assert!(matches!(
            pieces.next().await,
            Err(ApiError::TooLarge { limit: 10 })
        ));
        assert_eq!(read.load(std::sync::atomic::Ordering::Relaxed), 5);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = object(&bytes);
        }
    }
}
