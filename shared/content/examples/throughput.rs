//! How fast a blob goes in and out: `cargo run --release -p pulp-content --example throughput -- [DIRECTORY] [MIB]`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{io::Write as _, time::Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use pulp_content::{ContentOptions, ContentStore};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .unwrap_or_else(|| "/tmp/pulp-throughput".to_owned());
    let mib: usize = arguments.next().map_or(200, |t| t.parse().unwrap());
    let piece: Bytes = (0..1 << 20)
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let rate = |begin: Instant| mib as f64 / begin.elapsed().as_secs_f64();
    for fsync in [false, true] {
        let options = ContentOptions {
            fsync,
            ..ContentOptions::default()
        };
        let store = ContentStore::open(&format!("file:{directory}"), &options).unwrap();

        let begin = Instant::now();
        let (into, bytes) = (store.clone(), piece.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut writer = into.blocking_writer("bench").unwrap();
            for _ in 0..mib * 16 {
                writer.write_all(&bytes[..64 << 10]).unwrap();
            }
            writer.commit_computed().unwrap()
        });
        let (digest, _) = written.await.unwrap();
        println!(
            "fsync {fsync}: blocking write, 64 KiB pieces: {:.0} MiB/s",
            rate(begin)
        );
        store.delete(&digest).await.unwrap();

        let begin = Instant::now();
        let mut writer = store.writer("bench").await.unwrap();
        for _ in 0..mib {
            writer.write(piece.clone()).await.unwrap();
        }
        let (digest, _) = writer.commit_computed().await.unwrap();
        println!("fsync {fsync}: async write: {:.0} MiB/s", rate(begin));

        let begin = Instant::now();
        let mut reader = store.read(&digest, None).await.unwrap();
        while let Some(chunk) = reader.stream.next().await {
            chunk.unwrap();
        }
        println!("fsync {fsync}: read: {:.0} MiB/s", rate(begin));
        store.delete(&digest).await.unwrap();
    }
}
