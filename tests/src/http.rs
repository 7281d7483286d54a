//! Plain HTTP for tests that look at an answer themselves.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// An answer, with redirects not followed.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers by their lower-case names; of several with one name, the last.
    pub headers: std::collections::BTreeMap<String, String>,
    /// The body as it was sent.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of the first error of an OCI error body; empty if there is none.
    pub fn error_code(&self) -> String {
        let body = self.json().unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Gets a url.
pub fn get(url: &str) -> Result<Answer> {
    get_as(url, "*/*")
}

/// Gets a url with an `Accept`.
pub fn get_as(url: &str, accept: &str) -> Result<Answer> {
    let (url, accept) = (url.to_owned(), accept.to_owned());
    answer(move |client| client.get(url).header("accept", accept))
}

/// Sends any body, as the user `admin` with this password.
pub fn send(method: &str, url: &str, password: &str, body: &[u8]) -> Result<Answer> {
    let method: reqwest::Method = method.parse()?;
    let (url, password, body) = (url.to_owned(), password.to_owned(), body.to_vec());
    answer(move |client| {
        client
            .request(method, url)
            .basic_auth("admin", Some(password))
            .body(body)
    })
}

fn answer(
    request: impl FnOnce(reqwest::Client) -> reqwest::RequestBuilder + Send + 'static,
) -> Result<Answer> {
    crate::on_own_runtime(async move {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let response = request(client).send().await?;
        let headers = response.headers().iter();
        Ok(Answer {
            status: response.status().as_u16(),
            headers: headers
                .map(|(name, value)| {
                    (
                        name.to_string(),
                        String::from_utf8_lossy(value.as_bytes()).into_owned(),
                    )
                })
                .collect(),
            body: response.bytes().await?.to_vec(),
        })
    })
}
