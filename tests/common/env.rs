//! What suites that do not drive the whole lab need of it: one variable, and their turn.
//!
//! The database, broker and boundary suites use single components. Plain `cargo test` must work without
//! preparation, so a variable that is not in the environment comes from the lab, which is brought up when it
//! is not running; and the lock of the lab's tests is shared, so that nobody kills the component meanwhile.

// Every suite uses its part of this.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

static VARIABLES: OnceLock<BTreeMap<String, String>> = OnceLock::new();
static SHARED: OnceLock<File> = OnceLock::new();

/// Where the lab is.
pub(crate) fn root() -> PathBuf {
    match std::env::var_os("SCORIA_LAB") {
        Some(dir) if !dir.is_empty() => std::path::absolute(dir).unwrap(),
        _ => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/lab"),
    }
}

/// The lock that tests take in turns; held as long as the file is open. They get it in the order in which they
/// ask: whoever waits for it alone would otherwise wait as long as there are others that share it.
pub(crate) fn turn(alone: bool) -> File {
    std::fs::create_dir_all(root()).unwrap();
    let open = |name| {
        let path = root().join(name);
        OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap()
    };
    let (queue, lock) = (open("tests.queue"), open("tests.lock"));
    queue.lock().unwrap();
    if alone {
        lock.lock().unwrap()
    } else {
        lock.lock_shared().unwrap()
    }
    lock
}

fn lab(args: &[&str]) -> String {
    let tool = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tools/lab");
    let out = Command::new(tool)
        .args(args)
        .env("SCORIA_LAB", root())
        .stdin(Stdio::null())
        .output()
        .expect("tools/lab can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "tools/lab {args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Brings the lab up once and reads what `tools/lab env` says. The caller has its turn.
fn variables() -> &'static BTreeMap<String, String> {
    VARIABLES.get_or_init(|| {
        lab(&["up", "--without", "scoria-volume"]);
        lab(&["env"])
            .lines()
            .filter_map(|l| l.strip_prefix("export ")?.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.trim_matches('\'').to_owned()))
            .collect()
    })
}

/// A variable of the environment, else the lab's. Shares the lab with other tests until the process ends.
pub(crate) fn var(name: &str) -> String {
    SHARED.get_or_init(|| turn(false));
    var_in_turn(name)
}

/// The same for a test that has taken its turn itself.
pub(crate) fn var_in_turn(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) => value,
        Err(_) => variables().get(name).cloned().unwrap_or_else(|| panic!("the lab does not know {name}")),
    }
}
