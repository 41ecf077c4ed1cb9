//! A small HTTP server inside the test: it answers as a closure says, and remembers what it was asked.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::config::{Account, AuthScope, Named, TlsOptions};

/// A request that arrived.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Every chunk's size, when it came in chunks.
    pub(super) chunks: Vec<usize>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
    cut: Option<usize>,
    stall: bool,
}

impl Reply {
    pub(super) fn bytes(status: u16, body: &[u8]) -> Reply {
        let (headers, delay) = (Vec::new(), Duration::ZERO);
        Reply { status, headers, body: body.to_vec(), delay, cut: None, stall: false }
    }

    pub(super) fn text(status: u16, body: &str) -> Reply {
        Reply::bytes(status, body.as_bytes())
    }

    pub(super) fn json(status: u16, body: &Value) -> Reply {
        Reply::text(status, &body.to_string()).with("content-type", "application/json")
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn after(mut self, delay: Duration) -> Reply {
        self.delay = delay;
        self
    }

    /// The connection breaks after so many bytes of the body.
    pub(super) fn cut_after(mut self, bytes: usize) -> Reply {
        self.cut = Some(bytes);
        self
    }

    /// Nothing more is sent after so many bytes of the body.
    pub(super) fn stalling_after(mut self, bytes: usize) -> Reply {
        self.stall = true;
        self.cut_after(bytes)
    }
}

/// Who signed the certificate of [`Server::start_tls`], which is for 127.0.0.1. Nobody else trusts it.
pub(super) const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/openstack/testdata/ca.pem");

/// Ends with its value.
pub(super) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        Server::listen(answer, None).await
    }

    pub(super) async fn start_tls(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        let certificate = CertificateDer::from_pem_slice(include_bytes!("testdata/server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("testdata/server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Server::listen(answer, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        tls: Option<TlsAcceptor>,
    ) -> Server {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer, tls) = (log.clone(), answer.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let _ = serve(stream, &log, &*answer).await;
                            }
                        }
                        None => {
                            let _ = serve(stream, &log, &*answer).await;
                        }
                    }
                });
            }
        });
        Server { address, scheme, seen, task }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `METHOD path` of all requests.
    pub(super) fn asked(&self) -> Vec<String> {
        self.seen().iter().map(|s| format!("{} {}", s.method, s.path)).collect()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    log: &Mutex<Vec<Seen>>,
    answer: &(impl Fn(&Seen) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let seen = receive(&mut stream).await?;
    log.lock().unwrap().push(seen.clone());
    let reply = answer(&seen);
    tokio::time::sleep(reply.delay).await;
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if reply.status != 204 {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    let sent = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    stream.write_all(&reply.body[..sent]).await?;
    stream.flush().await?;
    if reply.stall {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    stream.shutdown().await
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Seen> {
    let mut seen = Seen::default();
    let first = line(stream).await?;
    let mut words = first.split(' ').map(str::to_owned);
    (seen.method, seen.path) = (words.next().unwrap(), words.next().unwrap_or_default());
    loop {
        let header = line(stream).await?;
        let Some((name, value)) = header.split_once(':') else { break };
        seen.headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = seen.header("content-length").map(|l| l.parse().unwrap());
    if let Some(length) = length {
        seen.body = vec![0; length];
        stream.read_exact(&mut seen.body).await?;
    } else if seen.header("transfer-encoding").is_some() {
        loop {
            let size = usize::from_str_radix(&line(stream).await?, 16).unwrap_or_default();
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk).await?;
            line(stream).await?;
            if size == 0 {
                break;
            }
            seen.chunks.push(size);
            seen.body.extend(chunk);
        }
    }
    Ok(seen)
}

async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<String> {
    let mut text = String::new();
    if stream.read_line(&mut text).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

/// A keystone that issues `token-1`, `token-2`, … with a catalogue in which `compute` is.
pub(super) fn keystone(compute: &str, life: Duration) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    let issued = AtomicUsize::new(0);
    let compute = compute.to_owned();
    move |_| {
        let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
        let expires = (chrono::Utc::now() + life).format("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
        let endpoints = json!([{"interface": "public", "region": "RegionOne", "url": compute}]);
        let catalog = json!([{"type": "compute", "endpoints": endpoints}]);
        Reply::json(201, &json!({"token": {"expires_at": expires, "catalog": catalog}}))
            .with("X-Subject-Token", &format!("token-{number}"))
    }
}

/// The account `cinder` of project `service`.
pub(super) fn account(auth_url: &str) -> Account {
    let domain = || Some(("name", "Default".to_owned()));
    Account {
        auth_url: auth_url.to_owned(),
        user: Named::Name("cinder".to_owned(), domain()),
        password: "s3cret".into(),
        scope: Some(AuthScope::Project(Named::Name("service".to_owned(), domain()))),
        tls: TlsOptions::default(),
        timeout: Duration::from_secs(5),
    }
}
