//! An attached volume is extended, and the service dies between the row and nova: after a restart nova has
//! heard of it, and the volume is extended once.

use serde_json::json;

use crate::common::{Lab, connector, wait_until};
use crate::crash::{WHY, wait_death, wait_quiet};
use crate::nova::Control;

const SERVER: &str = "8935016b-fde4-4085-b496-7ed3396873bc";

#[test]
fn an_extension_in_use_dies_before_and_after_nova_is_told() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    // How often nova hears of it: a death after the telling cannot be told from one before it.
    for (point, times) in
        [("extend_volume:image_resized", 1), ("extend_volume:recorded", 1), ("extend_volume:told", 2)]
    {
        let control = Control::start();
        let account = control.account();
        let id = lab.volume_of_type("ceph");
        let made =
            lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({"mode": "rw"}));
        let attachment = made["id"].as_str().unwrap();
        lab.api("attachments.complete", json!([attachment]), json!({}));
        let mut dying = account.to_vec();
        dying.push(("SCORIA_CRASH_AT", point));
        lab.stop_service();
        lab.start_service_with(&[], &dying);
        lab.api("volumes.extend", json!([id, 2]), json!({}));
        wait_death(&lab, point);
        lab.start_service_with(&[], &account);
        wait_quiet(&lab, point);
        wait_until(&format!("{point}: nova has heard of it"), 60, || control.heard().len() == times);
        let event = json!([{"name": "volume-extended", "server_uuid": SERVER, "tag": id}]);
        assert_eq!(control.heard(), vec![event; times], "{point}");
        let row = lab.volume(&id);
        assert_eq!((&row["status"], &row["size"]), (&json!("in-use"), &json!(2)), "{point}");
        assert_eq!(lab.image("a", &id)["size"], 2u64 << 30, "{point}");
        assert_eq!(lab.quota()["gigabytes"], json!([2, 0]), "{point}");
        assert!(lab.messages(&id).is_empty(), "{point}");
        lab.api("attachments.delete", json!([attachment]), json!({}));
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
    lab.stop_service();
    lab.start_service();
}
