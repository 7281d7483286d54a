//! Sending a file: conditions, ranges, and the bytes.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use pulp_model::Digest;
use tokio::sync::Semaphore;

use crate::{
    Sendfile,
    data::{Held, Holdings},
    http_api::{App, Call, FileGone},
};

/// Bytes read at once; a larger piece isn't faster, and up to three of them are held for each download.
const PIECE: u64 = 256 * 1024;

/// Bytes read at once while so many downloads are in progress: many slow clients must not take all memory.
const fn piece(downloads: usize) -> u64 {
    match downloads {
        0..=32 => PIECE,
        33..=256 => PIECE / 4,
        _ => PIECE / 16,
    }
}

/// No manifest or config is larger.
const LARGEST_JSON: u64 = 16 << 20;
/// The digest of what is sent, on every answer that has one.
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// How long a year is for caches.
const YEAR: Duration = Duration::from_hours(365 * 24);

/// What caches may do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Keep it: content that never changes under its name.
    Immutable,
    /// Ask each time, which costs a 304, or as often as the settings say: content that may change.
    Revalidate,
}

/// A file to send, and how.
pub(crate) struct FileAnswer<'a> {
    pub(crate) place: Place<'a>,
    /// Its bytes as the tables have it; none if they don't.
    pub(crate) size: Option<u64>,
    pub(crate) content_type: &'a str,
    pub(crate) identity: Identity<'a>,
    pub(crate) cache: Cache,
    /// Whether the answer depends on `Accept`.
    pub(crate) negotiated: bool,
    /// Whether it is for some clients only, so that a shared cache must not keep it.
    pub(crate) protected: bool,
}

/// Where a file is. Its path is made only if the file is opened: most manifests are in memory.
pub(crate) enum Place<'a> {
    Path(PathBuf),
    Manifest(&'a Holdings, &'a Held<'a>),
    Blob(&'a Holdings, &'a Digest),
}

impl Place<'_> {
    fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Manifest(holdings, held) => holdings.manifest_file(held),
            Self::Blob(holdings, digest) => holdings.blob_file(digest),
        }
    }
}

/// What tells content from all other content; it makes the `ETag`.
pub(crate) enum Identity<'a> {
    Digest(&'a Digest),
    Name(String),
}

impl Identity<'_> {
    const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Digest(digest) => Some(digest),
            Self::Name(_) => None,
        }
    }

    /// In quotes.
    fn etag(&self) -> Bytes {
        let text = match self {
            Self::Digest(digest) => ["\"", digest.algorithm().as_str(), ":", digest.hex(), "\""].concat(),
            Self::Name(name) => ["\"", name, "\""].concat(),
        };
        Bytes::from(text)
    }
}

/// Answers GET or HEAD with a file.
pub(crate) async fn file(app: &App, call: &Call, answer: FileAnswer<'_>) -> Result<Response, FileGone> {
    let etag = answer.identity.etag();
    if call
        .header(header::IF_NONE_MATCH)
        .is_some_and(|held| matches_etag(held, &etag))
    {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        describe(app, &mut response, &answer, etag);
        return Ok(response);
    }
    if let Some(sendfile) = &app.sendfile {
        return named(app, sendfile, &answer, etag).await;
    }
    let content = content(app, call, &answer).await?;
    let size = content.size();
    let wanted = match (call.header(header::RANGE), call.header(header::IF_RANGE)) {
        // Ranges are defined for GET alone (RFC 9110, 14.2).
        (Some(range), held)
            if call.method == Method::GET && held.is_none_or(|held| held.as_bytes() == etag) =>
        {
            byte_range(range, size)
        }
        _ => Wanted::All,
    };
    let mut response = Response::new(Body::empty());
    describe(app, &mut response, &answer, etag);
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set(
        headers,
        header::CONTENT_TYPE,
        HeaderValue::from_str(answer.content_type),
    );
    let (status, range) = match wanted {
        Wanted::All => (StatusCode::OK, 0..size),
        Wanted::Part(part) => {
            let content_range = format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1));
            set(
                headers,
                header::CONTENT_RANGE,
                HeaderValue::try_from(content_range),
            );
            (StatusCode::PARTIAL_CONTENT, part)
        }
        Wanted::Unsatisfiable => {
            set(
                headers,
                header::CONTENT_RANGE,
                HeaderValue::try_from(format!("bytes */{size}")),
            );
            headers.remove(header::CONTENT_TYPE);
            (StatusCode::RANGE_NOT_SATISFIABLE, 0..0)
        }
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    *response.status_mut() = status;
    if call.method == Method::GET {
        *response.body_mut() = match content {
            Content::Known(_) => Body::empty(),
            Content::Whole(bytes) => Body::from(bytes.slice(range.start as usize..range.end as usize)),
            Content::Open(file, _) => body(app, file, range),
        };
    }
    Ok(response)
}

/// What there is to send from.
enum Content {
    /// The size alone, for HEAD of what the tables know all of: it doesn't touch the disk.
    Known(u64),
    /// All of it; a small file is read with one trip to the disk's threads, or none.
    Whole(Bytes),
    /// A file and its size.
    Open(Arc<File>, u64),
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Known(size) | Self::Open(_, size) => *size,
            Self::Whole(bytes) => bytes.len() as u64,
        }
    }
}

/// A small file as a whole; none if it is not small.
pub(crate) async fn read(app: &App, path: PathBuf) -> Result<Option<Bytes>, FileGone> {
    let of = path.clone();
    let read = on_disk(&app.reads, move || {
        let (file, size) = open_now(&of, None)?;
        let small = size <= LARGEST_JSON;
        small.then(|| read_range(&file, &(0..size))).transpose()
    });
    read.await.map_err(|error| gone(&path, &error))
}

async fn content(app: &App, call: &Call, answer: &FileAnswer<'_>) -> Result<Content, FileGone> {
    if let (Some(size), &Method::HEAD) = (answer.size, &call.method) {
        return Ok(Content::Known(size));
    }
    if let Some(bytes) = answer.identity.digest().and_then(|digest| app.small.get(digest)) {
        return Ok(Content::Whole(bytes));
    }
    let (path, expected) = (answer.place.path(), answer.size);
    let of = path.clone();
    let read = on_disk(&app.reads, move || {
        let (file, size) = open_now(&of, expected)?;
        if size > PIECE {
            return Ok(Content::Open(Arc::new(file), size));
        }
        Ok(Content::Whole(read_range(&file, &(0..size))?))
    });
    let content = read.await.map_err(|error| gone(&path, &error))?;
    if let (Content::Whole(bytes), Some(digest)) = (&content, answer.identity.digest()) {
        app.small.put(digest, bytes);
    }
    Ok(content)
}

/// The file's name for the web server in front, which sends it: the whole or the range that the client wants.
async fn named(
    app: &App,
    sendfile: &Sendfile,
    answer: &FileAnswer<'_>,
    etag: Bytes,
) -> Result<Response, FileGone> {
    // That it is there is all that is left to find out.
    let path = answer.place.path();
    open(app, &path, answer.size).await?;
    let mut response = Response::new(Body::empty());
    describe(app, &mut response, answer, etag);
    let headers = response.headers_mut();
    set(
        headers,
        header::CONTENT_TYPE,
        HeaderValue::from_str(answer.content_type),
    );
    let path = path.to_string_lossy();
    match sendfile {
        Sendfile::XSendfile => set(
            headers,
            HeaderName::from_static("x-sendfile"),
            HeaderValue::from_str(&path),
        ),
        Sendfile::XAccelRedirect { prefix } => {
            let path = utf8_percent_encode(&path, IN_PATH);
            set(
                headers,
                HeaderName::from_static("x-accel-redirect"),
                HeaderValue::try_from(format!("{prefix}{path}")),
            );
        }
    }
    Ok(response)
}

/// What nginx would take for something else than a part of a path.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

fn describe(app: &App, response: &mut Response, answer: &FileAnswer<'_>, etag: Bytes) {
    let headers = response.headers_mut();
    // For all that comes; to grow costs as much as the rest.
    headers.reserve(12);
    if answer.identity.digest().is_some() {
        // Without its quotes it is the digest.
        let digest = etag.slice(1..etag.len().saturating_sub(1));
        set(headers, CONTENT_DIGEST, HeaderValue::from_maybe_shared(digest));
    }
    set(headers, header::ETAG, HeaderValue::from_maybe_shared(etag));
    let is_public = !answer.protected;
    let (value, keep) = match (answer.cache, app.max_age) {
        (Cache::Immutable, _) if is_public => (
            HeaderValue::from_static("public, max-age=31536000, immutable"),
            Some(YEAR),
        ),
        (Cache::Immutable, _) => (
            HeaderValue::from_static("private, max-age=31536000, immutable"),
            Some(YEAR),
        ),
        (Cache::Revalidate, None) if is_public => (HeaderValue::from_static("no-cache"), None),
        (Cache::Revalidate, None) => (HeaderValue::from_static("private, no-cache"), None),
        (Cache::Revalidate, Some(age)) => {
            let who = if is_public { "public" } else { "private" };
            let value = HeaderValue::try_from(format!("{who}, max-age={}", age.as_secs()));
            (value.unwrap_or(HeaderValue::from_static("no-cache")), Some(age))
        }
    };
    headers.insert(header::CACHE_CONTROL, value);
    // For caches from before HTTP/1.1, and because the original sent it.
    if let Some(keep) = keep {
        let expires = httpdate::fmt_http_date(SystemTime::now() + keep);
        set(headers, header::EXPIRES, HeaderValue::try_from(expires));
    }
    if answer.negotiated {
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    }
}

/// Sets a header whose value comes from data; a value that can't be one is left out.
fn set<E>(headers: &mut http::HeaderMap, name: HeaderName, value: Result<HeaderValue, E>) {
    if let Ok(value) = value {
        headers.insert(name, value);
    }
}

fn matches_etag(held: &str, etag: &[u8]) -> bool {
    held.split(',')
        .map(str::trim)
        .any(|h| h == "*" || h.strip_prefix("W/").unwrap_or(h).as_bytes() == etag)
}

/// Which part of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Unsatisfiable,
}

/// Reads a `Range` header (RFC 9110, 14.1.2). What isn't understood, several ranges among it, is as if absent.
fn byte_range(header: &str, size: u64) -> Wanted {
    let Some((unit, spec)) = header.split_once('=') else {
        return Wanted::All;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Wanted::All;
    };
    // Only digits: `parse` would take a sign.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::All;
    }
    match (first, number(first), last, number(last)) {
        ("", None, _, Some(0)) => Wanted::Unsatisfiable,
        ("", None, _, Some(_)) if size == 0 => Wanted::Unsatisfiable,
        ("", None, _, Some(count)) => Wanted::Part(size.saturating_sub(count)..size),
        (_, Some(first), "", None) if first < size => Wanted::Part(first..size),
        (_, Some(first), _, Some(last)) if first > last => Wanted::All,
        (_, Some(first), _, Some(last)) if first < size => {
            Wanted::Part(first..size.min(last.saturating_add(1)))
        }
        (_, Some(_), "", None) | (_, Some(_), _, Some(_)) => Wanted::Unsatisfiable,
        _ => Wanted::All,
    }
}

/// Looks whether a file is there and has the size that the tables have.
async fn open(app: &App, path: &Path, expected: Option<u64>) -> Result<(), FileGone> {
    let of = path.to_owned();
    let opened = on_disk(&app.reads, move || open_now(&of, expected).map(|_| ()));
    opened.await.map_err(|error| gone(path, &error))
}

/// Opens a file and takes its size, which must be the one the tables have.
fn open_now(path: &Path, expected: Option<u64>) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not a file"));
    }
    match expected {
        Some(expected) if expected != meta.len() => Err(io::Error::other(format!(
            "{} bytes, {expected} expected",
            meta.len()
        ))),
        _ => Ok((file, meta.len())),
    }
}

fn gone(path: &Path, error: &io::Error) -> FileGone {
    // A publication that was replaced is gone rightly; if the newest is, giving up says so.
    if error.kind() == io::ErrorKind::NotFound {
        tracing::debug!(file = %path.display(), "a published file is gone");
    } else {
        tracing::error!(file = %path.display(), %error, "can't read a published file");
    }
    FileGone
}

/// The bytes of a range, read piece by piece as the client takes them, one piece ahead. No thread waits for a slow
/// client. A failure in the middle breaks the connection, so that the client knows.
fn body(app: &App, file: Arc<File>, range: Range<u64>) -> Body {
    let reads = Arc::clone(&app.reads);
    // One more holder for each download in progress.
    let download = Arc::clone(&app.downloads);
    let piece = piece(Arc::strong_count(&download));
    let pieces = stream::iter((range.start..range.end).step_by(piece as usize))
        .map(move |start| {
            let (file, reads, _in_progress) = (Arc::clone(&file), Arc::clone(&reads), &download);
            let piece = start..range.end.min(start + piece);
            async move { read_piece(file, piece, &reads).await }
        })
        .buffered(2);
    Body::from_stream(pieces)
}

async fn read_piece(file: Arc<File>, range: Range<u64>, reads: &Arc<Semaphore>) -> io::Result<Bytes> {
    on_disk(reads, move || read_range(&file, &range)).await
}

/// Reads into memory that was never written to: clearing it first would cost a fifth of the whole.
fn read_range(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let wanted = (range.end - range.start) as usize;
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        let at = range.start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Memory comes in sizes of its own.
    bytes.truncate(wanted);
    Ok(Bytes::from(bytes))
}

async fn on_disk<T: Send + 'static>(
    reads: &Arc<Semaphore>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = Arc::clone(reads)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    done.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_rfc_9110() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=2-5", 10, Wanted::Part(2..6)),
            ("bytes=2-", 10, Wanted::Part(2..10)),
            ("bytes=2-99", 10, Wanted::Part(2..10)),
            ("bytes=-3", 10, Wanted::Part(7..10)),
            ("bytes=-99", 10, Wanted::Part(0..10)),
            ("bytes=0-99999999999999999999999", 10, Wanted::Part(0..10)),
            ("Bytes=1-1", 10, Wanted::Part(1..2)),
            ("bytes=10-", 10, Wanted::Unsatisfiable),
            ("bytes=10-12", 10, Wanted::Unsatisfiable),
            ("bytes=-0", 10, Wanted::Unsatisfiable),
            ("bytes=0-", 0, Wanted::Unsatisfiable),
            ("bytes=-1", 0, Wanted::Unsatisfiable),
            ("bytes=5-2", 10, Wanted::All),
            ("bytes=0-1,3-4", 10, Wanted::All),
            ("bytes=", 10, Wanted::All),
            ("bytes=-", 10, Wanted::All),
            ("bytes=+1-2", 10, Wanted::All),
            ("lines=1-2", 10, Wanted::All),
            ("bytes", 10, Wanted::All),
        ] {
            assert_eq!(byte_range(header, size), expected, "{header} of {size}");
        }
    }

    #[test]
    fn if_none_match_takes_lists_weak_ones_and_the_star() {
        for held in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(matches_etag(held, b"\"a\""), "{held}");
        }
        assert!(!matches_etag("\"b\"", b"\"a\""));
    }
}
