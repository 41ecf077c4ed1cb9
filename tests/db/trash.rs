//! Deferred deletion: the row goes at once, the image when its time has come, and until then it can be had back.

use scoria::journal::Operation;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{MirrorEnable, TrashList, TrashMove};
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorMode;
use scoria::replication::orders::{Order, PurgeTrash, RestoreTrash};
use scoria::service::orders;
use scoria::volume::delete::{self, Delete};
use scoria::volume::image::Place;
use scoria::volume::trash::{self, Purge, Standing};

use crate::create_site::image;
use crate::seed;
use crate::stage::Stage;

const POOL: &str = "volumes";
const DAY: &str = "enable_deferred_deletion=true\ndeferred_deletion_delay=86400\n";
const NOW: &str = "enable_deferred_deletion=true\n";

async fn deleted(stage: &Stage, volume: &str) {
    let operation = stage.operation("delete_volume", Some(("Volume", volume))).await;
    let request = Delete { volume_id: volume.to_owned(), ..Delete::default() };
    delete::delete(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.status("volumes", volume).await, "deleted");
}

async fn away(stage: &Stage, image: &str, delay: u64) {
    let away = TrashMove { pool: POOL.into(), image: image.to_owned(), delay };
    stage.sim.site("a").call(away).await.unwrap();
}

async fn names(stage: &Stage, site: &str) -> Vec<String> {
    let left = stage.sim.site(site).call(TrashList { pool: POOL.into() }).await.unwrap();
    let mut left: Vec<_> = left.into_iter().map(|e| e.name).collect();
    left.sort();
    left
}

async fn carried_out(stage: &Stage, order: Order) -> Operation {
    let operation = stage.ordered(order).await;
    orders::run(&stage.backend, &operation).await;
    operation
}

#[tokio::test]
async fn the_purge_removes_volumes_that_are_due_and_nothing_else() {
    let stage = Stage::with(DAY).await;
    let due = stage.image(&seed::id(1, 1)).await;
    let kept = stage.image(&seed::id(1, 2)).await;
    let later = stage.image(&seed::id(1, 3)).await;
    let living = stage.image(&seed::volume(&stage.test, 4, "available", "").await).await;
    let foreign = stage.image("of-an-operator").await;
    stage.snapped(&kept, "s").await;
    for (image, delay) in [(&due, 0), (&kept, 0), (&later, 1 << 30), (&living, 0), (&foreign, 0)] {
        away(&stage, image, delay).await;
    }
    let seen = trash::list(&stage.backend).await.unwrap();
    let seen: Vec<_> = seen[0].images.iter().map(|i| (i.image.clone(), i.bytes, i.standing)).collect();
    let all = [
        (&due, Standing::Due),
        (&kept, Standing::Due),
        (&living, Standing::Kept),
        (&later, Standing::Deferred),
    ];
    for (image, standing) in all {
        assert!(seen.contains(&(image.clone(), Some(2 << 30), standing)), "{image} in {seen:?}");
    }
    assert_eq!(seen.len(), 4);
    let mut purge = Purge::default();
    let done = purge.turn(&stage.backend).await.unwrap().remove("default").unwrap();
    assert_eq!((done.removed, done.removed_bytes, done.kept), (1, 2 << 30, 1), "{done}");
    assert_eq!((done.waiting, done.waiting_bytes), (1, 2 << 30), "{done}");
    assert_eq!(names(&stage, "a").await, [kept, later, living, foreign]);
    // Only what is due is asked for: twice, for the one with a snapshot.
    assert_eq!(stage.sim.count("TrashRemove"), 3);
    let surveys = stage.sim.count("ImageSurvey");
    let again = purge.turn(&stage.backend).await.unwrap().remove("default").unwrap();
    assert_eq!((again.removed, again.kept), (0, 1));
    assert_eq!(stage.sim.count("ImageSurvey"), surveys, "sizes are remembered");
}

#[tokio::test]
async fn a_clone_and_its_parent_go_one_after_the_other() {
    let stage = Stage::with(NOW).await;
    let parent = seed::volume(&stage.test, 1, "deleting", "").await;
    let child = seed::volume(&stage.test, 2, "deleting", "").await;
    let (base, clone) = (stage.image(&parent).await, format!("volume-{child}"));
    let place: Place = stage.place();
    let shape = scoria::volume::image::Shape { order: 22, features: 61 };
    let first = scoria::volume::image::Attempt::First;
    place.clone_volume(&base, &clone, 2 << 30, shape, 5, first).await.unwrap();
    deleted(&stage, &child).await;
    deleted(&stage, &parent).await;
    assert_eq!(stage.sim.images("a", POOL), [format!("{base}.deleted")], "the clone in the trash needs it");
    assert_eq!(names(&stage, "a").await, [clone]);
    let mut purge = Purge::default();
    purge.turn(&stage.backend).await.unwrap();
    assert!(stage.sim.images("a", POOL).is_empty(), "{}", stage.sim.log_text());
    assert_eq!(names(&stage, "a").await, [format!("{base}.deleted")]);
    purge.turn(&stage.backend).await.unwrap();
    assert!(names(&stage, "a").await.is_empty());
}

#[tokio::test]
async fn each_site_is_purged_by_itself_wherever_its_backend_is() {
    let stage = Stage::quick(NOW).await;
    let volume = seed::volume(&stage.test, 1, "deleting", ", replication_status='enabled'").await;
    image(&stage, "a", &volume).await;
    let name = format!("volume-{volume}");
    let enable = MirrorEnable { pool: POOL.into(), image: name.clone(), mode: MirrorMode::Journal };
    stage.sim.site("a").call(enable).await.unwrap();
    deleted(&stage, &volume).await;
    assert_eq!(names(&stage, "a").await, [name]);
    assert!(names(&stage, "b").await.is_empty());
    stage.backend.activate("b").unwrap();
    let other = seed::id(1, 9);
    image(&stage, "b", &other).await;
    let there = TrashMove { pool: POOL.into(), image: format!("volume-{other}"), delay: 0 };
    stage.sim.site("b").call(there).await.unwrap();
    // The old site is away: the other goes on, and it has its turn when it is back.
    stage.sim.inject(Fault::on("TrashList").site("a").fails(When::Before, RbdErrorKind::Unreachable));
    let mut purge = Purge::default();
    let done = purge.turn(&stage.backend).await.unwrap();
    assert_eq!(done.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(done["b"].removed, 1);
    let done = purge.turn(&stage.backend).await.unwrap();
    assert_eq!((done["default"].removed, done["b"].removed), (1, 0));
    assert!(names(&stage, "a").await.is_empty() && names(&stage, "b").await.is_empty());
}

#[tokio::test]
async fn what_was_deleted_is_had_back_as_long_as_it_is_there() {
    let stage = Stage::with(DAY).await;
    let volume = seed::volume(&stage.test, 1, "deleting", "").await;
    let image = stage.image(&volume).await;
    deleted(&stage, &volume).await;
    assert_eq!(names(&stage, "a").await, std::slice::from_ref(&image));
    let purged = carried_out(&stage, Order::PurgeTrash(PurgeTrash {})).await;
    assert_eq!(stage.ended(&purged).await, ["closed", "succeeded"]);
    assert_eq!(names(&stage, "a").await, std::slice::from_ref(&image), "its time has not come");

    let restore = || Order::RestoreTrash(RestoreTrash { volume: volume.clone() });
    let operation = stage.ordered(restore()).await;
    trash::restore(&stage.backend, &operation, &volume).await.unwrap();
    assert!(stage.seen(&image).is_some() && names(&stage, "a").await.is_empty());
    let refused = carried_out(&stage, restore()).await;
    assert_eq!(stage.ended(&refused).await, ["closed", "failed"], "there is nothing in the trash");
    let other = Order::RestoreTrash(RestoreTrash { volume: seed::id(1, 9) });
    assert_eq!(stage.ended(&carried_out(&stage, other).await).await, ["closed", "failed"]);

    // Cut short after the image had its name.
    away(&stage, &image, 3600).await;
    let begun = stage.ordered(restore()).await;
    stage.sim.inject(Fault::on("TrashRestore").fails(When::After, RbdErrorKind::Other));
    trash::restore(&stage.backend, &begun, &volume).await.unwrap_err();
    trash::restore(&stage.backend, &begun, &volume).await.unwrap();
    assert_eq!(stage.ended(&begun).await, ["closed", "succeeded"]);
    assert!(stage.seen(&image).is_some());
}
