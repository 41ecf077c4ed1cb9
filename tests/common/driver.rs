//! A helper process that answers one JSON line for each it is given.
//!
//! The problem: Cinder's client, librbd and the broker are to be used as Python users use them, many
//! times a test, while a call to a dead cluster may never come back. So the two helpers
//! (`driver.py`, `ceph.py`) live as long as a test, and every call has a deadline: a helper that
//! misses it is killed, and the next call gets a new one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// What a helper's call raised.
#[derive(Debug, Clone)]
pub(crate) struct CallError {
    /// Python class of the exception.
    pub(crate) kind: String,
    /// HTTP status, or MySQL error number.
    pub(crate) code: Option<i64>,
    /// Its text.
    pub(crate) message: String,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}: {}", self.kind, self.code, self.message)
    }
}

/// What a helper answers.
pub(crate) type Answer = Result<Value, CallError>;

struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One helper, started when it is first needed.
pub(crate) struct Driver {
    python: PathBuf,
    script: PathBuf,
    env: BTreeMap<String, String>,
    process: Mutex<Option<Process>>,
}

impl Driver {
    /// `script` is a file of this directory.
    pub(crate) fn new(python: PathBuf, script: &str, env: BTreeMap<String, String>) -> Driver {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/common").join(script);
        Driver { python, script, env, process: Mutex::new(None) }
    }

    fn spawn(&self) -> Process {
        let mut child = Command::new(&self.python)
            .args(["-B", "-W", "ignore"])
            .arg(&self.script)
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.python.display()));
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Process { child, stdin, lines }
    }

    /// One call, with a deadline after which the helper is killed and the answer is an error.
    pub(crate) fn call_within(&self, op: &str, args: Value, seconds: u64) -> Answer {
        let mut slot = self.process.lock().unwrap_or_else(|e| e.into_inner());
        let process = slot.get_or_insert_with(|| self.spawn());
        let mut request = args;
        request["op"] = json!(op);
        let broken = |message: String| CallError { kind: "HelperFailed".into(), code: None, message };
        if let Err(e) = writeln!(process.stdin, "{request}") {
            *slot = None;
            return Err(broken(format!("{op}: {e}")));
        }
        let line = match process.lines.recv_timeout(Duration::from_secs(seconds)) {
            Ok(line) => line,
            Err(e) => {
                *slot = None;
                let why = match e {
                    RecvTimeoutError::Timeout => format!("no answer within {seconds} s"),
                    RecvTimeoutError::Disconnected => "the helper ended".to_owned(),
                };
                return Err(broken(format!("{op}: {why}")));
            }
        };
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{op}: {e}: {line}"));
        match answer.get("ok") {
            Some(value) => Ok(value.clone()),
            None => Err(CallError {
                kind: answer["error"]["type"].as_str().unwrap_or_default().to_owned(),
                code: answer["error"]["code"].as_i64(),
                message: answer["error"]["message"].as_str().unwrap_or_default().to_owned(),
            }),
        }
    }

    /// One call.
    pub(crate) fn call(&self, op: &str, args: Value) -> Answer {
        self.call_within(op, args, 120)
    }
}
