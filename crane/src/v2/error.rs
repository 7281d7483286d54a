//! Errors of the OCI distribution API, "Error Codes" of its specification.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use pulp_model::{Digest, RegistryId};
use serde_json::{Value, json};

use crate::http_api;

/// An error of the specification, "Error Codes".
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
    detail: Value,
}

impl ApiError {
    pub(super) fn name_unknown(name: &str) -> Self {
        if name.parse::<RegistryId>().is_err() {
            return Self {
                status: StatusCode::BAD_REQUEST,
                code: "NAME_INVALID",
                message: "invalid repository name",
                detail: json!({ "name": name }),
            };
        }
        Self {
            status: StatusCode::NOT_FOUND,
            code: "NAME_UNKNOWN",
            message: "repository name not known to registry",
            detail: json!({ "name": name }),
        }
    }

    pub(super) fn manifest_unknown(name: &str, reference: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "MANIFEST_UNKNOWN",
            message: "manifest unknown",
            detail: json!({ "name": name, "reference": reference }),
        }
    }

    pub(super) fn blob_unknown(digest: &Digest) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "BLOB_UNKNOWN",
            message: "blob unknown to registry",
            detail: json!({ "digest": digest }),
        }
    }

    pub(super) fn digest_invalid(digest: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "DIGEST_INVALID",
            message: "provided digest is not a digest",
            detail: json!({ "digest": digest }),
        }
    }

    pub(super) fn page_invalid(n: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "PAGINATION_NUMBER_INVALID",
            message: "invalid number of results requested",
            detail: json!({ "n": n }),
        }
    }

    pub(super) fn unsupported() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "UNSUPPORTED",
            message: "this registry is read-only; content is published through Pulp",
            detail: Value::Null,
        }
    }

    pub(super) fn unavailable() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "UNAVAILABLE",
            message: "the content can't be read at the moment, try again",
            detail: Value::Null,
        }
    }

    pub(super) fn response(self) -> Response {
        let error = json!({ "code": self.code, "message": self.message, "detail": self.detail });
        let mut response = http_api::json(self.status, &json!({ "errors": [error] }));
        let headers = response.headers_mut();
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
