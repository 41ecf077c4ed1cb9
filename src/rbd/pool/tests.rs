//! The pool against a worker that misbehaves on request (tests/fixtures/fake-rbd-worker).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod removals;

use std::path::Path;

use super::*;
use crate::rbd::Site as SiteHandle;
use crate::rbd::protocol::{Fsid, ImageExport, ImageFlatten, ImageImport, ImageRemove, ImageStat, ProbeOsd};
use crate::rbd::stream::PART;

const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fake-rbd-worker");
/// Longer than any answer of a healthy worker takes, on any machine.
const AMPLE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(700);

#[derive(Default)]
struct Seen(Mutex<Vec<(&'static str, u32, String)>>, Mutex<HashMap<u32, Ending>>);

impl ClientObserver for Seen {
    fn started(&self, _: &Connection, _: &str, worker_pid: u32, address: &str) {
        lock(&self.0).push(("started", worker_pid, address.to_owned()));
    }
    fn gone(&self, _: &Connection, worker_pid: u32, address: &str, ending: Ending) {
        lock(&self.1).insert(worker_pid, ending);
        lock(&self.0).push(("gone", worker_pid, address.to_owned()));
    }
}

struct Fixture {
    pool: Arc<WorkerPool>,
    site: SiteHandle,
    seen: Arc<Seen>,
}

fn site(pool: &Arc<WorkerPool>, name: &str) -> SiteHandle {
    let connection = Connection {
        site: name.to_owned(),
        conf: format!("/nonexistent/{name}.conf").into(),
        cluster_name: "ceph".to_owned(),
        user: Some("cinder".to_owned()),
        connect_timeout: None,
    };
    SiteHandle::new(Arc::clone(pool) as Arc<dyn Ceph>, connection)
}

fn fixture_with(change: impl FnOnce(&mut Settings)) -> Fixture {
    let mut settings = Settings::new(FAKE);
    change(&mut settings);
    let seen = Arc::new(Seen::default());
    let pool = Arc::new(WorkerPool::new(settings, Some(Arc::clone(&seen) as Arc<dyn ClientObserver>)));
    Fixture { site: site(&pool, "default"), pool, seen }
}

fn fixture() -> Fixture {
    fixture_with(|_| {})
}

fn stat(image: &str) -> ImageStat {
    ImageStat { pool: "volumes".to_owned(), image: image.to_owned() }
}

fn flatten(image: &str) -> ImageFlatten {
    ImageFlatten { pool: "volumes".to_owned(), image: image.to_owned() }
}

fn remove(image: &str) -> ImageRemove {
    ImageRemove { pool: "volumes".to_owned(), image: image.to_owned() }
}

fn duties(pool: &WorkerPool, duty: Duty) -> Vec<WorkerInfo> {
    pool.workers().into_iter().filter(|w| w.duty == duty).collect()
}

async fn pid(site: &SiteHandle) -> u32 {
    site.call_within(AMPLE, Fsid {}).await.unwrap().parse().unwrap()
}

/// Waits until `condition` holds: a test that never gets there fails by its runner's time limit.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + AMPLE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_first_call_starts_one_worker_and_a_second_follows() {
    let f = fixture();
    assert!(f.pool.workers().is_empty());
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    pid(&f.site).await;
    assert_eq!(f.pool.counters().started, 2);
    assert!(f.pool.workers().iter().all(|w| w.duty == Duty::Short && !w.condemned && w.site == "default"));
}

#[tokio::test]
async fn calls_go_to_the_least_loaded_worker() {
    let f = fixture();
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let slow = |site: SiteHandle| async move { site.call_within(AMPLE, stat("slow:1500")).await.unwrap().id };
    let first = tokio::spawn(slow(f.site.clone()));
    until("first call under way", || f.pool.workers().iter().any(|w| w.calls == 1)).await;
    let second = tokio::spawn(slow(f.site.clone()));
    assert_ne!(first.await.unwrap(), second.await.unwrap());
}

#[tokio::test]
async fn sites_share_no_worker_and_names_of_one_site_do() {
    let f = fixture();
    let other = site(&f.pool, "target");
    let mut alias = f.site.connection().clone();
    alias.site = "same-cluster".to_owned();
    let alias = SiteHandle::new(Arc::clone(&f.pool) as Arc<dyn Ceph>, alias);
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let of_default: Vec<u32> = f.pool.workers().iter().map(|w| w.pid).collect();
    assert!(!of_default.contains(&pid(&other).await));
    assert!(of_default.contains(&pid(&alias).await));
}

#[tokio::test]
async fn an_overdue_call_condemns_its_worker_whose_other_calls_finish() {
    let f = fixture();
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let dir = tempfile::tempdir().unwrap();
    let release = dir.path().join("release");
    let other = tokio::spawn({
        let (site, call) = (f.site.clone(), stat(&format!("until:{}", release.display())));
        async move { site.call_within(AMPLE, call).await }
    });
    until("call under way", || f.pool.workers().iter().any(|w| w.calls == 1)).await;
    let busy = f.pool.workers().iter().find(|w| w.calls == 1).unwrap().pid;
    // As many hanging calls as needed to hit that worker too: ties may go to the other one.
    let mut hanging = Vec::new();
    while !f.pool.workers().iter().any(|w| w.pid == busy && w.calls == 2) {
        let (site, sent) = (f.site.clone(), f.pool.workers().iter().map(|w| w.calls).sum::<usize>());
        hanging.push(tokio::spawn(async move { site.call_within(SHORT, stat("hang")).await }));
        until("sent", || f.pool.workers().iter().map(|w| w.calls).sum::<usize>() > sent).await;
    }
    let overdue = hanging.len() as u64;
    for call in hanging {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind, RbdErrorKind::TimedOut);
        assert_eq!((error.op.as_str(), error.site.as_str()), ("ImageStat", "default"));
        assert!(error.effect_unknown());
    }
    let condemned: Vec<u32> = f.pool.workers().iter().filter(|w| w.condemned).map(|w| w.pid).collect();
    assert!(condemned.contains(&busy), "{condemned:?} without {busy}");
    // New work goes elsewhere, at once.
    let fresh = pid(&f.site).await;
    assert!(!condemned.contains(&fresh) && exists(busy));
    std::fs::write(&release, "").unwrap();
    assert_eq!(other.await.unwrap().unwrap().id, busy.to_string());
    until("the condemned are reaped", || f.pool.counters().killed == f.pool.counters().condemned).await;
    assert!(!exists(busy));
    assert_eq!((f.pool.counters().overdue, f.pool.counters().lost, f.pool.counters().died), (overdue, 0, 0));
}

#[tokio::test]
async fn a_stopped_worker_is_condemned_killed_and_replaced() {
    let f = fixture();
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let stopped: Vec<u32> = f.pool.workers().iter().map(|w| w.pid).collect();
    for pid in &stopped {
        signal(*pid, "-STOP");
    }
    for _ in 0..2 {
        let error = f.site.call_within(SHORT, Fsid {}).await.unwrap_err();
        assert_eq!(error.kind, RbdErrorKind::TimedOut);
    }
    assert!(!stopped.contains(&pid(&f.site).await));
    until("both are reaped", || f.pool.counters().killed == 2).await;
    assert!(stopped.iter().all(|pid| !exists(*pid)));
}

#[tokio::test]
async fn a_caller_that_is_gone_does_not_hide_a_hung_worker() {
    let f = fixture();
    pid(&f.site).await;
    let call = f.site.call_within(SHORT, stat("hang"));
    assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
    until("condemned all the same", || f.pool.counters().condemned == 1).await;
    until("reaped", || f.pool.counters().killed == 1).await;
}

#[tokio::test]
async fn a_crash_fails_the_calls_of_that_worker_and_no_others() {
    let f = fixture();
    pid(&f.site).await;
    let error = f.site.call_within(AMPLE, stat("crash")).await.unwrap_err();
    assert_eq!(error.kind, RbdErrorKind::WorkerLost);
    assert!(error.message.contains("exit status: 3"), "{}", error.message);
    pid(&f.site).await;
    assert_eq!((f.pool.counters().died, f.pool.counters().lost), (1, 1));
}

#[tokio::test]
async fn a_worker_killed_from_outside_is_replaced_and_its_client_reported_gone() {
    let f = fixture();
    let victim = pid(&f.site).await;
    let address = format!("192.0.2.1:0/{victim}");
    assert_eq!(lock(&f.seen.0)[0], ("started", victim, address.clone()));
    let call = tokio::spawn({
        let site = f.site.clone();
        async move { site.call_within(AMPLE, stat("hang")).await }
    });
    until("call under way", || f.pool.workers().iter().any(|w| w.calls == 1)).await;
    let busy = f.pool.workers().iter().find(|w| w.calls == 1).unwrap().pid;
    signal(busy, "-KILL");
    assert_eq!(call.await.unwrap().unwrap_err().kind, RbdErrorKind::WorkerLost);
    assert_ne!(pid(&f.site).await, busy);
    let gone = ("gone", busy, format!("192.0.2.1:0/{busy}"));
    until("reported", || lock(&f.seen.0).contains(&gone)).await;
}

#[tokio::test]
async fn nonsense_in_the_pipe_ends_the_worker() {
    for how in ["garbage", "oversize"] {
        let f = fixture();
        let error = f.site.call_within(AMPLE, stat(how)).await.unwrap_err();
        assert_eq!(error.kind, RbdErrorKind::WorkerLost, "{how}");
        assert!(error.message.contains("nonsense"), "{}", error.message);
        pid(&f.site).await;
        assert_eq!(f.pool.counters().killed, 1);
    }
}

#[tokio::test]
async fn a_worker_that_does_not_listen_any_more_is_not_used_and_killed() {
    let f = fixture();
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let both: Vec<u32> = f.pool.workers().iter().map(|w| w.pid).collect();
    let closes = || f.site.call_within(AMPLE, stat("closes"));
    // One after the other would both go to the same worker.
    let (first, second) = tokio::join!(closes(), closes());
    assert_ne!(first.unwrap().id, second.unwrap().id);
    // The frame that finds the pipe closed is lost with its worker; nothing else is sent there.
    for _ in &both {
        let error = f.site.call_within(AMPLE, Fsid {}).await.unwrap_err();
        assert_eq!(error.kind, RbdErrorKind::WorkerLost);
    }
    assert!(!both.contains(&pid(&f.site).await));
    until("reaped", || both.iter().all(|pid| !exists(*pid))).await;
}

#[tokio::test]
async fn workers_that_die_at_once_are_not_started_in_a_loop() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let f = fixture_with(|s| {
        s.arguments = vec!["--stillborn".into(), file.path().into()];
        s.back_off = Duration::from_millis(200);
    });
    let end = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < end {
        let error = f.site.call_within(SHORT, Fsid {}).await.unwrap_err();
        assert!(matches!(error.kind, RbdErrorKind::WorkerLost | RbdErrorKind::TimedOut), "{error}");
    }
    // Pauses of 0.2, 0.4, 0.8, 1.6 s: five starts in 3 s, and a second worker may join each.
    let starts = std::fs::read_to_string(file.path()).unwrap().len();
    assert!((2..=10).contains(&starts), "{starts} starts");
}

#[tokio::test]
async fn a_missing_worker_binary_is_said_clearly_and_at_once() {
    let f = fixture_with(|s| s.worker = "/nonexistent/scoria-rbd-worker".into());
    let error = f.site.call_within(AMPLE, Fsid {}).await.unwrap_err();
    assert_eq!(error.kind, RbdErrorKind::Unreachable);
    assert!(error.message.contains("/nonexistent/scoria-rbd-worker cannot be started"), "{}", error.message);
    assert!(error.message.contains("scoria_worker_path"));
}

#[tokio::test]
async fn a_long_call_has_a_worker_of_its_own_which_the_next_one_uses_again() {
    let f = fixture();
    f.site.call_within(AMPLE, flatten("moves:1")).await.unwrap();
    let workers = f.pool.workers();
    assert_eq!(workers.len(), 1);
    assert_eq!(workers[0].duty, Duty::Long);
    assert_ne!(pid(&f.site).await, workers[0].pid);
    f.site.call_within(AMPLE, flatten("moves:1")).await.unwrap();
    assert_eq!(f.pool.workers().iter().filter(|w| w.duty == Duty::Long).count(), 1);
    let both = tokio::join!(
        f.site.call_within(AMPLE, flatten("moves:5")),
        f.site.call_within(AMPLE, flatten("moves:5"))
    );
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(f.pool.workers().iter().filter(|w| w.duty == Duty::Long).count(), 2);
}

#[tokio::test]
async fn idle_workers_that_take_no_short_calls_retire() {
    let f = fixture_with(|s| s.idle = Duration::from_millis(100));
    f.site.call_within(AMPLE, flatten("moves:0")).await.unwrap();
    f.site.call_within(AMPLE, remove("x")).await.unwrap();
    until("retired", || f.pool.workers().is_empty()).await;
    assert_eq!((f.pool.counters().killed, f.pool.counters().died), (0, 0));
}

#[tokio::test]
async fn workers_of_a_site_that_is_left_finish_what_they_have_and_have_lost_nothing() {
    let f = fixture();
    let call = tokio::spawn({
        let site = f.site.clone();
        async move { site.call_within(AMPLE, stat("slow:800")).await }
    });
    until("call under way", || f.pool.workers().iter().any(|w| w.calls == 1)).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    f.site.leave();
    // The idle one goes at once, the other with its call.
    until("one worker", || f.pool.workers().len() == 1).await;
    call.await.unwrap().unwrap();
    until("no worker", || f.pool.workers().is_empty()).await;
    let counters = f.pool.counters();
    assert_eq!((counters.lost, counters.killed, counters.died), (0, 0, 0), "{counters:?}");
    assert!(lock(&f.seen.1).values().all(|e| *e == Ending::AtRest));
    // Who comes again finds workers of his own.
    pid(&f.site).await;
}

#[tokio::test]
async fn progress_moves_the_deadline_of_a_long_call_and_its_absence_does_not() {
    let f = fixture();
    // The start of a worker on a busy machine is no part of what is measured.
    f.site.call_within(AMPLE, flatten("moves:0")).await.unwrap();
    f.site.call_within(SHORT, flatten("moves:15")).await.unwrap();
    let error = f.site.call_within(SHORT, flatten("stalls")).await.unwrap_err();
    assert_eq!(error.kind, RbdErrorKind::TimedOut);
    until("killed", || f.pool.counters().killed == 1).await;
}

#[tokio::test]
async fn the_number_of_calls_is_bounded_but_probes_do_not_wait() {
    let f = fixture_with(|s| s.calls_per_worker = 1);
    pid(&f.site).await;
    let slow: Vec<_> = (0..2)
        .map(|_| {
            let site = f.site.clone();
            tokio::spawn(async move { site.call_within(AMPLE, stat("slow:2500")).await })
        })
        .collect();
    until("both under way", || f.pool.workers().iter().map(|w| w.calls).sum::<usize>() == 2).await;
    let error = f.site.call_within(SHORT, Fsid {}).await.unwrap_err();
    assert_eq!(error.kind, RbdErrorKind::TimedOut);
    assert!(error.message.contains("not sent"), "{}", error.message);
    f.site.call_within(AMPLE, ProbeOsd { pool: "volumes".to_owned() }).await.unwrap();
    for call in slow {
        call.await.unwrap().unwrap();
    }
    assert_eq!(f.pool.counters().condemned, 0, "a call that was never sent condemns nobody");
}

#[tokio::test]
async fn the_worker_is_told_the_time_that_is_left() {
    let f = fixture();
    let told = f.site.call_within(AMPLE, stat("v")).await.unwrap().size;
    assert!(told <= 30_000 && told > 0, "{told}");
}

#[tokio::test]
async fn kill_all_reaps_everything_and_the_next_call_starts_anew() {
    let f = fixture_with(|s| s.arguments = vec!["--deaf".into()]);
    let old = pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let call = tokio::spawn({
        let site = f.site.clone();
        async move { site.call_within(AMPLE, stat("hang")).await }
    });
    until("call under way", || f.pool.workers().iter().any(|w| w.calls == 1)).await;
    let pids: Vec<u32> = f.pool.workers().iter().map(|w| w.pid).collect();
    f.pool.kill_all().await;
    assert!(pids.iter().all(|pid| !exists(*pid)), "reaped before it returned");
    assert_eq!(call.await.unwrap().unwrap_err().kind, RbdErrorKind::WorkerLost);
    assert_ne!(pid(&f.site).await, old);
}

#[tokio::test]
async fn only_a_worker_that_ended_at_work_has_left_something_behind() {
    let f = fixture();
    let ended = |pid: u32| lock(&f.seen.1).get(&pid).copied();
    // Killed by somebody with nothing to do.
    let idle = pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    signal(idle, "-KILL");
    until("gone", || ended(idle).is_some()).await;
    assert_eq!(ended(idle), Some(Ending::AtRest));
    // A call that is lost, one that is overdue, and one that Ceph left without an answer.
    for (image, within) in [("crash", AMPLE), ("hang", SHORT), ("timeout", AMPLE)] {
        let f = fixture();
        f.site.call_within(within, stat(image)).await.unwrap_err();
        f.pool.shutdown(AMPLE).await;
        assert!(lock(&f.seen.1).values().any(|e| *e == Ending::AtWork), "{image}");
    }
    f.pool.shutdown(AMPLE).await;
    assert!(lock(&f.seen.1).values().all(|e| *e == Ending::AtRest));
}

#[tokio::test]
async fn shutdown_lets_calls_finish_and_ends_deaf_workers_too() {
    let f = fixture_with(|s| s.arguments = vec!["--deaf".into()]);
    let call = tokio::spawn({
        let site = f.site.clone();
        async move { site.call_within(AMPLE, stat("slow:800")).await }
    });
    until("call under way", || f.pool.workers().iter().any(|w| w.calls == 1)).await;
    let pids: Vec<u32> = f.pool.workers().iter().map(|w| w.pid).collect();
    f.pool.shutdown(AMPLE).await;
    call.await.unwrap().unwrap();
    assert!(pids.iter().all(|pid| !exists(*pid)));
    let error = f.site.call_within(AMPLE, Fsid {}).await.unwrap_err();
    assert_eq!(error.kind, RbdErrorKind::Unreachable);
    assert!(f.pool.workers().is_empty());
}

#[tokio::test]
async fn workers_end_with_a_pool_that_is_dropped() {
    let f = fixture();
    pid(&f.site).await;
    until("two workers", || f.pool.workers().len() == 2).await;
    let pids: Vec<u32> = f.pool.workers().iter().map(|w| w.pid).collect();
    drop(f);
    until("ended", || pids.iter().all(|pid| !exists(*pid))).await;
}

fn import(image: &str) -> ImageImport {
    ImageImport { pool: "volumes".to_owned(), image: image.to_owned(), blank: true }
}

fn export(image: &str) -> ImageExport {
    ImageExport {
        pool: "volumes".to_owned(),
        image: image.to_owned(),
        snap: None,
        offset: 0,
        length: 1 << 30,
    }
}

#[tokio::test]
async fn data_flows_into_a_worker_that_sessions_share() {
    let f = fixture();
    let dir = tempfile::tempdir().unwrap();
    let file = |n: usize| dir.path().join(n.to_string());
    let data: Vec<u8> = (0..2 * PART + 17).map(|n| (n % 251) as u8).collect();
    let mut sessions: Vec<_> =
        (0..3).map(|n| f.site.import(import(&format!("sink:{}", file(n).display())))).collect();
    for session in &mut sessions {
        session.write(5, data.clone().into()).await.unwrap();
    }
    assert_eq!(duties(&f.pool, Duty::Stream).len(), 1);
    for (n, session) in sessions.into_iter().enumerate() {
        assert_eq!(session.finish().await.unwrap(), data.len() as u64);
        let written = std::fs::read(file(n)).unwrap();
        assert_eq!((&written[..5], &written[5..]), (&[0; 5][..], &data[..]));
    }
}

#[tokio::test]
async fn data_flows_out_of_a_worker_as_fast_as_it_is_taken() {
    let f = fixture();
    let mut session = f.site.export(export("source:20"));
    for n in 0..20u64 {
        let part = session.next().await.unwrap().unwrap();
        assert_eq!((part.offset, &part.data[..]), (n * 10, n.to_string().as_bytes()));
    }
    assert_eq!(session.next().await, Ok(None));
    let mut session = f.site.export(export("source:1000000"));
    session.next().await.unwrap().unwrap();
    drop(session);
    until("called off", || duties(&f.pool, Duty::Stream).iter().all(|w| w.calls == 0)).await;
    assert_eq!(f.pool.counters().condemned, 0);
}

#[tokio::test]
async fn a_session_that_is_dropped_is_called_off_in_the_worker() {
    let f = fixture();
    let dir = tempfile::tempdir().unwrap();
    let sink = dir.path().join("sink").display().to_string();
    let mut session = f.site.import(import(&format!("sink:{sink}")));
    session.write(0, vec![1; 10].into()).await.unwrap();
    session.abandon().await;
    assert!(Path::new(&format!("{sink}.called-off")).exists());
    drop(f.site.import(import(&format!("sink:{sink}2"))));
    until("called off", || Path::new(&format!("{sink}2.called-off")).exists()).await;
}

#[tokio::test]
async fn a_worker_that_takes_no_part_is_condemned_and_one_that_waits_for_parts_is_not() {
    let f = fixture();
    let flow = |image: String| {
        let (parts, feed) = tokio::sync::mpsc::channel(1);
        let pool = Arc::clone(&f.pool);
        let connection = f.site.connection().clone();
        let run = async move {
            let request = crate::rbd::Command::into_request(import(&image));
            pool.stream(&connection, request, SHORT, Flow::In(feed)).await
        };
        (parts, tokio::spawn(run))
    };
    let part =
        || crate::rbd::stream::Feed::Part(crate::rbd::stream::Part { offset: 0, data: vec![1].into() });
    let dir = tempfile::tempdir().unwrap();
    let (parts, idle) = flow(format!("sink:{}", dir.path().join("sink").display()));
    parts.send(part()).await.unwrap();
    tokio::time::sleep(3 * SHORT).await;
    parts.send(part()).await.unwrap();
    parts.send(crate::rbd::stream::Feed::End).await.unwrap();
    assert_eq!(idle.await.unwrap().unwrap(), Reply::ImageImport(2));
    assert_eq!(f.pool.counters().condemned, 0);
    let (parts, stuck) = flow("full".to_owned());
    parts.send(part()).await.unwrap();
    assert_eq!(stuck.await.unwrap().unwrap_err().kind, RbdErrorKind::TimedOut);
    assert_eq!(f.pool.counters().condemned, 1);
}

#[tokio::test]
async fn a_session_dies_with_its_worker() {
    let f = fixture();
    let mut session = f.site.import(import("full"));
    session.write(0, vec![1; 10].into()).await.unwrap();
    until("under way", || duties(&f.pool, Duty::Stream).iter().any(|w| w.calls == 1)).await;
    signal(duties(&f.pool, Duty::Stream)[0].pid, "-KILL");
    assert_eq!(session.finish().await.unwrap_err().kind, RbdErrorKind::WorkerLost);
}
