//! Taking the lab, changing what runs in it, and giving it back whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::driver::{Answer, Driver};
use super::{CEPH, PLAIN, env, wait_until};

/// Which volume service is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Ours.
    Scoria,
    /// The stock service of Cinder 29, on the same backends.
    Stock,
}

impl Subject {
    fn chosen() -> Subject {
        match std::env::var("SCORIA_TEST_SERVICE").as_deref() {
            Ok("cinder-volume") => Subject::Stock,
            Ok("scoria-volume" | "") | Err(_) => Subject::Scoria,
            Ok(other) => panic!("SCORIA_TEST_SERVICE={other}: scoria-volume or cinder-volume"),
        }
    }

    /// Its component in tools/lab.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Scoria => "scoria-volume",
            Subject::Stock => "cinder-volume",
        }
    }
}

/// The lab, for one test. Dropping it checks that nothing was left behind.
pub(crate) struct Lab {
    pub(crate) subject: Subject,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) root: PathBuf,
    pub(crate) driver: Driver,
    pub(crate) ceph: Driver,
    /// The service does not run as `tools/lab up` would start it: restore it before the next test.
    altered: Mutex<bool>,
    log_from: u64,
    /// Held until the end: the next test waits for it.
    _lock: File,
}

fn repo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn bin_dir() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_scoria-volume")).parent().unwrap().to_owned()
}

fn tool(args: &[&str], env: &[(&str, &str)]) -> Output {
    tool_at(&env::root(), args, env)
}

/// A command of tools/lab, for the lab in this directory.
pub(crate) fn tool_at(root: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(repo().join("tools/lab"))
        .args(args)
        .env("SCORIA_LAB", root)
        .env("SCORIA_BIN_DIR", bin_dir())
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("tools/lab can be run")
}

fn tool_ok(args: &[&str], env: &[(&str, &str)]) -> String {
    tool_ok_at(&env::root(), args, env)
}

/// The same, which has to succeed; what it says.
#[track_caller]
pub(crate) fn tool_ok_at(root: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    let out = tool_at(root, args, env);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "tools/lab {args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// What the last test said of the lab's state.
const STATE: &str = "tests.state";
/// State of a lab that a test has taken and not given back whole.
const IN_USE: &str = "in use";
/// Seconds after which an OSD forgets a client that does not answer, in the lab.
const SHORT_WATCH: &str = "10";

/// Sends a signal to processes of the lab; one that has ended meanwhile is no failure.
pub(crate) fn signal(name: &str, pids: &[i32]) {
    for pid in pids {
        let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).output().unwrap();
    }
}

/// Whether a process has ended; one that only waits to be reaped has.
pub(crate) fn is_gone(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |s| s.rsplit(") ").next().is_some_and(|r| r.starts_with('Z')))
}

/// Process ids of a volume service: the one that was started, then its descendants.
fn service_pids(subject: Subject) -> Vec<i32> {
    component_pids(subject.name())
}

/// The same of a component of tools/lab.
fn component_pids(name: &str) -> Vec<i32> {
    let path = env::root().join("run").join(format!("{name}.json"));
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    let record: Value = serde_json::from_str(&text).unwrap();
    let mut pids = vec![record["pid"].as_i64().unwrap() as i32];
    if !Path::new(&format!("/proc/{}", pids[0])).exists() {
        return Vec::new();
    }
    let mut at = 0;
    while at < pids.len() {
        let children = format!("/proc/{0}/task", pids[at]);
        for task in fs::read_dir(children).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(text.split_whitespace().filter_map(|p| p.parse::<i32>().ok()));
        }
        at += 1;
    }
    pids
}

/// What differs between the labs of two tests.
#[derive(Debug, Clone, Copy)]
struct Mode<'a> {
    /// How queues are declared.
    queues: &'a str,
    /// Whether there are Keystone and Glance.
    auth: &'a str,
    /// Who keeps the keys of encrypted volumes.
    keys: &'a str,
    /// Ceph's `osd_client_watch_timeout`.
    watch_timeout: &'a str,
}

/// What most tests want: stock's default queues, nobody asks for a token.
const USUAL: Mode<'static> =
    Mode { queues: "default", auth: NOAUTH, keys: FIXED, watch_timeout: SHORT_WATCH };
/// Modes of `tools/lab up --auth`.
const NOAUTH: &str = "noauth";
const KEYSTONE: &str = "keystone";
/// Modes of `tools/lab up --keys`.
const FIXED: &str = "fixed";
const BARBICAN: &str = "barbican";

/// What has to be the same for a test to take over what the former one left running.
fn identity(subject: Subject, queues: &str, auth: &str, keys: &str) -> String {
    let changed = |p: PathBuf| {
        fs::metadata(p)
            .and_then(|m| m.modified())
            .map_or(0, |t| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()))
    };
    let dir = bin_dir();
    let built: Vec<u128> =
        ["scoria-volume", "scoria-rbd-worker"].iter().map(|b| changed(dir.join(b))).collect();
    format!("clean {} {queues} {auth} {keys} {} {built:?}", subject.name(), dir.display())
}

/// Everything but the volume services, whose state belongs to the test.
const OTHERS: &[&str] = &[
    "site-a",
    "site-b",
    "mariadb",
    "rabbitmq",
    "keystone",
    "glance-api",
    "barbican",
    "cinder-api",
    "cinder-scheduler",
];

impl Lab {
    /// Wait for the lab, make it healthy, and take it, with stock's default queues.
    pub(crate) fn get() -> Lab {
        Lab::made(USUAL)
    }

    /// The same with queues of another kind (`tools/lab up --rabbit-mode`).
    pub(crate) fn with_queues(queues: &str) -> Lab {
        Lab::made(Mode { queues, ..USUAL })
    }

    /// The same with Ceph's own `osd_client_watch_timeout`, which is three times the lab's.
    pub(crate) fn with_ceph_default_watches() -> Lab {
        Lab::made(Mode { watch_timeout: "30", ..USUAL })
    }

    /// The same with Keystone and Glance; `api` acts for admin, `api_as` for whom it is told.
    pub(crate) fn with_images() -> Lab {
        Lab::made(Mode { auth: KEYSTONE, ..USUAL })
    }

    /// The same with Barbican, too, for keys.
    pub(crate) fn with_barbican() -> Lab {
        Lab::made(Mode { auth: KEYSTONE, keys: BARBICAN, ..USUAL })
    }

    fn made(mode: Mode<'_>) -> Lab {
        let subject = Subject::chosen();
        let root = env::root();
        let lock = env::turn(true);
        let clean = identity(subject, mode.queues, mode.auth, mode.keys);
        let same = fs::read_to_string(root.join(STATE)).is_ok_and(|state| state == clean);
        // What a test has handed back whole, and what still runs, needs no looking after.
        if !same || mode.watch_timeout != SHORT_WATCH || service_pids(subject).is_empty() {
            if root.join("lab.json").exists() {
                let services = &["resume", "scoria-volume", "scoria-volume-2", "cinder-volume"];
                tool_ok(&[services, OTHERS].concat(), &[]);
            }
            let queues = ["--rabbit-mode", mode.queues, "--watch-timeout", mode.watch_timeout];
            let accounts = ["--auth", mode.auth, "--keys", mode.keys];
            tool_ok(&[&["up", "--without", "scoria-volume"], &queues[..], &accounts].concat(), &[]);
        }
        let env: BTreeMap<String, String> = tool_ok(&["env"], &[])
            .lines()
            .filter_map(|l| l.strip_prefix("export ")?.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.trim_matches('\'').to_owned()))
            .collect();
        let driver = Driver::new(Path::new(&env["SCORIA_VENV"]).join("bin/python"), "driver.py", env.clone());
        let ceph = Driver::new("/usr/bin/python3".into(), "ceph.py", env.clone());
        let mut lab =
            Lab { subject, env, root, driver, ceph, altered: Mutex::new(false), log_from: 0, _lock: lock };
        lab.restore(mode);
        *lab.altered.lock().unwrap() = mode.watch_timeout != SHORT_WATCH;
        lab.log_from = fs::metadata(lab.log_path()).map_or(0, |m| m.len());
        lab
    }

    /// Whether there are Keystone and Glance.
    pub(crate) fn has_images(&self) -> bool {
        self.env["OS_AUTH_TYPE"] == "password"
    }

    /// True when the subject is Scoria; otherwise says that the test does not apply.
    pub(crate) fn only_scoria(&self, why: &str) -> bool {
        if self.subject == Subject::Stock {
            eprintln!("SKIPPED with cinder-volume: {why}");
        }
        self.subject == Subject::Scoria
    }

    // ---- tools/lab --------------------------------------------------------------------------------
    /// A command of tools/lab that has to succeed; its output.
    #[track_caller]
    pub(crate) fn tool(&self, args: &[&str]) -> String {
        tool_ok(args, &[])
    }

    /// A command of tools/lab that may fail.
    pub(crate) fn try_tool(&self, args: &[&str]) -> Output {
        tool(args, &[])
    }

    pub(crate) fn start(&self, name: &str) {
        tool_ok(&["start", name], &[]);
    }
    /// The same with more arguments: a second `--config-file` overrides the first.
    pub(crate) fn start_with_args(&self, name: &str, args: &[&str]) {
        tool_ok(&[&["start", name, "--"], args].concat(), &[]);
    }

    /// Any command of tools/lab, with more in its environment.
    pub(crate) fn tool_with_env(&self, args: &[&str], env: &[(&str, &str)]) {
        tool_ok(args, env);
    }

    /// The same with more in its environment.
    pub(crate) fn start_with_env(&self, name: &str, env: &[(&str, &str)]) {
        tool_ok(&["start", name], env);
    }
    pub(crate) fn stop(&self, name: &str) {
        tool_ok(&["stop", name], &[]);
    }
    pub(crate) fn kill(&self, name: &str) {
        tool_ok(&["kill", name], &[]);
    }
    pub(crate) fn pause(&self, name: &str) {
        tool_ok(&["pause", name], &[]);
    }
    pub(crate) fn resume(&self, name: &str) {
        tool_ok(&["resume", name], &[]);
    }

    /// Start a whole site again and wait until it serves and both mirror daemons are well.
    pub(crate) fn start_site(&self, site: &str) {
        tool_ok(&["start", site], &[]);
        self.wait_site(site);
    }

    /// The same for a paused one.
    pub(crate) fn resume_site(&self, site: &str) {
        self.resume(site);
        self.wait_site(site);
    }

    fn wait_site(&self, site: &str) {
        let name = site.trim_start_matches("site-");
        wait_until(&format!("{site} answers"), 120, || {
            self.ceph.call("status_of_pool", json!({"site": name})).is_ok()
        });
        self.wait_mirroring();
    }

    /// Until both rbd-mirror daemons call themselves healthy (`tools/lab up` waits for it).
    pub(crate) fn wait_mirroring(&self) {
        tool_ok(&["up", "--without", "scoria-volume"], &[]);
    }

    // ---- the volume service -----------------------------------------------------------------------
    /// Start the service as an operator would.
    pub(crate) fn start_service(&self) {
        self.start_service_with(&[], &[]);
    }

    /// Start it with more arguments (a second `--config-file` overrides the first) or environment.
    pub(crate) fn start_service_with(&self, args: &[&str], env: &[(&str, &str)]) {
        let out = self.try_start_service_with(args, env);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{} does not start: {text}", self.subject.name());
    }

    /// The same, for a start that may fail.
    pub(crate) fn try_start_service_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        if !args.is_empty() || !env.is_empty() {
            *self.altered.lock().unwrap() = true;
        }
        let mut words = vec!["start"];
        if self.subject == Subject::Stock {
            words.extend(["--host", "lab"]);
        }
        words.push(self.subject.name());
        if !args.is_empty() {
            words.push("--");
            words.extend(args);
        }
        tool(&words, env)
    }

    pub(crate) fn stop_service(&self) {
        self.stop(self.subject.name());
    }
    pub(crate) fn kill_service(&self) {
        self.kill(self.subject.name());
    }

    /// The other service serves the same backends and rows from now on; the one that did may have been killed.
    pub(crate) fn hand_over_to(&self, subject: Subject) {
        *self.altered.lock().unwrap() = true;
        let (former, host): (_, &[&str]) = match subject {
            Subject::Scoria => (Subject::Stock, &[]),
            Subject::Stock => (Subject::Scoria, &["--host", "lab"]),
        };
        self.stop(former.name());
        tool_ok(&[&["start"], host, &[subject.name()]].concat(), &[]);
    }

    /// The service does not run as the next test expects it: it is started anew then.
    pub(crate) fn alter(&self) {
        *self.altered.lock().unwrap() = true;
    }

    /// Process ids of the service: the one that was started, then its descendants.
    pub(crate) fn service_pids(&self) -> Vec<i32> {
        service_pids(self.subject)
    }

    /// Those of the processes above that are workers, by their program's name.
    pub(crate) fn worker_pids(&self) -> Vec<i32> {
        let is_worker = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|c| String::from_utf8_lossy(&c).contains("scoria-rbd-worker"))
        };
        self.service_pids().into_iter().filter(is_worker).collect()
    }

    /// Until the service has ended by itself (a crash point).
    #[track_caller]
    pub(crate) fn wait_service_gone(&self, seconds: u64) {
        wait_until("the service ends", seconds, || self.service_pids().first().is_none_or(|p| is_gone(*p)));
    }

    /// Until a component has ended by itself.
    #[track_caller]
    pub(crate) fn wait_gone(&self, name: &str, seconds: u64) {
        wait_until(&format!("{name} ends"), seconds, || {
            component_pids(name).first().is_none_or(|p| is_gone(*p))
        });
    }

    /// Process ids of a component: the one that was started, then its descendants.
    pub(crate) fn pids_of(&self, name: &str) -> Vec<i32> {
        component_pids(name)
    }

    /// All that a component has logged in this lab.
    pub(crate) fn log_of(&self, name: &str) -> String {
        let path = self.root.join("log").join(format!("{name}.log"));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// `kill -9` of the service's own process alone; its workers are left to notice.
    #[track_caller]
    pub(crate) fn kill_service_alone(&self) {
        let service = self.service_pids()[0];
        signal("KILL", &[service]);
        wait_until("the service is gone", 30, || is_gone(service));
    }

    /// `scoria-manage` on the lab's configuration.
    pub(crate) fn manage(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_scoria-manage"))
            .arg("--config-file")
            .arg(&self.env["SCORIA_CONF"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("scoria-manage can be run")
    }

    fn log_path(&self) -> PathBuf {
        self.root.join("log").join(format!("{}.log", self.subject.name()))
    }

    /// What the service has logged since the test began.
    pub(crate) fn service_log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        let from = (self.log_from as usize).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    // ---- helpers ----------------------------------------------------------------------------------
    /// Rows of a query; a statement's number of matched rows comes as a number.
    #[track_caller]
    pub(crate) fn sql(&self, query: &str, args: &[Value]) -> Value {
        self.driver
            .call("sql", json!({"query": query, "args": args}))
            .unwrap_or_else(|e| panic!("{query} {args:?}: {e}"))
    }

    /// The rows of a query.
    #[track_caller]
    pub(crate) fn rows(&self, query: &str, args: &[Value]) -> Vec<Value> {
        self.sql(query, args).as_array().cloned().unwrap_or_default()
    }

    /// A call of `ceph.py` that has to succeed.
    #[track_caller]
    pub(crate) fn ceph(&self, op: &str, args: Value) -> Value {
        self.ceph.call(op, args.clone()).unwrap_or_else(|e| panic!("{op} {args}: {e}"))
    }

    /// A method of python-cinderclient that has to succeed.
    #[track_caller]
    pub(crate) fn api(&self, call: &str, args: Value, kwargs: Value) -> Value {
        self.try_api(call, args.clone(), kwargs.clone())
            .unwrap_or_else(|e| panic!("{call} {args} {kwargs}: {e}"))
    }

    /// The same when the answer may be a refusal.
    pub(crate) fn try_api(&self, call: &str, args: Value, kwargs: Value) -> Answer {
        self.driver.call("api", json!({"call": call, "args": args, "kwargs": kwargs}))
    }

    /// `try_api` for one of the lab's other users (`demo` is no administrator), with Keystone.
    pub(crate) fn try_api_as(&self, user: &str, call: &str, args: Value, kwargs: Value) -> Answer {
        self.driver.call("api", json!({"call": call, "args": args, "kwargs": kwargs, "user": user}))
    }

    /// The same when it has to succeed.
    #[track_caller]
    pub(crate) fn api_as(&self, user: &str, call: &str, args: Value, kwargs: Value) -> Value {
        self.try_api_as(user, call, args.clone(), kwargs.clone())
            .unwrap_or_else(|e| panic!("{call} {args} {kwargs} for {user}: {e}"))
    }

    /// Another driver process, to do something at the same time.
    pub(crate) fn second_driver(&self) -> Driver {
        Driver::new(Path::new(&self.env["SCORIA_VENV"]).join("bin/python"), "driver.py", self.env.clone())
    }

    /// Another client of Ceph, with an address of its own: a virtual machine.
    pub(crate) fn machine(&self) -> Driver {
        Driver::new("/usr/bin/python3".into(), "ceph.py", self.env.clone())
    }

    // ---- restoring --------------------------------------------------------------------------------
    fn restore(&self, mode: Mode<'_>) {
        let state = fs::read_to_string(self.root.join(STATE)).unwrap_or_default();
        let clean = state == identity(self.subject, mode.queues, mode.auth, mode.keys);
        fs::write(self.root.join(STATE), IN_USE).unwrap();
        if !clean || self.service_pids().is_empty() || !self.leftovers_now().is_empty() {
            tool_ok(&["stop", "scoria-volume", "scoria-volume-2", "cinder-volume"], &[]);
            if state == IN_USE {
                // The former test failed, who knows where: a mirror daemon that it had paused for long keeps
                // images locked.
                tool_ok(&["kill", "rbd-mirror-a", "rbd-mirror-b"], &[]);
                self.wait_mirroring();
            }
            self.wipe();
            self.start_service();
        }
        wait_until("both backends' services are up", 90, || {
            [CEPH, PLAIN].iter().all(|host| super::cinder::is_up(self, host))
        });
    }

    /// Told by `Drop`: whether the next test may go on with what runs.
    pub(super) fn hand_back(&self, clean: bool) {
        let made: Value = fs::read_to_string(self.root.join("lab.json"))
            .ok()
            .and_then(|t| serde_json::from_str(&t).ok())
            .unwrap_or_default();
        let queues = made["rabbit_mode"].as_str().unwrap_or_default();
        let auth = made["auth"].as_str().unwrap_or(NOAUTH);
        let keys = made["keys"].as_str().unwrap_or(FIXED);
        let altered = *self.altered.lock().unwrap_or_else(|e| e.into_inner());
        let text = match (clean, altered) {
            (true, false) => identity(self.subject, queues, auth, keys),
            (true, true) => "to be restored".to_owned(),
            (false, _) => IN_USE.to_owned(),
        };
        let _ = fs::write(self.root.join(STATE), text);
    }
}
