//! Removals have workers of their own, take turns, and hold nobody else up.

use super::*;

#[tokio::test]
async fn removals_share_a_worker_which_short_and_long_calls_do_not_use() {
    let f = fixture();
    let dir = tempfile::tempdir().unwrap();
    let release = dir.path().join("release");
    let removals: Vec<_> = (0..8)
        .map(|_| {
            let (site, call) = (f.site.clone(), remove(&format!("until:{}", release.display())));
            tokio::spawn(async move { site.call_within(AMPLE, call).await })
        })
        .collect();
    until("all under way", || duties(&f.pool, Duty::Removal).iter().any(|w| w.calls == 8)).await;
    let worker = duties(&f.pool, Duty::Removal)[0].pid;
    assert_ne!(pid(&f.site).await, worker);
    f.site.call_within(AMPLE, flatten("moves:0")).await.unwrap();
    assert_eq!(duties(&f.pool, Duty::Long).len(), 1);
    std::fs::write(&release, "").unwrap();
    for removal in removals {
        removal.await.unwrap().unwrap();
    }
    let removing: Vec<u32> = duties(&f.pool, Duty::Removal).iter().map(|w| w.pid).collect();
    assert_eq!(removing, [worker]);
}

#[tokio::test]
async fn a_stuck_removal_is_given_up_with_its_worker_while_the_others_finish() {
    let f = fixture();
    f.site.call_within(AMPLE, remove("x")).await.unwrap();
    let moving = tokio::spawn({
        let site = f.site.clone();
        async move { site.call_within(SHORT, remove("moves:25")).await }
    });
    until("under way", || duties(&f.pool, Duty::Removal).iter().any(|w| w.calls == 1)).await;
    let error = f.site.call_within(SHORT, remove("stalls")).await.unwrap_err();
    assert_eq!(error.kind, RbdErrorKind::TimedOut);
    let condemned = duties(&f.pool, Duty::Removal)[0].clone();
    assert!(condemned.condemned);
    f.site.call_within(AMPLE, remove("x")).await.unwrap();
    assert!(duties(&f.pool, Duty::Removal).iter().any(|w| w.pid != condemned.pid && !w.condemned));
    moving.await.unwrap().unwrap();
    until("killed when the last call was over", || f.pool.counters().killed == 1).await;
    assert_eq!(f.pool.counters().lost, 0);
}

#[tokio::test]
async fn removals_wait_for_their_turn_however_long_that_takes() {
    let f = fixture_with(|s| s.removals_per_site = 1);
    f.site.call_within(AMPLE, remove("x")).await.unwrap();
    let first = f.site.call_within(SHORT, remove("moves:15"));
    let second = f.site.call_within(SHORT, remove("x"));
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
}

#[tokio::test]
async fn a_caller_who_goes_away_while_it_waits_for_its_turn_leaves_nothing_to_be_done() {
    let f = fixture_with(|s| s.removals_per_site = 1);
    let dir = tempfile::tempdir().unwrap();
    let (release, made) = (dir.path().join("release"), dir.path().join("made"));
    let first = tokio::spawn({
        let (site, call) = (f.site.clone(), remove(&format!("until:{}", release.display())));
        async move { site.call_within(AMPLE, call).await }
    });
    until("first under way", || duties(&f.pool, Duty::Removal).iter().any(|w| w.calls == 1)).await;
    let second = f.site.call_within(AMPLE, remove(&format!("makes:{}", made.display())));
    assert!(tokio::time::timeout(Duration::from_millis(100), second).await.is_err());
    std::fs::write(&release, "").unwrap();
    first.await.unwrap().unwrap();
    f.site.call_within(AMPLE, remove("x")).await.unwrap();
    assert!(!made.exists());
}
