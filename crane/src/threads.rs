//! Threads that serve connections.

use std::{io, net::SocketAddr, sync::Arc, thread};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One thread a core, each with a runtime of its own. A connection stays on its thread: threads that share their work
/// wake each other for requests, which costs more than to answer one.
pub(crate) struct Threads {
    threads: Vec<Thread>,
    /// They end with this.
    _stop: DropGuard,
}

struct Thread {
    runtime: Handle,
    /// Each of its connections holds it.
    load: Arc<()>,
}

impl Threads {
    /// Starts as many as the machine has cores.
    pub(crate) fn start() -> io::Result<Self> {
        let stop = CancellationToken::new();
        let count = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..count).map(|number| Thread::start(number, stop.clone()));
        Ok(Self {
            threads: threads.collect::<io::Result<_>>()?,
            _stop: stop.drop_guard(),
        })
    }

    /// Takes a connection, for the thread that has the fewest, where `serve` makes of it what serves it.
    pub(crate) async fn accept<S>(
        &self,
        listener: &TcpListener,
        serve: impl FnOnce(TcpStream, SocketAddr) -> S,
    ) -> io::Result<()>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let (stream, address) = listener.accept().await?;
        let stream = stream.into_std()?;
        let Some(thread) = self.threads.iter().min_by_key(|t| Arc::strong_count(&t.load)) else {
            return Ok(());
        };
        let stream = {
            // The events of a socket come to the runtime in which it is made.
            let _inside = thread.runtime.enter();
            TcpStream::from_std(stream)?
        };
        let (load, serving) = (Arc::clone(&thread.load), serve(stream, address));
        thread.runtime.spawn(async move {
            serving.await;
            drop(load);
        });
        Ok(())
    }
}

impl Thread {
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name(format!("crane-disk-{number}"))
            .build()?;
        let handle = runtime.handle().clone();
        let thread = thread::Builder::new().name(format!("crane-{number}"));
        thread.spawn(move || {
            runtime.block_on(stop.cancelled());
            // A read that hangs must not hold up the end.
            runtime.shutdown_background();
        })?;
        Ok(Self {
            runtime: handle,
            load: Arc::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_evenly_and_room_is_free_again_when_they_end() {
        let threads = Threads::start().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (began, mut begun) = mpsc::unbounded_channel();
        for _ in 0..2 {
            let mut clients = Vec::new();
            for _ in 0..3 * threads.threads.len() {
                clients.push(TcpStream::connect(address).await.unwrap());
                let began = began.clone();
                let serve = async move |stream: TcpStream, _| {
                    began.send(thread::current().name().unwrap().to_owned()).unwrap();
                    // Until the client goes.
                    stream.readable().await.unwrap();
                };
                threads.accept(&listener, serve).await.unwrap();
            }
            let mut by_thread = BTreeMap::<String, usize>::new();
            for _ in &clients {
                *by_thread.entry(begun.recv().await.unwrap()).or_default() += 1;
            }
            assert_eq!(by_thread.len(), threads.threads.len());
            assert!(by_thread.values().all(|count| *count == 3), "{by_thread:?}");
            drop(clients);
            while threads.threads.iter().any(|t| Arc::strong_count(&t.load) > 1) {
                tokio::task::yield_now().await;
            }
        }
    }
}
