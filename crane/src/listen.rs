//! Connections: plain or TLS, HTTP/1.1 or, over TLS, HTTP/2.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{
    Beside,
    clients::{Peer, Shown},
    http_api::{self, App},
    reloaded::Reloaded,
    threads::Threads,
};

/// How long requests in progress may go on after shutdown was asked for.
const GRACE: Duration = Duration::from_secs(30);
/// How long to wait when no connection can be taken, as with all file descriptors in use.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How often a client of HTTP/2 that is silent is asked whether it is still there.
const STILL_THERE: Duration = Duration::from_secs(20);

/// Serves connections until `shutdown`, then those requests that are in progress.
pub(crate) struct Server {
    pub(crate) app: Arc<App>,
    pub(crate) beside: Option<Beside>,
    pub(crate) tls: Option<Arc<Reloaded<ServerConfig>>>,
    /// For the headers of a request, and for a handshake.
    pub(crate) header_timeout: Duration,
}

impl Server {
    pub(crate) async fn run(self, listener: TcpListener, threads: Threads, shutdown: CancellationToken) {
        let server = Arc::new(self);
        let graceful = GracefulShutdown::new();
        loop {
            let serve = |stream, address| {
                let (server, watcher) = (Arc::clone(&server), graceful.watcher());
                async move {
                    if let Err(error) = server.connection(stream, address, watcher).await {
                        tracing::debug!(peer = %address, error, "a connection ended");
                    }
                }
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = threads.accept(&listener, serve) => accepted,
            };
            match accepted {
                Ok(()) => {}
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "can't take connections");
                    tokio::time::sleep(EXHAUSTED).await;
                }
            }
        }
        drop(listener);
        if timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests still in progress are broken off");
        }
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        watcher: Watcher,
    ) -> Result<(), String> {
        // The last, short piece of a layer must not wait for the client's acknowledgement of the piece before.
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let Some(tls) = self.tls.as_ref().and_then(|tls| tls.current()) else {
            let peer = Peer {
                address,
                certificate: None,
            };
            return self.requests(stream, peer, false, watcher).await;
        };
        let stream = timeout(self.header_timeout, TlsAcceptor::from(tls).accept(stream))
            .await
            .map_err(|_| "the handshake took too long".to_owned())?
            .map_err(|e| format!("the handshake failed: {e}"))?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().map(|chain| {
            let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
            Arc::new(Shown::new(chain))
        });
        let http2 = session.alpn_protocol() == Some(b"h2");
        self.requests(stream, Peer { address, certificate }, http2, watcher)
            .await
    }

    async fn requests(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        http2: bool,
        watcher: Watcher,
    ) -> Result<(), String> {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(STILL_THERE);
        // Which of them is known already: finding out would wait for a silent client without end.
        let builder = if http2 {
            builder.http2_only()
        } else {
            builder.http1_only()
        };
        let (server, peer) = (Arc::clone(self), Arc::new(peer));
        let service = service_fn(move |request| {
            let (server, peer) = (Arc::clone(&server), Arc::clone(&peer));
            async move { Ok::<_, Infallible>(server.answer(request, peer).await) }
        });
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        watcher.watch(connection).await.map_err(|e| e.to_string())
    }

    async fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Response {
        match &self.beside {
            Some(beside) if beside.path == request.uri().path() => {
                let answer = beside.router.clone().oneshot(request.map(Body::new)).await;
                answer.unwrap_or_else(|never| match never {})
            }
            _ => http_api::dispatch(&self.app, request.into_parts().0, Some(peer)).await,
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
