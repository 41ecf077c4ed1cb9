//! RabbitMQ and MariaDB restarted under load, and away when the service starts.
//!
//! With durable queues what the broker has confirmed is not lost: every confirmed request reaches a
//! final status, exactly once. With stock's transient queues a restart empties the queue, so the promise
//! is about every request that reached the journal.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, full, is_gone, row_str, signal, wait_until};

const WHY: &str = "stock acknowledges before it works, and loses what it has in hand";

struct Request {
    volume: String,
    unique_id: String,
    confirmed: bool,
}

/// Whether what is confirmed is kept, and what is disturbed.
#[derive(Clone, Copy)]
struct Case {
    /// Queues outlive the broker.
    durable: bool,
    /// The broker lives through it, so that notifications can be counted.
    broker_lives: bool,
    /// What the service had to say when it was killed may not have reached its log.
    service_dies: bool,
}

fn publish(lab: &Lab, messages: &[Value]) -> Vec<String> {
    let args = json!({"messages": messages});
    let confirmed = lab.driver.call_within("publish_all", args, 300).unwrap();
    confirmed.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// Publish `messages` before, while and after `disturb` happens.
fn publish_around(lab: &Lab, messages: &Value, disturb: impl FnOnce()) -> Vec<Request> {
    let list = messages.as_array().unwrap();
    let third = list.len() / 3;
    let mut confirmed = publish(lab, &list[..third]);
    assert_eq!(confirmed.len(), third, "all is well before it");
    let publisher = lab.second_driver();
    let middle = json!({"messages": list[third..2 * third]});
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publisher.call_within("publish_all", middle, 300));
        disturb();
        let found = publishing.join().unwrap().unwrap();
        confirmed.extend(found.as_array().unwrap().iter().filter_map(Value::as_str).map(str::to_owned));
    });
    lab.driver.call("forget_connections", json!({})).unwrap();
    wait_until("the service consumes", 120, || {
        let depth = lab.driver.call("depth", json!({"queue": CEPH_QUEUE}));
        depth.is_ok_and(|d| d["consumers"].as_i64() > Some(0))
    });
    let after = publish(lab, &list[2 * third..]);
    assert_eq!(after.len(), list.len() - 2 * third, "all is well after it");
    eprintln!("{} of {third} requests confirmed meanwhile", confirmed.len() - third);
    confirmed.extend(after);
    list.iter()
        .map(|m| Request {
            volume: row_str(m, "volume").to_owned(),
            unique_id: row_str(m, "unique_id").to_owned(),
            confirmed: confirmed.iter().any(|id| id == row_str(m, "unique_id")),
        })
        .collect()
}

/// Operations in the journal by unique id: their state.
fn journal(lab: &Lab) -> BTreeMap<String, String> {
    let rows = lab.rows("SELECT unique_id, state FROM scoria_operations", &[]);
    rows.iter().map(|row| (row_str(row, "unique_id").to_owned(), row_str(row, "state").to_owned())).collect()
}

/// Wait until every request that must be carried out has been; the volumes of those.
fn settle(lab: &Lab, requests: &[Request], status: &str, case: Case) -> Vec<String> {
    wait_until("every request in the journal is finished and the queue is empty", 240, || {
        let entries = journal(lab);
        let mut certain = requests.iter().filter(|r| case.durable && r.confirmed);
        certain.all(|r| entries.contains_key(&r.unique_id))
            && requests.iter().filter_map(|r| entries.get(&r.unique_id)).all(|state| state == "closed")
            && lab.driver.call("depth", json!({"queue": CEPH_QUEUE})).is_ok_and(|d| d["messages"] == 0)
    });
    let entries = journal(lab);
    let mut done = Vec::new();
    for r in requests {
        if entries.contains_key(&r.unique_id) {
            let row = lab.volume(&r.volume);
            assert_eq!(row_str(&row, "status"), status, "volume {}", r.volume);
            done.push(r.volume.clone());
        } else {
            assert!(!case.durable || !r.confirmed, "confirmed, and lost: {}", r.unique_id);
        }
    }
    done
}

/// How often something was said about each volume.
#[derive(Default)]
struct Said(BTreeMap<String, usize>);

impl Said {
    fn add<'a>(&mut self, volumes: impl Iterator<Item = &'a str>) {
        for volume in volumes {
            *self.0.entry(volume.to_owned()).or_default() += 1;
        }
    }

    fn times(&self, volume: &str) -> usize {
        self.0.get(volume).copied().unwrap_or_default()
    }
}

/// Each was carried out once: it was said once, in the log and to those who listen. (An operation that is
/// finished by the next instance may have been silenced with the former one, never said twice.)
fn expect_once(lab: &Lab, volumes: &[String], log_line: &str, event: &str, case: Case) {
    let marker = format!("{log_line} volume.id=");
    let logged = || {
        let log = lab.service_log();
        let mut said = Said::default();
        said.add(log.lines().filter_map(|l| l.split_once(&marker)?.1.split_whitespace().next()));
        said
    };
    let silent = |n: usize| case.service_dies && n == 0;
    let all = |said: &Said| case.service_dies || volumes.iter().all(|id| said.times(id) > 0);
    wait_until("what was done has been logged", 30, || all(&logged()));
    let mut heard = Said::default();
    if case.broker_lives {
        wait_until("notifications have come", 30, || {
            let found = lab.heard();
            let about = found.iter().filter(|n| n.event == event);
            heard.add(about.map(|n| row_str(&n.body["payload"], "volume_id")));
            all(&heard)
        });
    }
    let logged = logged();
    for id in volumes {
        let n = logged.times(id);
        assert!(n == 1 || silent(n), "'{log_line}' {n} times of {id}");
        let n = heard.times(id);
        assert!(n == 1 || silent(n) || !case.broker_lives, "{event} {n} times of {id}");
    }
}

/// Rows of requests that never reached the service: as if they had never been made.
fn forget(lab: &Lab, requests: &[Request], done: &[String]) {
    for r in requests.iter().filter(|r| !done.contains(&r.volume)) {
        for (table, column) in [("workers", "resource_id"), ("volumes", "id")] {
            lab.sql(&format!("DELETE FROM {table} WHERE {column} = %s"), &[json!(r.volume)]);
        }
        for (resource, amount) in
            [("volumes", 1), ("volumes_ceph", 1), ("gigabytes", 1), ("gigabytes_ceph", 1)]
        {
            lab.sql(
                // The lab has had other projects, where there was a Keystone.
                "UPDATE quota_usages SET in_use = in_use - %s WHERE resource = %s AND project_id = %s",
                &[json!(amount), json!(resource), json!(lab.env["OS_PROJECT_ID"])],
            );
        }
    }
}

fn under_load(lab: &Lab, case: Case, disturb: &dyn Fn(&Lab)) {
    let count = if full() { 150 } else { 60 };
    let creations = json!({"routing_key": CEPH_QUEUE, "type_name": "ceph", "host": "lab@ceph#ceph",
                           "count": count, "pause": 0.02});
    let messages = lab.driver.call("creations", creations).unwrap();
    if case.broker_lives {
        lab.listen();
    }
    let created = publish_around(lab, &messages, || disturb(lab));
    let alive = settle(lab, &created, "available", case);
    expect_once(lab, &alive, "volume created", "volume.create.end", case);
    forget(lab, &created, &alive);
    for id in &alive {
        assert_eq!(lab.image("a", id)["size"], 1u64 << 30, "{id}");
    }

    let orders = json!({"routing_key": CEPH_QUEUE, "volumes": alive, "pause": 0.02});
    let messages = lab.driver.call("deletions", orders).unwrap();
    let deleted = publish_around(lab, &messages, || disturb(lab));
    let gone = settle(lab, &deleted, "deleted", case);
    expect_once(lab, &gone, "volume deleted", "volume.delete.end", case);
    for id in &gone {
        assert!(lab.image("a", id).is_null(), "{id}");
    }
    // Those whose order was lost with the queue are still there, in `deleting`: order again, as an
    // administrator would.
    for r in deleted.iter().filter(|r| !gone.contains(&r.volume)) {
        lab.api("volumes.reset_state", json!([r.volume, "available"]), json!({}));
        lab.sql("DELETE FROM workers WHERE resource_id = %s", &[json!(r.volume)]);
        lab.delete(&[&r.volume]);
    }
    // Quota given back twice, or not at all, would show here.
    lab.wait_quota(json!({}));
}

/// Queues of a kind, and somebody that is stopped, or killed, and started again.
fn restarted(mode: &str, name: &str, how: &str) {
    let lab = Lab::with_queues(mode);
    if !lab.only_scoria(WHY) {
        return;
    }
    let case = Case {
        durable: mode != "default",
        broker_lives: name != "rabbitmq",
        service_dies: name == "scoria-volume",
    };
    under_load(&lab, case, &|lab| {
        lab.tool(&[how, name]);
        lab.start(name);
    });
}

#[test]
fn quorum_queues_and_a_broker_that_restarts() {
    restarted("quorum", "rabbitmq", "stop");
}

#[test]
fn quorum_queues_and_a_database_that_is_killed() {
    restarted("quorum", "mariadb", "kill");
}

#[test]
fn quorum_queues_and_a_service_that_is_killed() {
    restarted("quorum", "scoria-volume", "kill");
}

#[test]
fn transient_queues_lose_nothing_that_is_in_the_journal() {
    restarted("default", "rabbitmq", "stop");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn quorum_queues_and_a_broker_that_is_killed() {
    restarted("quorum", "rabbitmq", "kill");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn quorum_queues_and_a_database_that_restarts() {
    restarted("quorum", "mariadb", "stop");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn durable_queues_and_a_broker_that_restarts() {
    restarted("durable", "rabbitmq", "stop");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn durable_queues_and_a_database_that_is_killed() {
    restarted("durable", "mariadb", "kill");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn durable_queues_and_a_service_that_is_killed() {
    restarted("durable", "scoria-volume", "kill");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn transient_queues_and_a_database_that_is_killed() {
    restarted("default", "mariadb", "kill");
}

/// What the service has said since it was started last.
fn last_life(lab: &Lab) -> String {
    let log = lab.service_log();
    log.rsplit("lab starts scoria-volume").next().unwrap_or_default().to_owned()
}

#[test]
fn the_service_waits_for_a_database_and_a_broker_that_are_away_at_its_start() {
    let lab = Lab::get();
    if !lab.only_scoria("stock gives up") {
        return;
    }
    lab.stop_service();
    lab.stop("mariadb");
    lab.stop("rabbitmq");
    let start = || {
        lab.tool(&["start", "--no-needs", "--no-wait", "scoria-volume"]);
        let service = lab.service_pids()[0];
        wait_until("it says that it waits for the database", 60, || {
            last_life(&lab).contains("the database is away; waiting for it")
        });
        service
    };
    // Told to stop while it waits, it does.
    let waiting = start();
    signal("TERM", &[waiting]);
    wait_until("it ends", 30, || is_gone(waiting));
    assert!(last_life(&lab).contains("told to stop before the service was ready"), "{}", last_life(&lab));

    let service = start();
    lab.start("mariadb");
    lab.driver.call("forget_connections", json!({})).unwrap();
    wait_until("it says that it waits for the broker", 60, || {
        let said = last_life(&lab);
        said.contains("the database is back") && said.contains("cannot connect to the broker")
    });
    assert!(!last_life(&lab).contains("scoria-volume serves"), "it serves without a broker");
    // Told to stop while it waits for that, it does.
    signal("TERM", &[service]);
    wait_until("it ends", 30, || is_gone(service));

    lab.tool(&["start", "--no-needs", "--no-wait", "scoria-volume"]);
    let service = lab.service_pids()[0];
    wait_until("it waits for the broker again", 60, || {
        last_life(&lab).contains("cannot connect to the broker")
    });
    lab.start("rabbitmq");
    wait_until("it serves", 120, || last_life(&lab).contains("scoria-volume serves"));
    assert_eq!(lab.service_pids()[0], service, "the same process");
    // A question that cinder-api asks somebody before both have reconnected costs it its rpc_response_timeout, a minute.
    wait_until("the API answers again", 150, || lab.try_api("services.list", json!([]), json!({})).is_ok());
    let id = lab.volume_of_type("ceph");
    lab.delete(&[&id]);
}
