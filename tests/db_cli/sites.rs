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
