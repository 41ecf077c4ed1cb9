//! RabbitMQ and MariaDB restarted under load.
//!
//! With durable queues what the broker has confirmed is not lost: every confirmed request reaches a
//! final status, exactly once. With stock's transient queues a restart empties the queue, so the promise
//! is about every request that reached the journal.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{CEPH_QUEUE, Lab, full, row_str, wait_until};

const WHY: &str = "stock acknowledges before it works, and loses what it has in hand";

struct Request {
    volume: String,
    unique_id: String,
    confirmed: bool,
}

/// Publish `messages` while `disturb` happens.
fn publish_during(lab: &Lab, messages: Value, disturb: impl FnOnce()) -> Vec<Request> {
    let list = messages.as_array().unwrap().clone();
    let publisher = lab.second_driver();
    let confirmed = std::thread::scope(|scope| {
        let publishing =
            scope.spawn(|| publisher.call_within("publish_all", json!({"messages": messages}), 300));
        std::thread::sleep(Duration::from_millis(600));
        disturb();
        publishing.join().unwrap().unwrap()
    });
    let confirmed: Vec<&str> = confirmed.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    eprintln!("{} of {} requests confirmed", confirmed.len(), list.len());
    list.iter()
        .map(|m| Request {
            volume: row_str(m, "volume").to_owned(),
            unique_id: row_str(m, "unique_id").to_owned(),
            confirmed: confirmed.contains(&row_str(m, "unique_id")),
        })
        .collect()
}

/// Operations in the journal by unique id: how many, and the state.
fn journal(lab: &Lab) -> BTreeMap<String, (u32, String)> {
    let mut found: BTreeMap<String, (u32, String)> = BTreeMap::new();
    for row in lab.rows("SELECT unique_id, state FROM scoria_operations", &[]) {
        let entry = found.entry(row_str(&row, "unique_id").to_owned()).or_default();
        entry.0 += 1;
        entry.1 = row_str(&row, "state").to_owned();
    }
    found
}

/// Wait until every request that must be carried out has been, and forget those that never arrived.
/// `kept`: a confirmed request may be missing from the journal only when the queue was transient.
fn settle(lab: &Lab, requests: &[Request], status: &str, durable: bool) -> Vec<String> {
    wait_until("every request in the journal is finished and the queue is empty", 240, || {
        let entries = journal(lab);
        let arrived = requests.iter().filter(|r| durable && r.confirmed);
        arrived.into_iter().all(|r| entries.contains_key(&r.unique_id))
            && requests.iter().filter_map(|r| entries.get(&r.unique_id)).all(|e| e.1 == "closed")
            && lab.driver.call("depth", json!({"queue": CEPH_QUEUE})).is_ok_and(|d| d["messages"] == 0)
    });
    let entries = journal(lab);
    let mut done = Vec::new();
    for r in requests {
        match entries.get(&r.unique_id) {
            Some((count, _)) => {
                assert_eq!(*count, 1, "request {} was accepted once", r.unique_id);
                let row = lab.volume(&r.volume);
                assert_eq!(row_str(&row, "status"), status, "volume {}", r.volume);
                done.push(r.volume.clone());
            }
            None => assert!(!durable || !r.confirmed, "confirmed, and lost: {}", r.unique_id),
        }
    }
    done
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
                "UPDATE quota_usages SET in_use = in_use - %s WHERE resource = %s",
                &[json!(amount), json!(resource)],
            );
        }
    }
}

fn under_load(lab: &Lab, durable: bool, disturb: &dyn Fn(&Lab)) {
    let count = if full() { 150 } else { 60 };
    let creations = json!({"routing_key": CEPH_QUEUE, "type_name": "ceph", "host": "lab@ceph#ceph",
                           "count": count, "pause": 0.03});
    let messages = lab.driver.call("creations", creations).unwrap();
    let created = publish_during(lab, messages, || disturb(lab));
    lab.driver.call("forget_broker", json!({})).unwrap();
    let alive = settle(lab, &created, "available", durable);
    forget(lab, &created, &alive);
    for id in &alive {
        assert_eq!(lab.image("a", id)["size"], 1u64 << 30);
    }
    if durable {
        assert!(alive.len() >= created.iter().filter(|r| r.confirmed).count());
    }

    let messages = lab
        .driver
        .call("deletions", json!({"routing_key": CEPH_QUEUE, "volumes": alive, "pause": 0.03}))
        .unwrap();
    let deleted = publish_during(lab, messages, || disturb(lab));
    lab.driver.call("forget_broker", json!({})).unwrap();
    let gone = settle(lab, &deleted, "deleted", durable);
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

fn restart_broker(lab: &Lab) {
    lab.tool(&["restart", "rabbitmq"]);
}

fn restart_database(lab: &Lab) {
    lab.tool(&["restart", "mariadb"]);
}

#[test]
fn durable_queues_and_a_broker_that_restarts() {
    let lab = Lab::with_queues("quorum");
    if lab.only_scoria(WHY) {
        under_load(&lab, true, &restart_broker);
    }
}

#[test]
fn durable_queues_and_a_database_that_restarts() {
    let lab = Lab::with_queues("quorum");
    if lab.only_scoria(WHY) {
        under_load(&lab, true, &restart_database);
    }
}

#[test]
fn durable_queues_and_a_service_that_is_killed() {
    let lab = Lab::with_queues("quorum");
    if lab.only_scoria(WHY) {
        under_load(&lab, true, &|lab| {
            lab.kill_service();
            lab.start_service();
        });
    }
}

#[test]
fn durable_queues_and_a_broker_that_is_killed() {
    if full() {
        let lab = Lab::with_queues("quorum");
        if lab.only_scoria(WHY) {
            under_load(&lab, true, &|lab| {
                lab.kill("rabbitmq");
                lab.start("rabbitmq");
            });
        }
    }
}

#[test]
fn transient_queues_lose_nothing_that_is_in_the_journal() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        under_load(&lab, false, &restart_broker);
    }
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
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| lab.start_service());
        std::thread::sleep(Duration::from_secs(4));
        assert!(!lab.service_pids().is_empty(), "it waits, and says so");
        lab.start("rabbitmq");
        lab.start("mariadb");
        starting.join().unwrap();
    });
    lab.driver.call("forget_broker", json!({})).unwrap();
    wait_until("the API answers again", 60, || lab.try_api("services.list", json!([]), json!({})).is_ok());
    let id = lab.volume_of_type("ceph");
    lab.delete(&[&id]);
}
