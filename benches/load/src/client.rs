//! HTTP/1.1 over one kept connection: no more of it than the benchmark needs.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Where requests go, and as whom.
pub(crate) struct Target {
    address: String,
    headers: String,
}

impl Target {
    pub(crate) fn new(address: &str, login: &str, password: &str) -> Self {
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("{login}:{password}"));
        Self {
            address: address.to_owned(),
            headers: format!(
                "host: {address}\r\nauthorization: Basic {credentials}\r\ncontent-type: application/json\r\n"
            ),
        }
    }
}

/// One connection.
pub(crate) struct Client {
    headers: String,
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.address)
            .await
            .with_context(|| format!("connecting to {}", target.address))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            headers: target.headers.clone(),
            stream,
            answer: Vec::new(),
        })
    }

    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Result<(u16, &str)> {
        self.call("POST", path, body).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, &str)> {
        self.call("GET", path, "").await
    }

    /// Sends a request; gives the answer's status and body.
    async fn call(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, &str)> {
        let request = format!(
            "{method} /pulp/api/v2{path} HTTP/1.1\r\n{}content-length: {}\r\n\r\n{body}",
            self.headers,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                bail!("the server closed the connection");
            }
            if let Some((status, begin, end)) = whole(&self.answer)? {
                let body = self.answer.get(begin..end).unwrap_or_default();
                return Ok((status, std::str::from_utf8(body)?));
            }
        }
    }
}

/// Status, begin and end of the body, once all of it is there.
fn whole(answer: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(answer.get(..head).unwrap_or_default())?;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let length: usize = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without content-length")?
        .1
        .trim()
        .parse()?;
    let begin = head + 4;
    Ok((answer.len() >= begin + length).then_some((status, begin, begin + length)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is_there() {
        let answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(whole(answer).unwrap(), Some((202, 44, 48)));
        assert_eq!(whole(&answer[..47]).unwrap(), None);
        assert_eq!(whole(&answer[..20]).unwrap(), None);
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
