//! A wire between Scoria and MariaDB that can be cut at the worst moment.

use std::sync::{Arc, Mutex};

use scoria::config::DatabaseConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What to do with the next packet that holds a COMMIT; afterwards everything passes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    Pass,
    /// The server never gets it.
    Lose,
    /// The server does it, its answer is lost.
    LoseAnswer,
    /// The server never gets it, and nobody says so: both sides stay connected.
    Swallow,
    /// The client is cut off; the packet reaches the server when [`Proxy::deliver`] is called.
    Delay,
}

/// A server's side of a connection, and the packet that it is to get later.
type Delayed = Arc<Mutex<Option<(TcpStream, Vec<u8>)>>>;

/// A TCP proxy in front of the server of a [`DatabaseConfig`].
pub struct Proxy {
    pub port: u16,
    commit: Arc<Mutex<Commit>>,
    delayed: Delayed,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Proxy {
    /// On a free port.
    pub async fn start(config: &DatabaseConfig) -> Proxy {
        Proxy::start_on(config, 0).await
    }

    /// On this port.
    pub async fn start_on(config: &DatabaseConfig, port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port for the proxy");
        let port = listener.local_addr().expect("the proxy's port").port();
        let commit = Arc::new(Mutex::new(Commit::Pass));
        let delayed = Arc::new(Mutex::new(None));
        let stop = CancellationToken::new();
        let server = (config.host.clone(), config.port);
        let task = tokio::spawn({
            let (commit, delayed, stop) = (commit.clone(), delayed.clone(), stop.clone());
            async move {
                loop {
                    let (client, _) = tokio::select! {
                        () = stop.cancelled() => return,
                        accepted = listener.accept() => accepted.expect("accept"),
                    };
                    let upstream =
                        TcpStream::connect(server.clone()).await.expect("the server behind the proxy");
                    let pipe = pipe(client, upstream, commit.clone(), delayed.clone());
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = pipe => {}
                        }
                    });
                }
            }
        });
        Proxy { port, commit, delayed, stop, task }
    }

    /// What happens to the next COMMIT.
    pub fn next_commit(&self, commit: Commit) {
        *self.commit.lock().unwrap() = commit;
    }

    /// True when the COMMIT that [`Proxy::next_commit`] waited for has come.
    pub fn commit_came(&self) -> bool {
        *self.commit.lock().unwrap() == Commit::Pass
    }

    /// Lets the delayed COMMIT reach the server, and waits for what the server says to it.
    pub async fn deliver(&self) -> Vec<u8> {
        let (mut upstream, packet) = self.delayed.lock().unwrap().take().expect("a delayed COMMIT");
        upstream.write_all(&packet).await.expect("deliver");
        let mut answer = vec![0; 4096];
        let n = upstream.read(&mut answer).await.expect("an answer");
        answer.truncate(n);
        answer
    }

    /// Cuts all connections and listens no more.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the proxy");
    }

    /// The same database through this proxy.
    pub fn config(&self, config: &DatabaseConfig) -> DatabaseConfig {
        DatabaseConfig { host: "127.0.0.1".into(), port: self.port, socket: None, ..config.clone() }
    }
}

async fn pipe(mut client: TcpStream, mut upstream: TcpStream, commit: Arc<Mutex<Commit>>, delayed: Delayed) {
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(n @ 1..) = read else { return };
                let packet = &from_client[..n];
                let mode = if packet.windows(6).any(|w| w == b"COMMIT") {
                    std::mem::replace(&mut *commit.lock().unwrap(), Commit::Pass)
                } else {
                    Commit::Pass
                };
                match mode {
                    Commit::Pass => {
                        if upstream.write_all(packet).await.is_err() { return }
                    }
                    Commit::Lose => return,
                    Commit::Swallow => {}
                    Commit::LoseAnswer => {
                        upstream.write_all(packet).await.ok();
                        let answered = upstream.read(&mut from_server).await;
                        assert!(answered.is_ok_and(|n| n > 0), "the server has answered");
                        return;
                    }
                    Commit::Delay => {
                        *delayed.lock().unwrap() = Some((upstream, packet.to_vec()));
                        return;
                    }
                }
            }
            read = upstream.read(&mut from_server) => {
                let Ok(n @ 1..) = read else { return };
                if client.write_all(&from_server[..n]).await.is_err() { return }
            }
        }
    }
}
