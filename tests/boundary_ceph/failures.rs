//! What happens to callers when a worker or a site fails.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scoria::rbd::pool::{Settings, WorkerPool};
use scoria::rbd::protocol::*;
use scoria::rbd::{Ceph, RbdErrorKind, Site};

use crate::common::{
    FEATURES, Lab, MIB, conf, connection, eventually, exists, kind, lab, lab_alone, name, signal, stop,
    tools_lab,
};

fn v() -> String {
    "volumes".to_owned()
}

fn create(image: &str) -> ImageCreate {
    ImageCreate { pool: v(), image: image.to_owned(), size: MIB, order: 22, features: FEATURES }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    eventually(what, async || if condition() { Ok(()) } else { Err("not yet") }).await;
}

fn pids(lab: &Lab) -> Vec<u32> {
    lab.pool.workers().iter().map(|w| w.pid).collect()
}

fn site_with(lab: &Lab, conf: PathBuf, user: &str) -> Site {
    Site::new(Arc::clone(&lab.pool) as Arc<dyn Ceph>, connection("broken", conf, user))
}

#[tokio::test]
async fn a_site_that_cannot_be_used_says_why() {
    let lab = lab();
    let missing = site_with(&lab, "/nonexistent/ceph.conf".into(), "cinder").call(Fsid {}).await.unwrap_err();
    assert_eq!(missing.kind, RbdErrorKind::Unreachable);
    assert!(missing.message.contains("/nonexistent/ceph.conf"), "{missing}");

    let no_key = site_with(&lab, conf("SITE_A_CONF"), "nobody").call(Fsid {}).await.unwrap_err();
    assert_eq!(no_key.kind, RbdErrorKind::Unreachable);
    assert!(no_key.message.contains("client.nobody") && no_key.message.contains("keyring"), "{no_key}");

    let scratch = tempfile::tempdir().unwrap();
    let (keyring, wrong) = (scratch.path().join("keyring"), scratch.path().join("wrong.conf"));
    let text = fs::read_to_string(conf("SITE_A_CONF")).unwrap();
    let text = format!("{text}\n[client.cinder]\nkeyring = {}\n", keyring.display());
    // Of a valid form, but of somebody else; and of none.
    let other = Process::new("ceph-authtool").arg("--gen-print-key").output().unwrap();
    let other = String::from_utf8(other.stdout).unwrap();
    let keys = [(other.trim(), RbdErrorKind::Permission), ("bm90IGEga2V5", RbdErrorKind::Unreachable)];
    for (key, expected) in keys {
        fs::write(&keyring, format!("[client.cinder]\n\tkey = {key}\n")).unwrap();
        fs::write(&wrong, &text).unwrap();
        let refused = site_with(&lab, wrong.clone(), "cinder").call(Fsid {}).await.unwrap_err();
        assert_eq!(refused.kind, expected, "{refused}");
        assert!(refused.message.contains("key"), "{refused}");
        assert!(!format!("{refused:?}").contains(key));
    }

    assert_eq!(kind(lab.a.call(ImageList { pool: "nopool".to_owned() }).await), RbdErrorKind::NoPool);
    let image = ImageRemove { pool: "nopool".to_owned(), image: "x".to_owned() };
    assert_eq!(kind(lab.a.call(image).await), RbdErrorKind::NoPool);
    assert_eq!(kind(lab.a.call(PoolStats { pool: "nopool".to_owned() }).await), RbdErrorKind::NoPool);
    let stat = ImageStat { pool: v(), image: name("absent") };
    assert_eq!(kind(lab.a.call(stat).await), RbdErrorKind::NotFound);
    let nul = ImageStat { pool: v(), image: "a\0b".to_owned() };
    assert_eq!(kind(lab.a.call(nul).await), RbdErrorKind::Invalid);
    // None of that was the workers' fault.
    assert_eq!((lab.pool.counters().condemned, lab.pool.counters().died), (0, 0));
}

#[tokio::test]
async fn the_service_never_maps_librados_and_a_worker_has_one_connection() {
    let lab = lab();
    let mut alias = lab.a.connection().clone();
    alias.site = "another-backend".to_owned();
    let alias = Site::new(Arc::clone(&lab.pool) as Arc<dyn Ceph>, alias);
    let calls = (0..64).map(|n| {
        let site = if n % 2 == 0 { lab.a.clone() } else { alias.clone() };
        tokio::spawn(async move { site.call(ImageList { pool: v() }).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert!(!fs::read_to_string("/proc/self/maps").unwrap().contains("librados"));

    let clients = lab.clients.0.lock().unwrap().clone();
    let distinct: HashSet<u32> = clients.iter().map(|(pid, _)| *pid).collect();
    assert_eq!(distinct.len(), clients.len(), "one client per worker: {clients:?}");
    for pid in distinct {
        assert!(fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().contains("librados"));
        assert!(monitor_connections(pid) <= 1);
    }
}

/// Established TCP connections of a process to a monitor (msgr2's port).
fn monitor_connections(pid: u32) -> usize {
    let sockets: HashSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| {
            fs::read_link(fd.path())
                .ok()?
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // remote address:port in hexadecimal, state 01, inode
        fields[2].ends_with(&format!(":{:04X}", 3300)) && fields[3] == "01" && sockets.contains(fields[9])
    };
    table.lines().skip(1).filter(established).count()
}

#[tokio::test]
async fn workers_killed_under_calls_lose_nothing_that_repeating_does_not_bring() {
    let lab = lab();
    let names: Vec<String> = (0..40).map(|_| name("killed")).collect();
    lab.a.call(Fsid {}).await.unwrap();
    let calls: Vec<_> = names
        .iter()
        .map(|image| {
            let (site, create) = (lab.a.clone(), create(image));
            tokio::spawn(async move { site.call(create).await })
        })
        .collect();
    // All are sent at once, and all are answered within a second: no time for `until`.
    while lab.pool.workers().iter().all(|w| w.calls == 0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for pid in pids(&lab) {
        signal(pid, "-KILL");
    }
    let mut lost = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(()) => {}
            Err(e) => {
                assert_eq!(e.kind, RbdErrorKind::WorkerLost, "{e}");
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "the workers were killed too late for this test");
    for image in &names {
        eventually("created or there", async || match lab.a.call(create(image)).await {
            Err(e) if e.kind != RbdErrorKind::Exists => Err(e),
            _ => Ok(()),
        })
        .await;
    }
    let gone = lab.clients.1.lock().unwrap().len();
    assert!(gone > 0, "the observer must know which clients died");
    for image in names {
        // A killed client's watch may be in the way for up to 30 s.
        let remove = ImageRemove { pool: v(), image };
        eventually("removed", async || lab.a.call(remove.clone()).await).await;
    }
}

#[tokio::test]
async fn a_stopped_worker_costs_one_deadline_and_is_replaced() {
    let lab = lab();
    lab.a.call(ImageList { pool: v() }).await.unwrap();
    until("two workers", || lab.pool.workers().len() == 2).await;
    let stopped = pids(&lab);
    for pid in &stopped {
        signal(*pid, "-STOP");
    }
    let second = Duration::from_secs(1);
    for _ in 0..2 {
        let error = lab.a.call_within(second, ImageList { pool: v() }).await.unwrap_err();
        assert_eq!(error.kind, RbdErrorKind::TimedOut);
    }
    lab.a.call(ImageList { pool: v() }).await.unwrap();
    until("reaped", || stopped.iter().all(|pid| !exists(*pid))).await;
    assert_eq!((lab.pool.counters().condemned, lab.pool.counters().killed), (2, 2));
}

#[tokio::test]
async fn a_fenced_worker_connects_anew() {
    let lab = lab();
    lab.a.call(ImageList { pool: v() }).await.unwrap();
    let (pid, old) = lab.clients.0.lock().unwrap()[0].clone();
    // Through another client: the fenced one could not tell.
    let mut admin = connection("admin", conf("SITE_A_CONF"), "admin");
    admin.site = "admin".to_owned();
    let admin = Site::new(Arc::clone(&lab.pool) as Arc<dyn Ceph>, admin);
    admin.call(BlocklistAdd { address: old.clone(), seconds: 60 }).await.unwrap();
    eventually("fenced, then connected anew", async || {
        if let Err(e) = lab.a.call(ImageList { pool: v() }).await {
            assert_eq!(e.kind, RbdErrorKind::Blocklisted, "{e}");
        }
        let clients = lab.clients.0.lock().unwrap();
        if clients.iter().any(|(p, address)| *p == pid && *address != old) { Ok(()) } else { Err("not yet") }
    })
    .await;
    admin.call(BlocklistRemove { address: old.clone() }).await.unwrap();
    assert!(!admin.call(BlocklistList {}).await.unwrap().contains(&old));
}

#[tokio::test]
async fn a_hung_site_is_noticed_by_every_deadline_and_used_again_when_it_is_back() {
    let lab = lab_alone();
    let b = &lab.b;
    b.call(ImageList { pool: v() }).await.unwrap();
    until("two workers", || lab.pool.workers().len() == 2).await;
    // The second worker connects only when it is used: here, while the site hangs.
    let hung = stop("b");
    let probe = Duration::from_secs(2);
    let slack = Duration::from_millis(500);
    for _ in 0..2 {
        let began = Instant::now();
        let (mon, osd) =
            tokio::join!(b.call_within(probe, ProbeMon {}), b.call_within(probe, ProbeOsd { pool: v() }),);
        for result in [mon.map(drop), osd] {
            let error = result.unwrap_err();
            assert!(matches!(error.kind, RbdErrorKind::TimedOut | RbdErrorKind::Unreachable), "{error}");
        }
        assert!(began.elapsed() < probe + slack, "{:?}", began.elapsed());
    }
    assert_eq!(lab.pool.counters().condemned, 0, "probes must not cost workers");

    // A call with time enough fails by the operation time-out, one without by its deadline.
    let patient = b.call_within(Duration::from_secs(30), ImageList { pool: v() }).await.unwrap_err();
    assert!(matches!(patient.kind, RbdErrorKind::TimedOut | RbdErrorKind::Unreachable), "{patient}");
    let began = Instant::now();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let site = b.clone();
            tokio::spawn(async move {
                site.call_within(Duration::from_secs(1), ImageStat { pool: v(), image: "x".to_owned() }).await
            })
        })
        .collect();
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error.kind, RbdErrorKind::TimedOut | RbdErrorKind::Unreachable), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(1) + slack, "{:?}", began.elapsed());
    // The other site does not notice.
    lab.a.call_within(probe, ImageList { pool: v() }).await.unwrap();

    drop(hung);
    eventually("back", async || b.call(ProbeOsd { pool: v() }).await).await;
    eventually("back for images", async || b.call(ImageList { pool: v() }).await).await;
    lab.pool.shutdown(Duration::from_secs(5)).await;
    assert!(lab.pool.workers().is_empty());
}

/// A client that meets the monitors before the OSDs are back has an old map, and must not go on with it: a
/// site that is alive would look dead, and its volumes would be forced away from it.
#[tokio::test]
async fn a_site_that_was_restarted_is_found_alive_at_the_first_probe() {
    let lab = lab_alone();
    let b = &lab.b;
    let probe = Duration::from_secs(4);
    b.call(ProbeOsd { pool: v() }).await.unwrap();
    until("two workers", || lab.pool.workers().len() == 2).await;
    tools_lab(&["kill", "site-b"]);
    let starting = tokio::task::spawn_blocking(|| tools_lab(&["start", "site-b"]));
    eventually("the monitors answer", async || b.call_within(probe, ProbeMon {}).await).await;
    starting.await.unwrap();
    let other = Arc::new(WorkerPool::new(Settings::new(env!("CARGO_BIN_EXE_scoria-rbd-worker")), None));
    let fresh = Site::new(Arc::clone(&other) as Arc<dyn Ceph>, b.connection().clone());
    eventually("the OSDs serve", async || fresh.call_within(probe, ProbeOsd { pool: v() }).await).await;
    // Both workers, each with a map of its own.
    for _ in 0..2 {
        let (first, second) = tokio::join!(
            b.call_within(probe, ProbeOsd { pool: v() }),
            b.call_within(probe, ProbeOsd { pool: v() })
        );
        first.unwrap();
        second.unwrap();
    }
    other.shutdown(Duration::from_secs(5)).await;
    tools_lab(&["up", "--without", "scoria-volume"]);
}
