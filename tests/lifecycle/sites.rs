//! Ceph sites on real clusters: those of the backends are found, and one is registered with its key over RPC by the
//! example in docs/, with stock oslo.messaging.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{Lab, wait_until};

/// The document of a command of `scoria-manage site`.
#[track_caller]
fn ask(lab: &Lab, words: &[&str]) -> Value {
    let output = lab.manage(&[&["--format", "json", "site"], words].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {said}"))
}

#[test]
fn the_clusters_of_backends_are_sites_and_one_is_registered_over_rpc() {
    let lab = Lab::get();
    if !lab.only_scoria("stock has no sites") {
        return;
    }
    wait_until("both clusters are found", 60, || ask(&lab, &["list"]).as_array().unwrap().len() == 2);
    let fsid = lab.tool(&["ceph", "b", "fsid"]).trim().to_owned();
    let found = ask(&lab, &["show", &fsid]);
    assert_eq!((&found["fsid"], &found["hosts"][0]["host"]), (&json!(fsid), &json!("lab")), "{found:#}");
    assert!(found["backends"].as_array().is_some_and(|b| b.iter().any(|b| b["as"] == "site-b")), "{found:#}");
    assert!(found["version"].as_str().unwrap().starts_with("16."), "{found:#}");
    let texts = |report: &Value| {
        let all = report["findings"].as_array().unwrap().iter();
        all.filter(|f| f["gap"] == "too-few").map(|f| f["text"].clone()).collect::<Vec<_>>()
    };
    assert!(texts(&found["report"]).is_empty(), "the lab's client may do what is needed: {found:#}");

    let monitors = found["monitors"][0].as_str().unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/site_client.py");
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), lab.tool(&["ceph", "b", "auth", "get-key", "client.cinder"])).unwrap();
    let script = format!(
        "\"$SCORIA_VENV/bin/python\" {example} \"$SCORIA_CONF\" lab paris '{monitors}' {}",
        key.path().display()
    );
    let told = lab.tool(&["exec", "sh", "-c", &script]);
    let told: Value = serde_json::from_str(told.lines().last().unwrap_or_default()).unwrap();
    assert_eq!(
        (&told["outcome"], &told["result"]["site"]),
        (&json!("succeeded"), &json!("paris")),
        "{told:#}"
    );
    assert!(texts(&told["result"]["report"]).is_empty(), "{told:#}");

    let shown = ask(&lab, &["show", "paris"]);
    assert_eq!((&shown["fsid"], &shown["origin"]), (&json!(fsid), &json!("registered")));
    let keyring = PathBuf::from(shown["hosts"][0]["keyring"].as_str().unwrap());
    assert_eq!(std::fs::metadata(&keyring).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(key.path()).unwrap();
    assert!(std::fs::read_to_string(&keyring).unwrap().contains(text.trim()), "the key is kept");
    assert!(!lab.service_log().contains(text.trim()), "and never logged");
    let rows =
        lab.rows("SELECT request, reply FROM scoria_operations WHERE method LIKE 'scoria.site.%'", &[]);
    assert!(!json!(rows).to_string().contains(text.trim()), "nor journalled");
    // Its own files lead there: it is looked at once more, by them.
    let looked = lab.manage(&["--format", "json", "site", "update", "paris"]);
    let looked: Value = serde_json::from_slice(&looked.stdout).unwrap();
    assert_eq!(looked["result"]["report"]["fsid"], json!(fsid), "{looked:#}");

    // The tool hands a key to the service of another host over the broker.
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), "[DEFAULT]\nhost = elsewhere\n").unwrap();
    let other = elsewhere.path().to_str().unwrap();
    let (monitors_of, key_file) = (format!("--monitors={monitors}"), key.path().to_str().unwrap());
    let line = [
        "--config-file",
        other,
        "site",
        "register",
        "paris",
        "--host",
        "lab",
        &monitors_of,
        "--key-file",
        key_file,
    ];
    let handed = lab.manage(&[&["--format", "json"], &line[..]].concat());
    let said = String::from_utf8_lossy(&handed.stderr);
    let handed: Value = serde_json::from_slice(&handed.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!(handed["result"]["what"], "files replaced", "{handed:#}");

    let refused = lab.manage(&["site", "delete", "paris", "--yes"]);
    let said = String::from_utf8_lossy(&refused.stdout);
    assert!(!refused.status.success() && said.contains("in use by: lab@ceph (as site-b)"), "{said}");
    let conf = lab.manage(&["site", "client-conf", "paris"]);
    assert!(String::from_utf8_lossy(&conf.stdout).contains(monitors));
}
