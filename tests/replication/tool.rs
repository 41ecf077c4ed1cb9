//! What an operator does with `scoria-manage` around a failover, on real clusters: ask, try out, move one volume by
//! itself and bring it back, see whom it concerns, and mend a row.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, connector, row_str, wait_until};
use crate::drill::*;

/// The document of a command, and its exit code.
#[track_caller]
fn ask(lab: &Lab, words: &[&str]) -> (Value, i32) {
    let command = ["--format", "json", "replication"].iter().chain(words).copied().collect::<Vec<_>>();
    let output = lab.manage(&command);
    let said = String::from_utf8_lossy(&output.stderr);
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{words:?}: {e}: {}{said}", String::from_utf8_lossy(&output.stdout)));
    (document, output.status.code().expect("an exit code"))
}

/// The same for an order that has to be carried out to its end.
#[track_caller]
fn carry_out(lab: &Lab, words: &[&str]) -> Value {
    let (document, code) = ask(lab, words);
    assert_eq!(code, 0, "{words:?}: {document:#}\n{}", lab.service_log());
    document
}

fn clones_on_b(lab: &Lab) -> Vec<String> {
    let images = lab.ceph("images", json!({"site": "b"}));
    let names = images.as_array().unwrap().iter().filter_map(Value::as_str);
    names.filter(|name| name.starts_with("scoria-test-")).map(str::to_owned).collect()
}

#[test]
fn one_volume_is_tried_out_moved_and_brought_back_by_the_operators_tool() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no such tool") {
        return;
    }
    let mut volumes = mirrored_volumes(&lab, "replicated-snapshot", 2);
    let (away, other) = (volumes[0].id.clone(), volumes[1].id.clone());
    let here = ["--backend", CEPH];

    let (preflight, code) = ask(&lab, &[&["preflight"], &here[..], &["--to", "site-b"]].concat());
    assert_eq!((&preflight["ready"], code), (&json!(true), 0), "{preflight:#}");
    let (plan, code) = ask(&lab, &[&["plan"], &here[..], &["--to", "site-b"]].concat());
    assert_eq!((&plan["counts"], code), (&json!({"move": 2}), 0), "{plan:#}");

    carry_out(&lab, &[&["test", "start"], &here[..], &["--volume", &away]].concat());
    let (tests, _) = ask(&lab, &["test", "list"]);
    assert_eq!((&tests[0]["volume"], &tests[0]["state"]), (&json!(away), &json!("ready")), "{tests:#}");
    let clones = clones_on_b(&lab);
    assert_eq!(clones.len(), 1);
    assert_eq!(tests[0]["clone"], format!("volumes/{}", clones[0]));
    assert_eq!(lab.ceph("checksum", json!({"site": "b", "image": clones[0]})), json!(volumes[0].sum));
    let written = lab.ceph("try_write", json!({"site": "b", "image": clones[0], "seed": 7}));
    assert_eq!(written, "ok");

    carry_out(
        &lab,
        &[&["failover"], &here[..], &["--to", "site-b", "--volume", &away, "--planned", "--yes"]].concat(),
    );
    let row = lab.volume(&away);
    assert_eq!((row_str(&row, "replication_status"), row_str(&row, "status")), ("failed-over", "available"));
    expect_served_from_b(&lab, &volumes[..1], false);
    assert_eq!(lab.volume(&other)["replication_status"], "enabled");
    assert_eq!(lab.image("a", &other)["primary"], true, "nobody has named it");
    let service = lab.service(CEPH);
    assert_eq!((row_str(&service, "replication_status"), &service["disabled"]), ("enabled", &json!(0)));

    let server = "8935016b-fde4-4085-b496-7ed3396873bc";
    let made = lab.api("attachments.create", json!([away, connector("c1"), server]), json!({"mode": "rw"}));
    let (affected, code) = ask(&lab, &[&["affected"], &here[..]].concat());
    assert_eq!(code, 0);
    assert_eq!(affected["attachments"][0]["server"], server, "{affected:#}");
    lab.api("attachments.delete", json!([made["id"]]), json!({}));
    wait_until("detached", 30, || lab.volume(&away)["status"] == "available");

    // Nobody has stayed at the old site; rbd-mirror, which has the copy open there, is not fenced.
    carry_out(&lab, &[&["fence"], &here[..], &["--site", "default", "--yes"]].concat());
    let (fences, code) = ask(&lab, &[&["fences"], &here[..]].concat());
    assert_eq!(code, 0);
    assert!(fences.as_array().unwrap().iter().all(|f| f["state"] != "laid"), "{fences:#}");

    rewrite_on_b(&lab, &mut volumes[..1]);
    carry_out(&lab, &[&["failover"], &here[..], &["--to", "default", "--volume", &away, "--yes"]].concat());
    assert_eq!(lab.volume(&away)["replication_status"], "enabled");
    expect_served_from_a(&lab, &volumes[..1]);
    assert_eq!(clones_on_b(&lab), clones, "a drill is nobody's business");
    carry_out(&lab, &[&["test", "stop"], &here[..]].concat());
    assert!(clones_on_b(&lab).is_empty());

    let (audit, code) = ask(&lab, &[&["audit"], &here[..]].concat());
    assert_eq!((&audit["drifts"], code), (&json!([]), 0), "{audit:#}");
    lab.sql("UPDATE volumes SET replication_status = 'disabled' WHERE id = %s", &[json!(other)]);
    let (audit, code) = ask(&lab, &[&["audit"], &here[..]].concat());
    assert_eq!((&audit["drifts"][0]["volume"], code), (&json!(other), 1), "{audit:#}");
    carry_out(&lab, &[&["audit"], &here[..], &["--repair", "--yes"]].concat());
    assert_eq!(lab.volume(&other)["replication_status"], "enabled");

    let (lag, code) = ask(&lab, &[&["lag"], &here[..]].concat());
    assert_eq!(code, 0, "{lag:#}");
    clean(&lab, &volumes);
}
