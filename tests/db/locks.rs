//! Locks that the members of a Cinder cluster share.

use std::time::Duration;

use scoria::backend::locks::NamedLocks;
use scoria::journal::Outcome;
use scoria::model::Scope;
use tokio::time::timeout;

use crate::journal::{accept, journal, request};
use crate::support::TestDb;

const CLUSTER: &str = "c@ceph";
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_clone_on_one_member_waits_for_the_deletion_on_another() {
    let test = TestDb::new().await;
    let (one, two) = (journal(&test, "node1"), journal(&test, "node2"));
    let _deletion = accept(&one, request("a")).await;
    let _clone = accept(&two, request("b")).await;
    let (here, there) = (NamedLocks::new(Some(CLUSTER), &one), NamedLocks::new(Some(CLUSTER), &two));
    let held = here.lock("v1-delete_volume").await;
    let other = timeout(LONG, there.lock("v2-delete_volume")).await.expect("another volume");
    assert!(timeout(Duration::from_millis(700), there.lock("v1-delete_volume")).await.is_err());
    // Another cluster's names are its own.
    let elsewhere = NamedLocks::new(Some("other@ceph"), &two);
    drop(timeout(LONG, elsewhere.lock("v1-delete_volume")).await.expect("another cluster"));
    drop((held, other));
    let got = timeout(LONG, there.lock("v1-delete_volume")).await.expect("given back");
    drop(got);
    let deadline = std::time::Instant::now() + LONG;
    while test.rows("SELECT name FROM scoria_locks").await != Vec::<Vec<String>>::new() {
        assert!(std::time::Instant::now() < deadline, "locks that were given back leave no row");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_member_that_died_loses_its_locks_with_its_operations() {
    let test = TestDb::new().await;
    let (one, two) = (journal(&test, "node1"), journal(&test, "node2"));
    let operation = accept(&one, request("a")).await;
    assert!(one.try_lock(CLUSTER, "v1").await.unwrap().is_some());
    assert!(two.try_lock(CLUSTER, "v1").await.unwrap().is_none());
    test.sql("UPDATE scoria_operations SET lease_until = '2026-01-01'").await;
    assert!(two.try_lock(CLUSTER, "v1").await.unwrap().is_none(), "nobody has fenced it yet");
    assert_eq!(two.adopt(&Scope::Cluster(CLUSTER.into())).await.unwrap().len(), 1);
    let instance = two.try_lock(CLUSTER, "v1").await.unwrap().expect("free now");
    // Late, the dead one gives back what it has no more.
    one.unlock(CLUSTER, "v1", &one.owner().instance).await.unwrap();
    assert_eq!(test.row("SELECT owner FROM scoria_locks").await, [instance]);
    assert!(operation.step("late", &()).await.is_err());
}

#[tokio::test]
async fn a_lock_ends_with_the_last_operation_of_its_owner_at_the_latest() {
    let test = TestDb::new().await;
    let (one, two) = (journal(&test, "node1"), journal(&test, "node2"));
    let operation = accept(&one, request("a")).await;
    assert!(one.try_lock(CLUSTER, "v1").await.unwrap().is_some());
    one.finish(&operation, &Outcome::succeeded()).await.unwrap();
    assert!(two.try_lock(CLUSTER, "v1").await.unwrap().is_some());
}
