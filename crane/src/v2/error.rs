//! Errors of the OCI distribution API, "Error Codes" of its specification.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use pulp_model::{Digest, RegistryId};
use serde_json::{Value, json};

use crate::{http_api, tokens::Challenged};

/// An error of the specification, "Error Codes".
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
    detail: Value,
    challenge: Option<HeaderValue>,
}

impl ApiError {
    /// Credentials may help. 401 in either case, as clients look at the challenge of no other.
    pub(super) fn unauthorized(challenged: Challenged) -> Self {
        let detail = challenged.name.map_or(
            Value::Null,
            |name| json!([{"Type": "repository", "Name": name, "Action": "pull"}]),
        );
        let (code, message) = if challenged.denied {
            ("DENIED", "requested access to the resource is denied")
        } else {
            ("UNAUTHORIZED", "authentication required")
        };
        Self {
            status: StatusCode::UNAUTHORIZED,
            code,
            message,
            detail,
            challenge: Some(challenged.header),
        }
    }

    pub(super) fn name_unknown(name: &str) -> Self {
        if name.parse::<RegistryId>().is_err() {
            return Self {
                status: StatusCode::BAD_REQUEST,
                code: "NAME_INVALID",
                message: "invalid repository name",
                detail: json!({ "name": name }),
                challenge: None,
            };
        }
        Self {
            status: StatusCode::NOT_FOUND,
            code: "NAME_UNKNOWN",
            message: "repository name not known to registry",
            detail: json!({ "name": name }),
            challenge: None,
        }
    }

    pub(super) fn manifest_unknown(name: &str, reference: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "MANIFEST_UNKNOWN",
            message: "manifest unknown",
            detail: json!({ "name": name, "reference": reference }),
            challenge: None,
        }
    }

    pub(super) fn blob_unknown(digest: &Digest) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "BLOB_UNKNOWN",
            message: "blob unknown to registry",
            detail: json!({ "digest": digest }),
            challenge: None,
        }
    }

    pub(super) fn digest_invalid(digest: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "DIGEST_INVALID",
            message: "provided digest is not a digest",
            detail: json!({ "digest": digest }),
            challenge: None,
        }
    }

    pub(super) fn page_invalid(n: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "PAGINATION_NUMBER_INVALID",
            message: "invalid number of results requested",
            detail: json!({ "n": n }),
            challenge: None,
        }
    }

    pub(super) fn unsupported() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "UNSUPPORTED",
            message: "this registry is read-only; content is published through Pulp",
            detail: Value::Null,
            challenge: None,
        }
    }

    pub(super) fn unavailable() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "UNAVAILABLE",
            message: "the content can't be read at the moment, try again",
            detail: Value::Null,
            challenge: None,
        }
    }

    pub(super) fn response(self) -> Response {
        let error = json!({ "code": self.code, "message": self.message, "detail": self.detail });
        let mut response = http_api::json(self.status, &json!({ "errors": [error] }));
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => headers.insert(header::ALLOW, http_api::ALLOW),
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"))
            }
            _ => None,
        };
        response
    }
}
