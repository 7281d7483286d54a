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
