//! The worker process by itself, without a Ceph cluster: how it reads, answers and ends. Needs Ceph's
//! client libraries (librados2, librbd1). A monitor that accepts connections and never says anything
//! stands for a site that hangs.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};

use scoria::rbd::frame::{self, Call, Event};
use scoria::rbd::protocol::*;
use scoria::rbd::{RbdError, RbdErrorKind};

struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    next: u64,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    fn start(arguments: &[&str]) -> Worker {
        let mut child = Process::new(env!("CARGO_BIN_EXE_scoria-rbd-worker"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        Worker { child, stdin, stdout, next: 1 }
    }

    fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    fn send(&mut self, conf: &Path, request: Request, deadline_ms: u64) -> u64 {
        let id = self.next;
        self.next += 1;
        let connection = Connection {
            site: "default".to_owned(),
            conf: conf.to_owned(),
            cluster_name: "ceph".to_owned(),
            user: Some("cinder".to_owned()),
            connect_timeout: None,
        };
        self.write(&frame::encode(&Call { id, connection, request, deadline_ms }).unwrap());
        id
    }

    fn receive(&mut self) -> (u64, Result<Reply, RbdError>) {
        let body = frame::read(&mut self.stdout).unwrap().expect("an answer");
        match frame::decode::<Event>(&body.json).unwrap() {
            Event::Answer { id, result } => (id, result),
            other => panic!("{other:?}"),
        }
    }

    fn call(&mut self, conf: &Path, request: Request, deadline_ms: u64) -> RbdErrorKind {
        let sent = self.send(conf, request, deadline_ms);
        let (id, result) = self.receive();
        assert_eq!(id, sent);
        result.unwrap_err().kind
    }
}

/// A conf whose only monitor never answers; it lives as long as the listener.
fn silent_site(directory: &tempfile::TempDir) -> (PathBuf, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (conf, keyring) = (directory.path().join("ceph.conf"), directory.path().join("keyring"));
    // The form of a key (type 1, a date, 16 bytes), of nothing.
    std::fs::write(&keyring, "[client.cinder]\nkey = AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA==\n").unwrap();
    let text = format!(
        "[global]\nmon_host = v2:{}\nkeyring = {}\nlog_file =\n",
        listener.local_addr().unwrap(),
        keyring.display()
    );
    std::fs::write(&conf, text).unwrap();
    (conf, listener)
}

#[test]
fn it_ends_with_its_pipe_even_while_a_call_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let (conf, listener) = silent_site(&directory);
    let mut worker = Worker::start(&["--connect-timeout", "86400"]);
    worker.send(&conf, Fsid {}.into_request(), 90_000_000);
    // Connecting hangs from here on.
    let _connected = listener.accept().unwrap();
    drop(worker.stdin.take());
    // If it did not end by itself, this would wait for a day.
    assert!(worker.child.wait().unwrap().success());
}

#[test]
fn it_outlives_signals_to_its_group() {
    let mut worker = Worker::start(&[]);
    let missing = Path::new("/nonexistent/ceph.conf");
    // Answering proves that it is past its start.
    assert_eq!(worker.call(missing, Fsid {}.into_request(), 30_000), RbdErrorKind::Unreachable);
    for signal in ["-TERM", "-INT", "-HUP"] {
        let pid = worker.child.id().to_string();
        assert!(Process::new("kill").args([signal, &pid]).status().unwrap().success());
    }
    assert_eq!(worker.call(missing, Fsid {}.into_request(), 30_000), RbdErrorKind::Unreachable);
}

#[test]
fn a_request_of_another_version_is_refused_and_the_worker_stays() {
    let mut worker = Worker::start(&[]);
    let body = br#"{"id":77,"connection":{"site":"default","conf":"","cluster_name":"ceph","user":null,"connect_timeout":null},"request":{"FromTheFuture":{}},"deadline_ms":1000}"#;
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    worker.write(&bytes);
    let (id, result) = worker.receive();
    let error = result.unwrap_err();
    assert_eq!((id, error.kind), (77, RbdErrorKind::NotSupported));
    assert!(error.message.contains("restart the service"), "{}", error.message);
    let missing = Path::new("/nonexistent/ceph.conf");
    assert_eq!(worker.call(missing, Fsid {}.into_request(), 30_000), RbdErrorKind::Unreachable);
}

#[test]
fn nonsense_ends_it_with_a_failure() {
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x02{}"] {
        let mut worker = Worker::start(&[]);
        worker.write(nonsense);
        assert_eq!(worker.child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn probes_of_a_silent_site_are_answered_and_waiting_calls_share_one_failure() {
    let directory = tempfile::tempdir().unwrap();
    let (conf, _listener) = silent_site(&directory);
    let mut worker = Worker::start(&["--connect-timeout", "86400"]);
    // Connects with its own little time, so that it is told "unreachable" rather than "too late".
    let kind = worker.call(&conf, ProbeMon {}.into_request(), 3_000);
    assert_eq!(kind, RbdErrorKind::Unreachable);
    // One attempt for all: one after the other they would need more than a minute.
    let sent: Vec<u64> = (0..40).map(|_| worker.send(&conf, Fsid {}.into_request(), 3_000)).collect();
    let mut answered: Vec<u64> = sent
        .iter()
        .map(|_| {
            let (id, result) = worker.receive();
            assert_eq!(result.unwrap_err().kind, RbdErrorKind::Unreachable);
            id
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, sent);
}
