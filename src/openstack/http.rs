//! HTTP with an end: every request has a time limit, and what goes wrong has one of a few names.
//!
//! Connections are shared by all that agree on TLS. Proxies are taken from the environment (`HTTP_PROXY`,
//! `NO_PROXY`), as Python's requests does. A redirect is followed only on the same server: a token must not
//! travel to another one because an answer said so.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity, RequestBuilder, Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;
use tracing::warn;

use crate::config::TlsOptions;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept: less than the 5 s after which Apache closes it.
const IDLE: Duration = Duration::from_secs(4);
/// More than any answer that is not an image has.
const LARGEST_ANSWER: usize = 16 << 20;
/// How much of an error's text is kept.
const LONGEST_TEXT: usize = 300;

/// Why there is no answer to work with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody answered in time, or not to the end.
    Unreachable(String),
    /// The server said no.
    Refused {
        /// HTTP status.
        status: u16,
        /// The begin of what it said.
        text: String,
    },
    /// The answer makes no sense.
    Malformed(String),
    /// There is no token to ask with: keystone refused, or there is neither a user's nor an account.
    Unauthenticated(String),
    /// No catalogue has the service.
    NoEndpoint(String),
    /// A file that configuration names cannot be used.
    Unusable(String),
}

impl Failure {
    /// The HTTP status of a refusal.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Failure::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused { status, text } => write!(f, "HTTP {status} {text}"),
            Failure::Unreachable(text)
            | Failure::Malformed(text)
            | Failure::Unauthenticated(text)
            | Failure::NoEndpoint(text)
            | Failure::Unusable(text) => f.write_str(text),
        }
    }
}

impl StdError for Failure {}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Failure {
        Failure::Unreachable(chain(&error))
    }
}

/// An error with its causes. None of them holds a header.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// One client for each way of doing TLS.
#[derive(Debug, Default)]
pub(super) struct Connections {
    clients: Mutex<HashMap<TlsOptions, Client>>,
}

impl Connections {
    /// The client for `tls`; made, and files read, when it is asked for the first time.
    pub(super) async fn client(&self, tls: &TlsOptions) -> Result<Client, Failure> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(tls) {
            return Ok(client.clone());
        }
        let client = build(tls.clone()).await?;
        clients.insert(tls.clone(), client.clone());
        Ok(client)
    }
}

async fn build(tls: TlsOptions) -> Result<Client, Failure> {
    // The system's certificates are read from disk, too.
    tokio::task::spawn_blocking(move || {
        // reqwest takes the process's provider. Nobody else has set one, or it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let identity = tls.client.as_ref().map(|(cert, key)| identity(cert, key.as_deref())).transpose()?;
        let make = |only: Option<Vec<Certificate>>| {
            let mut builder = Client::builder()
                .connect_timeout(CONNECT)
                .pool_idle_timeout(IDLE)
                .tcp_keepalive(Duration::from_secs(60))
                .user_agent(concat!("scoria/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::custom(same_server))
                .tls_danger_accept_invalid_certs(tls.insecure);
            if cfg!(test) {
                // The servers of the tests are in the process.
                builder = builder.no_proxy();
            }
            if let Some(identity) = identity.clone() {
                builder = builder.identity(identity);
            }
            if let Some(certificates) = only {
                builder = builder.tls_certs_only(certificates);
            }
            builder.build()
        };
        if let Some(ca) = tls.ca.as_ref().filter(|_| !tls.insecure) {
            let found = Certificate::from_pem_bundle(&read(ca)?).map_err(|e| unusable(ca, &e))?;
            return make(Some(found)).map_err(|e| unusable(ca, &e));
        }
        make(None).or_else(|error| {
            // Plain HTTP works without any certificate.
            warn!(
                error = chain(&error),
                "the system's CA certificates cannot be used; set a CA file for https"
            );
            make(Some(Vec::new())).map_err(|e| Failure::Unusable(chain(&e)))
        })
    })
    .await
    .map_err(|e| Failure::Unusable(format!("TLS could not be set up: {e}")))?
}

fn same_server(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let same = attempt.previous().first().is_some_and(|from| from.origin() == attempt.url().origin());
    if same && attempt.previous().len() <= 10 { attempt.follow() } else { attempt.stop() }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| unusable(path, &e))
}

fn identity(cert: &Path, key: Option<&Path>) -> Result<Identity, Failure> {
    let mut pem = read(cert)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Identity::from_pem(&pem).map_err(|e| unusable(cert, &e))
}

fn unusable(path: &Path, error: &dyn StdError) -> Failure {
    Failure::Unusable(format!("cannot use {}: {}", path.display(), chain(error)))
}

/// A token as the value of a header that is never shown.
pub(super) fn secret(token: &SecretString) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(token.expose_secret())
        .map_err(|_| Failure::Unauthenticated("the token cannot be a header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Headers.
    pub(super) headers: HeaderMap,
    /// Body.
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(super) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map_err(|e| Failure::Malformed(format!("no JSON: {e}")))
    }
}

/// Sends a request and waits for the head of the answer. Anything but 2xx is a failure.
pub(super) async fn open(request: RequestBuilder, limit: Duration) -> Result<Response, Failure> {
    match tokio::time::timeout(limit, request.send()).await {
        Ok(sent) => accepted(sent?, limit).await,
        Err(_) => Err(silence(limit)),
    }
}

/// The answer itself when it is 2xx.
pub(super) async fn accepted(response: Response, limit: Duration) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = collect(response, limit).await.map(|body| first(&body)).unwrap_or_default();
    Err(Failure::Refused { status: status.as_u16(), text: reason(status, &text) })
}

/// Sends a request and waits for all of the answer.
pub(super) async fn ask(request: RequestBuilder, limit: Duration) -> Result<Answer, Failure> {
    let response = open(request, limit).await?;
    let headers = response.headers().clone();
    Ok(Answer { headers, body: collect(response, limit).await? })
}

/// The body, in which no pause is longer than `limit`.
pub(super) async fn collect(mut response: Response, limit: Duration) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = chunk(&mut response, limit).await? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Failure::Malformed(format!("the answer is larger than {LARGEST_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The next part of the body; `None` at its end.
pub(super) async fn chunk(response: &mut Response, limit: Duration) -> Result<Option<Bytes>, Failure> {
    match tokio::time::timeout(limit, response.chunk()).await {
        Ok(chunk) => Ok(chunk?),
        Err(_) => Err(silence(limit)),
    }
}

/// A server that says nothing.
pub(super) fn silence(limit: Duration) -> Failure {
    Failure::Unreachable(format!("no answer within {} s", limit.as_secs_f32()))
}

fn reason(status: StatusCode, text: &str) -> String {
    if text.is_empty() { status.canonical_reason().unwrap_or_default().to_owned() } else { text.to_owned() }
}

/// What an error says, on one line: the `message` of OpenStack's JSON, or the begin of whatever it is.
fn first(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(message).unwrap_or_default();
    let text = if message.is_empty() { String::from_utf8_lossy(body).into_owned() } else { message };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(LONGEST_TEXT).collect()
}

/// `{"error": {"message": …}}`, `{"itemNotFound": {"message": …}}` and the like.
fn message(json: &Value) -> Option<String> {
    let object = json.as_object()?;
    let direct = object.get("message");
    let nested = || object.values().find_map(|v| v.get("message"));
    direct.or_else(nested)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CA, Reply, Server};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn client() -> Client {
        Connections::default().client(&TlsOptions::default()).await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_taken_whole_and_an_error_is_one_line() {
        let server = Server::start(|seen| match seen.path.as_str() {
            "/good" => Reply::json(200, &serde_json::json!({"a": 1})),
            "/json" => Reply::json(409, &serde_json::json!({"conflictingRequest": {"message": "not\nnow"}})),
            "/html" => Reply::text(500, "<html>\n <b>broken</b>"),
            "/empty" => Reply::text(404, ""),
            _ => Reply::text(200, "{half"),
        })
        .await;
        let client = client().await;
        let get = async |path: &str| ask(client.get(server.url(path)), LIMIT).await;
        assert_eq!(get("/good").await.unwrap().json().unwrap()["a"], 1);
        assert_eq!(get("/json").await.unwrap_err().to_string(), "HTTP 409 not now");
        assert_eq!(get("/html").await.unwrap_err().to_string(), "HTTP 500 <html> <b>broken</b>");
        assert_eq!(get("/empty").await.unwrap_err().to_string(), "HTTP 404 Not Found");
        assert!(matches!(get("/bad").await.unwrap().json(), Err(Failure::Malformed(_))));
    }

    #[tokio::test]
    async fn silence_ends() {
        let server = Server::start(|seen| match seen.path.as_str() {
            "/head" => Reply::text(200, "late").after(Duration::from_secs(30)),
            _ => Reply::text(200, "0123456789").stalling_after(4),
        })
        .await;
        let client = client().await;
        for path in ["/head", "/body"] {
            let failure = ask(client.get(server.url(path)), Duration::from_millis(300)).await.unwrap_err();
            assert!(matches!(failure, Failure::Unreachable(_)), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_token_does_not_follow_a_redirect_to_another_server() {
        let other = Server::start(|_| Reply::text(200, "other")).await;
        let elsewhere = other.url("/there");
        let server = Server::start(move |seen| match seen.path.as_str() {
            "/away" => Reply::text(302, "").with("location", &elsewhere),
            "/near" => Reply::text(302, "").with("location", "/here"),
            _ => Reply::text(200, "here"),
        })
        .await;
        let client = client().await;
        let get =
            async |path: &str| ask(client.get(server.url(path)).header("X-Auth-Token", "t"), LIMIT).await;
        assert_eq!(&*get("/near").await.unwrap().body, b"here");
        assert_eq!(get("/away").await.unwrap_err().status(), Some(302));
        assert!(other.seen().is_empty());
    }

    #[tokio::test]
    async fn clients_are_shared_and_unusable_files_named() {
        let connections = Connections::default();
        let tls = TlsOptions { ca: Some("/nonexistent/ca.pem".into()), ..TlsOptions::default() };
        let failure = connections.client(&tls).await.unwrap_err();
        assert!(failure.to_string().contains("/nonexistent/ca.pem"), "{failure}");
        let insecure = TlsOptions { insecure: true, ..tls };
        connections.client(&insecure).await.unwrap();
        connections.client(&TlsOptions::default()).await.unwrap();
        connections.client(&insecure).await.unwrap();
        assert_eq!(connections.clients.lock().await.len(), 2);
    }

    #[tokio::test]
    async fn https_is_verified_by_the_ca_file_and_by_nobody_when_insecure() {
        let server = Server::start_tls(|_| Reply::text(200, "secret")).await;
        let connections = Connections::default();
        let get = async |tls: TlsOptions| {
            let client = connections.client(&tls).await.unwrap();
            ask(client.get(server.url("/")), LIMIT).await.map(|answer| answer.body)
        };
        let with = |ca: Option<&str>, insecure| TlsOptions { ca: ca.map(Into::into), insecure, client: None };
        assert_eq!(&*get(with(Some(CA), false)).await.unwrap(), b"secret");
        assert_eq!(&*get(with(None, true)).await.unwrap(), b"secret");
        let unknown = get(with(None, false)).await.unwrap_err();
        assert!(matches!(unknown, Failure::Unreachable(_)), "{unknown}");
        assert!(unknown.to_string().contains("certificate"), "{unknown}");
        assert_eq!(server.seen().len(), 2);
    }

    #[test]
    fn a_token_is_never_shown() {
        let value = secret(&SecretString::from("s3cret")).unwrap();
        assert!(!format!("{value:?}").contains("s3cret"));
        let bad = secret(&SecretString::from("s3\ncret")).unwrap_err();
        assert!(!bad.to_string().contains("s3"), "{bad}");
    }
}
