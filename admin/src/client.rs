//! The REST client: requests with credentials, answers as JSON, failures by what can be done about them.

use std::{error::Error as _, path::Path, time::Duration};

use base64::Engine as _;
use bytes::Bytes;
use pulp_model::CodedError;
use reqwest::{Certificate, Method, header};
use serde_json::Value;
use url::Url;

use crate::{
    config::Config,
    error::{AdminError, ServerError},
    io::Io,
    session::Credentials,
};

/// Longest wait for a connection, and for the next bytes of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_mins(2);

/// An answer below 400.
#[derive(Debug)]
pub(crate) struct Reply {
    /// 200, 201, 202, 204.
    pub(crate) status: u16,
    /// The document; null if there was none.
    pub(crate) body: Value,
}

/// A connection to one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    api: Url,
    credentials: Credentials,
    verbose: u8,
    io: Io,
}

impl Client {
    /// Nothing is sent yet. `verbose`: 1 logs failed requests to stderr, 2 every request and answer.
    pub(crate) fn new(
        config: &Config,
        credentials: Credentials,
        verbose: u8,
        io: &Io,
    ) -> Result<Self, AdminError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("pulp-admin/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(proxy) = &config.proxy {
            let proxy = reqwest::Proxy::all(proxy)
                .map_err(|e| AdminError::Config(format!("[server] proxy_host is no host name: {e}")))?;
            builder = builder.proxy(proxy);
        }
        if config.server.scheme() == "http" {
            // No certificate will be looked at; a machine without a CA store must do.
            builder = builder.tls_certs_only([]);
        } else if config.verify_ssl {
            if let Some(path) = &config.ca_path {
                builder = builder.tls_certs_merge(certificates(path)?);
            }
        } else {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let http = builder
            .build()
            .map_err(|e| AdminError::Config(format!("TLS can't be set up: {}", innermost(&e))))?;
        let mut api = config.server.clone();
        api.set_path(&format!("{}/v2/", config.api_prefix.trim_matches('/')));
        Ok(Self {
            http,
            api,
            credentials,
            verbose,
            io: io.clone(),
        })
    }

    /// The server, for messages.
    pub(crate) fn server(&self) -> String {
        self.api.origin().ascii_serialization()
    }

    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, AdminError> {
        Ok(self
            .send(Method::GET, self.url(path, query), Body::None)
            .await?
            .body)
    }

    pub(crate) async fn post(&self, path: &[&str], body: &Value) -> Result<Reply, AdminError> {
        self.send(Method::POST, self.url(path, &[]), Body::Json(body))
            .await
    }

    pub(crate) async fn put(&self, path: &[&str], body: &Value) -> Result<Reply, AdminError> {
        self.send(Method::PUT, self.url(path, &[]), Body::Json(body))
            .await
    }

    /// Sends bytes as they are.
    pub(crate) async fn put_bytes(&self, path: &[&str], bytes: Bytes) -> Result<Reply, AdminError> {
        self.send(Method::PUT, self.url(path, &[]), Body::Bytes(bytes))
            .await
    }

    pub(crate) async fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Reply, AdminError> {
        self.send(Method::DELETE, self.url(path, query), Body::None).await
    }

    /// Each segment is escaped; the path ends with a slash, as every path of the API does.
    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path).push("");
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send(&self, method: Method, url: Url, body: Body<'_>) -> Result<Reply, AdminError> {
        let request_line = format!("{method} {url}");
        let mut request = self
            .http
            .request(method, url.clone())
            .header(header::ACCEPT, "application/json");
        match &self.credentials {
            Credentials::Anonymous => {}
            Credentials::Basic(user, password) => {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                request = request.header(header::AUTHORIZATION, sensitive(&format!("Basic {pair}"))?);
            }
            Credentials::Bearer { token, .. } => {
                request = request.header(header::AUTHORIZATION, sensitive(&format!("Bearer {token}"))?);
            }
        }
        self.trace(2, || match &body {
            Body::Json(value) => format!("{request_line}\n{value}"),
            Body::Bytes(bytes) => format!("{request_line} ({} bytes)", bytes.len()),
            Body::None => request_line.clone(),
        });
        request = match body {
            Body::None => request,
            Body::Json(value) => request.json(value),
            Body::Bytes(bytes) => request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .body(bytes),
        };
        let response = request.send().await.map_err(|e| self.broken(&e))?;
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|v| v.to_str().ok())
            .map(ToOwned::to_owned);
        let bytes = response.bytes().await.map_err(|e| self.broken(&e))?;
        self.trace(if status >= 400 { 1 } else { 2 }, || {
            format!("{request_line} -> {status}\n{}", String::from_utf8_lossy(&bytes))
        });
        match status {
            400.. => {
                let mut error = server_error(status, request_line, &bytes);
                if let (401, Credentials::Bearer { login, .. }) = (status, &self.credentials) {
                    error.session_of = Some(login.clone());
                }
                Err(AdminError::Server(Box::new(error)))
            }
            300..=399 => Err(AdminError::Answer {
                url: url.to_string(),
                what: format!(
                    "it sends us on to {}; give that server by --server",
                    location.unwrap_or_default()
                ),
            }),
            _ if bytes.is_empty() => Ok(Reply {
                status,
                body: Value::Null,
            }),
            _ => match serde_json::from_slice(&bytes) {
                Ok(body) => Ok(Reply { status, body }),
                Err(e) => Err(AdminError::Answer {
                    url: url.to_string(),
                    what: format!("no JSON ({e})"),
                }),
            },
        }
    }

    fn trace(&self, level: u8, text: impl FnOnce() -> String) {
        if self.verbose >= level {
            self.io.write_err(&format!("{}\n", text()));
        }
    }

    /// Sorts a failure to send or to receive.
    fn broken(&self, error: &reqwest::Error) -> AdminError {
        let url = self.server();
        let causes = chain(error);
        let reason = innermost(error);
        let has = |text: &str| causes.iter().any(|cause| cause.to_lowercase().contains(text));
        if has("certificate") {
            let wrong_name = has("not valid for name") || has("notvalidforname");
            AdminError::Untrusted {
                url,
                reason,
                wrong_name,
            }
        } else if error.is_connect() {
            AdminError::Unreachable { url, reason }
        } else {
            AdminError::Connection { url, reason }
        }
    }
}

enum Body<'a> {
    None,
    Json(&'a Value),
    Bytes(Bytes),
}

fn sensitive(text: &str) -> Result<header::HeaderValue, AdminError> {
    let mut value = header::HeaderValue::from_str(text).map_err(|_| {
        AdminError::Data("login, password or token hold characters that no header can".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn chain(error: &reqwest::Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes
}

fn innermost(error: &reqwest::Error) -> String {
    chain(error).pop().unwrap_or_default()
}

/// Reads Pulp's error body; a proxy's page is kept as text.
fn server_error(status: u16, request: String, bytes: &[u8]) -> ServerError {
    let body: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let error = body
        .get("error")
        .and_then(|e| serde_json::from_value::<CodedError>(e.clone()).ok());
    let text = match (&body, body.get("error_message")) {
        (_, Some(Value::String(text))) | (Value::String(text), _) => text.clone(),
        (Value::Null, _) => String::from_utf8_lossy(bytes).trim().chars().take(500).collect(),
        _ => String::new(),
    };
    let text = if text.is_empty() || text == "null" {
        format!("{request} answered {status}")
    } else {
        text
    };
    ServerError {
        status,
        request,
        text,
        error,
        session_of: None,
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, AdminError> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(AdminError::file(path))? {
            let file = entry.map_err(AdminError::file(path))?.path();
            let extension = file.extension().unwrap_or_default();
            if file.is_file() && (extension == "pem" || extension == "crt") {
                files.push(file);
            }
        }
    } else {
        files.push(path.to_owned());
    }
    let mut certificates = Vec::new();
    for file in files {
        let pem = std::fs::read(&file).map_err(AdminError::file(&file))?;
        let more = Certificate::from_pem_bundle(&pem).map_err(|e| {
            AdminError::Config(format!(
                "{}: no PEM certificates ({})",
                file.display(),
                innermost(&e)
            ))
        })?;
        certificates.extend(more);
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pulps_error_is_told_by_its_code_and_its_parts() {
        let body =
            br#"{"http_status":400,"error_message":"m","error":{"code":"PLP1000","description":"two faults",
            "data":{},"sub_errors":[{"code":"DKR1005","description":"no id","data":{},"sub_errors":[]}]}}"#;
        let error = server_error(400, "PUT http://h/".to_owned(), body);
        assert_eq!(
            AdminError::Server(Box::new(error)).to_string(),
            "PLP1000: two faults\n  DKR1005: no id"
        );
    }

    #[test]
    fn a_proxys_page_is_kept_as_text() {
        let error = server_error(502, "GET http://h/".to_owned(), b"<html>Bad Gateway</html>");
        let error = AdminError::Server(Box::new(error));
        assert_eq!(
            error.to_string(),
            "<html>Bad Gateway</html>\n(GET http://h/ answered 502)"
        );
        assert_eq!(error.exit(), crate::Exit::Software);
        assert!(error.is_transient());
    }

    #[test]
    fn an_unknown_path_answers_null_and_is_told_by_its_address() {
        let error = server_error(404, "GET http://h/x/".to_owned(), b"null");
        assert_eq!(error.text, "GET http://h/x/ answered 404");
    }
}
