//! From two bare clusters to protected images, and back to two strangers.

use serde_json::{Value, json};

use crate::common::wait_until;
use crate::scene::Bare;

/// `connect paris rome` with more words.
fn connect<'a>(admins: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["site", "connect", "paris", "rome"];
    words.extend(more);
    words.extend(admins.iter().map(String::as_str));
    words
}

#[test]
fn two_bare_clusters_protect_images_and_become_strangers_again() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("cinder");
    let admins = lab.admins(&["paris", "rome"]);

    // By the sites' own client, which is none: nothing changes, and it is said what is missing.
    let said = lab.refused(&["site", "connect", "paris", "rome", "--pool", "images", "--create-pools"]);
    assert!(
        said.contains("does not let client.cinder do this") && said.contains("--admin-keyring"),
        "{said}"
    );
    // Profiles that three OSDs of one machine cannot hold.
    let erasure = ["--pool", "images", "--create-pools", "--k", "2", "--m"];
    let said = lab.refused(&connect(&admins, &[&erasure[..], &["1"]].concat()));
    assert!(said.contains("3 osd, 1 host") && said.contains("failure domain osd would do"), "{said}");
    let said = lab.refused(&connect(&admins, &[&erasure[..], &["2", "--failure-domain", "osd"]].concat()));
    assert!(said.contains("needs k+m = 4 buckets of type osd"), "{said}");
    let fits = [&erasure[..], &["1", "--failure-domain", "osd"]].concat();
    let dry = lab.good(&connect(&admins, &[&fits[..], &["--dry-run"]].concat()));
    assert!(dry["acts"].as_array().unwrap().len() > 8, "{dry:#}");
    for site in ["a", "b"] {
        assert!(
            lab.pools(site).is_empty() && lab.users(site).iter().all(|u| !u.contains("scoria")),
            "{site}"
        );
    }

    // Where no daemon runs that is said at once, and the link stays.
    let said = lab.refused(&connect(&admins, &fits));
    assert!(said.contains("no rbd-mirror daemon runs on site rome"), "{said}");
    for site in ["a", "b"] {
        assert_eq!(lab.mirroring(site, "images"), ("image".to_owned(), 1));
        let pools: Vec<Value> = serde_json::from_str(
            &lab.tool(&["ceph", site, "osd", "pool", "ls", "detail", "--format", "json"]),
        )
        .unwrap();
        let data = pools.iter().find(|p| p["pool_name"] == "images-data").unwrap();
        assert_eq!(data["type"], json!(3), "erasure-coded: {data}");
        assert!(data["flags_names"].as_str().unwrap().contains("ec_overwrites"), "{data}");
    }
    lab.tool(&["start", "rbd-mirror-a", "rbd-mirror-b"]);
    let proven = lab.good(&connect(&admins, &["--pool", "images"]));
    assert_eq!(proven["proofs"][0]["verified"], json!(true), "{proven:#}");

    // Another pool, by the example in docs/, with stock oslo.messaging.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/link_client.py");
    let keys = ["a", "b"].map(|site| lab.admin_keyring(site).display().to_string()).join(" ");
    let script =
        format!("\"$SCORIA_VENV/bin/python\" {example} \"$SCORIA_CONF\" lab paris rome volumes2 {keys}");
    let told = lab.tool(&["exec", "sh", "-c", &script]);
    let told: Value = serde_json::from_str(told.lines().last().unwrap_or_default()).unwrap();
    assert_eq!(
        (&told["outcome"], &told["result"]["proofs"][0]["verified"]),
        (&json!("succeeded"), &json!(true))
    );
    assert_eq!(lab.good(&["site", "link", "list"]).as_array().unwrap().len(), 2);

    // What is protected stands in the way.
    lab.rbd("a", &["create", "images/disk", "--size", "16M", "--image-feature", "layering,exclusive-lock"]);
    let copied = lab.good(&["replicate", "paris", "images/disk"]);
    assert_eq!(copied["images"][0]["fate"]["step"], "replaying", "{copied:#}");
    let parting = |more: &[&'static str]| {
        let words = ["site", "disconnect", "paris", "rome", "--yes"];
        [&words[..], more].concat().into_iter().chain(admins.iter().map(String::as_str)).collect::<Vec<_>>()
    };
    let said = lab.refused(&parting(&[]));
    assert!(said.contains("1 images of 16 MiB are mirrored: images/disk"), "{said}");
    assert_eq!(lab.mirroring("b", "images").1, 1, "nothing was parted");
    assert!(lab.refused(&["site", "delete", "rome", "--yes"]).contains("connected by 2 pools"));

    // The copies stay: Ceph does not let their pool's mirroring end.
    let parted = lab.good(&parting(&["--force"]));
    let left = parted["left"].to_string();
    assert!(left.contains("pool images of site rome stays mirrored"), "{parted:#}");
    assert_eq!(lab.images("b", "images"), ["disk"], "the copy is kept");
    assert_eq!(
        (lab.images("a", "images"), lab.mirroring("a", "images").0),
        (vec!["disk".to_owned()], "disabled".to_owned())
    );
    assert_eq!(parted["strangers"], json!(["no pool of paris knows rome", "no pool of rome knows paris"]));
    lab.assert_strangers();
    lab.assert_no_admin_key();
    assert!(lab.refused(&parting(&[])).contains("strangers already"));
    for site in ["paris", "rome"] {
        lab.good(&["site", "delete", site, "--yes"]);
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn one_way_by_a_user_of_its_own_a_whole_pool_and_its_copies_removed() {
    let lab = Bare::get();
    lab.start(&[]);
    lab.register("admin");
    lab.tool(&["start", "rbd-mirror-b"]);
    let order = [
        "site",
        "connect",
        "paris",
        "rome",
        "--pool",
        "images",
        "--create-pools",
        "--manual",
        "--way",
        "rx-only",
    ];
    let proven = lab.good(&[&order[..], &["--mode", "pool"]].concat());
    assert_eq!(proven["proofs"][0]["text"], "verified from paris to rome", "{proven:#}");
    // A user that may read this pool and no other; it is known on one side, and only that receives.
    let user = lab.users("a").into_iter().find(|u| u.starts_with("client.scoria-link-")).unwrap();
    let may = || {
        let said = lab.tool(&["ceph", "a", "auth", "get", &user, "--format", "json"]);
        let caps: Value = serde_json::from_str(&said).unwrap();
        caps[0]["caps"]["osd"].as_str().unwrap().to_owned()
    };
    assert_eq!(may(), "profile rbd pool=images");
    // With another pool it gets more, and loses that when the pool is parted.
    let other = ["--pool", "others", "--create-pools", "--manual", "--way", "rx-only"];
    lab.good(&[&order[..4], &other].concat());
    assert_eq!(may(), "profile rbd pool=images, profile rbd pool=others");
    let parted = lab.good(&["site", "disconnect", "paris", "rome", "--pool", "others", "--yes"]);
    assert!(parted["left"].to_string().contains("of site paris stays: other peers have it"), "{parted:#}");
    assert_eq!(parted["strangers"][1], "rome knows paris by 1 other pools", "{parted:#}");
    assert_eq!(may(), "profile rbd pool=images");
    assert_eq!((lab.mirroring("b", "others").1, lab.mirroring("b", "images").1), (0, 1));
    assert_eq!(lab.users("b"), Vec::<String>::new());
    let stored =
        |site: &str| lab.keys_of(site).iter().filter(|key| key.starts_with("rbd/mirror/peer/")).count();
    assert_eq!((stored("a"), stored("b")), (0, 1));
    assert!(lab.refused(&[&order[..4], &["--pool", "images"]].concat()).contains("is connected rx-only"));

    // In pool mode every journaled image is mirrored.
    for image in ["one", "two"] {
        let words = ["create", "--size", "8M", "--image-feature", "layering,exclusive-lock,journaling"];
        lab.rbd("a", &[&words[..], &[&format!("images/{image}")]].concat());
    }
    wait_until("both are copied", 120, || lab.images("b", "images") == ["one", "two"]);
    let parted = lab.good(&["site", "disconnect", "paris", "rome", "--yes", "--force", "--purge-replicas"]);
    assert_eq!(parted["removed"], json!(["images/one", "images/two"]), "{parted:#}");
    assert_eq!(lab.images("b", "images"), Vec::<String>::new());
    assert_eq!(lab.images("a", "images"), ["one", "two"]);
    for image in ["images/one", "images/two"] {
        assert!(lab.rbd("a", &["info", image]).contains("journaling"), "{image}: it was its owner's");
    }
    for site in ["a", "b"] {
        assert_eq!(lab.mirroring(site, "images").0, "disabled", "{site}");
    }
    lab.assert_strangers();
}
