//! Backups by mirroring, on two clusters: what is pinned on the other site is the volume at one instant, however long its
//! data is on the way, and comes back from there, to that site and to its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, row_str, signal, wait_until};
use crate::{Backups, POOL, Who, left, serve_with};

const WHY: &str = "stock knows one method";
const DRIVER: &str = "scoria.backup.drivers.ceph.Mirror";

/// scoria-backup whose backups go to site b, by mirroring where that is possible.
fn serve<'a>(lab: &'a Lab, method: &str) -> Backups<'a> {
    let backups = Backups::served_by(lab, Who::Scoria);
    restart(lab, method, &[]);
    backups
}

fn restart(lab: &Lab, method: &str, env: &[(&str, &str)]) {
    serve_with(lab, &format!("[DEFAULT]\nbackup_method = {method}\nbackup_site = site-b\n"), env);
}

fn pin(volume: &str, backup: &str) -> String {
    format!("scoria-pin-{volume}.{backup}")
}

/// Checksum of all that a backup holds.
fn pinned(lab: &Lab, volume: &str, backup: &str) -> Value {
    lab.ceph("checksum", json!({"site": "b", "pool": POOL, "image": pin(volume, backup), "length": 0}))
}

/// Checksum of all of the volume's image, at a snapshot of it.
fn whole(lab: &Lab, site: &str, volume: &str, snapshot: Option<&str>) -> Value {
    let image = format!("volume-{volume}");
    lab.ceph("checksum", json!({"site": site, "image": image, "length": 0, "snapshot": snapshot}))
}

/// Snapshots of backups on the volume's image.
fn points(lab: &Lab, site: &str, volume: &str) -> Vec<String> {
    let seen = lab.ceph("info", json!({"site": site, "image": format!("volume-{volume}")}));
    let names = seen["snapshots"].as_array().cloned().unwrap_or_default();
    let names = names.iter().filter_map(Value::as_str).filter(|name| name.starts_with("backup."));
    names.map(str::to_owned).collect()
}

fn verify(lab: &Lab, backup: &str) {
    wait_until("its checksums are computed", 120, || {
        let out = lab.manage(&["backup", "verify", backup]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{out:?}");
        assert!(text.contains("unverified") || text.contains("what was written"), "{text}");
        text.contains("what was written")
    });
}

fn pinned_and_back(lab: &Lab, kind: &str) {
    let backups = serve(lab, "mirror");
    let id = lab.volume_of_type(kind);
    lab.write("a", &id, 1);
    lab.wait_mirrored(&id, "b");
    let mut made: Vec<(String, Value)> = Vec::new();
    for seed in 2..4u32 {
        let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": seed,
                           "offset": u64::from(seed) * (200 << 20)});
        lab.ceph("write", write);
        let content = whole(lab, "a", &id, None);
        let backup = backups.of(&id, json!({"incremental": !made.is_empty()}));
        let row = backups.row(&backup);
        assert_eq!(row_str(&row, "service"), DRIVER);
        assert!(row_str(&row, "service_metadata").contains(&pin(&id, &backup)), "{row}");
        if let Some((parent, _)) = made.last() {
            assert_eq!(row_str(&row, "parent_id"), parent);
        }
        assert_eq!(pinned(lab, &id, &backup), content, "{kind}");
        made.push((backup, content));
    }
    assert_eq!(points(lab, "a", &id).len(), 1, "the newest alone: {:?}", points(lab, "a", &id));
    // Into the volume on its own site: by what has changed since, then by comparing; and into a new one.
    for (backup, content) in made.iter().rev() {
        lab.write("a", &id, 9);
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(lab, "a", &id, None), content, "{kind}");
    }
    let new = backups.restore(&made[0].0, None);
    assert_eq!(whole(lab, "a", &new, None), made[0].1);
    lab.delete(&[&new]);
    for (backup, _) in &made {
        verify(lab, backup);
    }
    let listed = lab.manage(&["backup", "list", "--volume", &id]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("| mirror") && listed.contains("site-b"), "{listed}");
    // The volume goes, and its copy with it: what is pinned stays.
    lab.delete(&[&id]);
    for (backup, content) in &made {
        assert_eq!(&pinned(lab, &id, backup), content, "{kind}: after its deletion");
    }
    let new = backups.restore(&made[1].0, None);
    assert_eq!(whole(lab, "a", &new, None), made[1].1);
    lab.delete(&[&new]);
    for (backup, _) in made.iter().rev() {
        backups.delete(backup);
    }
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    wait_until("nothing of the copy stays in the trash", 120, || {
        lab.ceph("trash", json!({"site": "b"})) == json!([])
    });
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_point_of_the_journal_is_pinned_and_comes_back() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        pinned_and_back(&lab, "replicated");
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_mirror_snapshot_is_pinned_and_comes_back() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        pinned_and_back(&lab, "replicated-snapshot");
    }
}

/// More than 1 GiB is on its way over a link that is slowed down while a guest goes on writing: what is pinned is what the
/// volume was at the instant of its snapshot.
fn slowly(lab: &Lab, kind: &str) {
    let backups = serve(lab, "mirror");
    let id = lab.create(json!({"size": 2, "volume_type": kind}));
    lab.wait_status(&id, "available");
    lab.wait_mirrored(&id, "b");
    let image = format!("volume-{id}");
    // rbd-mirror may work a quarter of the time.
    let stop = AtomicBool::new(false);
    let daemons = lab.pids_of("rbd-mirror-b");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                signal("STOP", &daemons);
                std::thread::sleep(Duration::from_millis(300));
                signal("CONT", &daemons);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for part in 0..36u32 {
                let write = json!({"site": "a", "image": image, "seed": part, "length": 32 << 20,
                                   "offset": u64::from(part) * (40 << 20)});
                lab.ceph("write", write);
            }
            let backup = backups.order(&id, json!({}));
            for seed in 0..3000u32 {
                let write = json!({"site": "a", "image": image, "seed": seed, "length": 4096,
                                   "offset": u64::from(seed % 36) * (40 << 20)});
                lab.ceph("write", write);
                if backups.row(&backup)["status"] != "creating" {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            backups.wait(&backup, "available");
            backup
        }));
        stop.store(true, Ordering::SeqCst);
        let backup = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let point = points(lab, "a", &id).remove(0);
        assert_eq!(pinned(lab, &id, &backup), whole(lab, "a", &id, Some(&point)), "{kind}");
        backups.delete(&backup);
    });
    signal("CONT", &daemons);
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_is_pinned_of_a_slow_journal_is_the_volume_at_one_instant() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        slowly(&lab, "replicated");
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn what_is_pinned_of_a_slow_copy_is_the_volume_at_one_instant() {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        slowly(&lab, "replicated-snapshot");
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn backups_by_mirroring_are_made_through_deaths() {
    let lab = Lab::get();
    if !lab.only_scoria("stock knows neither journal nor crash points") {
        return;
    }
    let backups = serve(&lab, "mirror");
    let id = lab.volume_of_type("replicated-snapshot");
    lab.write("a", &id, 1);
    lab.wait_mirrored(&id, "b");
    for (seed, point) in (2..).zip([
        "create_backup:taken",
        "create_backup:covered",
        "create_backup:cloned",
        "create_backup:pinned",
        "create_backup:ended",
        "settle_backup:part",
    ]) {
        lab.write("a", &id, seed);
        let content = whole(&lab, "a", &id, None);
        restart(&lab, "mirror", &[("SCORIA_CRASH_AT", point)]);
        let backup = backups.order(&id, json!({}));
        lab.wait_gone("scoria-backup", 120);
        let died = format!("dying at {point},");
        assert!(lab.log_of("scoria-backup").contains(&died), "{point}: it died, but not there");
        restart(&lab, "mirror", &[]);
        backups.wait(&backup, "available");
        lab.wait_status(&id, "available");
        assert_eq!(pinned(&lab, &id, &backup), content, "{point}");
        verify(&lab, &backup);
        backups.delete(&backup);
        assert!(left(&lab).is_empty(), "{point}: {:?}", left(&lab));
        assert!(points(&lab, "a", &id).is_empty(), "{point}");
    }
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

/// The backend of the volumes works on another site from now on.
fn moved(lab: &Lab, to: &str, status: &str) {
    lab.api("services.failover_host", json!([CEPH]), json!({"backend_id": to}));
    wait_until(&format!("the backend is {status}"), 180, || {
        let query = "SELECT replication_status FROM services WHERE deleted = 0 AND host = %s \
                     AND `binary` = 'cinder-volume'";
        row_str(&lab.rows(query, &[json!(CEPH)])[0], "replication_status") == status
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn pins_outlive_a_failover_and_the_way_back() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = serve(&lab, "auto");
    let id = lab.volume_of_type("replicated");
    lab.write("a", &id, 1);
    lab.wait_mirrored(&id, "b");
    let first = backups.of(&id, json!({}));
    let content = pinned(&lab, &id, &first);
    let moved = |to: &str, status: &str| {
        moved(&lab, to, status);
        lab.wait_status(&id, "available");
    };
    moved("site-b", "failed-over");
    assert_eq!(pinned(&lab, &id, &first), content);
    let write = json!({"site": "b", "image": format!("volume-{id}"), "seed": 5, "offset": 300 << 20});
    lab.ceph("write", write);
    let there = whole(&lab, "b", &id, None);
    // The site of the backups is the volume's own now.
    let second = backups.of(&id, json!({"incremental": true}));
    assert!(row_str(&backups.row(&second), "service").ends_with("CephBackupDriver"));
    assert!(backups.row(&second)["parent_id"].is_null());
    for (backup, content) in [(&first, &content), (&second, &there)] {
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(&lab, "b", &id, None), content);
    }
    lab.wait_mirrored(&id, "a");
    moved("default", "enabled");
    lab.wait_mirrored(&id, "b");
    let third = backups.of(&id, json!({}));
    assert_eq!(row_str(&backups.row(&third), "service"), DRIVER);
    assert_eq!(pinned(&lab, &id, &third), whole(&lab, "a", &id, None));
    for backup in [&third, &second, &first] {
        verify(&lab, backup);
        backups.delete(backup);
    }
    assert!(left(&lab).is_empty(), "{:?}", left(&lab));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

/// Orders a backup whose point cannot arrive; its id, once the point is taken.
fn on_its_way(lab: &Lab, backups: &Backups<'_>, id: &str, seed: u32) -> (String, Value) {
    lab.pause("rbd-mirror-b");
    let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": seed, "offset": 300 << 20});
    lab.ceph("write", write);
    let content = whole(lab, "a", id, None);
    let backup = backups.order(id, json!({}));
    wait_until("the point is taken", 60, || points(lab, "a", id).iter().any(|name| name.contains(&backup)));
    (backup, content)
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_point_waits_for_a_site_that_comes_back_and_is_given_up_when_it_does_not() {
    let lab = &Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = serve(lab, "auto");
    let id = lab.volume_of_type("replicated-snapshot");
    lab.write("a", &id, 1);
    lab.wait_mirrored(&id, "b");
    let (backup, content) = on_its_way(lab, &backups, &id, 2);
    assert_eq!(row_str(&backups.row(&backup), "service"), DRIVER);
    lab.pause("site-b");
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!(backups.row(&backup)["status"], "creating");
    lab.resume_site("site-b");
    backups.wait(&backup, "available");
    assert_eq!(pinned(lab, &id, &backup), content);
    verify(lab, &backup);

    let (lost, _) = on_its_way(lab, &backups, &id, 3);
    lab.kill("site-b");
    wait_until("it is given up", 600, || backups.row(&lost)["status"] == "error");
    assert_eq!(lab.messages(&lost)[0]["detail_id"], "020");
    lab.wait_status(&id, "available");
    let here = points(lab, "a", &id);
    assert!(here.len() == 1 && here[0].contains(&backup), "what was taken for it is gone: {here:?}");
    lab.start_site("site-b");
    backups.wait_ready();
    backups.delete(&lost);
    assert_eq!(pinned(lab, &id, &backup), content, "what was there is what it was");
    let content = whole(lab, "a", &id, None);
    let next = backups.of(&id, json!({"incremental": true}));
    assert_eq!(pinned(lab, &id, &next), content);
    verify(lab, &next);
    for backup in [&next, &backup] {
        backups.delete(backup);
    }
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn retention_lets_go_of_pins_in_the_middle_and_the_others_come_back() {
    let lab = &Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = serve(lab, "mirror");
    let id = lab.volume_of_type("replicated");
    lab.write("a", &id, 1);
    lab.wait_mirrored(&id, "b");
    let mut made = Vec::new();
    for number in 0..4u32 {
        let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": number + 2,
                           "offset": u64::from(number) * (200 << 20)});
        lab.ceph("write", write);
        let content = whole(lab, "a", &id, None);
        let backup = backups.of(&id, json!({"incremental": number > 0}));
        // Of the four the first three are of one day.
        let date = if number < 3 { format!("2026-01-01 1{number}:00:00") } else { "2026-01-02".to_owned() };
        lab.sql("UPDATE backups SET data_timestamp = %s WHERE id = %s", &[json!(date), json!(backup)]);
        made.push((backup, content));
    }
    for order in [&["set", &id, "--keep-daily", "5"][..], &["apply", "--type", "replicated", "--yes"]] {
        let out = lab.manage(&[&["backup", "retention"], order].concat());
        assert!(out.status.success(), "{order:?}: {out:?}");
    }
    for (backup, _) in made.drain(..2) {
        assert_ne!(backups.row(&backup)["deleted"], json!(0));
    }
    let row = backups.row(&made[1].0);
    assert_eq!(row_str(&row, "parent_id"), made[0].0);
    assert!(backups.row(&made[0].0)["parent_id"].is_null());
    let images = lab.ceph("images", json!({"site": "b", "pool": POOL}));
    assert_eq!(images.as_array().map(Vec::len), Some(2), "{images}");
    for (backup, content) in &made {
        assert_eq!(&pinned(lab, &id, backup), content);
        verify(lab, backup);
        backups.restore(backup, Some(&id));
        assert_eq!(&whole(lab, "a", &id, None), content);
    }
    for (backup, _) in made.iter().rev() {
        backups.delete(backup);
    }
    assert!(left(lab).is_empty(), "{:?}", left(lab));
    let out = lab.manage(&["backup", "retention", "clear", &id]);
    assert!(out.status.success(), "{out:?}");
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}

/// The image on site b that a volume's image is a clone of.
fn parent(lab: &Lab, volume: &str) -> Value {
    lab.ceph("info", json!({"site": "b", "image": format!("volume-{volume}")}))["parent"].clone()
}

/// Images in the pool of the volumes on site b that are none of a volume's.
fn strays(lab: &Lab) -> Vec<String> {
    let images = lab.ceph("images", json!({"site": "b"}));
    let images = images.as_array().unwrap().iter().filter_map(Value::as_str).map(str::to_owned);
    images.filter(|name| name.starts_with("scoria-")).collect()
}

/// The volumes are served from the site of the backups, as after the loss of the other one: a new volume gets a backup
/// without a byte being copied, stands alone soon, and nothing is lost when the service dies meanwhile.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_backup_is_restored_by_a_clone_on_its_own_site() {
    let lab = &Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let backups = serve(lab, "mirror");
    let id = lab.volume_of_type("replicated");
    lab.write("a", &id, 1);
    lab.wait_mirrored(&id, "b");
    let mut made = Vec::new();
    for seed in 2..4u32 {
        let write = json!({"site": "a", "image": format!("volume-{id}"), "seed": seed,
                           "offset": u64::from(seed) * (200 << 20)});
        lab.ceph("write", write);
        let content = whole(lab, "a", &id, None);
        let backup = backups.of(&id, json!({}));
        verify(lab, &backup);
        made.push((backup, content));
    }
    moved(lab, "site-b", "failed-over");
    lab.wait_status(&id, "available");
    // For new volumes; cinder-api does not enable a service that has failed over.
    let enable = "UPDATE services SET disabled = 0, disabled_reason = NULL WHERE host = %s AND deleted = 0";
    lab.sql(enable, &[json!(CEPH)]);
    let (backup, content) = &made[0];
    let independent = |volume: &str| {
        wait_until("it stands alone", 120, || parent(lab, volume).is_null());
        assert_eq!(&whole(lab, "b", volume, None), content);
        assert!(strays(lab).is_empty(), "{:?}", strays(lab));
    };
    let told = |what: &str| lab.log_of("scoria-backup").matches(what).count();
    // At once, by the API: into a volume that is there, and into one that it makes.
    let cloned = "takes the place of the volume's image";
    let before = told(cloned);
    let new = lab.volume_of_type("ceph");
    let of_new = lab.ceph("info", json!({"site": "b", "image": format!("volume-{new}")}));
    backups.restore(backup, Some(&new));
    assert_eq!(told(cloned), before + 1);
    assert_eq!(&whole(lab, "b", &new, None), content);
    independent(&new);
    let after = lab.ceph("info", json!({"site": "b", "image": format!("volume-{new}")}));
    for field in ["size", "features", "snapshots", "state"] {
        assert_eq!(after[field], of_new[field], "{field}");
    }
    assert_ne!(after["id"], of_new["id"]);
    // The service and its workers die on the way.
    for point in [
        "restore_backup:compared",
        "restore_backup:clone_made",
        "restore_backup:cloned",
        "restore_backup:moved_away",
        "restore_backup:exchanged",
        "restore_backup:ended",
        "detach_volume:settled",
        "detach_volume:flattened",
    ] {
        restart(lab, "mirror", &[("SCORIA_CRASH_AT", point)]);
        let volume = lab.volume_of_type("ceph");
        lab.api("restores.restore", json!([backup]), json!({"volume_id": volume}));
        lab.wait_gone("scoria-backup", 120);
        let died = format!("dying at {point},");
        assert!(lab.log_of("scoria-backup").contains(&died), "{point}: it died, but not there");
        restart(lab, "mirror", &[]);
        lab.wait_status(&volume, "available");
        backups.wait(backup, "available");
        assert_eq!(&whole(lab, "b", &volume, None), content, "{point}");
        independent(&volume);
        lab.delete(&[&volume]);
    }
    assert_eq!(&pinned(lab, &id, backup), content, "the backup is what it was");
    // A snapshot on the volume keeps it from being replaced: it is copied.
    let snapshot = lab.snapshot_of(&new);
    let before = told("is copied into the volume's image");
    backups.restore(&made[1].0, Some(&new));
    assert_eq!(told("is copied into the volume's image"), before + 1);
    assert_eq!(whole(lab, "b", &new, None), made[1].1);
    lab.delete_snapshot(&snapshot);
    // Deleted right after the restoration: the volume, and the backup.
    for (backup, content) in made.iter().rev() {
        let (short, long) = (lab.volume_of_type("ceph"), lab.volume_of_type("ceph"));
        backups.restore(backup, Some(&short));
        backups.restore(backup, Some(&long));
        backups.delete(backup);
        assert_eq!(&whole(lab, "b", &long, None), content);
        assert!(parent(lab, &long).is_null());
        lab.delete(&[&short, &long]);
    }
    assert!(left(lab).is_empty() && strays(lab).is_empty(), "{:?} {:?}", left(lab), strays(lab));
    lab.delete(&[&new]);
    lab.wait_mirrored(&id, "a");
    moved(lab, "default", "enabled");
    lab.wait_status(&id, "available");
    lab.wait_mirrored(&id, "b");
    lab.delete(&[&id]);
    lab.wait_quota(json!({}));
}
