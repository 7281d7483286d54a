//! `/content/uploads/`: files that grow by chunks until they are imported.
//!
//! The row says how many bytes are there, and grows only after the bytes are on disk. A chunk may come again; one
//! that would leave a gap is refused. One writer at a time: the file is locked while a chunk is written, so that
//! neither a retry that overtakes its first try, nor another API process, can damage it.

use std::{
    fs::{OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    routing::{get, put},
};
use http::header;
use pulp_model::{CodedError, ErrorCode, UploadId};
use pulp_store::{Store, uploads::Upload};
use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _, SeekFrom},
    time::Instant,
};

use crate::{
    ApiError, ApiState, App, Routes,
    auth::Caller,
    body::Pieces,
    errors::Segments,
    replies::{self, Reply},
    views,
};

/// How long a chunk waits for another request that writes to the same upload.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/content/uploads/", get(list).post(create))
        .at("/content/uploads/{upload}/", get(read).delete(delete))
        .at("/content/uploads/{upload}/{offset}/", put(write_chunk))
}

/// Makes the folder of uploads, if it isn't there.
pub(crate) async fn prepare(folder: &Path) -> Result<(), ApiError> {
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(|e| storage(folder, e))
}

fn storage(path: &Path, source: io::Error) -> ApiError {
    ApiError::Storage {
        path: path.to_owned(),
        source,
    }
}

fn file_of(app: &ApiState, id: UploadId) -> PathBuf {
    app.config.uploads_dir.join(id.to_string())
}

/// The upload of this id.
pub(crate) async fn find(store: &Store, id: &str) -> Result<Upload, ApiError> {
    let found = match id.parse() {
        Ok(id) => store.upload(id).await?,
        Err(_) => None,
    };
    found.ok_or_else(|| ApiError::NotFound {
        kind: "upload_id",
        id: id.to_owned(),
    })
}

/// The ids alone under `upload_ids`, as Pulp 2 had them; `uploads` says how far each is.
async fn list(State(app): State<App>) -> Reply {
    let uploads = app.store.uploads().await?;
    let ids: Vec<_> = uploads.iter().map(|u| u.id).collect();
    let views: Vec<_> = uploads.iter().map(views::upload).collect();
    Ok(replies::ok(&json!({"upload_ids": ids, "uploads": views})))
}

async fn create(State(app): State<App>, Extension(caller): Extension<Caller>) -> Reply {
    let mut tx = app.store.begin().await?;
    let id = tx.create_upload(&caller.login).await?;
    // The file first: a row without its file would be a fault, a file without row is only waste.
    let path = file_of(&app, id);
    File::create_new(&path).await.map_err(|e| storage(&path, e))?;
    if let Err(error) = tx.commit().await {
        let _ = tokio::fs::remove_file(&path).await;
        return Err(error.into());
    }
    tracing::info!(upload_id = %id, login = %caller.login, "upload begun");
    let body = json!({"upload_id": id, "_href": views::upload_href(id)});
    Ok(replies::created(&body))
}

async fn read(State(app): State<App>, Segments(upload): Segments<String>) -> Reply {
    let upload = find(&app.store, &upload).await?;
    Ok(replies::ok(&views::upload(&upload)))
}

/// Takes the bytes from `offset` on. Answers `null`, as Pulp 2 did.
async fn write_chunk(
    State(app): State<App>,
    Segments((upload, offset)): Segments<(String, String)>,
    request: Request,
) -> Reply {
    let offset: u64 = offset.parse().map_err(|_| {
        ApiError::invalid(
            "offset",
            format!("the offset is {offset:?}; give a whole number of bytes from 0 on"),
        )
    })?;
    let limit = app.config.max_chunk;
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        // A client that asks before it sends gets its answer at once.
        return Err(if request.headers().contains_key(header::EXPECT) {
            ApiError::TooLarge { limit }
        } else {
            Pieces::of(request.into_body(), limit).too_large().await
        });
    }
    let id = find(&app.store, &upload).await?.id;
    let path = file_of(&app, id);
    let locked = locked(&path).await;
    // Read again under the lock: another chunk may have come meanwhile, or the upload have gone.
    let size = find(&app.store, &upload).await?.size;
    let mut file = locked?;
    if offset > size {
        return Err(beyond_end(offset, size).into());
    }
    cut(&mut file, &path, size).await?;
    let end = match receive(&mut file, &path, offset, request.into_body(), limit).await {
        Ok(end) => end,
        Err(error) => {
            if let Err(error) = cut(&mut file, &path, size).await {
                tracing::warn!(upload_id = %id, %error, "a chunk that broke off is left for later");
            }
            return Err(error);
        }
    };
    let mut tx = app.store.begin().await?;
    if !tx.grow_upload(id, end).await? {
        return Err(ApiError::NotFound {
            kind: "upload_id",
            id: upload,
        });
    }
    tx.commit().await?;
    Ok(replies::ok(&Value::Null))
}

/// Cuts away what a chunk left that broke off: bytes beyond the size were never acknowledged, so nobody may take
/// them for content. Done before each chunk and before an import, since a request can vanish at any point.
async fn cut(file: &mut File, path: &Path, size: u64) -> Result<(), ApiError> {
    // A write goes on in the background after its call has returned. One that is still under way would land behind
    // the cut; one that failed has left nothing to keep.
    let _ = file.flush().await;
    let length = file.metadata().await.map_err(|e| storage(path, e))?.len();
    if length > size {
        file.set_len(size).await.map_err(|e| storage(path, e))?;
    }
    Ok(())
}

/// Makes sure that an upload's file holds what its row says, neither less nor more.
pub(crate) async fn settle(app: &ApiState, upload: &Upload) -> Result<(), ApiError> {
    let path = file_of(app, upload.id);
    let mut file = locked(&path).await?;
    cut(&mut file, &path, upload.size).await?;
    let length = file.metadata().await.map_err(|e| storage(&path, e))?.len();
    if length < upload.size {
        let text = format!(
            "it has {length} bytes of {} received; is the folder shared by all API processes?",
            upload.size
        );
        return Err(storage(&path, io::Error::other(text)));
    }
    Ok(())
}

fn beyond_end(offset: u64, size: u64) -> CodedError {
    let text = format!(
        "the chunk begins at {offset}, but {size} bytes are there; go on from {size}, so that no gap is left"
    );
    CodedError::new(ErrorCode::CHUNK_BEYOND_END, text)
        .with("offset", offset)
        .with("size", size)
}

/// Writes the body to the file at `offset`, piece by piece as it comes, and has it on disk before it answers the
/// offset after its last byte.
async fn receive(
    file: &mut File,
    path: &Path,
    offset: u64,
    body: Body,
    limit: usize,
) -> Result<u64, ApiError> {
    let failed = |e| storage(path, e);
    file.seek(SeekFrom::Start(offset)).await.map_err(failed)?;
    let mut pieces = Pieces::of(body, limit);
    while let Some(piece) = pieces.next().await? {
        file.write_all(&piece).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    file.sync_data().await.map_err(failed)?;
    Ok(offset.saturating_add(pieces.received() as u64))
}

/// Opens an upload's file and locks it; the lock ends with the file.
async fn locked(path: &Path) -> Result<File, ApiError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let to_open = path.to_owned();
        let attempt = tokio::task::spawn_blocking(move || {
            let file = OpenOptions::new().write(true).open(&to_open)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        });
        let attempt = attempt.await.map_err(|e| ApiError::Internal(e.to_string()))?;
        match attempt.map_err(|e: io::Error| storage(path, e))? {
            Some(file) => return Ok(File::from_std(file)),
            None if Instant::now() >= deadline => return Err(ApiError::UploadBusy),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Forgets an upload and its bytes. One that is not there is no error, so that a retry is none either.
async fn delete(State(app): State<App>, Segments(upload): Segments<String>) -> Reply {
    if let Ok(id) = upload.parse::<UploadId>() {
        let mut tx = app.store.begin().await?;
        let there = tx.delete_upload(id).await?;
        tx.commit().await?;
        let path = file_of(&app, id);
        match tokio::fs::remove_file(&path).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(storage(&path, error)),
        }
        if there {
            tracing::info!(upload_id = %id, "upload deleted");
        }
    }
    Ok(replies::ok(&Value::Null))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use futures::stream;
    use http::StatusCode;

    use super::*;
    use crate::{ApiConfig, testing::Api};

    fn bytes_of(api: &Api, id: &str) -> Vec<u8> {
        std::fs::read(api.folder.path().join("uploads").join(id)).unwrap()
    }

    async fn put(api: &Api, id: &str, offset: usize, bytes: impl Into<Body>) -> crate::testing::Reply {
        api.raw("PUT", &format!("/content/uploads/{id}/{offset}/"), bytes)
            .await
    }

    async fn size(api: &Api, id: &str) -> u64 {
        api.get(&format!("/content/uploads/{id}/")).await.body["size"]
            .as_u64()
            .unwrap()
    }

    #[tokio::test]
    async fn an_upload_is_begun_filled_read_and_deleted() {
        let api = Api::new().await;
        let begun = api.raw("POST", "/content/uploads/", "").await;
        assert_eq!(begun.status, StatusCode::CREATED);
        let id = begun.body["upload_id"].as_str().unwrap().to_owned();
        let href = format!("/pulp/api/v2/content/uploads/{id}/");
        assert_eq!(begun.body, json!({"upload_id": id, "_href": href}));
        assert_eq!(begun.header("location"), href);

        for (offset, bytes) in [(0, "hello "), (6, "world"), (0, "HELLO ")] {
            let reply = put(&api, &id, offset, bytes).await;
            assert_eq!((reply.status, reply.body), (StatusCode::OK, Value::Null));
        }
        assert_eq!(bytes_of(&api, &id), b"HELLO world");
        let one = api.get(&format!("/content/uploads/{id}")).await.body;
        assert_eq!(
            (&one["upload_id"], &one["size"], &one["login"]),
            (&json!(id), &json!(11), &json!("admin"))
        );
        assert_eq!(api.get("/content/uploads/").await.body["upload_ids"], json!([id]));

        for _ in 0..2 {
            let reply = api.delete(&format!("/content/uploads/{id}/")).await;
            assert_eq!((reply.status, reply.body), (StatusCode::OK, Value::Null));
        }
        assert!(!api.folder.path().join("uploads").join(&id).exists());
        assert_eq!(
            api.get(&format!("/content/uploads/{id}/")).await.code(),
            "PLP2004"
        );
    }

    #[tokio::test]
    async fn a_chunk_that_would_leave_a_gap_is_refused() {
        let api = Api::new().await;
        let id = api.upload(b"12345").await;
        let reply = put(&api, &id, 6, "x").await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert_eq!(reply.code(), "PLP2003");
        assert_eq!(reply.body["error"]["data"], json!({"offset": 6, "size": 5}));
        assert_eq!(bytes_of(&api, &id), b"12345");
        for offset in ["x", "-1", "1.5"] {
            let reply = api
                .raw("PUT", &format!("/content/uploads/{id}/{offset}/"), "x")
                .await;
            assert_eq!(reply.body["property_names"], json!(["offset"]), "{offset}");
        }
    }

    #[tokio::test]
    async fn unknown_uploads_are_told_by_their_own_code() {
        let api = Api::new().await;
        for id in [UploadId::new().to_string(), "..".to_owned(), "x".to_owned()] {
            let reply = put(&api, &id, 0, "x").await;
            assert_eq!(reply.status, StatusCode::NOT_FOUND);
            assert_eq!(reply.code(), "PLP2004");
            assert_eq!(reply.body["error"]["data"]["upload_id"], id);
            assert_eq!(reply.body["resources"], json!({"upload_id": id}));
        }
        assert_eq!(api.delete("/content/uploads/x/").await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_leaves_nothing_behind() {
        let api = Api::new().await;
        let id = api.upload(b"12345").await;
        let pieces = vec![
            Ok(Bytes::from_static(b"678")),
            Err(io::Error::other("the line broke")),
        ];
        let reply = put(&api, &id, 5, Body::from_stream(stream::iter(pieces))).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert_eq!(size(&api, &id).await, 5);
        assert_eq!(bytes_of(&api, &id), b"12345");
    }

    #[tokio::test]
    async fn what_a_lost_request_left_is_cut_away_before_the_next_chunk_and_before_an_import() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let id = api.upload(b"12345").await;
        let leave = |bytes: &[u8]| {
            let path = api.folder.path().join("uploads").join(&id);
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            io::Write::write_all(&mut file, bytes).unwrap();
        };
        leave(b"garbage");
        assert_eq!(put(&api, &id, 5, "6").await.status, StatusCode::OK);
        assert_eq!(bytes_of(&api, &id), b"123456");
        leave(b"garbage");
        let body = json!({"upload_id": id, "unit_type_id": "docker_image", "unit_key": {}});
        api.post("/repositories/r/actions/import_upload/", &body)
            .await
            .task();
        assert_eq!(bytes_of(&api, &id), b"123456");
    }

    #[tokio::test]
    async fn a_file_that_lost_bytes_is_not_imported() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let id = api.upload(b"12345").await;
        std::fs::write(api.folder.path().join("uploads").join(&id), b"12").unwrap();
        let body = json!({"upload_id": id, "unit_type_id": "docker_image", "unit_key": {}});
        let reply = api.post("/repositories/r/actions/import_upload/", &body).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::INTERNAL_SERVER_ERROR, "PLP2002")
        );
        let text = reply.body.to_string();
        assert!(
            !text.contains(api.folder.path().to_str().unwrap()),
            "no path leaks: {text}"
        );
    }

    #[tokio::test]
    async fn a_chunk_above_the_limit_is_refused_announced_or_not() {
        let config = ApiConfig {
            max_chunk: 4,
            ..ApiConfig::default()
        };
        let api = Api::with(config).await;
        let id = api.upload(b"1234").await;
        let announced = Api::request("PUT", &format!("/content/uploads/{id}/4/"))
            .header("content-length", "5")
            .body(Body::from("56789"))
            .unwrap();
        assert_eq!(api.send(announced).await.code(), "PLP2005");
        let pieces = ["567", "89"].map(|p| Ok::<_, io::Error>(Bytes::from_static(p.as_bytes())));
        let reply = put(&api, &id, 4, Body::from_stream(stream::iter(pieces))).await;
        assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(reply.body["error"]["data"], json!({"limit": 4}));
        assert_eq!(bytes_of(&api, &id), b"1234");
    }

    #[tokio::test]
    async fn chunks_of_one_upload_wait_for_each_other() {
        let api = Api::new().await;
        let id = api.upload(b"12").await;
        // The first chunk's body does not end before the second one was sent.
        let (piece, pieces) = tokio::sync::mpsc::channel::<Result<Bytes, io::Error>>(1);
        let pieces = stream::unfold(pieces, |mut p| async { p.recv().await.map(|piece| (piece, p)) });
        let first = put(&api, &id, 2, Body::from_stream(pieces));
        let second = async {
            piece.send(Ok(Bytes::from_static(b"34"))).await.unwrap();
            // Taken only once the first chunk is being written, hence holds the lock.
            piece.send(Ok(Bytes::from_static(b"5"))).await.unwrap();
            piece.send(Ok(Bytes::from_static(b"6"))).await.unwrap();
            let second = put(&api, &id, 6, "78");
            drop(piece);
            second.await
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!(
            (first.status, second.status),
            (StatusCode::OK, StatusCode::OK),
            "{}",
            second.body
        );
        assert_eq!(bytes_of(&api, &id), b"12345678");
        assert_eq!(size(&api, &id).await, 8);
    }
}
