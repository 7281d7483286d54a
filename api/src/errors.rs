//! Every refusal, by what the client can do about it, and its body in Pulp's shape.

use std::{io, path::PathBuf, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use pulp_model::{CodedError, ErrorCode};
use pulp_store::StoreError;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

/// A request that was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Values that are not valid (400).
    #[error("{reason}")]
    Invalid {
        /// Their names.
        properties: Vec<String>,
        /// What is wrong, and what is right.
        reason: String,
    },
    /// Values that are required and absent (400).
    #[error("required and absent: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// Names that are not known here (400).
    #[error("not known here: {}", .0.join(", "))]
    Unsupported(Vec<String>),
    /// Any other fault of the request with a code of its own (400).
    #[error("{0}")]
    Refused(Box<CodedError>),
    /// Something named doesn't exist (404).
    #[error("there is no {} {id:?}", noun(.kind))]
    NotFound {
        /// The name of its key, for example `repo_id`.
        kind: &'static str,
        /// The key given.
        id: String,
    },
    /// No such path (404).
    #[error("there is nothing at this path")]
    UnknownPath,
    /// Not a verb of this path (405).
    #[error("this path doesn't know this verb; the Allow header names those it knows")]
    WrongVerb,
    /// The id is taken (409).
    #[error("{id:?} exists already; choose another id")]
    Duplicate {
        /// The id.
        id: String,
    },
    /// No credentials, or a session that is over (401).
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Wrong login or password (401).
    #[error("wrong login or password for {0:?}")]
    WrongPassword(String),
    /// The user may not do this; 401, as clients of Pulp 2 expect.
    #[error("{login} may not {operation} here; that needs the role super-users")]
    Denied {
        /// Who.
        login: String,
        /// What was asked for: CREATE, READ, UPDATE, DELETE or EXECUTE.
        operation: &'static str,
    },
    /// Refused for everyone (403).
    #[error("{0}")]
    Forbidden(Box<CodedError>),
    /// A body beyond the limit (413).
    #[error("the body is larger than the {limit} bytes allowed")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Another request writes to the same upload (503).
    #[error("another request still writes to this upload; try again")]
    UploadBusy,
    /// An operation of Pulp 2 that is not there yet (501).
    #[error("{operation} is not there yet: {instead}")]
    NotImplemented {
        /// Which.
        operation: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The body ended before it was complete (400).
    #[error("the request's body broke off, or paused too long, before its end; send it again")]
    BodyBrokeOff,
    /// The database (503 if trying again may help, else 500).
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of uploads (507 if it is full, else 500).
    #[error("{path} can't be used")]
    Storage {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A password can't be hashed (500).
    #[error(transparent)]
    Hash(#[from] crate::password::HashError),
    /// The listener failed.
    #[error("the API can't serve")]
    Serve(#[source] io::Error),
    /// A fault of the program (500).
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// One value that is not valid.
    pub(crate) fn invalid(property: &str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            properties: vec![property.to_owned()],
            reason: reason.into(),
        }
    }

    /// The status on the wire.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. }
            | Self::Missing(_)
            | Self::Unsupported(_)
            | Self::Refused(_)
            | Self::BodyBrokeOff => StatusCode::BAD_REQUEST,
            Self::NotFound { .. } | Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongVerb => StatusCode::METHOD_NOT_ALLOWED,
            Self::Duplicate { .. } | Self::Store(StoreError::Duplicate(_)) => StatusCode::CONFLICT,
            Self::Unauthenticated(_) | Self::WrongPassword(_) | Self::Denied { .. } => {
                StatusCode::UNAUTHORIZED
            }
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotImplemented { .. } => StatusCode::NOT_IMPLEMENTED,
            Self::UploadBusy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(e) if e.is_transient() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Storage { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Self::Store(_) | Self::Storage { .. } | Self::Hash(_) | Self::Serve(_) | Self::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// Code, text and data on the wire. Faults of the server are told without their cause, which may name hosts
    /// and files; the log has it.
    pub fn coded(&self) -> CodedError {
        let text = self.to_string();
        match self {
            Self::Invalid { properties, .. } => {
                CodedError::new(ErrorCode::INVALID_VALUE, text).with("property_names", properties)
            }
            Self::Missing(names) => {
                CodedError::new(ErrorCode::MISSING_VALUE, text).with("property_names", names)
            }
            Self::Unsupported(names) => {
                CodedError::new(ErrorCode::UNSUPPORTED_VALUE, text).with("property_names", names)
            }
            Self::Refused(error) | Self::Forbidden(error) => (**error).clone(),
            Self::NotFound { kind, id } if *kind == "upload_id" => {
                CodedError::new(ErrorCode::UNKNOWN_UPLOAD, text)
                    .with(kind, id)
                    .with("resources", json!({*kind: id}))
            }
            Self::NotFound { kind, id } => {
                CodedError::new(ErrorCode::NOT_FOUND, text).with("resources", json!({*kind: id}))
            }
            Self::UnknownPath => CodedError::new(ErrorCode::NOT_FOUND, text).with("resources", json!({})),
            Self::WrongVerb | Self::BodyBrokeOff => CodedError::new(ErrorCode::GENERAL, text),
            Self::Duplicate { id } => CodedError::new(ErrorCode::DUPLICATE, text).with("resource_id", id),
            Self::Unauthenticated(_) => CodedError::new(ErrorCode::AUTHENTICATION_FAILED, text),
            Self::WrongPassword(user) => {
                CodedError::new(ErrorCode::INVALID_PASSWORD, text).with("user", user)
            }
            Self::Denied { login, operation } => CodedError::new(ErrorCode::PERMISSION_DENIED, text)
                .with("user", login)
                .with("operation", operation),
            Self::TooLarge { limit } => CodedError::new(ErrorCode::BODY_TOO_LARGE, text).with("limit", limit),
            Self::NotImplemented { operation, .. } => {
                CodedError::new(ErrorCode::NOT_IMPLEMENTED, text).with("operation_name", operation)
            }
            Self::Store(e @ StoreError::NotOnDisk(_)) => CodedError::new(
                ErrorCode::INTERNAL,
                format!("{e}; it may have been done all the same, so look before asking again"),
            ),
            Self::Store(e) if e.is_transient() => CodedError::new(
                ErrorCode::INTERNAL,
                "the database is not available now; nothing was changed, try again",
            ),
            Self::Storage { .. } if self.status() == StatusCode::INSUFFICIENT_STORAGE => CodedError::new(
                ErrorCode::INTERNAL,
                "the server's storage for uploads is full; free space there, then send this again",
            ),
            Self::UploadBusy => CodedError::new(ErrorCode::INTERNAL, text),
            Self::Store(StoreError::Duplicate(what)) => {
                CodedError::new(ErrorCode::DUPLICATE, text).with("resource_id", what)
            }
            Self::Store(_) | Self::Storage { .. } | Self::Hash(_) | Self::Serve(_) | Self::Internal(_) => {
                CodedError::new(
                    ErrorCode::INTERNAL,
                    "the server failed at this request; its log says why, under the x-request-id of this answer",
                )
            }
        }
    }

    /// The one top-level key that Pulp adds by class of error.
    fn extra(&self) -> Option<(&'static str, Value)> {
        match self {
            Self::Invalid { properties, .. } => Some(("property_names", json!(properties))),
            Self::Missing(names) => Some(("missing_property_names", json!(names))),
            Self::Unsupported(names) => Some(("unsupported_property_names", json!(names))),
            Self::Refused(error) => Some(class_key(error)),
            Self::Forbidden(_) => Some(("args", json!([]))),
            Self::WrongVerb | Self::BodyBrokeOff => Some(("args", json!([self.to_string()]))),
            Self::NotFound { kind, id } => Some(("resources", json!({*kind: id}))),
            Self::UnknownPath => Some(("resources", json!({}))),
            Self::Duplicate { id } => Some(("resource_id", json!(id))),
            Self::Unauthenticated(_) => Some(("auth_error_code", json!("authentication_failed"))),
            Self::WrongPassword(_) => Some(("auth_error_code", json!("invalid_username_or_password"))),
            Self::Denied { .. } => Some(("auth_error_code", json!("permission_denied"))),
            _ => None,
        }
    }

    /// The whole body, for a request of `method` to `path`.
    fn body(&self, method: &Method, path: &str) -> Value {
        let coded = self.coded();
        let mut body = json!({
            "_href": path,
            "http_request_method": method.as_str(),
            "http_status": self.status().as_u16(),
            "error_message": coded.description,
            "exception": null,
            "traceback": null,
            "error": coded,
        });
        if let (Some((key, value)), Some(body)) = (self.extra(), body.as_object_mut()) {
            body.insert(key.to_owned(), value);
        }
        body
    }
}

impl From<CodedError> for ApiError {
    fn from(error: CodedError) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// An answer that still lacks its body: only [`render`] knows which request it is for.
#[derive(Clone)]
struct Unrendered(Arc<ApiError>);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(Unrendered(Arc::new(self)));
        response
    }
}

/// Gives refused requests their body, every answer its `x-request-id`, and failures a line in the log.
pub(crate) async fn render(State(challenge): State<HeaderValue>, request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let refused = match response.extensions_mut().remove::<Unrendered>() {
        Some(Unrendered(error)) => Some(error),
        // Made by the router itself, with its Allow header.
        None if response.status() == StatusCode::METHOD_NOT_ALLOWED => Some(Arc::new(ApiError::WrongVerb)),
        None => None,
    };
    if let Some(error) = refused {
        if error.status().is_server_error() {
            let cause = causes(error.as_ref());
            tracing::error!(request_id = %id, %method, path, status = error.status().as_u16(), cause, "a request failed");
        }
        *response.body_mut() = Body::from(error.body(&method, &path).to_string());
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, crate::replies::JSON);
        match error.status() {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            _ => {}
        }
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    tracing::debug!(request_id = %id, %method, path, status = response.status().as_u16(), "answered");
    response
}

/// The key that goes with an error that carries its own code.
fn class_key(error: &CodedError) -> (&'static str, Value) {
    let names = || error.data.get("property_names").cloned().unwrap_or_default();
    if error.code == ErrorCode::INVALID_VALUE {
        ("property_names", names())
    } else {
        ("args", json!([]))
    }
}

/// The challenge that goes with every 401.
pub(crate) fn challenge(server_name: &str) -> HeaderValue {
    let name: String = server_name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".-:".contains(*c))
        .collect();
    HeaderValue::from_str(&format!("Basic realm=\"Pulp at {name}\", charset=\"UTF-8\""))
        .unwrap_or(HeaderValue::from_static("Basic realm=\"Pulp\""))
}

/// What a key of `resources` names.
fn noun(kind: &str) -> &str {
    match kind {
        "repo_id" => "repository",
        "upload_id" => "upload",
        "user_id" => "user",
        "type_id" => "plugin type",
        other => other.strip_suffix("_id").unwrap_or(other),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Answers for paths that lead nowhere.
pub(crate) async fn unknown_path() -> ApiError {
    ApiError::UnknownPath
}

/// Turns a panic of a handler into a 500, so that a bug costs one request and not its connection.
pub(crate) fn catch_panics() -> CatchPanicLayer<fn(Box<dyn std::any::Any + Send>) -> Response> {
    CatchPanicLayer::custom(|panic: Box<dyn std::any::Any + Send>| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
        ApiError::Internal(format!("a handler panicked: {}", text.unwrap_or_default())).into_response()
    })
}

/// The variable segments of a path. A segment that is no UTF-8 names nothing that exists.
pub(crate) struct Segments<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(_) => Err(ApiError::UnknownPath),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::{Router, middleware, routing::get};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn answer(error: fn() -> ApiError) -> (Response, Value) {
        let router = Router::new()
            .route("/x", get(async move || -> ApiError { error() }))
            .layer(catch_panics())
            .layer(middleware::from_fn_with_state(
                challenge("pulp.example.com\"\n"),
                render,
            ));
        let request = Request::get("/x").body(Body::empty()).unwrap();
        let mut response = router.oneshot(request).await.unwrap();
        let bytes = response.body_mut().collect().await.unwrap().to_bytes();
        (response, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_tells_nothing_of_itself() {
        let (response, body) = answer(|| panic!("secret")).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body["error"]["code"], "PLP2002");
        assert!(!body.to_string().contains("secret"));
        assert!(response.headers().contains_key("x-request-id"));
    }

    #[tokio::test]
    async fn full_storage_and_an_absent_database_say_that_trying_again_may_help() {
        let full = || ApiError::Storage {
            path: "/secret".into(),
            source: io::ErrorKind::StorageFull.into(),
        };
        let (response, body) = answer(full).await;
        assert_eq!(response.status(), StatusCode::INSUFFICIENT_STORAGE);
        assert!(!body.to_string().contains("/secret"));
        let (response, _) = answer(|| ApiError::UploadBusy).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "5");
    }

    #[tokio::test]
    async fn the_challenge_names_the_server() {
        let (response, body) = answer(|| ApiError::WrongPassword("me".to_owned())).await;
        let challenge = &response.headers()[header::WWW_AUTHENTICATE];
        assert_eq!(
            challenge,
            "Basic realm=\"Pulp at pulp.example.com\", charset=\"UTF-8\""
        );
        assert_eq!(body["auth_error_code"], "invalid_username_or_password");
    }
}
