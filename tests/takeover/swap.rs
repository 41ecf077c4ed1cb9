//! Scoria takes the place of a stock cinder-volume of the same host, and stock that of Scoria, with volumes
//! in every state and work interrupted by `kill -9`.

use serde_json::{Value, json};

use crate::common::{Lab, Subject, full, row_str, wait_until};
use crate::estate::{Estate, expect_volume_usable};

const WHY: &str = "it starts both services itself";

/// Requests that do not end, because the OSD of site A does not answer.
struct Interrupted {
    creating: String,
    deleting: String,
    snapshot: String,
    /// The volume of `snapshot`, and of the deletion `gone`.
    volume: String,
    gone: String,
    extending: String,
    touched: String,
}

fn workers(lab: &Lab) -> Vec<Value> {
    lab.rows(
        "SELECT resource_type, resource_id, status, service_id FROM workers \
         WHERE deleted = 0 AND resource_type <> 'SENTINEL'",
        &[],
    )
}

/// Whether a service has begun with it: stock and Scoria write the same.
fn is_claimed(lab: &Lab, id: &str) -> bool {
    workers(lab).iter().any(|w| w["resource_id"] == id && !w["service_id"].is_null())
}

impl Interrupted {
    /// Begun by Scoria, which is killed in the middle of it.
    fn killed(lab: &Lab) -> Interrupted {
        let [deleting, volume, extending, touched] = [(); 4].map(|()| lab.volume_of_type("ceph"));
        let gone = lab.snapshot_of(&volume);
        lab.pause("site-a-osd.0");
        let creating = lab.create(json!({"volume_type": "ceph"}));
        lab.order_delete(&deleting);
        let made = lab.api("volume_snapshots.create", json!([volume]), json!({"force": true}));
        let snapshot = made["id"].as_str().unwrap().to_owned();
        lab.api("volume_snapshots.delete", json!([gone]), json!({}));
        lab.api("volumes.extend", json!([extending, 2]), json!({}));
        lab.api("volumes.extend", json!([touched, 2]), json!({}));
        wait_until("the service has begun", 60, || {
            [&creating, &deleting, &snapshot].iter().all(|id| is_claimed(lab, id)) && open(lab).len() == 6
        });
        lab.kill_service();
        lab.resume_site("site-a");
        Interrupted { creating, deleting, snapshot, volume, gone, extending, touched }
    }

    /// As Cinder's start-up clean-up defines (`CleanableManager.init_host`).
    #[track_caller]
    fn expect_cleaned_up(&self, lab: &Lab) {
        wait_until("what was interrupted has an end", 120, || workers(lab).is_empty());
        assert_eq!(lab.volume(&self.creating)["status"], "error");
        assert_eq!(lab.snapshot(&self.snapshot)["status"], "error");
        lab.wait_deleted(&self.deleting);
        assert!(lab.image("a", &self.deleting).is_null(), "its image is gone too");
        for id in [&self.extending, &self.touched] {
            assert_eq!(lab.volume(id)["status"], "extending", "nobody cleans that up");
        }
    }

    fn delete(self, lab: &Lab) {
        lab.delete_snapshot(&self.snapshot);
        for id in [&self.volume, &self.extending, &self.touched] {
            expect_volume_usable(lab, id);
        }
        lab.delete(&[&self.creating, &self.volume, &self.extending, &self.touched]);
    }
}

fn open(lab: &Lab) -> Vec<Value> {
    lab.rows("SELECT id, method, resource_id FROM scoria_operations WHERE state <> 'closed'", &[])
}

fn outcome_of(lab: &Lab, method: &str, resource: &str) -> String {
    let query =
        "SELECT outcome, outcome_detail FROM scoria_operations WHERE method = %s AND resource_id = %s";
    let rows = lab.rows(query, &[json!(method), json!(resource)]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    row_str(&rows[0], "outcome").to_owned()
}

/// A download, as a stock service leaves it: the lab has no glance to download from.
fn interrupted_download(lab: &Lab) -> String {
    let args = json!({"type_name": "ceph", "host": "lab@ceph#ceph"});
    let id = lab.driver.call("insert_volume", args).unwrap().as_str().unwrap().to_owned();
    lab.sql("UPDATE volumes SET status = 'downloading' WHERE id = %s", &[json!(id)]);
    lab.sql(
        "INSERT INTO workers (created_at, updated_at, deleted, resource_type, resource_id, status, service_id, \
         race_preventer) SELECT UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), 0, 'Volume', %s, 'downloading', id, 0 \
         FROM services WHERE host = 'lab@ceph' AND deleted = 0 \
         ON DUPLICATE KEY UPDATE status = VALUES(status), service_id = VALUES(service_id)",
        &[json!(id)],
    );
    id
}

/// A request that stock has begun with when it is killed; one at a time, because it does nothing else while one
/// of them hangs. The id.
fn interrupted_in_stock(lab: &Lab, what: &str) -> String {
    let volume = if what == "creating" { String::new() } else { lab.volume_of_type("ceph") };
    lab.pause("site-a-osd.0");
    let id = match what {
        "creating" => lab.create(json!({"volume_type": "ceph"})),
        "deleting" => {
            lab.order_delete(&volume);
            volume
        }
        _ => {
            let made = lab.api("volume_snapshots.create", json!([volume]), json!({"force": true}));
            made["id"].as_str().unwrap().to_owned()
        }
    };
    wait_until(&format!("stock is {what}"), 60, || is_claimed(lab, &id));
    lab.kill(Subject::Stock.name());
    lab.resume_site("site-a");
    id
}

#[test]
fn scoria_serves_what_stock_has_made_and_ends_what_it_has_begun() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    lab.hand_over_to(Subject::Stock);
    let estate = Estate::made(&lab, "made-by-stock");
    let download = interrupted_download(&lab);
    let mut left = vec![download.clone()];
    let kinds: &[&str] =
        if full() { &["creating", "deleting", "snapshot"] } else { &["creating", "deleting"] };
    for &what in kinds {
        if what != "creating" {
            lab.hand_over_to(Subject::Stock);
        }
        let id = interrupted_in_stock(&lab, what);
        lab.hand_over_to(Subject::Scoria);
        wait_until(&format!("{what}: it has an end"), 120, || workers(&lab).is_empty());
        match what {
            "creating" => {
                assert_eq!(lab.volume(&id)["status"], "error");
                assert_eq!(lab.volume(&download)["status"], "error");
                left.push(id);
            }
            "deleting" => {
                lab.wait_deleted(&id);
                assert!(lab.image("a", &id).is_null(), "its image is gone too");
            }
            _ => {
                let row = lab.snapshot(&id);
                assert_eq!(row["status"], "error");
                lab.delete_snapshot(&id);
                expect_volume_usable(&lab, row_str(&row, "volume_id"));
                left.push(row_str(&row, "volume_id").to_owned());
            }
        }
    }
    estate.expect_usable(&lab);
    lab.delete(&left.iter().map(String::as_str).collect::<Vec<_>>());
    estate.delete(&lab);
    lab.wait_quota(json!({}));
}

#[test]
fn stock_serves_what_scoria_has_made_and_the_journal_does_not_undo_its_work() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let estate = Estate::made(&lab, "made-by-scoria");
    let interrupted = Interrupted::killed(&lab);
    lab.hand_over_to(Subject::Stock);

    interrupted.expect_cleaned_up(&lab);
    estate.expect_usable(&lab);
    // What stock never ends is reset by hand, as always with stock, and goes on living.
    lab.api("volumes.reset_state", json!([interrupted.touched, "available"]), json!({}));
    lab.api("volumes.extend", json!([interrupted.touched, 3]), json!({}));
    wait_until("stock has extended it", 60, || lab.volume(&interrupted.touched)["size"] == 3);
    lab.api("volume_snapshots.reset_state", json!([interrupted.gone, "available"]), json!({}));
    assert_eq!(open(&lab).len(), 6, "the journal still has it all");

    lab.hand_over_to(Subject::Scoria);
    wait_until("nothing is open", 60, || open(&lab).is_empty());
    assert_eq!(outcome_of(&lab, "create_volume", &interrupted.creating), "abandoned");
    assert_eq!(outcome_of(&lab, "create_snapshot", &interrupted.snapshot), "abandoned");
    assert_eq!(outcome_of(&lab, "delete_snapshot", &interrupted.gone), "abandoned");
    assert_eq!(outcome_of(&lab, "extend_volume", &interrupted.touched), "abandoned");
    assert_eq!(lab.volume(&interrupted.creating)["status"], "error");
    assert_eq!(lab.snapshot(&interrupted.snapshot)["status"], "error");
    let touched = lab.volume(&interrupted.touched);
    assert_eq!((&touched["size"], &touched["status"]), (&json!(3), &json!("available")));
    assert_eq!(lab.image("a", &interrupted.touched)["size"], 3u64 << 30);
    let gone = lab.snapshot(&interrupted.gone);
    assert_eq!((&gone["status"], &gone["deleted"]), (&json!("available"), &json!(0)));
    let copy = lab.create(json!({"snapshot_id": interrupted.gone, "volume_type": "ceph"}));
    lab.wait_status(&copy, "available");
    // What nobody has touched is finished.
    assert_eq!(outcome_of(&lab, "extend_volume", &interrupted.extending), "succeeded");
    let extended = lab.volume(&interrupted.extending);
    assert_eq!((&extended["size"], &extended["status"]), (&json!(2), &json!("available")));

    lab.delete(&[&copy]);
    lab.delete_snapshot(&interrupted.gone);
    interrupted.delete(&lab);
    estate.delete(&lab);
    lab.wait_quota(json!({}));
}
