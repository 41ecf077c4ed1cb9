//! Retention against a real MariaDB: what goes, what is mended, and that nothing is lost wherever the service dies.

use diesel::dsl::sql;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use scoria::backup::orders::Order;
use scoria::backup::retention::many::{self, Looked};
use scoria::backup::retention::rule::Fate;
use scoria::backup::retention::{Reach, Source, preview};
use scoria::db::Conn;
use scoria::error::Code;
use scoria::rbd::sim::When;
use scoria::rbd::sim::crash::explored;

use crate::backup_scene::{MIB, Scene};
use crate::policy_scene::{Serving, apply, chain, dated, dies, keep, used};
use crate::seed::TYPE;
use crate::stage::full;

/// These backups are there and no others: rows, snapshots, objects; and each holds what the volume held.
async fn whole(
    scene: &Scene,
    serving: &Serving,
    volume: &str,
    other: &str,
    left: &[&(String, u64)],
    why: &str,
) {
    let rows = scene.test.rows("SELECT id FROM backups WHERE deleted=0 ORDER BY data_timestamp").await;
    let ids: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(ids, left.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), "{why}");
    let bases = scene.bases();
    assert_eq!(bases.len(), 1, "{why}: {bases:?}");
    let snaps = scene.sim.image("b", "backups", &bases[0]).unwrap().snaps;
    for names in [&snaps, &scene.points(volume)] {
        assert_eq!(names.len(), left.len(), "{why}: {names:?}");
    }
    let mut parent: Option<&str> = None;
    for (number, (id, content)) in left.iter().enumerate() {
        assert!(names_of(&snaps, id) && names_of(&scene.points(volume), id), "{why}: {id}");
        let row = scene.backup(id).await;
        assert_eq!(row.parent_id.as_deref(), parent, "{why}");
        let dependent = i32::from(number + 1 < left.len());
        assert_eq!(row.num_dependent_backups, dependent, "{why}: {id}");
        assert_eq!(scene.verdict(id).await.verdict, "good", "{why}");
        let work = scene.to_be_restored(id, other).await;
        scene.run(&work).await.unwrap();
        assert_eq!(scene.content(other), *content, "{why}: {id}");
        parent = Some(id);
    }
    let count = left.len().to_string();
    let gib = (2 * left.len()).to_string();
    assert_eq!(
        used(scene).await,
        [["backup_gigabytes", gib.as_str(), "0"], ["backups", count.as_str(), "0"]],
        "{why}"
    );
    assert!(scene.open().await.is_empty(), "{why}: {:?}", scene.open().await);
    assert!(serving.backups.journal.open_count() == 0, "{why}");
}

fn names_of(snaps: &[String], id: &str) -> bool {
    snaps.iter().filter(|name| name.contains(id)).count() == 1
}

#[tokio::test]
async fn a_middle_point_goes_and_its_child_is_whole() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let volume = scene.volume(1, "available").await;
    let other = scene.volume(2, "available").await;
    let made = chain(&scene, &serving, &volume, 4).await;
    // No rule: nothing goes, and nothing is said to go.
    let found = scene.test.db.read("t", async |c| preview(c, &volume, Reach::default()).await).await.unwrap();
    assert!(found.policy.is_none() && found.backups.is_empty());
    let answer = serving.carry_out(apply(&volume)).await.unwrap();
    assert_eq!((answer["removed"].as_array().unwrap().len(), &answer["kept"]), (0, &4.into()));
    // Two of one day: the older of them is in the middle.
    keep(&scene, &volume, None, Some(9)).await;
    dated(&scene, &made[1].0, "2026-01-03 08:00").await;
    let found = scene.test.db.read("t", async |c| preview(c, &volume, Reach::default()).await).await.unwrap();
    let going: Vec<&str> =
        found.backups.iter().filter(|v| v.fate == Fate::Removed).map(|v| v.id.as_str()).collect();
    assert_eq!(going, [made[1].0.as_str()]);
    assert_eq!(found.policy.unwrap().source, Source::Volume);
    assert_eq!(scene.status("backups", &made[1].0).await, "available", "a preview changes nothing");
    let answer = serving.carry_out(apply(&volume)).await.unwrap();
    assert_eq!(answer["removed"][0]["backup"], made[1].0.as_str());
    whole(&scene, &serving, &volume, &other, &[&made[0], &made[2], &made[3]], "the middle").await;
    // The full one, whose name the base has.
    keep(&scene, &volume, Some(2), None).await;
    serving.carry_out(apply(&volume)).await.unwrap();
    whole(&scene, &serving, &volume, &other, &[&made[2], &made[3]], "the first").await;
    // What comes next goes on from there.
    scene.write(&volume, 1200 * MIB, 99, MIB).await;
    let next = serving.made(&volume, true).await;
    let next = (next, scene.content(&volume));
    whole(&scene, &serving, &volume, &other, &[&made[2], &made[3], &next], "the next").await;
    serving.carry_out(apply(&volume)).await.unwrap();
    whole(&scene, &serving, &volume, &other, &[&made[3], &next], "once more").await;
    // Each was told as any deletion is.
    let told = scene.heard.events();
    let said = |event: &str| told.iter().filter(|said| said.contains(event)).count();
    assert_eq!((said("backup.delete.start"), said("backup.delete.end")), (3, 3), "{told:?}");
}

#[tokio::test]
async fn retention_is_applied_wherever_the_service_dies() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let moments: &[When] = if full() { &[When::Before, When::Midway, When::After] } else { &[When::Midway] };
    let mut kills = 0;
    let mut number = 0;
    for &when in moments {
        for k in (1..).step_by(if full() { 1 } else { 3 }) {
            let why = format!("{when:?} {k}");
            number += 2;
            let volume = scene.volume(number, "available").await;
            let other = scene.volume(number + 1, "available").await;
            let made = chain(&scene, &serving, &volume, 3).await;
            keep(&scene, &volume, Some(1), Some(1)).await;
            let (killed, outcome) = dies(&scene, k, when, apply(&volume)).await;
            assert_eq!(outcome, "succeeded", "{why}");
            whole(&scene, &serving, &volume, &other, &[&made[2]], &why).await;
            let work = scene.to_be_deleted(&made[2].0).await;
            scene.run(&work).await.unwrap();
            assert!(scene.bases().is_empty(), "{why}");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 2, "{kills}");
    explored(kills);
}

#[tokio::test]
async fn the_last_one_and_what_is_at_work_stay() {
    let scene = Scene::new().await;
    let serving = Serving::of(&scene);
    let volume = scene.volume(1, "available").await;
    let made = chain(&scene, &serving, &volume, 3).await;
    scene
        .test
        .sql(&format!(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
               VALUES ('{TYPE}', 'backup:keep_last', '1', 0)"
        ))
        .await;
    // The oldest is being restored, the middle one came to nothing, and of the newest nobody says when it was.
    let status = async |at: usize, status: &str| {
        scene.test.sql(&format!("UPDATE backups SET status='{status}' WHERE id='{}'", made[at].0)).await;
    };
    status(0, "restoring").await;
    status(1, "error").await;
    let found = scene.test.db.read("t", async |c| preview(c, &volume, Reach::default()).await).await.unwrap();
    assert_eq!(found.policy.unwrap().source, Source::Type("plain".into()));
    let fates: Vec<Fate> = found.backups.iter().map(|v| v.fate).collect();
    assert_eq!(fates, [Fate::Kept, Fate::Untouched, Fate::Spared]);
    let answer = serving.carry_out(apply(&volume)).await.unwrap();
    assert_eq!(answer["removed"].as_array().unwrap().len(), 0);
    // Asked for, what came to nothing goes.
    let order = Order::ApplyRetention { volume: volume.clone(), failed: true, deleted_volumes: false };
    let answer = serving.carry_out(order).await.unwrap();
    assert_eq!(answer["removed"][0]["backup"], made[1].0.as_str());
    assert_eq!(scene.backup(&made[2].0).await.parent_id.as_deref(), Some(made[0].0.as_str()));
    status(0, "available").await;
    // An extra spec that means nothing is refused, and nothing goes.
    scene.test.sql("UPDATE volume_type_extra_specs SET value='few' WHERE `key`='backup:keep_last'").await;
    let refused = serving.carry_out(apply(&volume)).await.unwrap_err();
    assert!(refused.contains("backup:keep_last") && refused.contains("few"), "{refused}");
    let unknown = crate::seed::id(1, 99);
    let error =
        scene.test.db.read("t", async |c| preview(c, &unknown, Reach::default()).await).await.unwrap_err();
    assert_eq!(error.code(), Code::VolumeNotFound);
    assert_eq!(scene.test.rows("SELECT id FROM backups WHERE deleted=0").await.len(), 2);
}

/// What would go of each volume, by a preview of all: how many, or why its rule means nothing.
async fn previewed(scene: &Scene, kind: Option<&str>, reach: Reach) -> Vec<(String, Result<usize, String>)> {
    let page = scene.test.db.read("t", async |c| many::next(c, kind, "", reach).await).await.unwrap();
    let last = page.last().map(|one| one.volume_id.clone()).unwrap_or_default();
    let more = scene.test.db.read("t", async |c| many::next(c, kind, &last, reach).await).await.unwrap();
    assert!(more.is_empty(), "{more:?}");
    let told = |one: Looked| (one.volume_id, one.found.map(|f| f.going()).map_err(|e| e.user().to_owned()));
    page.into_iter().map(told).collect()
}

/// SELECTs of this connection so far.
async fn selects(conn: &mut Conn) -> scoria::error::Result<i64> {
    let counter = "(SELECT CAST(VARIABLE_VALUE AS SIGNED) FROM information_schema.SESSION_STATUS \
                   WHERE VARIABLE_NAME = 'COM_SELECT')";
    Ok(diesel::select(sql::<BigInt>(counter)).get_result(conn).await?)
}

#[tokio::test]
async fn many_volumes_are_looked_at_at_once_and_deleted_ones_only_when_asked_for() {
    let scene = Scene::with("quota_backups=-1\nquota_backup_gigabytes=-1").await;
    let serving = Serving::of(&scene);
    let other = "3f7d81fd-3cb6-4e1a-ab62-35515dfd0a43";
    scene
        .test
        .sql(&format!(
            "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{other}', 'other', 0, 1);
             INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
               VALUES ('{TYPE}', 'backup:keep_last', '1', 0), ('{other}', 'backup:keep_last', 'few', 0)"
        ))
        .await;
    let mut ids = Vec::new();
    for number in 1..=5 {
        let volume = scene.volume(number, "available").await;
        for made in chain(&scene, &serving, &volume, 3).await {
            assert!(!made.0.is_empty());
        }
        ids.push(volume);
    }
    // By its type; by a rule of its own; deleted; deleted with a rule of its own; of a type whose rule means nothing.
    keep(&scene, &ids[1], Some(2), None).await;
    keep(&scene, &ids[3], Some(2), None).await;
    scene
        .test
        .sql(&format!(
            "UPDATE volumes SET deleted=1, status='deleted' WHERE id IN ('{}', '{}');
             UPDATE volumes SET volume_type_id='{other}' WHERE id='{}'",
            ids[2], ids[3], ids[4]
        ))
        .await;
    let all = |going: [usize; 4]| -> Vec<(String, Option<usize>)> {
        ids.iter().cloned().zip(going.into_iter().map(Some).chain([None])).collect()
    };
    let seen = async |reach: Reach| -> Vec<(String, Option<usize>)> {
        let found = previewed(&scene, None, reach).await;
        let why = found[4].1.clone().unwrap_err();
        assert!(why.contains("few") && why.contains("other"), "{why}");
        found.into_iter().map(|(id, going)| (id, going.ok())).collect()
    };
    let deleted = Reach { deleted_volumes: true, ..Reach::default() };
    assert_eq!(seen(Reach::default()).await, all([2, 1, 0, 1]));
    assert_eq!(seen(deleted).await, all([2, 1, 2, 1]));
    assert_eq!(previewed(&scene, Some(other), deleted).await.len(), 1);
    // Of one alone it is the same.
    let one = async |reach: Reach| {
        let id = &ids[2];
        scene.test.db.read("t", async |c| preview(c, id, reach).await).await.unwrap().going()
    };
    assert_eq!((one(Reach::default()).await, one(deleted).await), (0, 2));
    // Fifty more with backups cost no SELECT more.
    let cost = async || {
        let asked = async |c: &mut Conn| {
            let before = selects(c).await?;
            many::next(c, None, "", deleted).await?;
            Ok(selects(c).await? - before)
        };
        scene.test.db.read("t", asked).await.unwrap()
    };
    let few = cost().await;
    for number in 100..150 {
        let volume = crate::seed::volume(&scene.test, number, "available", "").await;
        scene
            .test
            .sql(&format!(
                "INSERT INTO backups (id, volume_id, status, host, size, project_id, user_id, num_dependent_backups,
                   created_at, deleted)
                 VALUES ('{}', '{volume}', 'available', 'node1', 2, 'p', 'u', 0, UTC_TIMESTAMP(), 0)",
                crate::seed::id(4, 1000 + number)
            ))
            .await;
    }
    assert_eq!(cost().await, few);
    scene.test.sql("DELETE FROM backups WHERE project_id='p'").await;
    // Applied: the volume with the wrong rule is told of, the deleted one loses what its type does not keep.
    let apply_all =
        |deleted_volumes| Order::ApplyAllRetention { volume_type: None, failed: false, deleted_volumes };
    let why = serving.carry_out(apply_all(false)).await.unwrap_err();
    assert!(why.contains("1 of 5 volumes") && why.contains(&ids[4]), "{why}");
    assert_eq!(seen(deleted).await, all([0, 0, 2, 0]));
    scene.test.sql(&format!("UPDATE volumes SET volume_type_id='' WHERE id='{}'", ids[4])).await;
    let answer = serving.carry_out(apply_all(true)).await.unwrap();
    assert_eq!((answer["removed"].as_array().unwrap().len(), &answer["volumes"]), (2, &5.into()), "{answer}");
    assert_eq!(answer["kept"], 1 + 2 + 1 + 2 + 3);
    assert!(scene.open().await.is_empty());
}
