//! Sites as the operator registers and sees them: where a key goes, and what compute nodes are given.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

const KEY: &str = "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==";
const FSID: &str = "51e00000-0000-4000-8000-000000001001";

impl Site {
    /// Scoria keeps files of sites under the test's directory.
    fn keeping(&self) -> String {
        let conf = self.dir.path().join("sites.conf");
        let text = format!("[scoria]\nscoria_site_dir = {}\n", self.dir.path().join("sites").display());
        std::fs::write(&conf, text).unwrap();
        format!("--config-file {}", conf.display())
    }

    /// Rows of a site `paris` that backend `ceph` works with as `default`.
    async fn paris(&self) {
        let report = json!({"fsid": FSID, "version": "16.2.15", "health": "HEALTH_OK", "checks": [], "monitors": [],
            "pools": [], "client": "cinder", "findings": [], "advice": null});
        self.test
            .sql(&format!(
                "INSERT INTO scoria_sites VALUES ('{FSID}', 'paris', 'registered',
                   '[v2:10.0.0.1:3300,v1:10.0.0.1:6789]\\n[v2:10.0.0.2:3300,v1:10.0.0.2:6789]', '16.2.15',
                   'HEALTH_OK', '{report}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6));
                 INSERT INTO scoria_site_uses VALUES ('{BACKEND}', 'b', '{FSID}', 'volumes', 'cinder', UTC_TIMESTAMP(6));
                 INSERT INTO services (id, host, `binary`, report_count, deleted) VALUES (9, 'node2@ceph', 'cinder-volume', 0, 0);
                 INSERT INTO scoria_site_hosts VALUES
                   ('{FSID}', 'node1', '/etc/ceph/b.conf', '/etc/ceph/b.keyring', 'cinder', 0, 'present', NULL,
                    UTC_TIMESTAMP(6))"
            ))
            .await;
    }
}

#[tokio::test]
async fn a_key_goes_into_a_file_of_the_service_and_into_nothing_else() {
    let site = Site::new().await;
    let keeping = site.keeping();
    let key = site.dir.path().join("key");
    std::fs::write(&key, format!("[client.cinder]\n\tkey = {KEY}\n")).unwrap();
    let register =
        format!("{keeping} --format json site register paris --monitors 10.0.0.1 --no-wait --key-file");
    for line in [format!("{register} {}", key.display()), format!("{register} -")] {
        let output =
            site.answer(&line, "[client.cinder]\nkey = AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==\n").await;
        assert!(output.status.success(), "{}", said(&output));
        assert!(!said(&output).contains("AQBT"), "{}", said(&output));
        let ordered: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(ordered["new"], true);
        let rows = site.operations().await;
        let [method, state, request] = &rows.last().unwrap()[..] else { panic!() };
        assert_eq!((method.as_str(), state.as_str()), ("scoria.site.register", "open"));
        let request: Value = serde_json::from_str(request).unwrap();
        let files = &request["args"]["files"];
        assert_eq!((&files["draft"], &files["user"]), (&json!(true), &json!("cinder")));
        let keyring = PathBuf::from(files["keyring"].as_str().unwrap());
        assert_eq!(keyring.parent(), Some(site.dir.path().join("sites").as_path()));
        assert!(
            std::fs::read_to_string(&keyring).unwrap().contains(KEY) && !request.to_string().contains("AQBT")
        );
        assert_eq!(std::fs::metadata(&keyring).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(
        site.journal.adopt(&Scope::Host("node1".into())).await.unwrap().len(),
        2,
        "for the host's service"
    );

    std::fs::write(&key, "nonsense").unwrap();
    let wrong = site.refused(&format!("{register} {}", key.display())).await;
    assert!(wrong.contains("no cephx key"), "{wrong}");
    let bare = site.refused(&format!("{keeping} site register paris")).await;
    assert!(bare.contains("--conf, or --monitors"), "{bare}");
    let name = site.refused(&format!("{keeping} site register a/b --conf /etc/ceph/b.conf")).await;
    assert!(name.contains("The name of a site"), "{name}");
    for (line, said) in [
        ("--conf etc/b.conf", "'etc/b.conf' is not an absolute path"),
        ("--conf /etc/b.conf --keyring b.keyring", "'b.keyring' is not an absolute path"),
    ] {
        let refused = site.refused(&format!("{keeping} site register paris {line}")).await;
        assert!(refused.contains(said), "{line}: {refused}");
    }
    std::fs::write(&key, KEY).unwrap();
    let monitors =
        format!("{keeping} site register paris --monitors 10.0.0.1#x --key-file {}", key.display());
    let refused = site.refused(&monitors).await;
    assert!(refused.contains("'10.0.0.1#x' are no monitors") && !refused.contains("AQBT"), "{refused}");
    // Paths are another host's to read.
    site.good(&format!("{keeping} site register paris --conf /etc/ceph/b.conf --host node2 --no-wait")).await;
    let there = site.test.row("SELECT backend_host FROM scoria_operations ORDER BY id DESC LIMIT 1").await;
    assert_eq!(there, ["node2"]);
}

#[tokio::test]
async fn an_order_is_watched_to_its_answer() {
    let site = Site::new().await;
    site.paris().await;
    let play = async || loop {
        if let Some(taken) = site.journal.adopt(&Scope::Host("node1".into())).await.unwrap().pop() {
            let answer = json!({"site": "paris", "what": "deleted", "dry_run": false, "report": null,
                "fsid": FSID, "files_removed": [{"host": "node1", "conf": "/c", "keyring": "/k"}]});
            site.journal.finish(&taken, &Outcome::succeeded().with_reply(answer)).await.unwrap();
            return serde_json::from_str::<Value>(taken.request()).unwrap()["args"].take();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (output, asked) = tokio::join!(site.answer("site delete paris", "paris\n"), play());
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(asked, json!({"name": "paris", "dry_run": false}));
    let text = said(&output);
    assert!(text.contains("Site paris: deleted.") && text.contains("removed on node1: /c, /k"), "{text}");
    let output = site.answer("site delete paris", "rome\n").await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        site.refused("site delete rome --yes").await.contains("There is no site rome; the sites are: paris")
    );
}

#[tokio::test]
async fn a_site_is_shown_with_the_hosts_that_lack_its_files() {
    let site = Site::new().await;
    assert!(site.good("site list").await.contains("No site is known"));
    site.paris().await;
    let listed = site.json("site list").await;
    assert_eq!((&listed[0]["name"], &listed[0]["backends"][0]["as"]), (&json!("paris"), &json!("b")));
    let shown = site.good("site show paris").await;
    for text in ["HEALTH_OK", "/etc/ceph/b.keyring", "Without usable files: node2", "client.cinder may do"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert_eq!(site.json(&format!("site show {FSID}")).await["name"], "paris", "also by its fsid");
}

#[tokio::test]
async fn compute_nodes_get_the_secret_and_the_conf_of_the_site() {
    let site = Site::new().await;
    site.paris().await;
    // Backend `ceph` hands out the fsid for its device `b`, which has no secret_uuid.
    let document = site.json("site libvirt-secret paris").await;
    let secret = &document["secrets"][0];
    assert_eq!((&secret["uuid"], &secret["user"]), (&json!(FSID), &json!("cinder")));
    assert!(secret["xml"].as_str().unwrap().contains(&format!("<uuid>{FSID}</uuid>")), "{secret}");
    let key = site.dir.path().join("key");
    std::fs::write(&key, KEY).unwrap();
    let into = tempfile::tempdir().unwrap();
    let uuid = "457eb676-33da-42ec-9a8c-9293d545c337";
    let line = format!("--key-file {} --into {}", key.display(), into.path().display());
    let text = site.good(&format!("site libvirt-secret paris --uuid {uuid} {line}")).await;
    assert!(text.contains("virsh secret-define --file") && !text.contains("AQBT"), "{text}");
    let written = std::fs::read_to_string(into.path().join(format!("secret-{uuid}.key"))).unwrap();
    assert_eq!(written, KEY);
    let golden = include_str!("../fixtures/libvirt-secret.xml");
    assert_eq!(std::fs::read_to_string(into.path().join(format!("secret-{uuid}.xml"))).unwrap(), golden);
    let conf = site.good("site client-conf paris").await;
    let expected = format!(
        "# Site paris: what a client needs.\n[global]\nfsid = {FSID}\nmon_host = \
         [v2:10.0.0.1:3300,v1:10.0.0.1:6789] [v2:10.0.0.2:3300,v1:10.0.0.2:6789]\n\n\
         [client.cinder]\nkeyring = /etc/ceph/paris.client.cinder.keyring\n"
    );
    assert_eq!(conf, expected);
}

#[tokio::test]
async fn an_administrators_key_goes_with_the_order_and_into_nothing_else() {
    let site = Site::new().await;
    let keeping = site.keeping();
    site.paris().await;
    let rome = FSID.replace("1001", "1002");
    site.test
        .sql(&format!(
            "INSERT INTO scoria_sites SELECT '{rome}', 'rome', origin, monitors, version, health, report, seen_at, created_at, \
             updated_at FROM scoria_sites"
        ))
        .await;
    let key = site.dir.path().join("key");
    std::fs::write(&key, format!("[client.admin]\n\tkey = {KEY}\n")).unwrap();
    let connect = format!("{keeping} --format json site connect paris rome --pool volumes --no-wait");
    let given = format!("--admin-keyring paris={} --admin-keyring rome=-", key.display());
    let line = format!("{connect} --create-pools --k 2 --m 1 --failure-domain osd {given}");
    let output = site.answer(&line, "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==\n").await;
    assert!(output.status.success() && !said(&output).contains("AQBT"), "{}", said(&output));
    let rows = site.operations().await;
    let [method, _, request] = &rows.last().unwrap()[..] else { panic!() };
    assert!(method == "scoria.site.connect" && !request.contains("AQBT"), "{request}");
    let args = serde_json::from_str::<Value>(request).unwrap()["args"].take();
    assert_eq!(
        (&args["way"], &args["make"]["data"]["profile"]["name"]),
        (&json!("rx-tx"), &json!("scoria-k2-m1"))
    );
    let conf = std::fs::read_to_string(args["admin_b"]["conf"].as_str().unwrap()).unwrap();
    assert!(
        conf.contains("mon_host = [v2:10.0.0.1:3300") && conf.contains(&format!("fsid = {rome}")),
        "{conf}"
    );
    for (line, said) in [
        (format!("{connect} --admin-keyring lyon={}", key.display()), "--admin-keyring is SITE=FILE"),
        (format!("{connect} --admin-keyring paris=/no/such"), "Cannot read /no/such"),
        ("site connect paris paris --pool volumes".to_owned(), "these are one"),
        ("site link show paris rome".to_owned(), "are not connected by Scoria"),
    ] {
        let refused = site.refused(&line).await;
        assert!(refused.contains(said), "{line}: {refused}");
    }
    assert!(site.good("site link list").await.contains("No site is connected"));
}

#[tokio::test]
async fn what_is_parted_is_shown_first_and_asked_for_twice() {
    let site = Site::new().await;
    let copies =
        json!([{"pool": "volumes", "image": "volume-x", "bytes": 4096, "primary_here": false, "clones": []}]);
    let backups = json!([{"id": "b1", "volume": "v1", "gib": 2, "status": "available", "pool": "backups"}]);
    let shared = json!({"images": [], "copies": copies, "copies_bytes": 4096, "volumes": ["v1"], "backends": [],
        "backups": backups, "backups_gib": 2});
    let play = async |dry: bool, refused: Value| loop {
        if let Some(taken) = site.journal.adopt(&Scope::Host("node1".into())).await.unwrap().pop() {
            let answer = json!({"site": "rome", "what": "disconnected", "with": "paris", "dry_run": dry, "pools": ["volumes"],
                "alive": true, "shared": shared, "refused": refused, "removed": ["volumes/volume-x"],
                "strangers": ["no pool of paris knows rome"]});
            site.journal.finish(&taken, &Outcome::succeeded().with_reply(answer)).await.unwrap();
            return serde_json::from_str::<Value>(taken.request()).unwrap()["args"].take();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let both = async || (play(true, Value::Null).await, play(false, Value::Null).await);
    let line = "site disconnect paris rome --force --purge-replicas --delete-backups";
    let (output, (looked, ordered)) = tokio::join!(site.answer(line, "rome\n1\n1\n"), both());
    let text = said(&output);
    assert!(output.status.success() && text.contains("Removed: volumes/volume-x"), "{text}");
    assert!(text.contains("Copies on the site that goes: 1") && text.contains("Volumes: v1"), "{text}");
    assert_eq!((&looked["dry_run"], &looked["purge"]), (&json!(true), &Value::Null));
    assert_eq!(
        (&ordered["dry_run"], &ordered["purge"]),
        (&json!(false), &json!({"copies": 1, "bytes": 4096}))
    );
    assert!(text.contains("Backups stored on the site that goes: 1") && text.contains("| b1"), "{text}");
    assert!(text.contains("1 backups of 2 GiB on site rome are deleted for good"), "{text}");
    assert_eq!(looked["delete_backups"], json!({"backups": 0, "gib": 0}), "a look deletes nothing");
    assert_eq!(ordered["delete_backups"], json!({"backups": 1, "gib": 2}));
    for answers in ["rome\n2\n", "rome\n1\nyes\n"] {
        let (output, _) = tokio::join!(site.answer(line, answers), play(true, Value::Null));
        assert!(
            output.status.code() == Some(1) && said(&output).contains("the answer was not '1'"),
            "{}",
            said(&output)
        );
    }
    let line = "site disconnect paris rome --flatten-backups --force --yes";
    let (output, looked) = tokio::join!(site.answer(line, ""), play(true, json!("Sites share things")));
    assert_eq!((&looked["flatten_backups"], &looked["delete_backups"]), (&json!(true), &Value::Null));
    assert!(
        output.status.code() == Some(1) && said(&output).contains("Sites share things"),
        "{}",
        said(&output)
    );
}
