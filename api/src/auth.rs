//! Who asks, and whether they may.
//!
//! HTTP Basic against the users' password hashes, or `Authorization: Bearer` with the token of a login. Tokens are
//! stored as their SHA-256 alone, so that reading the database opens no session.
//!
//! Members of `super-users` may do everything. All others may read, and change their own password; grants by
//! path, as Pulp 2 had them, are not there yet.

use std::time::Duration;

use axum::{
    Extension,
    extract::{Request, State},
    middleware::Next,
    response::Response,
    routing::post,
};
use base64::{Engine as _, engine::general_purpose};
use http::{HeaderMap, HeaderValue, Method, header};
use moka::future::Cache;
use pulp_model::Login;
use pulp_store::users::User;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::{
    ApiError, ApiState, App, PREFIX, Routes,
    password::{self, HashError},
    replies,
};

pub(crate) fn routes() -> Routes {
    Routes::default().at("/actions/login/", post(login))
}

/// The user who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) login: Login,
}

/// Lets a request through that has a user who may do it. Stands before every path but the public ones, so that
/// no handler can forget to ask.
pub(crate) async fn guard(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let user = authenticate(&app, request.headers()).await?;
    let path = request.uri().path();
    let operation = operation(request.method(), path);
    if !may(&user, operation, path) {
        return Err(ApiError::Denied {
            login: user.login.to_string(),
            operation,
        });
    }
    request.extensions_mut().insert(Caller { login: user.login });
    Ok(next.run(request).await)
}

fn may(user: &User, operation: &str, path: &str) -> bool {
    let own = format!("{PREFIX}/users/{}", user.login);
    user.is_super_user()
        || operation == "READ"
        || (operation == "UPDATE" && path.trim_end_matches('/') == own)
}

/// The operation that Pulp asks a permission for.
fn operation(method: &Method, path: &str) -> &'static str {
    let path = path.strip_prefix(PREFIX).unwrap_or(path).trim_end_matches('/');
    let last = |suffix: &str| path.ends_with(suffix);
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => "READ",
        Method::PUT => "UPDATE",
        Method::DELETE => "DELETE",
        _ if path == "/actions/login" || last("/search") || last("/search/units") => "READ",
        _ if ["/associate", "/unassociate", "/import_upload"]
            .iter()
            .any(|a| last(a)) =>
        {
            "UPDATE"
        }
        _ if path.contains("/actions/") => "EXECUTE",
        _ => "CREATE",
    }
}

const UNREADABLE: &str = "the Authorization header is neither Basic nor Bearer credentials";

async fn authenticate(app: &ApiState, headers: &HeaderMap) -> Result<User, ApiError> {
    const NONE: &str = "no credentials were sent; log in, or send HTTP Basic credentials";
    let Some(header) = headers.get(header::AUTHORIZATION) else {
        return Err(ApiError::Unauthenticated(NONE));
    };
    let (scheme, rest) = header
        .to_str()
        .ok()
        .and_then(|text| text.trim().split_once(' '))
        .ok_or(ApiError::Unauthenticated(UNREADABLE))?;
    if scheme.eq_ignore_ascii_case("bearer") {
        let found = app.store.session_user(&token_hash(rest.trim())).await?;
        return found.ok_or(ApiError::Unauthenticated(
            "the session is over or was never opened; log in again",
        ));
    }
    let (login, password) = basic(header)?;
    check_password(app, &login, &password).await
}

/// Login and password of HTTP Basic credentials.
pub(crate) fn basic(header: &HeaderValue) -> Result<(String, String), ApiError> {
    let unreadable = || ApiError::Unauthenticated(UNREADABLE);
    let text = header.to_str().map_err(|_| unreadable())?;
    let (scheme, rest) = text.trim().split_once(' ').ok_or_else(unreadable)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(unreadable());
    }
    let bytes = general_purpose::STANDARD.decode(rest.trim()).ok();
    let credentials = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let credentials = credentials.ok_or_else(unreadable)?;
    let (login, password) = credentials.split_once(':').ok_or_else(unreadable)?;
    Ok((login.to_owned(), password.to_owned()))
}

/// The user with this login and password.
pub(crate) async fn check_password(app: &ApiState, login: &str, password: &str) -> Result<User, ApiError> {
    let user = match login.parse::<Login>() {
        Ok(login) => app.store.user(&login).await?,
        Err(_) => None,
    };
    if app.verified.check(user.as_ref(), password).await? {
        user.ok_or_else(|| ApiError::WrongPassword(login.to_owned()))
    } else {
        Err(ApiError::WrongPassword(login.to_owned()))
    }
}

/// Credentials verified lately, so that a client that sends Basic with every request costs one slow hash a minute
/// and not one a request, however many requests come at once. The key holds the stored hash too: a changed password is
/// another key at once, on every API process.
#[derive(Debug)]
pub(crate) struct VerifiedCredentials {
    known: Cache<[u8; 32], ()>,
    decoy: OnceCell<String>,
}

/// Why credentials are not among those that were verified.
enum Unverified {
    Wrong,
    Unknown(HashError),
}

impl VerifiedCredentials {
    const LIFETIME: Duration = Duration::from_mins(1);
    const CAPACITY: u64 = 1024;

    pub(crate) fn new() -> Self {
        Self {
            known: Cache::builder()
                .max_capacity(Self::CAPACITY)
                .time_to_live(Self::LIFETIME)
                .build(),
            decoy: OnceCell::new(),
        }
    }

    async fn check(&self, user: Option<&User>, password: &str) -> Result<bool, ApiError> {
        let Some(user) = user else {
            // An unknown login takes as long as a known one, or the time would tell which logins exist.
            let decoy = self.decoy.get_or_try_init(|| password::hash("")).await?;
            password::verify(password, decoy).await?;
            return Ok(false);
        };
        let verify = async {
            match password::verify(password, &user.password_hash).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Unverified::Wrong),
                Err(e) => Err(Unverified::Unknown(e)),
            }
        };
        // Those who come with the same meanwhile wait for this answer.
        let verified = self.known.try_get_with(Self::key(user, password), verify);
        let Err(why) = verified.await else {
            return Ok(true);
        };
        match why.as_ref() {
            Unverified::Wrong => Ok(false),
            Unverified::Unknown(e) => Err(e.clone().into()),
        }
    }

    fn key(user: &User, password: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in [user.login.as_str(), &user.password_hash, password] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

/// `POST /actions/login/`: opens a session. Pulp 2 gave a certificate; here it is a token, for
/// `Authorization: Bearer`, that ends by time or when the password changes.
async fn login(State(app): State<App>, Extension(caller): Extension<Caller>) -> replies::Reply {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| ApiError::Internal(format!("no random bytes: {e}")))?;
    let token = general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let mut tx = app.store.begin().await?;
    let expires = tx
        .create_session(&caller.login, &token_hash(&token), app.config.session_lifetime)
        .await?;
    tx.commit().await?;
    tracing::info!(login = %caller.login, "logged in");
    Ok(replies::ok(
        &json!({"token": token, "login": caller.login, "expires": expires}),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;

    use super::*;
    use crate::testing::Api;

    #[test]
    fn operations_are_those_of_pulp() {
        let of = |method: Method, path: &str| operation(&method, &format!("{PREFIX}{path}"));
        assert_eq!(of(Method::POST, "/repositories/"), "CREATE");
        assert_eq!(of(Method::POST, "/repositories/search"), "READ");
        assert_eq!(of(Method::POST, "/repositories/r/search/units/"), "READ");
        assert_eq!(of(Method::POST, "/repositories/r/actions/publish/"), "EXECUTE");
        assert_eq!(
            of(Method::POST, "/repositories/r/actions/import_upload/"),
            "UPDATE"
        );
        assert_eq!(of(Method::POST, "/actions/login/"), "READ");
        assert_eq!(of(Method::PUT, "/repositories/r/"), "UPDATE");
        assert_eq!(of(Method::PATCH, "/repositories/r/"), "CREATE");
    }

    #[tokio::test]
    async fn without_credentials_nothing_but_the_status_answers() {
        let api = Api::new().await;
        let reply = api.anonymous("GET", "/repositories/").await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.code(), "PLP0025");
        assert_eq!(reply.body["auth_error_code"], "authentication_failed");
        assert!(reply.header("www-authenticate").starts_with("Basic"));
        assert_eq!(api.anonymous("GET", "/status/").await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_wrong_password_and_an_unknown_login_are_told_alike() {
        let api = Api::new().await;
        for (login, password) in [("admin", "wrong"), ("nobody", "admin"), ("no/login", "x")] {
            let reply = api.basic(login, password, "GET", "/tasks/").await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
            assert_eq!(reply.code(), "PLP0030");
            assert_eq!(reply.body["error"]["data"]["user"], login);
        }
    }

    #[tokio::test]
    async fn headers_that_are_no_credentials_are_refused() {
        let api = Api::new().await;
        for header in [
            "",
            "Basic",
            "Basic !!!",
            "Basic YWRtaW4=",
            "Digest x",
            "Bearer nope",
        ] {
            let reply = api.authorized(header, "GET", "/tasks/", None).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{header}");
            assert_eq!(reply.code(), "PLP0025", "{header}");
        }
    }

    #[tokio::test]
    async fn a_login_gives_a_token_that_a_password_change_ends() {
        let api = Api::new().await;
        let login = api.post("/actions/login/", &json!({})).await;
        assert_eq!(login.status, StatusCode::OK);
        assert_eq!(login.body["login"], "admin");
        let bearer = format!("Bearer {}", login.body["token"].as_str().unwrap());
        let with_token = || api.authorized(&bearer, "GET", "/tasks/", None);
        assert_eq!(with_token().await.status, StatusCode::OK);

        let change = api
            .put("/users/admin/", &json!({"delta": {"password": "another"}}))
            .await;
        assert_eq!(change.status, StatusCode::OK);
        assert_eq!(with_token().await.status, StatusCode::UNAUTHORIZED);
        // The old password was verified a moment ago, and must not be known any more.
        assert_eq!(api.get("/tasks/").await.code(), "PLP0030");
        assert_eq!(
            api.basic("admin", "another", "GET", "/tasks/").await.status,
            StatusCode::OK
        );
    }

    #[tokio::test]
    async fn who_has_no_role_may_read_and_change_the_own_password_alone() {
        let api = Api::new().await;
        let new = api
            .post("/users/", &json!({"login": "reader", "password": "secret"}))
            .await;
        assert_eq!(new.status, StatusCode::CREATED);
        let read = api.basic("reader", "secret", "GET", "/repositories/").await;
        assert_eq!(read.status, StatusCode::OK);
        let write = api.basic("reader", "secret", "DELETE", "/repositories/r/").await;
        assert_eq!(write.status, StatusCode::UNAUTHORIZED);
        assert_eq!(write.code(), "PLP0026");
        assert_eq!(write.body["error"]["data"]["operation"], "DELETE");
        let header = format!("Basic {}", general_purpose::STANDARD.encode("reader:secret"));
        let delta = json!({"delta": {"password": "new"}});
        let other = api
            .authorized(&header, "PUT", "/users/admin/", Some(&delta))
            .await;
        assert_eq!(other.code(), "PLP0026");
        let own = api
            .authorized(&header, "PUT", "/users/reader/", Some(&delta))
            .await;
        assert_eq!(own.status, StatusCode::OK);
    }
}
