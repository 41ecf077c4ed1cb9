//! Sites, pools of workers, and what tests wait for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scoria::rbd::pool::{ClientObserver, Ending, Settings, WorkerPool};
use scoria::rbd::protocol::Connection;
use scoria::rbd::{Ceph, RbdError, RbdErrorKind, Site};

pub(crate) const MIB: u64 = 1 << 20;
/// What `rbd_default_features` is since Ceph 10: layering, lock, object map, fast diff, deep flatten.
pub(crate) const FEATURES: u64 = 61;

/// A mirror daemon that has been fenced, or whose peer was away, takes a minute or more to be well again.
const PATIENCE: Duration = Duration::from_secs(180);

/// Clients that the observer was told of.
#[derive(Default)]
pub(crate) struct Clients(pub(crate) Mutex<Vec<(u32, String)>>, pub(crate) Mutex<Vec<(u32, String)>>);

impl ClientObserver for Clients {
    fn started(&self, _: &Connection, _: &str, worker_pid: u32, address: &str) {
        self.0.lock().unwrap().push((worker_pid, address.to_owned()));
    }
    fn gone(&self, _: &Connection, worker_pid: u32, address: &str, _: Ending) {
        self.1.lock().unwrap().push((worker_pid, address.to_owned()));
    }
}

/// A pool of workers and the two sites, all of the test's own.
pub(crate) struct Lab {
    pub(crate) pool: Arc<WorkerPool>,
    pub(crate) a: Site,
    pub(crate) b: Site,
    pub(crate) clients: Arc<Clients>,
    /// Held until the end of the test: shared by most, alone for those that stop a site.
    _turn: File,
}

pub(crate) fn conf(variable: &str) -> PathBuf {
    PathBuf::from(super::env::var_in_turn(variable))
}

pub(crate) fn connection(site: &str, conf: PathBuf, user: &str) -> Connection {
    let user = Some(user.to_owned());
    Connection { site: site.to_owned(), conf, cluster_name: "ceph".to_owned(), user, connect_timeout: None }
}

fn lab_with(alone: bool, arguments: &[&str]) -> Lab {
    let turn = super::env::turn(alone);
    let mut settings = Settings::new(env!("CARGO_BIN_EXE_scoria-rbd-worker"));
    settings.arguments = arguments.iter().map(Into::into).collect();
    let clients = Arc::new(Clients::default());
    let observer: Arc<dyn ClientObserver> = Arc::clone(&clients) as _;
    let pool = Arc::new(WorkerPool::new(settings, Some(observer)));
    let site = |name, variable| {
        Site::new(Arc::clone(&pool) as Arc<dyn Ceph>, connection(name, conf(variable), "cinder"))
    };
    Lab { a: site("a", "SITE_A_CONF"), b: site("b", "SITE_B_CONF"), pool, clients, _turn: turn }
}

pub(crate) fn lab() -> Lab {
    lab_with(false, &[])
}

/// With no other test running, and workers that give up on an operation after 3 s.
pub(crate) fn lab_alone() -> Lab {
    lab_with(true, &["--op-timeout", "3"])
}

/// A name that no other test has.
pub(crate) fn name(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, RbdError>) -> RbdErrorKind {
    result.unwrap_err().kind
}

/// Repeats until `Ok`, or fails with the last error.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    attempt: impl AsyncFn() -> Result<T, E>,
) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(e) if Instant::now() > end => panic!("{what}: {e:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status = Process::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill {name} {pid}");
}

pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A site whose daemons are stopped; they go on when this is dropped.
pub(crate) struct Stopped {
    conf: PathBuf,
    how: How,
}

enum How {
    /// By tools/lab, of which the site is one.
    Lab(String),
    /// By the pid files in the `run_dir` of a conf that serves clients and daemons.
    Pids(Vec<u32>),
}

/// A component of the lab that is stopped until this is dropped.
pub(crate) struct Paused(&'static str);

/// Stops one component of the lab.
pub(crate) fn pause(component: &'static str) -> Paused {
    tools_lab(&["pause", component]);
    Paused(component)
}

impl Drop for Paused {
    fn drop(&mut self) {
        tools_lab(&["resume", self.0]);
    }
}

/// Stops the daemons of site `a` or `b`.
pub(crate) fn stop(site: &str) -> Stopped {
    let conf = conf(&format!("SITE_{}_CONF", site.to_uppercase()));
    let text = fs::read_to_string(&conf).unwrap();
    let Some(run) = text.lines().find_map(|line| line.strip_prefix("run_dir = ")) else {
        tools_lab(&["pause", &format!("site-{site}")]);
        return Stopped { conf, how: How::Lab(format!("site-{site}")) };
    };
    let mut pids = Vec::new();
    for entry in fs::read_dir(run.trim()).unwrap().flatten() {
        let file = entry.file_name().into_string().unwrap();
        if file.ends_with(".pid") && ["mon.", "osd.", "mgr."].iter().any(|kind| file.starts_with(kind)) {
            pids.push(fs::read_to_string(entry.path()).unwrap().trim().parse().unwrap());
        }
    }
    assert!(pids.len() >= 3, "no daemons in {run}");
    for pid in &pids {
        signal(*pid, "-STOP");
    }
    Stopped { conf, how: How::Pids(pids) }
}

/// `tools/lab ARGUMENTS`, expected to succeed.
pub(crate) fn tools_lab(arguments: &[&str]) {
    let lab = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/lab");
    let status = Process::new(lab).args(arguments).status().unwrap();
    assert!(status.success(), "tools/lab {arguments:?}");
}

impl Drop for Stopped {
    fn drop(&mut self) {
        match &self.how {
            How::Lab(site) => return tools_lab(&["resume", site]),
            How::Pids(pids) => pids.iter().for_each(|pid| signal(*pid, "-CONT")),
        }
        // As tools/lab does it: a placement group without replicas whose read lease ran out meanwhile (16 s)
        // stays "laggy" for ever, and its objects with it; peering again heals it.
        let _ = Process::new("ceph").arg("-c").arg(&self.conf).args(["osd", "down", "all"]).output();
    }
}
