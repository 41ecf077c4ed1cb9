//! Leases: kept while we live, lost when somebody else may work.

use std::time::Duration;

use scoria::db::Db;
use scoria::journal::{Journal, JournalOptions, Outcome, Owner};
use scoria::model::Scope;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::journal::{accept, journal, options, request};
use crate::proxy::Proxy;
use crate::support::TestDb;

const LONG: Duration = Duration::from_secs(20);

async fn lease_of(test: &TestDb, id: i64) -> String {
    test.row(&format!("SELECT lease_until FROM scoria_operations WHERE id={id}")).await.remove(0)
}

#[tokio::test]
async fn renewal_moves_all_leases_and_notices_what_was_closed() {
    let test = TestDb::new().await;
    let journal = journal(&test, "node1");
    assert!(journal.renew().await.unwrap(), "nothing to renew is fine");
    let a = accept(&journal, request("a")).await;
    let b = accept(&journal, request("b")).await;
    let before = lease_of(&test, b.id()).await;
    // Closed in a transaction that the journal knows nothing of.
    test.db.write("t", async |conn| a.close(conn, &Outcome::succeeded()).await).await.unwrap();
    assert_eq!(journal.open_count(), 2);
    assert!(journal.renew().await.unwrap());
    assert_eq!(journal.open_count(), 1);
    assert!(lease_of(&test, b.id()).await > before);
    assert!(!b.lost().is_cancelled());
}

#[tokio::test]
async fn an_operation_that_was_taken_away_makes_us_give_up_everything() {
    let test = TestDb::new().await;
    let old = Journal::new(
        test.db.clone(),
        Owner::new("node1"),
        JournalOptions { lease: Duration::from_secs(5), ..options() },
    );
    let stolen = accept(&old, request("a")).await;
    let other = accept(&old, request("b")).await;
    let former = old.owner();
    let mut losses = old.losses();
    test.sql(&format!("UPDATE scoria_operations SET lease_until='2026-01-01' WHERE id={}", stolen.id()))
        .await;
    let thief = journal(&test, "node2");
    assert_eq!(thief.adopt(&Scope::Cluster("c@ceph".into())).await.unwrap().len(), 1);

    let stop = CancellationToken::new();
    let looping = tokio::spawn({
        let (old, stop) = (old.clone(), stop.clone());
        async move { old.lease_loop(stop).await }
    });
    timeout(LONG, losses.changed()).await.expect("the loss is noticed").unwrap();
    assert!(stolen.lost().is_cancelled() && other.lost().is_cancelled());
    assert_eq!(old.open_count(), 0);
    assert_ne!(old.owner().instance, former.instance);

    // What nobody took is taken up again, by a name of its own.
    let back = old.adopt(&Scope::Cluster("c@ceph".into())).await.unwrap();
    assert_eq!(back.iter().map(|o| o.id()).collect::<Vec<_>>(), [other.id()]);
    assert_eq!(back[0].former(), Some(&former));
    stop.cancel();
    looping.await.unwrap();
}

#[tokio::test]
async fn it_is_known_when_the_work_of_another_member_may_be_taken_up() {
    let test = TestDb::new().await;
    let cluster = Scope::Cluster("c@ceph".into());
    let (ours, theirs) = (journal(&test, "node1"), journal(&test, "node2"));
    assert_eq!(ours.next_orphan(&cluster).await.unwrap(), None);
    accept(&ours, request("a")).await;
    assert_eq!(ours.next_orphan(&cluster).await.unwrap(), None, "our own is none");
    let other = accept(&theirs, request("b")).await;
    let left = ours.next_orphan(&cluster).await.unwrap().expect("its lease runs out one day");
    assert!(left > Duration::ZERO && left <= options().lease, "{left:?}");
    test.sql(&format!("UPDATE scoria_operations SET lease_until='2026-01-01' WHERE id={}", other.id())).await;
    assert_eq!(ours.next_orphan(&cluster).await.unwrap(), Some(Duration::ZERO));
    assert_eq!(theirs.next_orphan(&cluster).await.unwrap().map(|left| left > Duration::ZERO), Some(true));
    assert_eq!(ours.adopt(&cluster).await.unwrap().len(), 1);
    assert_eq!(ours.next_orphan(&cluster).await.unwrap(), None);
    // A former instance on this host is dead.
    let again = journal(&test, "node1");
    assert_eq!(again.next_orphan(&cluster).await.unwrap(), Some(Duration::ZERO));
}

#[tokio::test]
async fn a_database_that_is_away_for_longer_than_the_lease_is_a_loss() {
    let test = TestDb::new().await;
    let proxy = Proxy::start(&test.config).await;
    let db = Db::connect(&proxy.config(&test.config));
    let quick = JournalOptions { lease: Duration::from_millis(1500), ..options() };
    let journal = Journal::new(db, Owner::new("node1"), quick);
    let operation = accept(&journal, request("a")).await;
    let mut losses = journal.losses();
    let stop = CancellationToken::new();
    let looping = tokio::spawn({
        let (journal, stop) = (journal.clone(), stop.clone());
        async move { journal.lease_loop(stop).await }
    });
    // Longer than the lease, with the database there: kept.
    sleep(Duration::from_millis(2500)).await;
    assert!(!operation.lost().is_cancelled());
    assert!(!losses.has_changed().unwrap());
    let port = proxy.port;
    proxy.stop().await;
    timeout(LONG, losses.changed()).await.expect("the loss is noticed").unwrap();
    assert!(operation.lost().is_cancelled());
    let proxy = Proxy::start_on(&test.config, port).await;
    let back = journal.adopt(&Scope::Cluster("c@ceph".into())).await.unwrap();
    assert_eq!(back.len(), 1);
    stop.cancel();
    looping.await.unwrap();
    proxy.stop().await;
}
