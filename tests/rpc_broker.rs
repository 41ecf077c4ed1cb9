//! The RPC servers on a real RabbitMQ, asked by an unmodified oslo.messaging client.
//!
//! Uses the lab's broker, options and virtual environment, or those of `SCORIA_TRANSPORT_URL`, `SCORIA_CONF`
//! and `SCORIA_VENV`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "common/env.rs"]
mod env;

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use scoria::backend::peers::{Notify, Priority};
use scoria::config::{Config, NotificationConfig, NotificationDriver};
use scoria::context::RequestContext;
use scoria::error::{Code, Error, Result};
use scoria::rpc::envelope;
use scoria::rpc::publisher::Destination;
use scoria::rpc::topology::Target;
use scoria::rpc::{Accept, Call, Handler, Method, Notifier, Reply, Rpc};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;

/// A journal in memory, and work that does what the test needs.
#[derive(Default)]
struct Worker {
    journal: Mutex<HashSet<String>>,
    runs: Mutex<BTreeMap<String, usize>>,
    replied: AtomicUsize,
    /// So many offers fail as if the database were away.
    failures: AtomicUsize,
    /// Requests with this many milliseconds of work.
    slow: AtomicUsize,
}

impl Worker {
    fn runs(&self, unique_id: &str) -> usize {
        self.runs.lock().unwrap().get(unique_id).copied().unwrap_or(0)
    }

    fn total(&self) -> usize {
        self.runs.lock().unwrap().values().sum()
    }
}

#[async_trait]
impl Handler for Worker {
    type Operation = String;

    async fn accept(&self, call: &Call) -> Result<Accept<String>> {
        assert!(!call.text.contains("s3cret-token"), "the journal must not see a token");
        Call::from_journal(&call.text).unwrap();
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::new(Code::Database, "The database is away"));
        }
        Ok(if self.journal.lock().unwrap().insert(call.unique_id.clone()) {
            Accept::New(call.unique_id.clone())
        } else {
            Accept::Duplicate
        })
    }

    async fn run(&self, call: &Call, operation: Option<String>) -> Result<Value> {
        assert_eq!(operation.is_some(), call.journaled);
        *self.runs.lock().unwrap().entry(call.unique_id.clone()).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst) as u64)).await;
        match &call.method {
            Method::GetCapabilities { discover } => Ok(json!({"discover": discover, "pools": [1, "é"]})),
            Method::FreezeHost => Ok(Value::Bool(true)),
            Method::ThawHost => panic!("a defect"),
            Method::GetLogLevels(_) => Err(Error::new(Code::Cancelled, "shutting down")),
            Method::TerminateConnection(t)
                if t.connector.as_ref().is_some_and(|c| c.get("echo").is_some()) =>
            {
                Ok(json!(t.connector))
            }
            Method::TerminateConnection(t) => Err(Error::new(Code::VolumeNotFound, t.volume_id.clone())),
            Method::RemoveExport { volume_id } => {
                Err(Error::new(Code::InvalidInput, format!("no export of {volume_id}")))
            }
            _ => Ok(Value::Null),
        }
    }

    async fn replied(&self, _: &Call) {
        self.replied.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a test works with.
struct Bench {
    files: Vec<std::path::PathBuf>,
    _file: NamedTempFile,
    config: Config,
    /// `host@backend`, of this test alone.
    host: String,
    _turn: std::fs::File,
}

/// The lab's broker, or that of the environment. `proxy` replaces the broker's address; `alone` keeps other
/// tests away.
fn bench(proxy: Option<std::net::SocketAddr>, alone: bool) -> Bench {
    let turn = env::turn(alone);
    // Shown by the test runner when a test fails.
    let filter = tracing_subscriber::EnvFilter::new("info,lapin=error");
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let mut url = env::var_in_turn("SCORIA_TRANSPORT_URL");
    if let Some(proxy) = proxy {
        let (before, after) = url.rsplit_once('@').unwrap();
        let vhost = after.split_once('/').map_or("", |(_, vhost)| vhost);
        url = format!("{before}@{proxy}/{vhost}");
    }
    let mut file = NamedTempFile::with_suffix(".conf").unwrap();
    let options = std::env::var("SCORIA_RABBIT_OPTIONS").unwrap_or_default().replace(';', "\n");
    // Everything but transport_url and the options only satisfies the parser.
    write!(
        file,
        "[DEFAULT]\nhost=h\nenabled_backends=ceph\ntransport_url={url}\n\
         [database]\nconnection=mysql+pymysql://u:p@h/cinder\n\
         [ceph]\nvolume_driver=cinder.volume.drivers.rbd.RBDDriver\n\
         [oslo_concurrency]\nlock_path=/tmp\n\
         [oslo_messaging_rabbit]\nkombu_missing_consumer_retry_timeout=3\n{options}\n"
    )
    .unwrap();
    let mut files: Vec<std::path::PathBuf> = vec![env::var_in_turn("SCORIA_CONF").into()];
    files.push(file.path().to_owned());
    let (config, _) = Config::load(&files, &[], std::iter::empty()).unwrap();
    let host = format!("t{}@rbd", uuid::Uuid::new_v4().simple());
    Bench { files, _file: file, config, host, _turn: turn }
}

impl Bench {
    fn rpc(&self) -> Rpc {
        Rpc::new(&self.config.rabbit, &self.config.control_exchange).unwrap()
    }

    fn target(&self) -> Target {
        Target::of_backend(&self.host)
    }

    /// Casts `freeze_host`, which is journalled, and gives its unique id.
    async fn cast(&self, rpc: &Rpc) -> String {
        let message = envelope::cast(&RequestContext::admin(), "freeze_host", "3.0", json!({}));
        rpc.publisher().cast(&Destination::Server(self.target()), &message).await.unwrap();
        message["_unique_id"].as_str().unwrap().to_owned()
    }
}

/// Waits for what must come.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(tokio::time::Instant::now() < limit, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Client {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    topic: String,
    server: String,
}

impl Client {
    fn start(bench: &Bench) -> Client {
        let python = std::path::Path::new(&env::var_in_turn("SCORIA_VENV")).join("bin/python");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rpc/client.py");
        let mut child = Command::new(python)
            .arg(script)
            .args(&bench.files)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let target = bench.target();
        Client {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
            topic: target.topic,
            server: target.server,
        }
    }

    async fn ask(&mut self, mut request: Value) -> Value {
        request["topic"] = json!(self.topic);
        request["server"] = json!(self.server);
        self.stdin.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        let line = self.stdout.next_line().await.unwrap().expect("the client died");
        serde_json::from_str(&line).unwrap()
    }

    async fn call(&mut self, method: &str, args: Value) -> Value {
        self.ask(json!({"kind": "call", "method": method, "args": args})).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oslo_client_is_served_and_gets_cinders_exceptions() {
    let bench = bench(None, false);
    let mut client = Client::start(&bench);
    let worker = Arc::new(Worker::default());
    let rpc = bench.rpc();
    let server = rpc.serve(&bench.host, Some("cl@rbd"), worker.clone());
    server.ready().await;

    let answer = client.call("get_capabilities", json!({"discover": true})).await;
    assert_eq!(answer["result"], json!({"discover": true, "pools": [1, "é"]}), "{answer}");
    let answer = client.call("freeze_host", json!({})).await;
    assert_eq!(answer["result"], json!(true));
    until("the journal learns of the answer", || worker.replied.load(Ordering::SeqCst) == 1).await;

    let answer = client
        .call("terminate_connection", json!({"volume_id": "v1", "connector": null, "force": true}))
        .await;
    assert_eq!(answer["class"], "VolumeNotFound_Remote", "{answer}");
    assert_eq!(answer["module"], "cinder.exception_Remote");
    assert!(answer["text"].as_str().unwrap().starts_with("Volume v1 could not be found."));
    let answer = client.call("remove_export", json!({"volume_id": "v1"})).await;
    assert_eq!(answer["class"], "InvalidInput_Remote");
    let answer = client.call("thaw_host", json!({})).await;
    assert_eq!(answer["class"], "CinderException_Remote", "a defect is answered: {answer}");

    let answer = client.call("no_such_thing", json!({})).await;
    assert_eq!((&answer["class"], &answer["exc_type"]), (&json!("RemoteError"), &json!("NoSuchMethod")));
    let answer = client.call("get_capabilities", json!({})).await;
    assert_eq!(answer["class"], "TypeError", "{answer}");
    let request =
        json!({"kind": "call", "version": "4.0", "method": "get_capabilities", "args": {"discover": true}});
    assert_eq!(client.ask(request).await["exc_type"], "UnsupportedVersion");
    let request = json!({"kind": "call", "method": "get_capabilities", "args": {"discover": true},
        "context": {"read_deleted": null}});
    assert_eq!(client.ask(request).await["class"], "ValueError");

    // Longer than the caller waits for a sign of life, which it gets.
    worker.slow.store(5_000, Ordering::SeqCst);
    let request = json!({"kind": "call", "method": "get_capabilities", "args": {"discover": false},
        "timeout": 15, "monitor": 2});
    assert_eq!(client.ask(request).await["result"]["discover"], json!(false));
    worker.slow.store(0, Ordering::SeqCst);

    // What is interrupted is not answered.
    let level = json!({"versioned_object.name": "LogLevel", "versioned_object.namespace": "cinder",
        "versioned_object.version": "1.0", "versioned_object.data": {}});
    let request =
        json!({"kind": "call", "method": "get_log_levels", "args": {"log_request": level}, "timeout": 2});
    assert_eq!(client.ask(request).await["class"], "MessagingTimeout");

    let before = worker.total();
    client.ask(json!({"kind": "fanout", "method": "failover_completed", "args": {"updates": {}}})).await;
    until("the fanout arrives", || worker.total() == before + 1).await;
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_many_frames_go_both_ways() {
    let bench = bench(None, false);
    let mut client = Client::start(&bench);
    let rpc = bench.rpc();
    let server = rpc.serve(&bench.host, None, Arc::new(Worker::default()));
    server.ready().await;
    // Around the size of a frame, around that of the library's buffers, and far beyond.
    for size in [16_000, 16_384, 17_000, 520_000, 530_000, 3_000_000] {
        let echo: String = ('a'..='z').cycle().take(size).collect();
        let connector = json!({"echo": echo});
        let args = json!({"volume_id": "v1", "connector": connector, "force": true});
        let answer = client.call("terminate_connection", args).await;
        assert!(answer["result"] == connector, "{size} bytes: {}", &answer.to_string()[..200]);
    }
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_compresses_its_requests_is_understood() {
    let mut bench = bench(None, false);
    let worker = Arc::new(Worker::default());
    let rpc = bench.rpc();
    let server = rpc.serve(&bench.host, None, worker.clone());
    server.ready().await;
    for scheme in ["gzip", "bzip2"] {
        let mut file = NamedTempFile::with_suffix(".conf").unwrap();
        write!(file, "[oslo_messaging_rabbit]\nkombu_compression={scheme}\n").unwrap();
        bench.files.push(file.path().to_owned());
        let mut client = Client::start(&bench);
        let answer = client.call("get_capabilities", json!({"discover": true})).await;
        assert_eq!(answer["result"]["discover"], json!(true), "{scheme}: {answer}");
        bench.files.pop();
    }
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_in_its_queue_until_the_journal_is_back() {
    let bench = bench(None, false);
    let worker = Arc::new(Worker::default());
    worker.failures.store(4, Ordering::SeqCst);
    let rpc = bench.rpc();
    let server = rpc.serve(&bench.host, None, worker.clone());
    server.ready().await;
    let id = bench.cast(&rpc).await;
    until("the journal is asked", || worker.failures.load(Ordering::SeqCst) < 4).await;
    assert_eq!(worker.runs(&id), 0);
    until("the request is run", || worker.runs(&id) == 1).await;

    // The same message again, as the broker delivers it when an acknowledgement was lost.
    let mut message = envelope::cast(&RequestContext::admin(), "freeze_host", "3.0", json!({}));
    message.insert("_unique_id".to_owned(), json!(id));
    rpc.publisher().cast(&Destination::Server(bench.target()), &message).await.unwrap();
    let other = bench.cast(&rpc).await;
    until("what came after is run", || worker.runs(&other) == 1).await;
    assert_eq!(worker.runs(&id), 1, "the duplicate is dropped");
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_removed_from_the_queue_and_harms_nobody() {
    let bench = bench(None, false);
    let worker = Arc::new(Worker::default());
    let rpc = bench.rpc();
    let server = rpc.serve(&bench.host, None, worker.clone());
    server.ready().await;
    let to = Destination::Server(bench.target());
    for method in ["", "_private", "create_volume"] {
        let message = envelope::cast(&RequestContext::admin(), method, "3.0", json!({"x": [null]}));
        rpc.publisher().cast(&to, &message).await.unwrap();
    }
    let id = bench.cast(&rpc).await;
    until("what came after is run", || worker.runs(&id) == 1).await;
    assert_eq!(worker.total(), 1);
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_leaves_messages_for_the_next() {
    let bench = bench(None, false);
    let rpc = bench.rpc();
    let first = Arc::new(Worker::default());
    let server = rpc.serve(&bench.host, None, first.clone());
    server.ready().await;
    first.slow.store(1_500, Ordering::SeqCst);
    let running = bench.cast(&rpc).await;
    until("it runs", || first.runs(&running) == 1).await;
    server.stop().await;
    assert_eq!(server.in_flight(), 1, "what was running goes on");
    assert!(server.drain(Duration::from_secs(10)).await);

    // A request that could not be journalled before the end goes back to the queue.
    let server = rpc.serve(&bench.host, None, first.clone());
    server.ready().await;
    first.failures.store(usize::MAX, Ordering::SeqCst);
    let waiting = bench.cast(&rpc).await;
    until("the journal is asked", || first.failures.load(Ordering::SeqCst) < usize::MAX).await;
    server.stop().await;
    let left = bench.cast(&rpc).await;

    let second = Arc::new(Worker::default());
    let other = bench.rpc();
    let server = other.serve(&bench.host, None, second.clone());
    until("the next server runs both", || second.runs(&waiting) == 1 && second.runs(&left) == 1).await;
    assert_eq!(first.runs(&waiting) + first.runs(&left), 0);
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_to_a_caller_who_is_gone_is_given_up() {
    let bench = bench(None, false);
    let rpc = bench.rpc();
    let to = scoria::rpc::ReplyTo {
        queue: format!("reply_{}", uuid::Uuid::new_v4().simple()),
        msg_id: "m".to_owned(),
    };
    let reply = Reply::new(Ok(Value::Null));
    // Returns, which is the test: after the configured 3 s, and then at once.
    tokio::time::timeout(Duration::from_secs(30), rpc.publisher().reply(&to, reply.clone())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(2), rpc.publisher().reply(&to, reply)).await.unwrap();
    rpc.close().await;
}

/// Forwards to the broker until told to cut every connection, and refuses new ones while told so.
async fn proxy(broker: String) -> (std::net::SocketAddr, watch::Sender<(u64, bool)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (control, state) = watch::channel((0u64, true));
    tokio::spawn(async move {
        while let Ok((mut inbound, _)) = listener.accept().await {
            let (generation, open) = *state.borrow();
            if !open {
                continue;
            }
            let (broker, mut state) = (broker.clone(), state.clone());
            tokio::spawn(async move {
                let Ok(mut outbound) = TcpStream::connect(broker).await else { return };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut inbound, &mut outbound) => {}
                    _ = state.wait_for(|s| s.0 != generation) => {}
                }
            });
        }
    });
    (address, control)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_neither_lose_nor_repeat_a_request() {
    let direct = bench(None, false);
    let broker = &direct.config.rabbit.hosts[0];
    let (address, control) = proxy(format!("{}:{}", broker.host, broker.port)).await;
    let mut through = bench(Some(address), false);
    through.host.clone_from(&direct.host);

    let worker = Arc::new(Worker::default());
    worker.slow.store(20, Ordering::SeqCst);
    let served = through.rpc();
    let server = served.serve(&through.host, None, worker.clone());
    server.ready().await;

    let sender = direct.rpc();
    let mut ids = Vec::new();
    for round in 0..4u64 {
        for n in 0..25 {
            ids.push(direct.cast(&sender).await);
            if n == 12 {
                worker.failures.store(3, Ordering::SeqCst);
                control.send_replace((round + 1, round % 2 == 0));
            }
        }
        control.send_replace((round + 1, true));
        // Through the cut connection: confirmed all the same.
        ids.push(through.cast(&served).await);
        server.ready().await;
    }
    let missing = || ids.iter().enumerate().filter(|(_, id)| worker.runs(id) == 0).map(|(n, _)| n);
    until("every request is run", || {
        let missing: Vec<_> = missing().collect();
        tracing::info!(?missing, in_flight = server.in_flight(), ready = server.is_ready(), "waiting");
        missing.is_empty()
    })
    .await;
    assert_eq!(worker.total(), ids.len(), "once each");
    assert!(server.drain(Duration::from_secs(20)).await);
    served.close().await;
    sender.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reported_before_the_end_is_sent_before_it() {
    let direct = bench(None, false);
    let broker = &direct.config.rabbit.hosts[0];
    let (address, control) = proxy(format!("{}:{}", broker.host, broker.port)).await;
    control.send_replace((0, false));
    let through = bench(Some(address), false);
    let rpc = through.rpc();
    let topic = format!("n{}", uuid::Uuid::new_v4().simple());
    let config = NotificationConfig {
        drivers: vec![NotificationDriver::MessagingV2],
        topics: vec![topic.clone()],
        transport: None,
    };
    let notifier = Notifier::start(&config, rpc.publisher(), &through.config.control_exchange).unwrap();
    let notifier = Arc::new(notifier);
    // Backends hold it as long as the process lives.
    let of_a_backend = notifier.clone();
    for n in 0..3 {
        let (context, event) = (RequestContext::admin(), format!("volume.create.{n}"));
        of_a_backend.publish(&context, &event, Priority::Info, "volume.h", json!({})).await;
    }
    let (ended, ()) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(60), notifier.flush(Duration::from_secs(50))),
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            control.send_replace((0, true));
        }
    );
    ended.unwrap();
    let url = env::var_in_turn("SCORIA_TRANSPORT_URL").replacen("rabbit://", "amqp://", 1);
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = format!("{topic}.info");
    let declared = channel
        .queue_declare(queue.as_str().into(), passive, lapin::types::FieldTable::default())
        .await
        .unwrap();
    assert_eq!(declared.message_count(), 3);
    channel.queue_delete(queue.as_str().into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    rpc.close().await;
}

/// Restarts the lab's broker, alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_come_back_with_their_broker() {
    let bench = bench(None, true);
    let worker = Arc::new(Worker::default());
    let rpc = bench.rpc();
    let server = rpc.serve(&bench.host, None, worker.clone());
    server.ready().await;
    let before = bench.cast(&rpc).await;
    until("it is run", || worker.runs(&before) == 1).await;
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/lab");
    let restart = Command::new(tool).args(["restart", "rabbitmq"]).env("SCORIA_LAB", env::root()).status();
    // They may be back before the tool has ended.
    let (status, ()) = tokio::join!(restart, until("the consumers notice", || !server.is_ready()));
    assert!(status.unwrap().success());
    // Confirmed by the broker, and the queue is there: run, and run once. Casts that the broker takes
    // before queues that died with it are declared again have nowhere to go, with stock services too.
    server.ready().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(bench.cast(&rpc).await);
    }
    until("all are run", || ids.iter().all(|id| worker.runs(id) == 1)).await;
    assert_eq!(worker.total(), ids.len() + 1);
    assert!(server.drain(Duration::from_secs(10)).await);
    rpc.close().await;
}
