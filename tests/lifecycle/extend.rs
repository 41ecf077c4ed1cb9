//! Extending what is attached, and extensions that end elsewhere.

use serde_json::{Value, json};

use crate::common::{Lab, connector, wait_until};

const GIB: u64 = 1 << 30;
const SERVER: &str = "8935016b-fde4-4085-b496-7ed3396873bc";

/// The lab has no nova: the volume grows, and the failure to tell is the log's.
#[test]
fn an_attached_volume_grows_and_stays_in_use() {
    let lab = Lab::get();
    let id = lab.volume_of_type("ceph");
    let made =
        lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({"mode": "rw"}));
    let attachment = made["id"].as_str().unwrap();
    lab.api("attachments.complete", json!([attachment]), json!({}));
    lab.api("volumes.extend", json!([id, 3]), json!({}));
    wait_until("extended", 60, || lab.volume(&id)["size"] == 3 && lab.volume(&id)["status"] == "in-use");
    assert_eq!(lab.image("a", &id)["size"], 3 * GIB);
    assert_eq!(lab.quota()["gigabytes"], json!([3, 0]));
    assert!(lab.messages(&id).is_empty());
    lab.api("attachments.delete", json!([attachment]), json!({}));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

/// A volume as a driver that leaves the resize to nova has left it: 2 more GiB are reserved.
fn begin(lab: &Lab) -> String {
    let id = lab.volume_of_type("ceph");
    lab.sql("UPDATE volumes SET status='extending', previous_status='available' WHERE id = %s", &[json!(id)]);
    let mut reservations = Vec::new();
    for (resource, mark) in [("gigabytes", 'g'), ("gigabytes_ceph", 't')] {
        let uuid = format!("{}-{mark}", &id[..30]);
        let usage =
            "project_id = (SELECT project_id FROM volumes WHERE id = %s) AND resource = %s AND deleted = 0";
        let args = [json!(id), json!(resource)];
        lab.sql(&format!("UPDATE quota_usages SET reserved = reserved + 2 WHERE {usage}"), &args);
        lab.sql(
            &format!(
                "INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted) \
                 SELECT %s, id, project_id, resource, 2, '2099-01-01', 0 FROM quota_usages WHERE {usage}"
            ),
            &[json!(uuid), json!(id), json!(resource)],
        );
        reservations.push(uuid);
    }
    for (key, value) in
        [("extend_new_size", "3".to_owned()), ("extend_reservations", json!(reservations).to_string())]
    {
        lab.sql(
            "INSERT INTO volume_admin_metadata (volume_id, `key`, value, deleted) VALUES (%s, %s, %s, 0)",
            &[json!(id), json!(key), json!(value)],
        );
    }
    id
}

fn complete(lab: &Lab, id: &str, error: bool) {
    let _: Value = lab.api("volumes.extend_volume_completion", json!([id]), json!({"error": error}));
}

#[test]
fn an_extension_that_nova_has_done_is_recorded() {
    let lab = Lab::get();
    let id = begin(&lab);
    complete(&lab, &id, false);
    wait_until("recorded", 60, || lab.volume(&id)["size"] == 3 && lab.volume(&id)["status"] == "available");
    // Stock leaves the image to nova, which has nothing to do with it here.
    if lab.only_scoria("the image is made to fit the row") {
        assert_eq!(lab.image("a", &id)["size"], 3 * GIB);
    }
    assert_eq!((&lab.quota()["gigabytes"], &lab.quota()["gigabytes_ceph"]), (&json!([3, 0]), &json!([3, 0])));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
fn an_extension_that_nova_could_not_do_fails_and_gives_its_quota_back() {
    let lab = Lab::get();
    let id = begin(&lab);
    complete(&lab, &id, true);
    lab.wait_status(&id, "error_extending");
    assert_eq!(lab.volume(&id)["size"], 1);
    assert_eq!(lab.image("a", &id)["size"], GIB);
    lab.wait_quota(
        json!({"gigabytes": [1, 0], "gigabytes_ceph": [1, 0], "volumes": [1, 0], "volumes_ceph": [1, 0]}),
    );
    let messages = lab.messages(&id);
    assert_eq!((&messages[0]["action_id"], &messages[0]["detail_id"]), (&json!("007"), &json!("010")));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}
