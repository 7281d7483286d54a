//! Answers that went well.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use pulp_model::{TaskId, task::TaskKind};
use pulp_store::Store;
use serde_json::Value;

use crate::{ApiError, requester::Requester, views};

/// The content type of every body.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// What a handler gives.
pub(crate) type Reply = Result<Response, ApiError>;

/// A body with a status.
pub(crate) fn with_status(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, JSON)], body.to_string()).into_response()
}

/// 200.
pub(crate) fn ok(body: &Value) -> Response {
    with_status(StatusCode::OK, body)
}

/// 201, with `Location` where the body has its `_href`.
pub(crate) fn created(body: &Value) -> Response {
    let mut response = with_status(StatusCode::CREATED, body);
    let location = body.get("_href").and_then(Value::as_str);
    if let Some(location) = location.and_then(|href| HeaderValue::from_str(href).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// 202 with a call report over tasks that were accepted.
pub(crate) fn accepted(tasks: &[TaskId], result: &Value) -> Response {
    with_status(StatusCode::ACCEPTED, &views::call_report(result, tasks))
}

/// Makes a task for whoever asks and answers 202.
pub(crate) async fn enqueued(store: &Store, requester: &Requester, kind: &TaskKind) -> Reply {
    let id = store.submit(&requester.submission(kind)).await?;
    Ok(accepted(&[id], &Value::Null))
}
