//! TCP links between one process and one server that can be cut, as a switch, a firewall or a dying host cuts them.
//!
//! A cut without a word is the nasty one: the connection stands, what is sent is taken, nothing ever comes. Who waits for
//! an answer must give up by itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

/// How long a server keeps a connection whose client it can't reach, as its keep-alive would have it.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Carries the bytes of all links.
pub struct Network {
    runtime: tokio::runtime::Runtime,
}

/// How a link is now. Connections are numbered upwards from 1.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Nothing passes, and nobody is told.
    silent: bool,
    /// Whoever connects is sent away.
    refused: bool,
    /// Each piece takes so long.
    delay: Duration,
    /// Connections up to this one are reset.
    dead: u64,
    /// Connections up to this one stay silent for ever.
    forgotten: u64,
}

/// The way from one process to one server. Open at first.
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    connections: Arc<AtomicU64>,
}

impl Network {
    /// Without links yet.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build()?;
        Ok(Self { runtime })
    }

    /// A new way to `server`.
    pub fn link(&self, server: SocketAddr) -> Result<Link> {
        let listener = self
            .runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let link = Link {
            address: listener.local_addr()?,
            state: watch::Sender::default(),
            connections: Arc::default(),
        };
        let (state, connections) = (link.state.subscribe(), Arc::clone(&link.connections));
        self.runtime.spawn(accept(listener, server, state, connections));
        Ok(link)
    }
}

impl Link {
    /// Where the process connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with this link in place of the server.
    pub fn through(&self, url: &str) -> Result<String> {
        let mut url: reqwest::Url = url.parse()?;
        url.set_host(Some(&self.address.ip().to_string()))?;
        url.set_port(Some(self.address.port()))
            .map_err(|()| anyhow::anyhow!("{url} has no port"))?;
        Ok(url.into())
    }

    /// Nothing passes any more, and nobody is told.
    pub fn cut(&self) {
        self.state.send_modify(|s| s.silent = true);
    }

    /// Every connection is reset, and whoever connects is sent away.
    pub fn refuse(&self) {
        self.reset();
        self.state.send_modify(|s| s.refused = true);
    }

    /// Every connection of now is reset.
    pub fn reset(&self) {
        let last = self.connections.load(Ordering::SeqCst);
        self.state.send_modify(|s| s.dead = last);
    }

    /// Whatever passes takes so long.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|s| s.delay = delay);
    }

    /// All is well again. What was held up arrives.
    pub fn heal(&self) {
        self.state.send_modify(|s| {
            *s = State {
                dead: s.dead,
                forgotten: s.forgotten,
                ..State::default()
            };
        });
    }

    /// New connections are well; those of now are silent for ever, as behind a firewall that has forgotten them.
    pub fn heal_for_new_connections(&self) {
        let last = self.connections.load(Ordering::SeqCst);
        self.state.send_modify(|s| s.forgotten = last);
        self.heal();
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    state: watch::Receiver<State>,
    connections: Arc<AtomicU64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
        if state.borrow().refused {
            let _ = client.set_zero_linger();
            continue;
        }
        tokio::spawn(carry(number, client, server, state.clone()));
    }
}

/// One connection, from its beginning to its end.
async fn carry(number: u64, mut client: TcpStream, server: SocketAddr, state: watch::Receiver<State>) {
    tokio::select! {
        () = flows(number, state.clone()) => {}
        () = reaches(state.clone(), |s| number <= s.dead) => {
            let _ = client.set_zero_linger();
            return;
        }
        () = reaches(state.clone(), |s| number <= s.forgotten) => return swallow(&mut client).await,
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let forgotten = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            () = pump(number, from_client, to_server, state.clone()) => false,
            () = pump(number, from_server, to_client, state.clone()) => false,
            () = reaches(state.clone(), |s| number <= s.dead) => {
                let _ = client.set_zero_linger().and_then(|()| server.set_zero_linger());
                return;
            }
            () = reaches(state.clone(), |s| number <= s.forgotten) => true,
        }
    };
    if forgotten {
        tokio::select! {
            () = swallow(&mut client) => {}
            () = tokio::time::sleep(KEEP_ALIVE) => {
                drop(server);
                swallow(&mut client).await;
            }
        }
    }
}

/// Waits until the link is so.
async fn reaches(mut state: watch::Receiver<State>, so: impl Fn(&State) -> bool) {
    if state.wait_for(|s| so(s)).await.is_err() {
        // The link is gone: it changes no more.
        std::future::pending::<()>().await;
    }
}

/// Waits until bytes of this connection may pass.
async fn flows(number: u64, state: watch::Receiver<State>) {
    reaches(state, |s| !s.silent && number > s.forgotten).await;
}

/// Takes what comes and says nothing, until the other side gives up.
async fn swallow(client: &mut TcpStream) {
    let mut bytes = [0; 4096];
    while matches!(client.read(&mut bytes).await, Ok(n) if n > 0) {}
}

/// One direction.
async fn pump(number: u64, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut state: watch::Receiver<State>) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        flows(number, state.clone()).await;
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            Ok(()) = state.changed() => continue,
        };
        let Ok(count @ 1..) = read else { return };
        // What was under way when the link was cut waits.
        flows(number, state.clone()).await;
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let Some(piece) = bytes.get(..count) else { return };
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{ErrorKind, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        time::Instant,
    };

    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut byte = [0; 1];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        address
    }

    fn connect(link: &Link) -> TcpStream {
        let stream = TcpStream::connect(link.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream
    }

    fn answer(stream: &mut TcpStream) -> std::io::Result<u8> {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn ask(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        stream.write_all(&[byte])?;
        answer(stream)
    }

    fn silent(result: std::io::Result<u8>) -> bool {
        matches!(
            result.unwrap_err().kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut
        )
    }

    #[test]
    fn a_cut_link_keeps_everybody_waiting_and_brings_what_waited_once_it_is_well() {
        let network = Network::new().unwrap();
        let link = network.link(echo()).unwrap();
        let mut old = connect(&link);
        assert_eq!(ask(&mut old, 1).unwrap(), 1);
        link.cut();
        assert!(silent(ask(&mut old, 2)));
        let mut during = connect(&link);
        assert!(silent(ask(&mut during, 3)));
        link.heal();
        assert_eq!(answer(&mut old).unwrap(), 2);
        assert_eq!(answer(&mut during).unwrap(), 3);
    }

    #[test]
    fn a_forgotten_connection_stays_silent_while_a_new_one_works() {
        let network = Network::new().unwrap();
        let link = network.link(echo()).unwrap();
        let mut old = connect(&link);
        assert_eq!(ask(&mut old, 1).unwrap(), 1);
        link.cut();
        let mut during = connect(&link);
        assert!(silent(ask(&mut during, 2)));
        link.heal_for_new_connections();
        assert!(silent(ask(&mut old, 3)));
        assert!(silent(ask(&mut during, 3)));
        assert_eq!(ask(&mut connect(&link), 4).unwrap(), 4);
    }

    #[test]
    fn a_refusing_link_resets_what_there_is_and_sends_away_what_comes() {
        let network = Network::new().unwrap();
        let link = network.link(echo()).unwrap();
        let mut old = connect(&link);
        assert_eq!(ask(&mut old, 1).unwrap(), 1);
        link.refuse();
        assert_eq!(answer(&mut old).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(!silent(ask(&mut connect(&link), 2)));
        link.heal();
        assert_eq!(ask(&mut connect(&link), 3).unwrap(), 3);
    }

    #[test]
    fn a_slow_link_delays_each_way() {
        let network = Network::new().unwrap();
        let link = network.link(echo()).unwrap();
        link.slow(Duration::from_millis(40));
        let begun = Instant::now();
        assert_eq!(ask(&mut connect(&link), 1).unwrap(), 1);
        assert!(begun.elapsed() >= Duration::from_millis(80));
    }

    #[test]
    fn a_url_is_led_through_the_link() {
        let network = Network::new().unwrap();
        let link = network.link(([127, 0, 0, 1], 1).into()).unwrap();
        let port = link.address().port();
        let url = link.through("amqp://guest:guest@localhost:5672/%2f").unwrap();
        assert_eq!(url, format!("amqp://guest:guest@127.0.0.1:{port}/%2f"));
    }
}
