//! `/token`: tokens for clients that pull, after the distribution project's "Token Authentication Specification".
//!
//! Answers have that specification's shapes, not Pulp's: it is docker, podman and containerd who read them.

use std::collections::BTreeSet;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use pulp_model::{Puller, RegistryId, RobotName, Timestamp};
use pulp_token::{PATH, Signed, Signer, pulls_asked_for};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{ApiError, ApiState, App, auth, replies};

#[cfg(test)]
mod tests;

/// The largest form taken.
const MAX_FORM: usize = 64 * 1024;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route(PATH, get(by_get).post(by_post))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_FORM))
}

/// What a client asks for.
struct Ask {
    service: Option<String>,
    pulls: BTreeSet<RegistryId>,
}

impl Ask {
    fn of(parameters: &[(String, String)]) -> Self {
        let scopes = parameters.iter().filter(|(key, _)| key == "scope");
        Self {
            service: parameter(parameters, "service").map(ToOwned::to_owned),
            pulls: pulls_asked_for(scopes.map(|(_, value)| value.as_str())),
        }
    }
}

fn parameters(encoded: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(encoded).into_owned().collect()
}

fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = parameters.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

/// Who asks.
enum Asker {
    Nobody,
    Somebody { puller: Puller, everything: bool },
}

/// With HTTP Basic, or without credentials for a token of nobody in particular.
async fn by_get(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let ask = Ask::of(&parameters(uri.query().unwrap_or_default().as_bytes()));
    let asker = match headers.get(header::AUTHORIZATION) {
        None => Ok(Asker::Nobody),
        Some(value) => match auth::basic(value) {
            Ok((name, secret)) => identify(&app, &name, &secret).await,
            Err(error) => Err(error),
        },
    };
    let answer = match asker {
        Ok(asker) => give(&app, &asker, &ask).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok((signed, _)) => given(&signed, None),
        Err(error) => refused(&error, None),
    }
}

/// As a form of OAuth 2: `grant_type=password`.
async fn by_post(State(app): State<App>, form: Bytes) -> Response {
    let form = parameters(&form);
    let ask = Ask::of(&form);
    if parameter(&form, "grant_type") != Some("password") {
        let reason = "grant_type must be password; refresh tokens are not given out here";
        return refused(
            &ApiError::invalid("grant_type", reason),
            Some("unsupported_grant_type"),
        );
    }
    let (name, secret) = (parameter(&form, "username"), parameter(&form, "password"));
    let (Some(name), Some(secret)) = (name, secret) else {
        let missing = ApiError::Missing(vec!["username".to_owned(), "password".to_owned()]);
        return refused(&missing, Some("invalid_request"));
    };
    let answer = match identify(&app, name, secret).await {
        Ok(asker) => give(&app, &asker, &ask).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok((signed, pulls)) => given(&signed, Some(&pulls)),
        Err(error) => {
            let kind = match error.status() {
                StatusCode::UNAUTHORIZED => "invalid_grant",
                _ => "invalid_request",
            };
            refused(&error, Some(kind))
        }
    }
}

/// A user by password, or a robot by its secret.
async fn identify(app: &ApiState, name: &str, secret: &str) -> Result<Asker, ApiError> {
    let somebody = match name.parse::<Puller>() {
        Ok(Puller::Robot(robot)) => {
            check_robot(app, &robot, secret).await?;
            Asker::Somebody {
                puller: Puller::Robot(robot),
                everything: false,
            }
        }
        // A name that is none is refused in the time that a wrong password takes.
        Ok(Puller::User(_)) | Err(_) => {
            let user = auth::check_password(app, name, secret).await?;
            Asker::Somebody {
                everything: user.is_super_user(),
                puller: Puller::User(user.login),
            }
        }
    };
    Ok(somebody)
}

async fn check_robot(app: &ApiState, name: &RobotName, secret: &str) -> Result<(), ApiError> {
    let wrong = || ApiError::WrongPassword(Puller::Robot(name.clone()).to_string());
    let robot = app.store.robot(name).await?.ok_or_else(wrong)?;
    let fits = aws_lc_rs::constant_time::verify_slices_are_equal(
        secret_hash(secret).as_bytes(),
        robot.secret_hash.as_bytes(),
    );
    let over = match robot.expires {
        Some(end) => end <= app.store.now().await?,
        None => false,
    };
    if fits.is_err() || over {
        return Err(wrong());
    }
    Ok(())
}

/// What is kept of a robot's secret.
pub(crate) fn secret_hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

/// A token for what was asked for and may be had: the specification wants less than was asked for, not an error.
async fn give(app: &ApiState, asker: &Asker, ask: &Ask) -> Result<(Signed, BTreeSet<RegistryId>), ApiError> {
    let signer = signer(app)?;
    if let Some(service) = ask.service.as_deref().filter(|s| *s != signer.service()) {
        let reason = format!(
            "tokens are given out here for the service {:?}, not for {service:?}; the registry and this server must have \
             the same token.service",
            signer.service()
        );
        return Err(ApiError::invalid("service", reason));
    }
    let (who, pulls) = match asker {
        Asker::Nobody => (None, BTreeSet::new()),
        Asker::Somebody {
            puller,
            everything: true,
        } => (Some(puller), ask.pulls.clone()),
        Asker::Somebody { puller, .. } => (Some(puller), app.store.names_open_to(puller, &ask.pulls).await?),
    };
    let signed = signer
        .sign(who, &pulls, std::time::SystemTime::now())
        .map_err(|e| ApiError::Internal(e.to_string()))?;
    if let Some(who) = who {
        tracing::debug!(%who, asked = ask.pulls.len(), given = pulls.len(), "a token was given out");
    }
    Ok((signed, pulls))
}

fn signer(app: &ApiState) -> Result<&Signer, ApiError> {
    app.config.token_signer.as_ref().ok_or(ApiError::UnknownPath)
}

fn given(signed: &Signed, scope: Option<&BTreeSet<RegistryId>>) -> Response {
    let issued = signed
        .issued
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let mut body = json!({
        "token": signed.token,
        "access_token": signed.token,
        "expires_in": signed.lifetime.as_secs(),
        "issued_at": Timestamp(i64::try_from(issued.as_micros()).unwrap_or_default()),
    });
    if let Some(pulls) = scope {
        let scopes: Vec<_> = pulls
            .iter()
            .map(|name| format!("repository:{name}:pull"))
            .collect();
        body["scope"] = json!(scopes.join(" "));
        body["token_type"] = json!("Bearer");
    }
    answer(StatusCode::OK, &body)
}

/// With the error codes that clients of registries show to people, and those of OAuth 2 beside them if asked by it.
fn refused(error: &ApiError, oauth: Option<&str>) -> Response {
    let status = error.status();
    let code = match status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
        status if status.is_client_error() => "UNSUPPORTED",
        _ => "UNKNOWN",
    };
    let text = match error {
        ApiError::WrongPassword(_) => "incorrect username or password".to_owned(),
        other => other.coded().description,
    };
    match error {
        ApiError::WrongPassword(name) => {
            tracing::warn!(name = %name.escape_debug(), "a token was refused: unknown name or wrong secret");
        }
        other if status.is_server_error() => tracing::error!(error = %other, "a token can't be given out"),
        _ => {}
    }
    let mut body = json!({"errors": [{"code": code, "message": text, "detail": null}]});
    if let Some(kind) = oauth.filter(|_| status.is_client_error()) {
        body["error"] = json!(kind);
        body["error_description"] = json!(text);
    }
    let mut response = answer(status, &body);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

/// Never kept by anybody on the way.
fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, replies::JSON),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.to_string()).into_response()
}
