//! scoria-manage against a real MariaDB: the program itself, with the service played by a journal.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "db_cli/failover.rs"]
mod failover;

use std::io::{BufRead, Read};
use std::process::Output;
use std::time::Duration;

use scoria::journal::{Accept, Journal, JournalOptions, NewOperation, Outcome, Owner, Submitted};
use scoria::model::Scope;
use scoria::replication::orders::{Order, RESYNC, RETRY, Request, Resync};
use scoria::replication::plan::{Reason, Step as FailoverStep};
use scoria::replication::resync::plan::Step;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "common/env.rs"]
mod env;
#[path = "db_cli/lag.rs"]
mod lag;
#[path = "db_cli/questions.rs"]
mod questions;
#[path = "db_cli/reset.rs"]
mod reset;
#[path = "db/seed.rs"]
#[allow(dead_code)]
mod seed;
#[path = "db_cli/sites.rs"]
mod sites;
#[path = "common/db.rs"]
mod support;

use seed::BACKEND;
use support::TestDb;

/// A database with one replicated backend `ceph` (sites `default` and `b`) and one plain.
struct Site {
    test: TestDb,
    dir: TempDir,
    journal: Journal,
}

impl Site {
    async fn new() -> Site {
        Site::over(TestDb::new().await).await
    }

    async fn over(test: TestDb) -> Site {
        let config = &test.config;
        let password =
            config.password.as_ref().map(|p| format!(":{}", p.expose_secret())).unwrap_or_default();
        let socket =
            config.socket.as_ref().map(|s| format!("?unix_socket={}", s.display())).unwrap_or_default();
        let text = format!(
            "[DEFAULT]\nhost = node1\nenabled_backends = ceph,plain\ntransport_url = rabbit://u:p@127.0.0.1/\n\
             [database]\nconnection = mysql+pymysql://{}{password}@{}:{}/{}{socket}\n\
             [ceph]\nvolume_driver = cinder.volume.drivers.rbd.RBDDriver\nrbd_pool = volumes\n\
             replication_device = backend_id:b,conf:/nonexistent/b.conf,user:cinder\n\
             [plain]\nvolume_driver = cinder.volume.drivers.rbd.RBDDriver\nrbd_pool = volumes2\n",
            config.user, config.host, config.port, config.name
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cinder.conf"), text).unwrap();
        seed::base(&test).await;
        test.sql("UPDATE services SET replication_status='enabled', frozen=0, updated_at=UTC_TIMESTAMP()")
            .await;
        let options =
            JournalOptions { lease: Duration::from_secs(10), retention: Duration::from_secs(86400) };
        let journal = Journal::new(test.db.clone(), Owner::new("node1"), options);
        Site { test, dir, journal }
    }

    fn command(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::cargo_bin("scoria-manage").unwrap();
        command.env_clear().arg("--config-file").arg(self.dir.path().join("cinder.conf"));
        command
    }

    /// Runs it on a thread of its own, so that the test can play the service meanwhile.
    async fn run(&self, line: &str) -> Output {
        self.answer(line, "").await
    }

    async fn answer(&self, line: &str, typed: &'static str) -> Output {
        let mut command = self.command();
        command.args(line.split_whitespace()).write_stdin(typed);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Standard output of a command that succeeds.
    async fn good(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert!(output.status.success(), "{line}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("--format json {line}")).await).unwrap()
    }

    /// Standard error of a command that is refused.
    async fn refused(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert_eq!(output.status.code(), Some(1), "{line}: {}", said(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    async fn operations(&self) -> Vec<Vec<String>> {
        self.test.rows("SELECT method, state, request FROM scoria_operations ORDER BY id").await
    }

    /// A failover as the service has it under way.
    async fn failover(&self) -> scoria::journal::Operation {
        let new = NewOperation {
            unique_id: "f1".into(),
            method: "failover_host".into(),
            backend_host: BACKEND.into(),
            request: r#"{"method":"failover_host","args":{}}"#.into(),
            ..NewOperation::default()
        };
        match self.journal.accept(new).await.unwrap() {
            Accept::New(operation) => operation,
            Accept::Duplicate => panic!("a duplicate"),
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn order(discard: &str) -> NewOperation {
    let request = Request::new(Order::Resync(Resync { discard: discard.into(), volumes: None }));
    NewOperation {
        unique_id: uuid::Uuid::new_v4().to_string(),
        method: RESYNC.into(),
        backend_host: BACKEND.into(),
        request: request.to_text().unwrap(),
        ..NewOperation::default()
    }
}

#[tokio::test]
async fn an_order_waits_for_its_backend_and_is_not_given_twice() {
    let site = Site::new().await;
    let Submitted::New(id) = site.journal.submit(&order("default")).await.unwrap() else { panic!() };
    assert_eq!(site.journal.submit(&order("default")).await.unwrap(), Submitted::Open(id));
    assert!(matches!(site.journal.submit(&order("b")).await.unwrap(), Submitted::New(_)), "another order");
    let elsewhere = NewOperation { backend_host: "node2@ceph".into(), ..order("default") };
    assert!(matches!(site.journal.submit(&elsewhere).await.unwrap(), Submitted::New(_)));
    assert!(site.journal.find(id).await.unwrap().unwrap().is_waiting());

    let adopted = site.journal.adopt(&Scope::Host(BACKEND.into())).await.unwrap();
    assert_eq!(adopted.len(), 2);
    let mine = &adopted[0];
    assert_eq!((mine.id(), mine.epoch(), mine.former()), (id, 1, None), "nobody had it before");
    assert!(!mine.is_overdue());
    let request = Request::parse(mine.request()).unwrap();
    assert_eq!(request.order, Order::Resync(Resync { discard: "default".into(), volumes: None }));
    assert!(!site.journal.find(id).await.unwrap().unwrap().is_waiting());
    assert!(site.journal.adopt(&Scope::Host(BACKEND.into())).await.unwrap().is_empty());

    site.journal.finish(mine, &Outcome::succeeded()).await.unwrap();
    assert!(matches!(site.journal.submit(&order("default")).await.unwrap(), Submitted::New(_)));
}

#[tokio::test]
async fn two_operators_at_once_give_one_order() {
    let site = Site::new().await;
    let other = Journal::new(
        site.test.db.clone(),
        Owner::new("x"),
        JournalOptions { lease: Duration::from_secs(10), retention: Duration::from_secs(1) },
    );
    for round in 0..5 {
        let discard = format!("site-{round}");
        let (first, second) = (order(&discard), order(&discard));
        let (a, b) = tokio::join!(site.journal.submit(&first), other.submit(&second));
        let (a, b) = (a.unwrap(), b.unwrap());
        let one_each = matches!((a, b), (Submitted::New(x), Submitted::Open(y)) | (Submitted::Open(x), Submitted::New(y)) if x == y);
        assert!(one_each, "{a:?} {b:?}");
    }
}

#[tokio::test]
async fn a_member_of_the_cluster_takes_an_order_for_it() {
    let site = Site::new().await;
    let new = NewOperation { cluster: Some("c@ceph".into()), ..order("default") };
    assert!(matches!(site.journal.submit(&new).await.unwrap(), Submitted::New(_)));
    let twin = NewOperation {
        backend_host: "node2@ceph".into(),
        cluster: Some("c@ceph".into()),
        ..order("default")
    };
    assert!(
        matches!(site.journal.submit(&twin).await.unwrap(), Submitted::Open(_)),
        "one cluster, one order"
    );
    assert_eq!(site.journal.adopt(&Scope::Cluster("c@ceph".into())).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_resync_is_previewed_confirmed_and_ordered() {
    let site = Site::new().await;
    let v1 = seed::volume(&site.test, 1, "available", ", replication_status='failed-over'").await;
    let v2 = seed::volume(&site.test, 2, "in-use", ", replication_status='failover-error'").await;
    seed::volume(&site.test, 3, "available", ", replication_status='disabled'").await;
    site.test.sql("UPDATE services SET replication_status='failed-over', active_backend_id='b'").await;
    let line = format!("replication resync --backend {BACKEND} --discard default");

    let preview = site.json(&format!("{line} --dry-run")).await;
    let ids: Vec<&str> =
        preview["volumes"].as_array().unwrap().iter().map(|v| v["volume"].as_str().unwrap()).collect();
    assert_eq!(ids, [v1.as_str(), v2.as_str()]);
    assert_eq!(preview["volumes"][0]["keep"], "b");
    for wrong in ["", "yes\n", "b\n"] {
        let output = site.answer(&line, wrong).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("Nothing was done"), "{}", said(&output));
    }
    assert!(site.operations().await.is_empty(), "nothing without the site's name");

    let output = site.answer(&format!("{line} --no-wait"), "default\n").await;
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("operation show"), "{}", said(&output));
    let operations = site.operations().await;
    assert_eq!(operations[0][..2], [RESYNC, "open"]);
    let request: Value = serde_json::from_str(&operations[0][2]).unwrap();
    assert_eq!(request["args"], json!({"discard": "default", "volumes": null}));
    assert!(request["request_id"].as_str().unwrap().starts_with("req-"));

    let again = site.json(&format!("{line} --yes --no-wait")).await;
    assert_eq!(again["new"], false);
    let one = site.json(&format!("{line} --yes --no-wait --volume {v2}")).await;
    assert_eq!(one["new"], true, "other arguments are another order");
    let request: Value = serde_json::from_str(&site.operations().await[1][2]).unwrap();
    assert_eq!(request["args"]["volumes"], json!([v2]));
}

#[tokio::test]
async fn a_resync_that_could_lose_live_data_is_refused() {
    let site = Site::new().await;
    let volume = seed::volume(&site.test, 1, "available", ", replication_status='enabled'").await;
    let resync = |backend: &str, rest: &str| format!("replication resync --backend {backend} --yes {rest}");
    for (line, reason) in [
        (resync(BACKEND, "--discard default"), "is the active site"),
        (resync(BACKEND, &format!("--discard default --volume {volume}")), "served from default"),
        (resync(BACKEND, "--discard c"), "its sites are: default, b"),
        (resync("node1@plain", "--discard default"), "not replicated"),
        (resync("node9@ceph", "--discard b"), "the backends are: node1@ceph, node1@plain"),
        (resync(BACKEND, &format!("--discard b --volume {}", seed::id(1, 9))), "not a replicated volume"),
    ] {
        let text = site.refused(&line).await;
        assert!(text.contains(reason), "{line}: {text}");
    }
    let open = site.failover().await;
    let text = site.refused(&resync(BACKEND, "--discard b")).await;
    assert!(text.contains(&format!("Operation {} is still moving", open.id())), "{text}");
    site.journal.finish(&open, &Outcome::succeeded()).await.unwrap();
    assert_eq!(site.operations().await.len(), 1);

    // A backend whose section is not read here: its sites cannot be known.
    site.test
        .sql(
            "INSERT INTO services (id, host, `binary`, topic, report_count, disabled, uuid, deleted)
               VALUES (7, 'far@ceph', 'cinder-volume', 'cinder-volume', 0, 0, 'x', 0)",
        )
        .await;
    let text = site.refused(&resync("far@ceph", "--discard b")).await;
    assert!(text.contains("not in the configuration read here"), "{text}");
}

#[tokio::test]
async fn an_order_is_followed_to_its_end_and_failures_are_told() {
    let site = Site::new().await;
    let v1 = seed::volume(&site.test, 1, "available", ", replication_status='failover-error'").await;
    let v2 = seed::volume(&site.test, 2, "available", ", replication_status='failover-error'").await;
    let mut command = site.command();
    command.args(["replication", "retry", "--backend", "ceph"]);
    let program = tokio::task::spawn_blocking(move || command.output().unwrap());
    let adopted = loop {
        let mut found = site.journal.adopt(&Scope::Host(BACKEND.into())).await.unwrap();
        if let Some(operation) = found.pop() {
            break operation;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(adopted.method(), RETRY);
    assert!(!program.is_finished(), "it waits for the end");
    let steps = [(v1.clone(), FailoverStep::Moved)];
    adopted.item_steps("volume", &steps).await.unwrap();
    let steps = [(v2.clone(), FailoverStep::Failed { reason: Reason::PeerNotReady })];
    adopted.item_steps("volume", &steps).await.unwrap();
    site.journal.finish(&adopted, &Outcome::succeeded()).await.unwrap();
    let output = program.await.unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "a volume has failed\n{text}");
    assert!(text.contains("failed 1, moved 1"), "{text}");
    assert!(text.contains(&v2) && text.contains(Reason::PeerNotReady.text()), "{text}");
    assert!(text.contains("says replaying, then replication retry"), "{text}");

    let shown = site.run(&format!("--format json operation show {} --all", adopted.id())).await;
    assert_eq!(shown.status.code(), Some(1));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["failed"][0]["volume"], v2.as_str());
    assert_eq!(shown["items"].as_array().unwrap().len(), 2);
    assert_eq!(shown["order"]["method"], RETRY);
    assert_eq!(shown["operation"]["outcome"], "succeeded");
}

#[tokio::test]
async fn a_good_end_is_exit_code_zero() {
    let site = Site::new().await;
    let Submitted::New(id) = site.journal.submit(&order("b")).await.unwrap() else { panic!() };
    let adopted = site.journal.adopt(&Scope::Host(BACKEND.into())).await.unwrap().pop().unwrap();
    adopted.step("running", &json!({})).await.unwrap();
    adopted.item_steps("volume", &[(seed::id(1, 1), Step::Resyncing { discarded: None })]).await.unwrap();
    let progress = site.journal.watch(id).await.unwrap().unwrap();
    assert_eq!(progress.step.as_deref(), Some("running"));
    assert_eq!(progress.items, [("resyncing".to_owned(), 1)], "the tag of the step's data");
    assert!(site.good(&format!("operation show {id}")).await.contains("resyncing 1"));
    assert_eq!(site.json("operation list --open").await[0]["state"], "open");
    adopted.item_steps("volume", &[(seed::id(1, 1), Step::Replaying)]).await.unwrap();
    site.journal.finish(&adopted, &Outcome::succeeded()).await.unwrap();
    let text = site.good(&format!("operation show {id} --follow")).await;
    assert!(text.contains("succeeded") && text.contains("replaying 1"), "{text}");
    assert_eq!(site.json("operation list --open").await, json!([]));
    assert_eq!(site.json(&format!("operation list --backend {BACKEND} --limit 1")).await[0]["id"], id);
    assert_eq!(site.json("operation list --backend other@ceph").await, json!([]));
    assert!(site.refused("operation show 4711").await.contains("no operation 4711"));
}

#[tokio::test]
async fn interrupting_the_watching_leaves_the_order() {
    let site = Site::new().await;
    let Submitted::New(id) = site.journal.submit(&order("b")).await.unwrap() else { panic!() };
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_scoria-manage"))
        .env_clear()
        .arg("--config-file")
        .arg(site.dir.path().join("cinder.conf"))
        .args(["operation", "show", &id.to_string(), "--follow"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line tells that it is watching.
    let mut stderr = std::io::BufReader::new(program.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for the service to take it"), "{line}");
    let pid = program.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = program.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    stderr.read_to_string(&mut line).unwrap();
    assert!(line.contains(&format!("operation show {id} --follow")), "{line}");
    assert!(site.journal.find(id).await.unwrap().unwrap().is_waiting(), "untouched");
}

#[tokio::test]
async fn nothing_to_retry_orders_nothing() {
    let site = Site::new().await;
    seed::volume(&site.test, 1, "available", ", replication_status='enabled'").await;
    assert!(site.good(&format!("replication retry --backend {BACKEND}")).await.contains("nothing to retry"));
    let healthy = seed::id(1, 1);
    let text = site.refused(&format!("replication retry --backend {BACKEND} --volume {healthy}")).await;
    assert!(text.contains("in failover-error"), "{text}");
    assert!(site.operations().await.is_empty());
}

#[tokio::test]
async fn status_shows_rows_volumes_strays_and_the_failover() {
    let site = Site::new().await;
    let v1 = seed::volume(&site.test, 1, "available", ", replication_status='failover-error'").await;
    seed::volume(&site.test, 2, "available", ", replication_status='enabled'").await;
    seed::volume(&site.test, 3, "available", "").await;
    site.test
        .sql(&format!(
            "INSERT INTO scoria_strays VALUES ('{v1}', 'b', UTC_TIMESTAMP(6)), ('gone', 'b', UTC_TIMESTAMP(6));
             UPDATE services SET replication_status='failing-over'"
        ))
        .await;
    let open = site.failover().await;
    open.item_steps("volume", &[(v1.clone(), FailoverStep::Demoting)]).await.unwrap();
    let status = site.json("replication status").await;
    assert_eq!(status.as_array().unwrap().len(), 2, "the plain one too");
    let ceph = &status[0];
    assert_eq!(ceph["volumes"], json!({"-": 1, "enabled": 1, "failover-error": 1}));
    assert_eq!(ceph["strays"], json!([{"volume": v1, "site": "b"}]));
    assert_eq!(ceph["accepts_failover"], false);
    assert_eq!(ceph["sites"], json!(["default", "b"]));
    assert_eq!(ceph["operation"]["volumes"], json!({"demoting": 1}));
    assert_eq!(ceph["services"][0]["up"], true);
    let text = site.good("replication status --backend ceph").await;
    for expected in ["failing-over", "refused by cinder-api", "demoting 1 of 1", "still served from b"] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    site.journal.finish(&open, &Outcome::succeeded()).await.unwrap();
    let status = site.json("replication status --backend ceph").await;
    assert_eq!(status[0]["operation"]["outcome"], "succeeded", "the last one stays visible");
}

#[tokio::test]
async fn services_and_clusters_are_listed_as_cinder_manage_does_and_removed_exactly() {
    let site = Site::new().await;
    site.test
        .sql(
            "UPDATE services SET rpc_current_version='3.20', object_current_version='1.39', availability_zone='nova',
                updated_at='2026-01-01', cluster_name='c@ceph';
             INSERT INTO clusters (id, name, `binary`, disabled, race_preventer, frozen, deleted)
               VALUES (1, 'c@ceph', 'cinder-volume', 0, 0, 0, 0)",
        )
        .await;
    let text = site.good("service list").await;
    let fields: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    let expected = [
        "cinder-volume",
        BACKEND,
        "nova",
        "enabled",
        "XXX",
        "2026-01-01",
        "00:00:00",
        "3.20",
        "1.39",
        "c@ceph",
    ];
    assert_eq!(fields, expected);
    let text = site.good("cluster list").await;
    let fields: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    let expected = ["c@ceph", "cinder-volume", "enabled", "XXX", "2026-01-01", "00:00:00", "1", "1", "None"];
    assert_eq!(fields, expected);

    for other in ["node1", "NODE1@ceph", "node1@ceph#pool"] {
        assert!(
            site.refused(&format!("service remove cinder-volume {other}")).await.contains("Host not found")
        );
    }
    let text = site.good(&format!("service remove cinder-volume {BACKEND}")).await;
    assert_eq!(text, format!("Service cinder-volume on host {BACKEND} removed.\n"));
    let row = site.test.row("SELECT deleted, deleted_at IS NOT NULL FROM services WHERE id=1").await;
    assert_eq!(row, ["1", "1"]);
    assert_eq!(site.json("service list").await, json!([]));
}

#[tokio::test]
async fn tables_are_made_on_request_and_missed_in_words() {
    let site = Site::over(TestDb::without_migrations().await).await;
    site.test.sql("INSERT INTO alembic_version VALUES ('9c74c1c6971f')").await;
    let versions = site.json("db version").await;
    assert_eq!((versions["cinder"].as_str(), versions["scoria"].as_i64()), (Some("9c74c1c6971f"), Some(0)));
    assert!(site.good("service list").await.contains(BACKEND), "reading needs no table of ours");
    for line in ["replication status", "operation list", "service remove cinder-volume x"] {
        assert!(site.refused(line).await.contains("scoria-manage db migrate"), "{line}");
    }
    let known = versions["known"].as_i64().unwrap();
    let migrated = site.json("db migrate").await;
    assert_eq!(migrated["scoria"], json!(known));
    assert!(migrated["applied"].as_i64().unwrap() > 0, "{migrated}");
    assert_eq!(site.json("db migrate").await["applied"], 0);
    assert_eq!(
        site.good("db version").await,
        format!("cinder 9c74c1c6971f\nscoria {known} (this program knows {known})\n")
    );
    site.test.sql("INSERT INTO scoria_schema_migrations VALUES (999, 'future', UTC_TIMESTAMP())").await;
    assert!(site.refused("replication status").await.contains("version 999"));
}

#[tokio::test]
async fn backends_of_configuration_and_rows_are_joined() {
    let site = Site::new().await;
    let found = site.json("backend list").await;
    assert_eq!(found[0]["backend"], BACKEND);
    assert_eq!((&found[0]["pool"], &found[0]["up"]), (&json!("volumes"), &json!(true)));
    assert_eq!((&found[1]["backend"], &found[1]["hosts"]), (&json!("node1@plain"), &json!([])));
    assert!(site.good("backend list").await.contains("never ran"));
    let text = site.refused("replication retry --backend node1@plain").await;
    assert!(text.contains("not replicated"), "{text}");
}

#[tokio::test]
async fn a_database_that_is_away_is_told_at_once() {
    let site = Site::new().await;
    let path = site.dir.path().join("cinder.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    let away: Vec<String> = text
        .lines()
        .map(|l| match l.starts_with("connection") {
            true => "connection = mysql+pymysql://u:hidden-word@127.0.0.1:1/cinder".to_owned(),
            false => l.to_owned(),
        })
        .collect();
    std::fs::write(&path, away.join("\n")).unwrap();
    let text = site.refused("replication status").await;
    assert!(text.contains("127.0.0.1:1") && !text.contains("hidden-word"), "{text}");
}

fn plain(line: &str) -> Output {
    let mut command = assert_cmd::Command::cargo_bin("scoria-manage").unwrap();
    command.env_clear().args(line.split_whitespace()).output().unwrap()
}

#[test]
fn wrong_usage_is_exit_code_two() {
    let output = plain("");
    assert_eq!(output.status.code(), Some(2));
    for category in ["replication", "operation", "backend", "service", "cluster", "db", "config"] {
        assert!(said(&output).contains(category), "{category} in\n{}", said(&output));
        let alone = plain(category);
        assert_eq!(alone.status.code(), Some(2), "{category}");
        assert!(said(&alone).contains("Usage:"), "{}", said(&alone));
    }
    for line in [
        "nonsense",
        "service remove cinder-volume",
        "operation show not-a-number",
        "operation list --limit 0",
        "replication resync --backend b",
        "replication resync --backend b --discard s --volume not-a-uuid",
        "replication resync --backend b --discard s --dry-run --yes",
        "replication reset",
        "--format xml db version",
    ] {
        assert_eq!(plain(line).status.code(), Some(2), "{line}");
    }
    assert_eq!(plain("--help").status.code(), Some(0));
    assert_eq!(plain("--version").status.code(), Some(0));
}

#[test]
fn the_configuration_is_checked_without_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cinder.conf");
    let good = "[DEFAULT]\nhost = n\nenabled_backends = ceph\ntransport_url = rabbit://u:p@h/\n\
                [database]\nconnection = mysql+pymysql://u:p@h/cinder\n\
                [ceph]\nvolume_driver = cinder.volume.drivers.rbd.RBDDriver\nrbd_pool = volumes\n";
    std::fs::write(&path, good).unwrap();
    let check = format!("--config-file {} config check", path.display());
    let output = plain(&check);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("backends: n@ceph"), "{}", said(&output));
    std::fs::write(&path, format!("{good}rbd_poool = x\n")).unwrap();
    let output = plain(&check);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("rbd_poool"), "{}", said(&output));
    let output = plain("--config-file /nonexistent/cinder.conf db version");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("/nonexistent/cinder.conf"), "{}", said(&output));
}
