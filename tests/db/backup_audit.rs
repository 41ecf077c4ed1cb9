//! An audit of backups: every kind of orphan and of loss is found, what is under way is none, and a repair removes what is
//! sure and nothing else, wherever it dies.

use std::collections::BTreeSet;

use scoria::backup::audit::{Audit, Kind, Removal};
use scoria::backup::names;
use scoria::backup::orders::Order;
use scoria::journal::NewOperation;
use scoria::rbd::protocol::{
    ImageClone, ImageCreate, ImageRemove, ObjectRemove, ObjectWrite, SnapCreate, SnapProtect, SnapRemove,
};
use scoria::rbd::sim::crash::explored;
use scoria::rbd::sim::{Health, When};

use crate::backup_scene::{MIB, Scene};
use crate::backup_sites::register;
use crate::journal::accept;
use crate::policy_scene::{Serving, dies};
use crate::seed::{self, TYPE};
use crate::stage::full;

const LOOK: Order = Order::Audit { repair: false, purged: false };
const REPAIR: Order = Order::Audit { repair: true, purged: false };

async fn audited(serving: &Serving, order: Order) -> Audit {
    serde_json::from_value(serving.carry_out(order).await.unwrap()).unwrap()
}

/// Kind, subject and removal of what was found.
fn told(audit: &Audit) -> BTreeSet<(String, String, String)> {
    let one = |f: &scoria::backup::audit::Finding| {
        (f.kind.as_str().to_owned(), f.subject(), format!("{:?}", f.removal))
    };
    audit.findings.iter().map(one).collect()
}

fn expected(of: &[(Kind, String, Removal)]) -> BTreeSet<(String, String, String)> {
    of.iter()
        .map(|(kind, what, removal)| (kind.as_str().to_owned(), what.clone(), format!("{removal:?}")))
        .collect()
}

async fn base(scene: &Scene, image: &str) {
    let create =
        ImageCreate { pool: "backups".into(), image: image.to_owned(), size: MIB, order: 22, features: 61 };
    scene.sim.site("b").call(create).await.unwrap();
}

async fn snap(scene: &Scene, image: &str, snap: &str) {
    let create = SnapCreate { pool: "backups".into(), image: image.to_owned(), snap: snap.to_owned() };
    scene.sim.site("b").call(create).await.unwrap();
}

/// The row says that it is deleted, and everything of it stays.
async fn forgotten(scene: &Scene, backup: &str) {
    scene.test.sql(&format!("UPDATE backups SET deleted=1, status='deleted' WHERE id='{backup}'")).await;
}

fn point_of(names: &[String], backup: &str) -> String {
    names.iter().find(|name| name.contains(backup)).expect("a snapshot of the backup").clone()
}

/// What a forgotten full backup leaves, and its volume's snapshot.
async fn orphaned(scene: &Scene, volume: &str, backup: &str) -> Vec<(Kind, String, Removal)> {
    let at_volume = point_of(&scene.points(volume), backup);
    forgotten(scene, backup).await;
    vec![
        (Kind::OrphanImage, names::own_base(volume, backup), Removal::Sure),
        (Kind::OrphanSnapshot, format!("volume-{volume}@{at_volume}"), Removal::Sure),
        (Kind::OrphanObject, names::metadata_object(backup), Removal::Sure),
        (Kind::OrphanObject, names::sums_object(backup), Removal::Sure),
    ]
}

#[tokio::test]
async fn every_orphan_is_found_and_what_is_sure_is_removed_and_nothing_else() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let volume = scene.volume(1, "available").await;
    scene.write(&volume, 0, 7, 3 * MIB).await;
    let kept = scene.made(1, &volume, None).await;
    scene.write(&volume, 900 * MIB, 8, MIB).await;
    let middle = scene.made(2, &volume, Some(&kept)).await;
    scene.write(&volume, 950 * MIB, 9, MIB).await;
    let newest = scene.made(3, &volume, Some(&middle)).await;
    let content = scene.content(&volume);
    let clean = audited(&serving, LOOK).await;
    assert!(clean.is_clean() && clean.backups == 3, "{clean:#?}");
    assert!(clean.places.iter().any(|p| p.backups && p.objects == 6 && p.images == 1), "{clean:#?}");

    // A base of its own, a point in the middle of a chain, with all that is beside them and on the volume.
    let alone = scene.made(4, &volume, None).await;
    let mut orphans = orphaned(&scene, &volume, &alone).await;
    let base_of_chain = names::own_base(&volume, &kept);
    let on_base = point_of(&scene.sim.image("b", "backups", &base_of_chain).unwrap().snaps, &middle);
    let on_volume = point_of(&scene.points(&volume), &middle);
    scene.test.sql(&format!("UPDATE backups SET parent_id='{kept}' WHERE id='{newest}'")).await;
    forgotten(&scene, &middle).await;
    orphans.push((Kind::OrphanSnapshot, format!("{base_of_chain}@{on_base}"), Removal::Sure));
    orphans.push((Kind::OrphanSnapshot, format!("volume-{volume}@{on_volume}"), Removal::Sure));
    orphans.push((Kind::OrphanObject, names::metadata_object(&middle), Removal::Sure));
    orphans.push((Kind::OrphanObject, names::sums_object(&middle), Removal::Sure));
    // Of a pinned point that is deleted only an empty clone is left.
    let pinned = scene.made(5, &volume, None).await;
    let pin = names::pin(&volume, &pinned);
    scene.run(&scene.to_be_deleted(&pinned).await).await.unwrap();
    base(&scene, &pin).await;
    orphans.push((Kind::OrphanImage, pin, Removal::Sure));

    // Nobody has ever heard of these: another Cinder may have.
    let strange = seed::id(4, 90);
    let unheard = names::own_base(&volume, &strange);
    base(&scene, &unheard).await;
    snap(&scene, &unheard, &names::new_snapshot(&strange)).await;
    let object = ObjectWrite {
        pool: "backups".into(),
        object: names::metadata_object(&strange),
        data: b"{}".to_vec(),
    };
    scene.sim.site("b").call(object).await.unwrap();
    let purged = vec![
        (Kind::OrphanImage, unheard, Removal::Purged),
        (Kind::OrphanObject, names::metadata_object(&strange), Removal::Purged),
    ];

    // Not to be removed: open, cloned from, with a snapshot of somebody else.
    let mut stay = Vec::new();
    for (number, why) in [(6, "open"), (7, "cloned"), (8, "foreign")] {
        let other = scene.volume(number, "available").await;
        let backup = scene.made(number, &other, None).await;
        let image = names::own_base(&other, &backup);
        match why {
            "open" => drop(scene.sim.watch("b", "backups", &image)),
            "foreign" => snap(&scene, &image, "mine").await,
            _ => {
                let point = point_of(&scene.sim.image("b", "backups", &image).unwrap().snaps, &backup);
                let (pool, image) = ("backups".to_owned(), image.clone());
                let protect = SnapProtect { pool: pool.clone(), image: image.clone(), snap: point.clone() };
                scene.sim.site("b").call(protect).await.unwrap();
                let clone = ImageClone {
                    pool: pool.clone(),
                    image,
                    snap: point,
                    dest_pool: pool,
                    dest: "a-clone".into(),
                    features: 61,
                    order: 22,
                };
                scene.sim.site("b").call(clone).await.unwrap();
            }
        }
        let mut left = orphaned(&scene, &other, &backup).await;
        left[0].2 = Removal::Never;
        stay.push(left.remove(0));
        orphans.extend(left);
    }

    // Nobody's business: other images, and what stock names by the volume alone.
    base(&scene, "golden").await;
    base(&scene, &names::legacy_base(&seed::id(1, 99))).await;
    // Somebody is at work: a row that says nothing yet, and one that is deleted with an operation that is open.
    let creating = scene.ordered(20, &scene.volume(20, "available").await, None, None).await;
    base(&scene, &names::own_base(&seed::id(1, 20), &creating)).await;
    let busy = scene.made(21, &scene.volume(21, "available").await, None).await;
    forgotten(&scene, &busy).await;
    let other_host = scene.on("node2");
    let open = NewOperation {
        unique_id: "elsewhere".into(),
        method: "delete_backup".into(),
        backend_host: other_host.journal_host(),
        request: "{}".into(),
        resource: Some(("Backup".into(), busy.clone())),
        ..NewOperation::default()
    };
    let _held = accept(&other_host.journal, open).await;

    let all: Vec<_> = [orphans.clone(), purged.clone(), stay.clone()].concat();
    let found = audited(&serving, LOOK).await;
    assert_eq!(told(&found), expected(&all), "{found:#?}");
    let unknown: Vec<&str> =
        found.places.iter().flat_map(|place| &place.unknown_images).map(String::as_str).collect();
    assert_eq!(unknown.len(), 3, "{unknown:?}");
    assert!(unknown.contains(&"golden") && unknown.contains(&"a-clone"), "{unknown:?}");
    assert!(!found.is_clean() && !found.is_partial() && found.removed.is_empty());
    assert_eq!(told(&audited(&serving, LOOK).await), expected(&all), "an audit changes nothing");

    let repaired = audited(&serving, REPAIR).await;
    let left: Vec<_> = [purged, stay.clone()].concat();
    assert_eq!(told(&repaired), expected(&left), "{repaired:#?}");
    assert_eq!(repaired.removed.len(), orphans.len(), "{repaired:#?}");
    let again = audited(&serving, REPAIR).await;
    assert_eq!((told(&again), again.removed.len()), (expected(&left), 0));
    let repaired = audited(&serving, Order::Audit { repair: true, purged: true }).await;
    assert_eq!(told(&repaired), expected(&stay), "{repaired:#?}");
    assert_eq!(repaired.removed.len(), 2);
    for image in [
        "golden".to_owned(),
        names::own_base(&seed::id(1, 20), &creating),
        names::legacy_base(&seed::id(1, 99)),
    ] {
        assert!(scene.bases().contains(&image), "{image}");
    }

    // What has stayed is whole, and nothing of the volumes is missing.
    let target = scene.volume(30, "available").await;
    for id in [&kept, &newest] {
        assert_eq!(scene.verdict(id).await.verdict, "good");
    }
    scene.run(&scene.to_be_restored(&newest, &target).await).await.unwrap();
    assert_eq!((scene.content(&target), scene.content(&volume)), (content, content));
    assert_eq!(scene.points(&volume).len(), 2);
}

#[tokio::test]
async fn every_loss_is_found_and_no_repair_touches_it() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let mut made = Vec::new();
    for number in 1..=5 {
        let volume = scene.volume(number, "available").await;
        let backup = scene.made(number, &volume, None).await;
        made.push((names::own_base(&volume, &backup), backup));
    }
    let b = scene.sim.site("b");
    let pool = || "backups".to_owned();
    let snaps = |at: usize| scene.sim.image("b", "backups", &made[at].0).unwrap().snaps;
    // The image, the snapshot while another's is there, two snapshots, the metadata.
    for snap in snaps(0) {
        b.call(SnapRemove { pool: pool(), image: made[0].0.clone(), snap }).await.unwrap();
    }
    b.call(ImageRemove { pool: pool(), image: made[0].0.clone() }).await.unwrap();
    snap(&scene, &made[1].0, &names::new_snapshot(&made[4].1)).await;
    b.call(SnapRemove { pool: pool(), image: made[1].0.clone(), snap: point_of(&snaps(1), &made[1].1) })
        .await
        .unwrap();
    snap(&scene, &made[2].0, &names::new_snapshot(&made[2].1)).await;
    b.call(ObjectRemove { pool: pool(), object: names::metadata_object(&made[3].1) }).await.unwrap();
    // Checksums are no loss: stock's backups have none.
    b.call(ObjectRemove { pool: pool(), object: names::sums_object(&made[4].1) }).await.unwrap();
    let found = audited(&serving, LOOK).await;
    let expected_kinds = [
        (Kind::LostImage, &made[0].1),
        (Kind::LostSnapshot, &made[1].1),
        (Kind::LostSnapshot, &made[2].1),
        (Kind::LostMetadata, &made[3].1),
    ];
    assert_eq!(found.findings.len(), 4, "{found:#?}");
    for (kind, id) in expected_kinds {
        let one = found.findings.iter().find(|one| one.backups == [id.clone()]).expect("it is found");
        assert_eq!((one.kind, one.removal), (kind, Removal::Never), "{one:?}");
    }
    assert_eq!(found.backups, 5);
    let repaired = audited(&serving, Order::Audit { repair: true, purged: true }).await;
    assert_eq!((repaired.findings, repaired.removed.len()), (found.findings, 0));
    // A pool that is gone, with all that was in it.
    let id = &made[4].1;
    scene.test.sql(&format!("UPDATE backups SET container='elsewhere' WHERE id='{id}'")).await;
    let gone = audited(&serving, LOOK).await;
    let one = gone.findings.iter().find(|one| one.backups == [id.clone()]).expect("it is found");
    assert!(one.kind == Kind::LostImage && one.text.contains("no pool elsewhere"), "{one:?}");
    scene.test.sql(&format!("UPDATE backups SET container='backups' WHERE id='{id}'")).await;
    // Who is not available has lost nothing.
    for (_, id) in &made[..4] {
        scene.test.sql(&format!("UPDATE backups SET status='error' WHERE id='{id}'")).await;
    }
    let found = audited(&serving, LOOK).await;
    assert!(found.is_clean() && found.backups == 1, "{found:#?}");
}

#[tokio::test]
async fn a_site_that_does_not_answer_is_told_and_the_others_are_looked_at() {
    let mut scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    // One backup on site b, and one on the registered site a.
    let here = scene.made(1, &volume, None).await;
    register(&scene, "west", "a", "node1").await;
    scene
        .test
        .sql(&format!(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
             VALUES ('{TYPE}', 'backup:site', 'west', 0)"
        ))
        .await;
    let there = scene.made(2, &volume, None).await;
    let lost = scene.made(3, &volume, None).await;
    forgotten(&scene, &lost).await;
    let (first, second) = (scene.made(4, &volume, None).await, there);
    let serving = Serving::of(&scene);
    let found = audited(&serving, LOOK).await;
    assert_eq!((found.backups, found.skipped, found.is_partial()), (3, 0, false), "{found:#?}");
    let orphan = names::own_base(&volume, &lost);
    assert!(
        found.findings.iter().any(|f| f.image.as_ref() == Some(&orphan) && f.site == "west"),
        "{found:#?}"
    );

    scene.sim.set_health("b", Health::Dead);
    let found = audited(&serving, REPAIR).await;
    assert_eq!((found.backups, found.skipped, found.is_partial()), (2, 1, true), "{found:#?}");
    assert!(
        !found.is_clean() && found.removed.iter().any(|f| f.image.as_ref() == Some(&orphan)),
        "{found:#?}"
    );
    assert!(found.findings.is_empty(), "{found:#?}");
    scene.sim.set_health("b", Health::Alive);

    // The files of the site are gone from this host: nothing is said of what it has.
    scene.test.sql("DELETE FROM scoria_site_hosts").await;
    scene.restart();
    let found = audited(&serving, LOOK).await;
    assert_eq!((found.backups, found.skipped, found.is_partial()), (1, 2, true), "{found:#?}");
    let troubles: Vec<&str> = found.places.iter().filter_map(|p| p.trouble.as_deref()).collect();
    assert!(troubles.iter().any(|why| why.contains("has no files of site west")), "{troubles:?}");
    for id in [&here, &first, &second] {
        assert_eq!(scene.status("backups", id).await, "available");
    }
}

#[tokio::test]
async fn a_repair_is_finished_wherever_the_service_dies() {
    let scene = Scene::new().await;
    let volume = scene.volume(1, "available").await;
    let kept = scene.made(1, &volume, None).await;
    let moments: &[When] = if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] };
    let (mut kills, mut number) = (0, 1);
    for &when in moments {
        // An audit asks much and changes little: of the many calls that it makes few are of the repair.
        for k in (1..).step_by(if full() { 7 } else { 29 }) {
            let why = format!("{when:?} {k}");
            let mut orphans = Vec::new();
            for _ in 0..2 {
                number += 1;
                let other = scene.volume(number, "available").await;
                let backup = scene.made(number, &other, None).await;
                orphans.extend(orphaned(&scene, &other, &backup).await);
            }
            let (killed, outcome) = dies(&scene, k, when, REPAIR).await;
            assert_eq!(outcome, "succeeded", "{why}");
            let number = scene.test.row("SELECT MAX(id) FROM scoria_operations").await.remove(0);
            let answer = scene.backups.journal.answer_of(number.parse().unwrap()).await.unwrap().unwrap();
            let done: Audit = serde_json::from_value(answer).unwrap();
            assert!(done.is_clean(), "{why}: {done:#?}");
            // What went before the death may be missing from the list, when its step was not written.
            assert!(done.removed.len() + 1 >= orphans.len(), "{why}: {done:#?}");
            let serving = Serving::of(&scene);
            let after = audited(&serving, LOOK).await;
            assert!(after.is_clean() && after.backups == 1, "{why}: {after:#?}");
            assert_eq!(scene.bases(), [names::own_base(&volume, &kept)], "{why}");
            assert_eq!(scene.verdict(&kept).await.verdict, "good");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 2, "{kills}");
    explored(kills);
}
