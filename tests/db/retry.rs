//! Real failures of a real server: deadlock, lock wait, killed connections, lost answers, absence.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use mysql_async::prelude::Queryable;
use scoria::db::error::{Failure, classify, failure};
use scoria::db::{Db, service};
use scoria::error::{Code, Error};
use tokio::time::{sleep, timeout};

use crate::proxy::{Commit, Proxy};
use crate::seed;
use crate::support::TestDb;

const ADD: &str = "UPDATE services SET report_count = report_count + 1 WHERE id = 1";

async fn count(test: &TestDb) -> String {
    test.row("SELECT report_count FROM services WHERE id = 1").await.remove(0)
}

#[tokio::test]
async fn a_deadlock_is_run_again() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let a = seed::volume(&test, 1, "available", "").await;
    let b = seed::volume(&test, 2, "available", "").await;
    let (a, b) = (
        format!("UPDATE volumes SET size=9 WHERE id='{a}'"),
        format!("UPDATE volumes SET size=size+1 WHERE id='{b}'"),
    );
    let rival = tokio::sync::Mutex::new(Some(test.raw().await));
    let finished = tokio::sync::Mutex::new(None);
    let attempts = AtomicU32::new(0);
    let seen = std::sync::Mutex::new(None);
    test.db
        .write("t", async |conn| {
            let first = attempts.fetch_add(1, Ordering::SeqCst) == 0;
            if first {
                // The rival has written more, so the server picks us as the victim.
                let mut rival = rival.lock().await.take().expect("one rival");
                rival
                    .query_drop(
                        "BEGIN; UPDATE services SET report_count=1; UPDATE volume_types SET is_public=0",
                    )
                    .await
                    .unwrap();
                rival.query_drop("UPDATE volume_type_extra_specs SET value='y'").await.unwrap();
                rival.query_drop(&a).await.unwrap();
                conn.batch_execute(&b).await?;
                let b = b.clone();
                *finished.lock().await =
                    Some(tokio::spawn(async move { rival.query_drop(format!("{b}; COMMIT")).await }));
                // Until the rival waits for us.
                sleep(Duration::from_millis(300)).await;
            } else {
                conn.batch_execute(&b).await?;
            }
            let result = conn.batch_execute(&a).await;
            if first {
                *seen.lock().unwrap() = result.as_ref().err().map(|e| (classify(e), e.to_string()));
            }
            Ok(result?)
        })
        .await
        .unwrap();
    let (kind, text) = seen.lock().unwrap().take().expect("a deadlock");
    assert_eq!(kind, Failure::Again, "{text}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
    finished.lock().await.take().unwrap().await.unwrap().unwrap();
    let sizes = test.rows("SELECT size FROM volumes ORDER BY id").await;
    assert_eq!(sizes, [["9"], ["4"]], "both have counted once");
}

#[tokio::test]
async fn a_lock_wait_is_run_again() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let mut holder = test.raw().await;
    holder.query_drop(format!("BEGIN; {ADD}")).await.unwrap();
    let holder = tokio::sync::Mutex::new(holder);
    let attempts = AtomicU32::new(0);
    let seen = std::sync::Mutex::new(None);
    test.db
        .write("t", async |conn| {
            if attempts.fetch_add(1, Ordering::SeqCst) > 0 {
                holder.lock().await.query_drop("COMMIT").await.unwrap();
            }
            conn.batch_execute("SET SESSION innodb_lock_wait_timeout = 1").await?;
            let result = conn.batch_execute(ADD).await;
            if let Err(e) = &result {
                *seen.lock().unwrap() = Some((classify(e), e.to_string()));
            }
            Ok(result?)
        })
        .await
        .unwrap();
    let (kind, text) = seen.lock().unwrap().take().expect("a lock wait timeout");
    assert_eq!(kind, Failure::Again, "{text}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
    assert_eq!(count(&test).await, "2");
}

#[tokio::test]
async fn a_killed_connection_is_replaced_and_its_work_done_once() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let killer = tokio::sync::Mutex::new(test.raw().await);
    let attempts = AtomicU32::new(0);
    let seen = std::sync::Mutex::new(None);
    test.db
        .write("t", async |conn| {
            conn.batch_execute(ADD).await?;
            if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
                use diesel::dsl::sql;
                use diesel::sql_types::BigInt;
                use diesel_async::RunQueryDsl;
                let id: i64 = diesel::select(sql::<BigInt>("CONNECTION_ID()")).get_result(conn).await?;
                killer.lock().await.query_drop(format!("KILL {id}")).await.unwrap();
            }
            let result = conn.batch_execute(ADD).await;
            if let Err(e) = &result {
                *seen.lock().unwrap() = Some((classify(e), e.to_string()));
            }
            Ok(result?)
        })
        .await
        .unwrap();
    let (kind, text) = seen.lock().unwrap().take().expect("a lost connection");
    assert_eq!(kind, Failure::Lost, "{text}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
    assert_eq!(count(&test).await, "2");
}

#[tokio::test]
async fn idle_connections_that_died_are_not_noticed_by_anybody() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    // Several connections at once, then all of them killed while they are idle.
    let busy =
        || async { test.db.read("t", async |conn| Ok(conn.batch_execute("DO SLEEP(0.2)").await?)).await };
    let all = futures::future::join_all((0..4).map(|_| busy())).await;
    assert!(all.iter().all(Result::is_ok));
    let mut killer = test.raw().await;
    let ids: Vec<u64> = killer
        .query(format!(
            "SELECT id FROM information_schema.processlist WHERE db='{}' AND id <> CONNECTION_ID()",
            test.config.name
        ))
        .await
        .unwrap();
    assert_eq!(ids.len(), 4);
    for id in ids {
        killer.query_drop(format!("KILL {id}")).await.unwrap();
    }
    assert!(test.db.write("t", async |conn| service::heartbeat(conn, 1, "nova").await).await.unwrap());
    assert_eq!(count(&test).await, "1");
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_not_repeated() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let proxy = Proxy::start(&test.config).await;
    let db = Db::connect(&proxy.config(&test.config));
    let db = db.with_patience(Duration::from_secs(2));
    for (mode, runs) in [(Commit::LoseAnswer, 1), (Commit::Lose, 2), (Commit::Swallow, 2)] {
        test.sql("UPDATE services SET report_count = 0").await;
        db.check().await.unwrap();
        proxy.next_commit(mode);
        let attempts = AtomicU32::new(0);
        let value = db
            .write("t", async |conn| {
                attempts.fetch_add(1, Ordering::SeqCst);
                conn.batch_execute(ADD).await?;
                Ok(17)
            })
            .await
            .unwrap();
        assert!(proxy.commit_came(), "{mode:?}");
        assert_eq!(value, 17);
        assert_eq!(attempts.load(Ordering::SeqCst), runs, "{mode:?}");
        assert_eq!(count(&test).await, "1", "{mode:?}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_commit_that_arrives_after_it_was_given_up_does_nothing() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let volume = seed::volume(&test, 1, "available", "").await;
    let proxy = Proxy::start(&test.config).await;
    let db = Db::connect(&proxy.config(&test.config));
    db.check().await.unwrap();
    proxy.next_commit(Commit::Delay);
    let insert = format!(
        "INSERT INTO volume_metadata (volume_id, `key`, value, deleted) VALUES ('{volume}','k','v',0)"
    );
    db.write("t", async |conn| Ok(conn.batch_execute(&insert).await?)).await.unwrap();
    let answer = proxy.deliver().await;
    assert!(String::from_utf8_lossy(&answer).contains("Duplicate entry"), "{answer:?}");
    assert_eq!(test.row("SELECT COUNT(*) FROM volume_metadata").await, ["1"]);
    proxy.stop().await;
}

#[tokio::test]
async fn a_statement_without_an_answer_is_given_up_and_run_again() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let db = test.db.clone().with_patience(Duration::from_millis(500));
    let attempts = AtomicU32::new(0);
    for write in [false, true] {
        attempts.store(0, Ordering::SeqCst);
        let work = async |conn: &mut scoria::db::Conn| {
            let first = attempts.fetch_add(1, Ordering::SeqCst) == 0;
            Ok(conn.batch_execute(if first { "DO SLEEP(3600)" } else { ADD }).await?)
        };
        if write { db.write("t", work).await } else { db.read("t", work).await }.unwrap();
        assert_eq!(attempts.load(Ordering::SeqCst), 2);
    }
    assert_eq!(count(&test).await, "2");
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let proxy = Proxy::start(&test.config).await;
    let config = proxy.config(&test.config);
    let port = proxy.port;
    let db = Db::connect(&config);
    assert!(db.write("t", async |conn| service::heartbeat(conn, 1, "nova").await).await.unwrap());
    proxy.stop().await;
    assert_eq!(db.check().await.unwrap_err().code(), Code::Database);
    let waiting = tokio::spawn({
        let db = db.clone();
        async move { db.write("t", async |conn| service::heartbeat(conn, 1, "nova").await).await }
    });
    sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    let proxy = Proxy::start_on(&test.config, port).await;
    assert!(timeout(Duration::from_secs(20), waiting).await.expect("it comes back").unwrap().unwrap());
    assert_eq!(count(&test).await, "2");
    proxy.stop().await;
}

#[tokio::test]
async fn an_error_of_the_caller_rolls_back_and_is_not_repeated() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let attempts = AtomicU32::new(0);
    let error = test
        .db
        .write("t", async |conn| {
            attempts.fetch_add(1, Ordering::SeqCst);
            conn.batch_execute(ADD).await?;
            Err::<(), _>(Error::new(Code::VolumeBusy, "no"))
        })
        .await
        .unwrap_err();
    assert_eq!((error.code(), attempts.load(Ordering::SeqCst)), (Code::VolumeBusy, 1));
    assert_eq!(count(&test).await, "0");
    let error = test
        .db
        .write("t", async |conn| Ok(conn.batch_execute("SELECT no_such_column FROM services").await?))
        .await
        .unwrap_err();
    assert_eq!(failure(&error), Failure::Final);
}

#[tokio::test]
async fn a_cancelled_transaction_leaves_nothing_behind() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let cancelled = timeout(
        Duration::from_millis(300),
        test.db.write("t", async |conn| {
            conn.batch_execute(ADD).await?;
            sleep(Duration::from_secs(3600)).await;
            Ok(())
        }),
    )
    .await;
    assert!(cancelled.is_err());
    // Neither its lock nor its change has survived, and its connection is not used again.
    test.db.write("t", async |conn| Ok(conn.batch_execute(ADD).await?)).await.unwrap();
    assert_eq!(count(&test).await, "1");
}

#[tokio::test]
async fn a_transaction_inside_a_transaction_is_a_savepoint() {
    use diesel_async::AsyncConnection;
    let test = TestDb::new().await;
    seed::base(&test).await;
    test.db
        .write("t", async |conn| {
            conn.batch_execute(ADD).await?;
            let inner: Result<(), Error> = conn
                .transaction(async |conn| {
                    conn.batch_execute(ADD).await?;
                    Err(Error::new(Code::VolumeBusy, "undo this part"))
                })
                .await;
            assert!(inner.is_err());
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(count(&test).await, "1");
}

#[tokio::test]
async fn a_session_has_the_settings_that_the_rest_relies_on() {
    let test = TestDb::new().await;
    let row = test
        .db
        .read("t", async |conn| {
            use diesel::dsl::sql;
            use diesel::sql_types::Text;
            use diesel_async::RunQueryDsl;
            let text: String = diesel::select(sql::<Text>(
                "CONCAT_WS(' ', @@time_zone, @@lc_messages, @@session.tx_isolation, @@character_set_connection,
                 LOCATE('STRICT_ALL_TABLES', @@sql_mode) > 0)",
            ))
            .get_result(conn)
            .await?;
            Ok(text)
        })
        .await
        .unwrap();
    assert_eq!(row, "+00:00 en_US READ-COMMITTED utf8mb4 1");
}
