//! Tokens: what a client's one opens, and where clients get one.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pulp_model::RegistryId;
use pulp_token::{ANONYMOUS, PATH, Pulls, Verifier};
use serde_json::json;

use crate::{
    Challenge, TokenService,
    data::Tables,
    http_api::{self, App, Call},
    reloaded::Reloaded,
};

/// How tokens are judged.
pub(crate) struct TokenGate {
    pub(crate) verifier: Arc<Reloaded<Verifier>>,
    realm: Option<String>,
    service: String,
    challenge: Challenge,
}

impl TokenGate {
    pub(crate) fn open(settings: &TokenService) -> Self {
        let of = settings.clone();
        let verifier = Reloaded::open(settings.public_keys.clone(), move || {
            Verifier::open(&of.public_keys, &of.issuer, &of.service).map_err(|e| e.to_string())
        });
        Self {
            verifier: Arc::new(verifier),
            realm: settings.realm.clone(),
            service: settings.service.clone(),
            challenge: settings.challenge,
        }
    }

    /// Without a readable key no token is good.
    pub(crate) fn judge(&self, bearer: &str) -> Credential {
        if bearer == ANONYMOUS {
            return Credential::Nobodys;
        }
        let Some(verifier) = self.verifier.current() else {
            return Credential::Bad;
        };
        match verifier.verify(bearer) {
            Ok(pulls) => Credential::Good(pulls),
            Err(refusal) => {
                tracing::debug!(%refusal, "a client's token counts for nothing");
                Credential::Bad
            }
        }
    }

    /// Whether credentials may be of use here.
    fn applies(&self, tables: &Tables) -> bool {
        self.challenge == Challenge::Always || tables.any_protected
    }
}

/// What a client has shown.
#[derive(Debug)]
pub(crate) enum Credential {
    /// Nothing, or nothing that is looked at here.
    None,
    /// That it has asked for a token, without a name.
    Nobodys,
    /// A good token.
    Good(Arc<Pulls>),
    /// One that has ended, or was never any good.
    Bad,
}

impl Credential {
    pub(crate) fn opens(&self, registry_id: &str) -> bool {
        let Self::Good(pulls) = self else { return false };
        let name = registry_id.parse::<RegistryId>();
        name.is_ok_and(|name| pulls.repositories.contains(&name))
    }
}

/// The token of `Authorization: Bearer`; none if there are several headers, since one isn't the client's.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else {
        return None;
    };
    let (scheme, token) = one.to_str().ok()?.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

/// A client is to come again with a token.
pub(crate) struct Challenged {
    pub(crate) header: HeaderValue,
    /// What it asked for.
    pub(crate) name: Option<RegistryId>,
    /// It had a good token, which doesn't open this.
    pub(crate) denied: bool,
}

/// For `/v2/`, where clients find out whether they need tokens, and logins are tried. Who has one, or a
/// certificate that entitles to something, needs no other.
pub(crate) fn challenge_at_ping(app: &App, call: &Call, tables: &Tables) -> Option<Challenged> {
    let tokens = app.tokens.as_ref().filter(|tokens| tokens.applies(tables))?;
    let error = match call.viewer.credential() {
        Credential::Good(_) | Credential::Nobodys => return None,
        Credential::None if call.viewer.is_entitled() => return None,
        Credential::None => None,
        Credential::Bad => Some("invalid_token"),
    };
    Some(Challenged {
        header: tokens.header(app, call, None, error),
        name: None,
        denied: false,
    })
}

/// For a repository that is not there for this client.
pub(crate) fn challenge_for(
    app: &App,
    call: &Call,
    tables: &Tables,
    name: &RegistryId,
) -> Option<Challenged> {
    let tokens = app.tokens.as_ref().filter(|tokens| tokens.applies(tables))?;
    let (error, denied) = match call.viewer.credential() {
        Credential::None => (None, false),
        Credential::Nobodys | Credential::Good(_) => (Some("insufficient_scope"), true),
        Credential::Bad => (Some("invalid_token"), false),
    };
    Some(Challenged {
        header: tokens.header(app, call, Some(name), error),
        name: Some(name.clone()),
        denied,
    })
}

impl TokenGate {
    fn header(&self, app: &App, call: &Call, name: Option<&RegistryId>, error: Option<&str>) -> HeaderValue {
        let realm = match &self.realm {
            Some(realm) => realm.clone(),
            None => format!(
                "{}://{}{PATH}",
                if app.tls { "https" } else { "http" },
                host(call)
            ),
        };
        let service = &self.service;
        let scope = name
            .map(|name| format!(",scope=\"repository:{name}:pull\""))
            .unwrap_or_default();
        let error = error
            .map(|error| format!(",error=\"{error}\""))
            .unwrap_or_default();
        let text = format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}{error}");
        // Nothing in it can make a header that isn't one: settings are checked, the host is cut to what a host can be.
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer"))
    }
}

/// The host, with its port, that the client came to.
fn host(call: &Call) -> String {
    let host = call.uri.authority().map(http::uri::Authority::as_str);
    let host = host.or_else(|| call.header(header::HOST)).unwrap_or("localhost");
    host.chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(*c))
        .collect()
}

/// `GET /token` without credentials: a token of nobody, so that clients that ask for one before every pull get what is
/// open when nothing but Crane is up. Who has credentials is to bring them to the API.
pub(crate) fn of_nobody(call: &Call) -> Response {
    let asks = call.method == Method::GET || call.method == Method::HEAD;
    let mut response = if asks && !call.headers.contains_key(header::AUTHORIZATION) {
        let body = json!({"token": ANONYMOUS, "access_token": ANONYMOUS, "expires_in": 3600});
        http_api::json(StatusCode::OK, &body)
    } else if call.is_options() {
        http_api::options()
    } else {
        let message = "credentials are not checked here; the realm must be the token endpoint of the API";
        let error = json!({"code": "UNAUTHORIZED", "message": message, "detail": null});
        http_api::json(StatusCode::UNAUTHORIZED, &json!({ "errors": [error] }))
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
