//! The journal: accepted once, owned by one, resumed from its steps, answered in the end.

use std::time::Duration;

use scoria::db::migration;
use scoria::db::volume::{self, VolumeChanges};
use scoria::db::worker::Claim;
use scoria::error::{Code, Error};
use scoria::journal::{
    Accept, Ending, Journal, JournalOptions, ListingFilter, NewOperation, Operation, Outcome, Owner, ReplyTo,
};
use scoria::model::{Scope, VolumeEvent};
use serde_json::json;

use crate::seed::{self, BACKEND};
use crate::support::TestDb;

pub fn options() -> JournalOptions {
    JournalOptions { lease: Duration::from_secs(10), retention: Duration::from_secs(86400) }
}

pub fn journal(test: &TestDb, host: &str) -> Journal {
    Journal::new(test.db.clone(), Owner::new(host), options())
}

pub fn request(unique_id: &str) -> NewOperation {
    NewOperation {
        unique_id: unique_id.into(),
        method: "create_volume".into(),
        backend_host: BACKEND.into(),
        cluster: Some("c@ceph".into()),
        request: r#"{"method":"create_volume"}"#.into(),
        resource: Some(("Volume".into(), seed::id(1, 1))),
        ..NewOperation::default()
    }
}

pub async fn accept(journal: &Journal, new: NewOperation) -> Operation {
    match journal.accept(new).await.unwrap() {
        Accept::New(operation) => operation,
        Accept::Duplicate => panic!("a duplicate"),
    }
}

fn scope() -> Scope {
    Scope::Host(BACKEND.to_owned())
}

#[tokio::test]
async fn a_message_is_accepted_once_together_with_its_worker() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let journal = journal(&test, "node1");
    let claim = Claim {
        resource_type: "Volume".into(),
        resource_id: seed::id(1, 1),
        status: "creating".into(),
        service_id: 1,
    };
    let new = NewOperation { claim: Some(claim), ..request("u1") };
    let operation = accept(&journal, new.clone()).await;
    assert_eq!(operation.worker().and_then(|w| w.service_id), Some(1));
    assert_eq!((operation.epoch(), operation.is_adopted()), (1, false));
    assert!(matches!(journal.accept(new.clone()).await.unwrap(), Accept::Duplicate));
    journal.finish(&operation, &Outcome::succeeded()).await.unwrap();
    assert!(matches!(journal.accept(new).await.unwrap(), Accept::Duplicate), "also after its end");
    assert_eq!(journal.open_count(), 0);

    // A claim that cannot be had leaves no operation behind.
    let impossible = Claim {
        resource_type: "Volume".into(),
        resource_id: seed::id(1, 2),
        status: "creating".into(),
        service_id: 4711,
    };
    let refused = journal.accept(NewOperation { claim: Some(impossible), ..request("u2") }).await;
    assert!(refused.is_err());
    assert_eq!(test.row("SELECT COUNT(*) FROM scoria_operations").await, ["1"]);
}

#[tokio::test]
async fn a_message_with_an_impossible_id_is_malformed_and_one_without_is_accepted() {
    let test = TestDb::new().await;
    let journal = journal(&test, "node1");
    let refused = journal.accept(request(&"x".repeat(65))).await.unwrap_err();
    assert_eq!(refused.code(), Code::MalformedMessage);
    for _ in 0..2 {
        assert_eq!(accept(&journal, request("")).await.unique_id().len(), 32);
    }
}

#[tokio::test]
async fn a_successor_waits_for_the_step_that_is_being_written() {
    let test = TestDb::new().await;
    let old = journal(&test, "node1");
    let before = accept(&old, request("u1")).await;
    let written = std::sync::Arc::new(tokio::sync::Notify::new());
    let writing = tokio::spawn({
        let written = written.clone();
        async move {
            before
                .write("t", async |conn| {
                    before.item_step_in(conn, "v", "promoted", &1).await?;
                    written.notify_one();
                    tokio::time::sleep(Duration::from_millis(700)).await;
                    Ok(())
                })
                .await
        }
    });
    written.notified().await;
    let adopted = journal(&test, "node1").adopt(&scope()).await.unwrap();
    assert_eq!(adopted[0].items().await.unwrap().len(), 1, "nothing of the former comes later");
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn many_deliveries_of_one_message_make_one_operation() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let journal = journal(&test, "node1");
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.accept(request("same")).await })
        })
        .collect();
    let mut new = 0;
    for task in tasks {
        new += u32::from(matches!(task.await.unwrap().unwrap(), Accept::New(_)));
    }
    assert_eq!(new, 1);
}

#[tokio::test]
async fn steps_are_kept_per_resource_and_read_back() {
    let test = TestDb::new().await;
    let journal = journal(&test, "node1");
    let operation = accept(&journal, request("u1")).await;
    assert_eq!(operation.data::<u32>().await.unwrap(), None);
    operation.step("planned", &json!({"target": "b"})).await.unwrap();
    operation.step("planned", &json!({"target": "b"})).await.unwrap();
    operation.step("demoting", &7_u32).await.unwrap();
    assert_eq!(operation.data::<u32>().await.unwrap(), Some(("demoting".into(), 7)));
    assert_eq!(operation.data::<String>().await.unwrap_err().code(), Code::Internal);
    let many: Vec<(String, u32)> = (0..1200).map(|n| (seed::id(1, n), n)).collect();
    operation.item_steps("promoted", &many).await.unwrap();
    operation.item_step(&many[3].0, "verified", &"w").await.unwrap();
    let items = operation.items().await.unwrap();
    assert_eq!(items.len(), 1200);
    assert_eq!((items[3].name.as_str(), items[3].data.clone()), ("verified", json!("w")));
    assert_eq!(items[1199].parse::<u32>().unwrap(), 1199);
    operation.item_steps::<u32>("none", &[]).await.unwrap();
    assert_eq!(journal.steps_of(operation.id()).await.unwrap().len(), 1201);
}

#[tokio::test]
async fn the_end_and_the_last_change_are_one() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::volume(&test, 1, "creating", "").await;
    let journal = journal(&test, "node1");
    let operation = accept(&journal, request("u1")).await;
    let none = VolumeChanges::default();
    let failed = journal
        .complete(&operation, &Outcome::succeeded(), async |conn| {
            volume::transition(conn, &id, VolumeEvent::Created, &none).await?;
            Err::<(), _>(Error::new(Code::VolumeBusy, "no"))
        })
        .await;
    assert!(failed.is_err());
    let state = "SELECT o.state, v.status FROM scoria_operations o, volumes v";
    assert_eq!(test.row(state).await, ["open", "creating"]);
    journal
        .complete(&operation, &Outcome::succeeded(), async |conn| {
            volume::transition(conn, &id, VolumeEvent::Created, &none).await
        })
        .await
        .unwrap();
    assert_eq!(test.row(state).await, ["closed", "available"]);
    let twice = journal.finish(&operation, &Outcome::succeeded()).await.unwrap_err();
    assert_eq!(twice.code(), Code::Cancelled);
    assert_eq!(operation.step("late", &1).await.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn the_next_instance_on_the_machine_takes_over_at_once_and_fences_the_former() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::volume(&test, 1, "creating", "").await;
    let old = journal(&test, "node1");
    let before = accept(&old, request("u1")).await;
    before.step("cloned", &5_u32).await.unwrap();
    before.item_step("v", "promoted", &()).await.unwrap();
    let elsewhere = journal(&test, "node2");
    let nothing = elsewhere.adopt(&Scope::Cluster("c@ceph".into())).await.unwrap();
    assert!(nothing.is_empty(), "another machine waits for the lease");
    assert!(old.adopt(&scope()).await.unwrap().is_empty(), "nobody adopts what he holds");

    let new = journal(&test, "node1");
    let mut adopted = new.adopt(&scope()).await.unwrap();
    assert_eq!(adopted.len(), 1);
    let after = adopted.remove(0);
    assert_eq!((after.id(), after.epoch()), (before.id(), 2));
    assert_eq!(after.former(), Some(&old.owner()));
    assert_eq!(after.request(), before.request());
    assert_eq!(after.resource(), before.resource());
    assert_eq!(after.data::<u32>().await.unwrap(), Some(("cloned".into(), 5)));
    assert_eq!(after.items().await.unwrap().len(), 1);
    assert!(new.adopt(&scope()).await.unwrap().is_empty());

    // Whatever the former still tries comes to nothing.
    let none = VolumeChanges::default();
    let codes = [
        before.step("late", &1).await.unwrap_err().code(),
        before.item_steps("late", &[("v".to_owned(), 1)]).await.unwrap_err().code(),
        old.finish(&before, &Outcome::succeeded()).await.unwrap_err().code(),
        before
            .write("late", async |conn| volume::transition(conn, &id, VolumeEvent::Created, &none).await)
            .await
            .unwrap_err()
            .code(),
    ];
    assert_eq!(codes, [Code::Cancelled; 4]);
    assert_eq!(test.row("SELECT status FROM volumes").await, ["creating"]);
    assert_eq!(after.data::<u32>().await.unwrap(), Some(("cloned".into(), 5)));
    after.step("resumed", &6_u32).await.unwrap();
    new.finish(&after, &Outcome::succeeded()).await.unwrap();
}

#[tokio::test]
async fn another_machine_takes_over_when_the_lease_has_run_out() {
    let test = TestDb::new().await;
    let old = journal(&test, "node1");
    let on_time = NewOperation { timeout: Some(Duration::from_secs(3600)), ..request("u1") };
    let too_late = NewOperation { timeout: Some(Duration::ZERO), ..request("u2") };
    accept(&old, on_time).await;
    accept(&old, too_late).await;
    accept(&old, NewOperation { backend_host: "node1@other".into(), cluster: None, ..request("u3") }).await;
    test.sql("UPDATE scoria_operations SET lease_until = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND").await;
    let new = journal(&test, "node2");
    let adopted = new.adopt(&Scope::Cluster("c@ceph".into())).await.unwrap();
    let seen: Vec<(&str, bool)> = adopted.iter().map(|o| (o.unique_id(), o.is_overdue())).collect();
    assert_eq!(seen, [("u1", false), ("u2", true)]);
    assert_eq!(new.open_count(), 2);
}

#[tokio::test]
async fn two_adopters_never_get_the_same_operation() {
    let test = TestDb::new().await;
    let old = journal(&test, "node1");
    for n in 0..20 {
        accept(&old, request(&format!("u{n}"))).await;
    }
    test.sql("UPDATE scoria_operations SET lease_until = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND").await;
    let rivals: Vec<Journal> = (2..6).map(|n| journal(&test, &format!("node{n}"))).collect();
    let cluster = Scope::Cluster("c@ceph".into());
    let got = futures::future::join_all(rivals.iter().map(|j| j.adopt(&cluster))).await;
    let mut ids: Vec<i64> = got.into_iter().flat_map(|r| r.unwrap()).map(|o| o.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 20);
    assert_eq!(rivals.iter().map(Journal::open_count).sum::<usize>(), 20);
    assert_eq!(test.row("SELECT MIN(epoch), MAX(epoch) FROM scoria_operations").await, ["2", "2"]);
}

#[tokio::test]
async fn a_reply_outlives_the_service_that_could_not_send_it() {
    let test = TestDb::new().await;
    let old = journal(&test, "node1");
    let to = ReplyTo { queue: "reply_q".into(), msg_id: "m1".into() };
    let call = |n: &str, timeout| NewOperation {
        reply: Some(to.clone()),
        timeout: Some(Duration::from_secs(timeout)),
        ..request(n)
    };
    let reply = json!({"result": [1], "failure": null, "ending": true});
    for (n, timeout) in [("sent", 60), ("unsent", 60), ("late", 0)] {
        let operation = accept(&old, call(n, timeout)).await;
        assert_eq!(operation.reply_to(), Some(&to));
        old.finish(&operation, &Outcome::succeeded().with_reply(reply.clone())).await.unwrap();
        if n == "sent" {
            old.mark_replied(operation.id()).await.unwrap();
        }
    }
    assert!(old.pending_replies(&scope()).await.unwrap().is_empty(), "it is about to send its own");
    assert!(
        journal(&test, "node2").pending_replies(&scope()).await.unwrap().is_empty(),
        "too early for others"
    );
    let new = journal(&test, "node1");
    let pending = new.pending_replies(&scope()).await.unwrap();
    assert_eq!(pending.len(), 1);
    assert_eq!((&pending[0].to, &pending[0].reply), (&to, &reply));
    new.mark_replied(pending[0].operation_id).await.unwrap();
    assert!(new.pending_replies(&scope()).await.unwrap().is_empty());
    assert_eq!(
        test.row("SELECT reply, replied_at IS NOT NULL FROM scoria_operations WHERE unique_id='unsent'")
            .await,
        ["NULL", "1"]
    );
}

#[tokio::test]
async fn what_is_open_can_be_asked_and_what_is_old_is_purged() {
    let test = TestDb::new().await;
    let journal = journal(&test, "node1");
    let volume = accept(&journal, request("u1")).await;
    let failover =
        accept(&journal, NewOperation { method: "failover_host".into(), resource: None, ..request("u2") })
            .await;
    assert_eq!(journal.open_for(&seed::id(1, 1)).await.unwrap().len(), 1);
    let methods = ["failover", "failover_host"];
    let found = journal.open_methods(&scope(), &methods).await.unwrap();
    assert_eq!(found.iter().map(|o| o.id).collect::<Vec<_>>(), [failover.id()]);
    assert!(journal.open_methods(&Scope::Host("x@y".into()), &methods).await.unwrap().is_empty());

    volume.step("s", &1).await.unwrap();
    let failed = Outcome::failed(&Error::new(Code::VolumeBackend, "no").detail("x".repeat(40_000)));
    assert_eq!(failed.ending, Ending::Failed);
    journal.finish(&volume, &failed).await.unwrap();
    assert!(journal.open_for(&seed::id(1, 1)).await.unwrap().is_empty());
    let all = journal.list(&ListingFilter::default()).await.unwrap();
    assert_eq!(all.iter().map(|o| o.state.as_str()).collect::<Vec<_>>(), ["open", "closed"]);
    assert_eq!(all[1].outcome.as_deref(), Some("failed"));
    let open = ListingFilter { open_only: true, method: Some("failover_host".into()), ..Default::default() };
    assert_eq!(journal.list(&open).await.unwrap().len(), 1);

    assert_eq!(journal.purge().await.unwrap(), 0);
    test.sql(
        "UPDATE scoria_operations SET closed_at = UTC_TIMESTAMP(6) - INTERVAL 2 DAY WHERE state='closed';
         UPDATE scoria_commits SET created_at = UTC_TIMESTAMP() - INTERVAL 2 HOUR",
    )
    .await;
    assert_eq!(journal.purge().await.unwrap(), 1);
    let left = test
        .row(
            "SELECT (SELECT COUNT(*) FROM scoria_operations), (SELECT COUNT(*) FROM scoria_operation_steps),
                    (SELECT COUNT(*) FROM scoria_commits WHERE created_at < UTC_TIMESTAMP() - INTERVAL 1 HOUR)",
        )
        .await;
    assert_eq!(left, ["1", "0", "0"]);
}

#[tokio::test]
async fn clients_of_dead_workers_can_be_found_by_instance_and_by_machine() {
    let test = TestDb::new().await;
    let old = journal(&test, "node1");
    old.record_client("fsid-a", "10.0.0.1:0/1", 11).await.unwrap();
    old.record_client("fsid-a", "10.0.0.1:0/1", 11).await.unwrap();
    old.record_client("fsid-b", "10.0.0.1:0/2", 12).await.unwrap();
    journal(&test, "node2").record_client("fsid-a", "10.0.0.2:0/1", 13).await.unwrap();
    assert!(old.dead_clients().await.unwrap().is_empty());
    assert_eq!(old.clients_of(&old.owner().instance).await.unwrap().len(), 2);
    let new = journal(&test, "node1");
    let dead = new.dead_clients().await.unwrap();
    assert_eq!(dead.iter().map(|c| c.pid).collect::<Vec<_>>(), [11, 12]);
    new.forget_client("fsid-a", "10.0.0.1:0/1").await.unwrap();
    assert_eq!(new.dead_clients().await.unwrap().len(), 1);
    new.forget_clients_of(&old.owner().instance).await.unwrap();
    assert!(new.dead_clients().await.unwrap().is_empty());
    assert_eq!(test.row("SELECT COUNT(*) FROM scoria_rbd_clients").await, ["1"]);
}

#[tokio::test]
async fn services_that_start_together_migrate_once_and_leave_cinders_tables_alone() {
    let test = TestDb::without_migrations().await;
    let tables = "SELECT table_name, table_rows IS NULL, table_collation FROM information_schema.tables
                  WHERE table_schema = DATABASE() AND table_name NOT LIKE 'scoria%' ORDER BY 1";
    let before = test.rows(tables).await;
    let runs = futures::future::join_all((0..6).map(|_| migration::run(&test.db))).await;
    let applied: usize = runs.into_iter().map(|r| r.unwrap()).sum();
    assert_eq!(applied, test.rows("SELECT version FROM scoria_schema_migrations").await.len());
    assert!(applied > 0);
    assert_eq!(test.rows(tables).await, before);
    let keys = test
        .rows(
            "SELECT constraint_name FROM information_schema.referential_constraints
             WHERE constraint_schema = DATABASE() AND table_name LIKE 'scoria%'",
        )
        .await;
    assert!(keys.is_empty(), "no foreign keys");
    test.sql("INSERT INTO scoria_schema_migrations VALUES (4711, 'future', NOW())").await;
    assert_eq!(migration::run(&test.db).await.unwrap_err().code(), Code::Config);
}
