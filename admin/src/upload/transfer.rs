//! Sends a file's bytes, chunk by chunk, from where the server has them.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;

use super::tracker::{Source, Store, Tracker};
use crate::{client::Client, error::AdminError, io::Interrupt, output::Screen, progress::Bar};

/// How often one chunk is tried; the pauses between double from [`FIRST_PAUSE`].
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What sending needs.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) client: &'a Client,
    pub(crate) screen: &'a Screen,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) store: &'a Store,
    /// Bytes of one request.
    pub(crate) chunk_size: usize,
}

impl Transfer<'_> {
    /// Sends what is missing. `resumed`: ask the server how much it has; our own count may be older, since
    /// it is written after the server's answer, and newer than a server that was restored.
    pub(crate) async fn run(&self, tracker: &mut Tracker, resumed: bool) -> Result<(), AdminError> {
        let Some(source) = tracker.source.clone() else {
            return Ok(());
        };
        source.check_unchanged()?;
        let mut file = File::open(&source.path).map_err(AdminError::file(&source.path))?;
        if resumed {
            tracker.offset = self.size_on_server(tracker).await?;
        }
        self.screen.line(&format!("Uploading: {}", source.name()));
        let mut bar = Bar::new(self.screen, source.size);
        let text = |offset| format!("{offset}/{} bytes", source.size);
        bar.set(tracker.offset, text(tracker.offset));
        let sent = tokio::select! {
            biased;
            () = self.interrupt.raised() => Err(AdminError::Paused { upload_id: tracker.upload_id.clone() }),
            sent = self.send(&mut file, &source, tracker, |offset| bar.set(offset, text(offset))) => sent,
        };
        // Once more after everything was read: it may have been written to meanwhile.
        match sent.and_then(|()| source.check_unchanged()) {
            Ok(()) => bar.complete(),
            Err(error) => {
                bar.stop();
                self.screen.blank();
                self.store.save(tracker, true)?;
                return Err(error);
            }
        }
        tracker.is_finished_uploading = true;
        self.store.save(tracker, true)
    }

    async fn send(
        &self,
        file: &mut File,
        source: &Source,
        tracker: &mut Tracker,
        mut sent: impl FnMut(u64),
    ) -> Result<(), AdminError> {
        let mut asked = 0;
        while tracker.offset < source.size {
            let chunk =
                read_chunk(file, tracker.offset, self.chunk_size).map_err(AdminError::file(&source.path))?;
            if chunk.is_empty() {
                return Err(AdminError::Data(format!(
                    "{} was cut while it was sent",
                    source.path.display()
                )));
            }
            let length = chunk.len() as u64;
            match self.put(&tracker.upload_id, tracker.offset, chunk).await {
                Ok(()) => tracker.offset += length,
                // The server has less than we thought: go on where its bytes end.
                Err(error) if error.code() == Some("PLP2003") && asked < TRIES => {
                    asked += 1;
                    tracker.offset = self.size_on_server(tracker).await?;
                }
                Err(error) if error.status() == Some(404) => return Err(gone(tracker)),
                Err(error) => return Err(error),
            }
            self.store.save(tracker, false)?;
            sent(tracker.offset);
        }
        Ok(())
    }

    /// Writing the same bytes to the same place twice does no harm, so a chunk is tried again.
    async fn put(&self, upload_id: &str, offset: u64, chunk: Bytes) -> Result<(), AdminError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            let path = ["content", "uploads", upload_id, &offset.to_string()];
            match self.client.put_bytes(&path, chunk.clone()).await {
                Err(error) if error.is_transient() => tokio::time::sleep(pause).await,
                done => return done.map(|_| ()),
            }
            pause *= 2;
        }
        let path = ["content", "uploads", upload_id, &offset.to_string()];
        self.client.put_bytes(&path, chunk).await.map(|_| ())
    }

    async fn size_on_server(&self, tracker: &Tracker) -> Result<u64, AdminError> {
        let found = self
            .client
            .get(&["content", "uploads", &tracker.upload_id], &[])
            .await;
        match found {
            Ok(document) => match document.get("size").and_then(Value::as_u64) {
                Some(size) if size <= tracker.size() => Ok(size),
                Some(size) => Err(AdminError::Data(format!(
                    "upload {} has {size} bytes on the server, more than the {} of {}; cancel it and begin anew",
                    tracker.upload_id,
                    tracker.size(),
                    tracker.name()
                ))),
                None => Err(AdminError::Answer {
                    url: format!(
                        "{}/…/content/uploads/{}/",
                        self.client.server(),
                        tracker.upload_id
                    ),
                    what: "no size".to_owned(),
                }),
            },
            Err(error) if error.status() == Some(404) => Err(gone(tracker)),
            Err(error) => Err(error),
        }
    }
}

fn gone(tracker: &Tracker) -> AdminError {
    AdminError::Data(format!(
        "upload {} of {} is not on the server any more; forget it by: \
         pulp-admin docker repo uploads cancel --upload-id {0}",
        tracker.upload_id,
        tracker.name()
    ))
}

/// Up to `size` bytes from `offset`; fewer only at the file's end.
fn read_chunk(file: &mut File, offset: u64, size: usize) -> io::Result<Bytes> {
    file.seek(SeekFrom::Start(offset))?;
    let mut chunk = Vec::with_capacity(size);
    file.take(size as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}
