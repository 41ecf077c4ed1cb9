//! Two services of one Cinder cluster share its queue and its volumes: what one leaves the other finishes, and
//! what an administrator orders reaches both.

use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{Lab, connector, row_str, wait_until};

const WHY: &str = "it starts two members of a cluster";
const CLUSTER: &str = "lab-cluster@ceph";
const SECOND: &str = "scoria-volume-2";
const SERVER: &str = "8935016b-fde4-4085-b496-7ed3396873bc";
const MEMBERS: [&str; 2] = ["lab@ceph", "lab2@ceph"];

/// The lab's service as a member of a cluster, and another one. Both are as before when this is dropped.
struct Cluster<'a> {
    lab: &'a Lab,
}

impl Cluster<'_> {
    fn formed(lab: &Lab) -> Cluster<'_> {
        lab.alter();
        lab.stop_service();
        lab.start(SECOND);
        let cluster = Cluster { lab };
        cluster.start_first();
        wait_until("both members are up", 90, || {
            MEMBERS.iter().all(|host| crate::common::is_up(lab, host)) && cluster.row()["disabled"] == 0
        });
        // The scheduler has heard of them, and asks the cluster.
        wait_until("a volume can be placed", 60, || {
            let id = lab.create(json!({"volume_type": "ceph"}));
            wait_until("it is placed or not", 60, || lab.volume(&id)["status"] != "creating");
            let row = lab.volume(&id);
            lab.delete(&[&id]);
            row["status"] == "available" && row["cluster_name"] == format!("{CLUSTER}#ceph")
        });
        cluster
    }

    fn start_first(&self) {
        let conf = self.lab.root.join("conf/scoria-cluster.conf");
        self.lab.start_service_with(&["--config-file", conf.to_str().unwrap()], &[]);
    }

    fn row(&self) -> Value {
        let query = "SELECT * FROM clusters WHERE name = %s AND deleted = 0";
        self.lab.rows(query, &[json!(CLUSTER)]).into_iter().next().unwrap_or_default()
    }

    /// Open operations of a member.
    fn open(&self, host: &str) -> usize {
        let query = "SELECT id FROM scoria_operations WHERE state = 'open' AND owner_host = %s";
        self.lab.rows(query, &[json!(host)]).len()
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the next test wipes it all
        }
        self.lab.stop_service();
        self.lab.stop(SECOND);
        for statement in [
            "UPDATE services SET deleted = 1, deleted_at = UTC_TIMESTAMP() WHERE host LIKE 'lab2@%' AND deleted = 0",
            "UPDATE services SET cluster_name = NULL WHERE cluster_name IS NOT NULL",
            "DELETE FROM clusters",
        ] {
            self.lab.sql(statement, &[]);
        }
        self.lab.start_service();
    }
}

fn worker_rows(lab: &Lab) -> Vec<Value> {
    lab.rows("SELECT resource_id, service_id FROM workers WHERE resource_type <> 'SENTINEL'", &[])
}

fn available(lab: &Lab, ids: &[String]) -> bool {
    ids.iter().all(|id| {
        let row = lab.volume(id);
        assert!(!row_str(&row, "status").starts_with("error"), "{row}: {:?}", lab.messages(id));
        row["status"] == "available"
    })
}

#[test]
fn a_member_that_is_killed_leaves_its_work_to_the_other() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let cluster = Cluster::formed(&lab);
    let source = lab.volume_of_type("ceph");
    let gone: Vec<String> = (0..4).map(|_| lab.volume_of_type("ceph")).collect();
    lab.pause("site-a-osd.0");
    let made: Vec<String> = (0..8).map(|_| lab.create(json!({"volume_type": "ceph"}))).collect();
    gone.iter().for_each(|id| lab.order_delete(id));
    wait_until("both members have begun", 60, || {
        cluster.open("lab") > 0
            && cluster.open("lab2") > 0
            && cluster.open("lab") + cluster.open("lab2") == 12
    });
    eprintln!("lab works on {}, lab2 on {}", cluster.open("lab"), cluster.open("lab2"));
    lab.kill(SECOND);
    let killed = Instant::now();
    lab.resume("site-a");
    wait_until("nothing is left of the member that died", 120, || cluster.open("lab2") == 0);
    eprintln!("taken over {:.1} s after kill -9", killed.elapsed().as_secs_f64());
    wait_until("all of them are there", 120, || available(&lab, &made));
    gone.iter().for_each(|id| lab.wait_deleted(id));
    eprintln!("finished {:.1} s after kill -9", killed.elapsed().as_secs_f64());
    lab.wait_mirroring();
    for id in &made {
        assert_eq!(lab.volume(id)["cluster_name"], format!("{CLUSTER}#ceph"));
        assert_eq!(lab.image("a", id)["size"], 1u64 << 30);
    }
    for id in &gone {
        assert!(lab.image("a", id).is_null());
    }
    assert_eq!(worker_rows(&lab), Vec::<Value>::new(), "also those that the dead member had claimed");
    // The survivor serves everybody's volumes.
    let clone = lab.create(json!({"source_volid": source, "volume_type": "ceph"}));
    lab.wait_status(&clone, "available");
    let all: Vec<&str> = made.iter().chain([&clone, &source]).map(String::as_str).collect();
    lab.delete(&all);
    lab.start(SECOND);
    lab.wait_quota(json!({}));
}

#[test]
fn a_rolling_restart_of_both_members_loses_nothing() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let cluster = Cluster::formed(&lab);
    let source = lab.volume_of_type("ceph");
    let mut made = Vec::new();
    let mut gone: Vec<String> = Vec::new();
    let mut load = || {
        for _ in 0..3 {
            made.push(lab.create(json!({"volume_type": "ceph"})));
            made.push(lab.create(json!({"source_volid": source, "volume_type": "ceph"})));
        }
        let last = lab.volume_of_type("ceph");
        lab.order_delete(&last);
        gone.push(last);
    };
    load();
    lab.stop(SECOND);
    load();
    lab.start(SECOND);
    load();
    lab.stop_service();
    load();
    cluster.start_first();
    load();
    wait_until("all of them are there", 120, || available(&lab, &made));
    gone.iter().for_each(|id| lab.wait_deleted(id));
    assert_eq!(worker_rows(&lab), Vec::<Value>::new());
    lab.delete(&made.iter().map(String::as_str).collect::<Vec<_>>());
    lab.delete(&[&source]);
    lab.wait_quota(json!({}));
}

/// Rows of both members.
fn members(lab: &Lab) -> Vec<Value> {
    MEMBERS.iter().map(|host| lab.service(host)).collect()
}

fn order(lab: &Lab, target: &str) {
    let body = json!({"cluster": CLUSTER, "backend_id": target});
    let request = json!({"method": "PUT", "path": "/os-services/failover_host", "body": body});
    assert_eq!(lab.driver.call("http", request).unwrap()["status"], 202);
}

#[track_caller]
fn wait_standing(lab: &Lab, cluster: &Cluster<'_>, status: &str, active: &str) {
    wait_until(&format!("the cluster and both members are {status} on '{active}'"), 120, || {
        let rows: Vec<Value> = members(lab).into_iter().chain([cluster.row()]).collect();
        rows.iter()
            .all(|r| row_str(r, "replication_status") == status && row_str(r, "active_backend_id") == active)
    });
}

/// The first monitor that each member, asked by its own queue, sends a host to.
fn served_from(lab: &Lab, volume: &str) -> Vec<Value> {
    let object = lab.driver.call("volume_object", json!({"ident": volume})).unwrap();
    ["cinder-volume.lab@ceph.lab", "cinder-volume.lab2@ceph.lab2"]
        .iter()
        .map(|queue| {
            let args = json!({"volume": object, "connector": connector("compute1")});
            let reply = lab.rpc(queue, "initialize_connection", "3.0", args);
            assert!(reply["failure"].is_null(), "{queue}: {reply}");
            reply["result"]["data"]["hosts"][0].clone()
        })
        .collect()
}

#[test]
fn a_clustered_backend_is_frozen_failed_over_and_brought_back_as_a_whole() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let cluster = Cluster::formed(&lab);
    let id = lab.volume_of_type("replicated");
    lab.wait_mirrored(&id, "b");
    let at_home = served_from(&lab, &id);
    assert_eq!(at_home[0], at_home[1]);

    let put = |path: &str| {
        let request = json!({"method": "PUT", "path": path, "body": {"cluster": CLUSTER}});
        lab.driver.call("http", request).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    for (path, frozen) in [("/os-services/freeze", 1), ("/os-services/thaw", 0)] {
        put(path);
        for row in members(&lab).iter().chain([&cluster.row()]) {
            assert_eq!((&row["frozen"], &row["disabled"]), (&json!(frozen), &json!(frozen)), "{path}: {row}");
        }
    }

    // A refused failover moves nobody.
    order(&lab, "nowhere");
    wait_standing(&lab, &cluster, "enabled", "");
    assert_eq!(served_from(&lab, &id), at_home);
    assert_eq!(members(&lab)[0]["disabled"], 0);

    order(&lab, "site-b");
    wait_standing(&lab, &cluster, "failed-over", "site-b");
    assert_eq!(lab.volume(&id)["replication_status"], "failed-over");
    let away = served_from(&lab, &id);
    assert!(away[0] == away[1] && away[0] != at_home[0], "{away:?} {at_home:?}");
    assert_eq!(cluster.row()["disabled"], 1);

    lab.write("b", &id, 901);
    lab.wait_replicated(&id, "b", 901);
    order(&lab, "default");
    wait_standing(&lab, &cluster, "enabled", "");
    assert_eq!(lab.volume(&id)["replication_status"], "enabled");
    assert_eq!(served_from(&lab, &id), at_home, "both are home again");
    assert_eq!(lab.image("a", &id)["primary"], true);
    // What is deleted before site B follows it again leaves its copy there (README, known limits). Its daemon's word
    // may be of the time before the failover: what it has copied since is not.
    lab.write("a", &id, 902);
    lab.wait_replicated(&id, "a", 902);
    lab.delete(&[&id]);
}

#[test]
fn an_administrator_sees_and_steers_a_cluster() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let cluster = Cluster::formed(&lab);
    let listed = lab.api("clusters.list", json!([]), json!({"name": CLUSTER, "detailed": true}));
    let shown = &listed[0];
    assert_eq!(
        (&shown["name"], &shown["binary"], &shown["state"], &shown["status"]),
        (&json!(CLUSTER), &json!("cinder-volume"), &json!("up"), &json!("enabled"))
    );
    assert_eq!((&shown["num_hosts"], &shown["num_down_hosts"]), (&json!(2), &json!(0)));
    assert_eq!(lab.api("clusters.show", json!([CLUSTER, "cinder-volume"]), json!({}))["name"], CLUSTER);
    let conf = lab.root.join("conf/cinder.conf");
    let manage = |args: &[&str]| {
        let words = [&["exec", "cinder-manage", "--config-file", conf.to_str().unwrap()], args].concat();
        lab.tool(&words)
    };
    let text = manage(&["cluster", "list"]);
    let line = text.lines().find(|l| l.contains(CLUSTER)).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains(":-)") && line.contains("enabled"), "{line}");
    let ours = lab.manage(&["cluster", "list"]);
    assert!(String::from_utf8_lossy(&ours.stdout).contains(CLUSTER));

    // No volume is placed on a disabled cluster, and it works on what it has.
    let before = lab.volume_of_type("ceph");
    lab.api("clusters.update", json!([CLUSTER, "cinder-volume", true, "for repair"]), json!({}));
    assert_eq!(cluster.row()["disabled"], 1);
    let refused = lab.create(json!({"volume_type": "ceph"}));
    wait_until("no valid host", 60, || lab.volume(&refused)["status"] == "error");
    let attachment = lab.api("attachments.create", json!([before, connector("compute1"), SERVER]), json!({}));
    lab.api("attachments.delete", json!([attachment["id"]]), json!({}));
    lab.api("clusters.update", json!([CLUSTER, "cinder-volume", false]), json!({}));
    let after = lab.volume_of_type("ceph");
    lab.delete(&[&refused, &before, &after]);

    // Each process has log levels of its own.
    let level = |host: &str| {
        let found = lab.api("services.get_log_levels", json!(["cinder-volume", host, "cinder"]), json!({}));
        found.as_array().unwrap().iter().map(|l| row_str(l, "level").to_owned()).collect::<Vec<_>>()
    };
    let quiet = level("lab@ceph");
    lab.api("services.set_log_levels", json!(["DEBUG", "cinder-volume", "lab2@ceph", "cinder"]), json!({}));
    wait_until("lab2 logs more", 30, || level("lab2@ceph").iter().any(|l| l == "DEBUG"));
    assert_eq!(level("lab@ceph"), quiet, "the other one does not");
    lab.api("services.set_log_levels", json!(["INFO", "cinder-volume", "lab2@ceph", "cinder"]), json!({}));

    // What a member that is gone had begun, and no journal knows, is settled by the other on demand: rows older
    // than the request, whose time has whole seconds only.
    lab.stop(SECOND);
    let second = lab.service("lab2@ceph")["id"].clone();
    let args = json!({"type_name": "ceph", "host": "lab2@ceph#ceph"});
    let id = lab.driver.call("insert_volume", args).unwrap().as_str().unwrap().to_owned();
    lab.sql(
        "UPDATE volumes SET cluster_name = %s WHERE id = %s",
        &[json!(format!("{CLUSTER}#ceph")), json!(id)],
    );
    lab.sql(
        "INSERT INTO workers (created_at, updated_at, deleted, resource_type, resource_id, status, service_id, \
         race_preventer) VALUES ('2026-01-01', '2026-01-01', 0, 'Volume', %s, 'creating', %s, 0) ON DUPLICATE KEY \
         UPDATE status = VALUES(status), service_id = VALUES(service_id), updated_at = VALUES(updated_at)",
        &[json!(id), second.clone()],
    );
    lab.sql(
        "UPDATE services SET created_at = '2026-01-01', updated_at = '2026-01-01' WHERE id = %s",
        &[second],
    );
    let asked = lab.api("workers.clean", json!([]), json!({"cluster_name": CLUSTER, "is_up": false}));
    eprintln!("cleaning: {asked}");
    wait_until("it is settled", 60, || lab.volume(&id)["status"] == "error" && worker_rows(&lab).is_empty());
    lab.delete(&[&id]);
    lab.start(SECOND);
}
