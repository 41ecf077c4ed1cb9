//! A service that is killed at a step of connecting or parting.

use serde_json::json;

use crate::common::wait_until;
use crate::scene::Bare;

const CONNECT: &[&str] = &["site", "connect", "paris", "rome", "--pool", "images", "--create-pools"];
const PART: &[&str] = &["site", "disconnect", "paris", "rome", "--yes", "--force"];

/// The newest operation, and how it ended.
fn last(lab: &Bare) -> (i64, String, String) {
    let rows = lab.rows(
        "SELECT id, state, outcome, outcome_detail FROM scoria_operations ORDER BY id DESC LIMIT 1",
        &[],
    );
    let text = |key: &str| rows[0][key].as_str().unwrap_or_default().to_owned();
    (rows[0]["id"].as_i64().unwrap(), text("outcome"), text("outcome_detail"))
}

/// Orders something of a service that dies of it, and waits for the next one to finish it.
#[track_caller]
fn killed(lab: &Bare, point: &str, order: &[&str]) {
    lab.start_to_die_at(point);
    let ordered = lab.manage(&[order, &["--no-wait"]].concat());
    let said = String::from_utf8_lossy(&ordered.stderr).into_owned();
    assert!(ordered.status.success(), "{point}: {said}");
    lab.wait_dead(point);
    lab.start(&[]);
    wait_until(&format!("{point}: the next service finishes it"), 180, || !last(lab).1.is_empty());
    let (_, outcome, detail) = last(lab);
    assert_eq!(outcome, "succeeded", "{point}: {detail}");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_service_that_is_killed_on_the_way_is_followed_by_one_that_gets_there() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("admin");
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    // The first one makes pools; those stay, so that later ones have less to do.
    let ways = [
        ("link:act:5", "link:disconnecting"),
        ("link:recorded", "link:peer:1"),
        ("link:act:1", "link:peer:2"),
        ("link:act:3", "link:user:1"),
        ("link:canary", "link:parted"),
    ];
    for (to, back) in ways {
        killed(&lab, to, CONNECT);
        assert_eq!(lab.good(&["site", "link", "list"])[0]["state"], "connected", "{to}");
        assert_eq!(lab.images("a", "images"), Vec::<String>::new(), "{to}: a canary is left");
        killed(&lab, back, PART);
        lab.assert_strangers();
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_administrators_key_is_not_kept_over_a_restart() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("cinder");
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    let admins = lab.admins(&["paris", "rome"]);
    let by_admin = |order: &[&'static str]| {
        let words = order.iter().map(|w| (*w).to_owned()).chain(admins.iter().cloned());
        words.collect::<Vec<String>>()
    };
    for (point, order) in [("link:act:4", CONNECT), ("link:peer:1", PART)] {
        lab.start_to_die_at(point);
        let order = by_admin(order);
        let words: Vec<&str> = order.iter().map(String::as_str).collect();
        assert!(lab.manage(&[&words[..], &["--no-wait"]].concat()).status.success());
        lab.wait_dead(point);
        lab.start(&[]);
        wait_until("the next service gives it up", 120, || !last(&lab).1.is_empty());
        let (_, outcome, detail) = last(&lab);
        assert_eq!(outcome, "failed");
        assert!(detail.contains("an administrator's key is not kept"), "{detail}");
        wait_until("no key is left", 120, || {
            std::fs::read_dir(lab.root.join("scoria/sites")).into_iter().flatten().count() == 0
        });
        lab.assert_no_admin_key();
        // Given again, it goes on from there.
        lab.good(&words);
    }
    lab.assert_strangers();
    assert_eq!(
        lab.rows("SELECT COUNT(*) AS n FROM scoria_operations WHERE outcome IS NULL", &[])[0]["n"],
        json!(0)
    );
}
