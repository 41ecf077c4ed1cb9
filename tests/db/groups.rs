//! Groups and their snapshots: the rows, the images and the quota at every end.

use std::time::Duration;

use scoria::rbd::RbdErrorKind;
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::features;
use scoria::volume::group::{self, FromSource, Update};
use scoria::volume::image::{Attempt, Shape};

use crate::seed::{self, PROJECT, TYPE};
use crate::stage::Stage;

/// What the project uses, as the API has counted it.
async fn count(stage: &Stage, groups: i32, volumes: i32, snapshots: i32) {
    let gigabytes = 2 * (volumes + snapshots);
    let counted = [("volumes", volumes), ("snapshots", snapshots), ("gigabytes", gigabytes)];
    let by_type = counted.iter().map(|(name, count)| (format!("{name}_plain"), *count));
    let all = counted.iter().map(|(name, count)| ((*name).to_owned(), *count)).chain(by_type);
    for (name, count) in all.chain([("groups".to_owned(), groups)]) {
        stage
            .test
            .sql(&format!(
                "INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
                 VALUES ('{PROJECT}', '{name}', {count}, 0, 1, 0)"
            ))
            .await;
    }
}

async fn used(stage: &Stage, resource: &str) -> String {
    stage.test.row(&format!("SELECT in_use FROM quota_usages WHERE resource='{resource}'")).await.remove(0)
}

/// Volumes 1 to `volumes` of group 1, with images.
async fn members(stage: &Stage, group: &str, volumes: u32, status: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 1..=volumes {
        let id = seed::volume(&stage.test, number, status, &format!(", group_id='{group}'")).await;
        stage.image(&id).await;
        ids.push(id);
    }
    ids
}

/// A group snapshot of these volumes, with its snapshots, in `status`.
async fn group_snapshot(
    stage: &Stage,
    group: &str,
    volumes: &[String],
    status: &str,
) -> (String, Vec<String>) {
    let id = seed::id(6, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO group_snapshots (id, group_id, status, project_id, deleted)
             VALUES ('{id}', '{group}', '{status}', '{PROJECT}', 0)"
        ))
        .await;
    let mut snapshots = Vec::new();
    for (number, volume) in (1..).zip(volumes) {
        let snapshot = seed::snapshot(&stage.test, number, volume, status).await;
        let update = format!("UPDATE snapshots SET group_snapshot_id='{id}' WHERE id='{snapshot}'");
        stage.test.sql(&update).await;
        snapshots.push(snapshot);
    }
    (id, snapshots)
}

async fn boots(stage: &Stage, volume: &str) {
    stage
        .test
        .sql(&format!(
            "UPDATE volumes SET bootable=1 WHERE id='{volume}';
             INSERT INTO volume_glance_metadata (volume_id, `key`, value, deleted) VALUES
               ('{volume}', 'image_name', 'cirros', 0), ('{volume}', 'old', 'x', 1)"
        ))
        .await;
}

async fn take(stage: &Stage, id: &str) -> String {
    let operation = stage.operation("create_group_snapshot", Some(("GroupSnapshot", id))).await;
    group::create_snapshot(&stage.backend, &stage.context, &operation, id).await.unwrap();
    stage.ended(&operation).await.join(" ")
}

async fn clone(stage: &Stage, request: FromSource) -> String {
    let operation = stage.operation("create_group_from_src", Some(("Group", &request.group_id))).await;
    group::create_from_source(&stage.backend, &stage.context, &operation, request).await.unwrap();
    stage.ended(&operation).await.join(" ")
}

async fn delete(stage: &Stage, id: &str) -> String {
    let operation = stage.operation("delete_group", Some(("Group", id))).await;
    group::delete(&stage.backend, &stage.context, &operation, id).await.unwrap();
    stage.ended(&operation).await.join(" ")
}

async fn update(stage: &Stage, id: &str, add: &[&String], remove: &[&String]) -> String {
    let owned = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect();
    let request = Update { group_id: id.to_owned(), add_volumes: owned(add), remove_volumes: owned(remove) };
    let operation = stage.operation("update_group", Some(("Group", id))).await;
    group::update(&stage.backend, &stage.context, &operation, request).await.unwrap();
    stage.ended(&operation).await.join(" ")
}

#[tokio::test]
async fn a_group_is_created() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "creating", "disabled").await;
    let operation = stage.operation("create_group", Some(("Group", &id))).await;
    group::create(&stage.backend, &stage.context, &operation, &id).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.status("`groups`", &id).await, "available");
    assert_ne!(stage.column("`groups`", "created_at", &id).await, "NULL");
    assert_eq!(
        stage.heard.events(),
        [format!("group.create.start {id} creating"), format!("group.create.end {id} available")]
    );
}

#[tokio::test]
async fn volumes_join_and_leave() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "updating", "disabled").await;
    let stays = seed::volume(&stage.test, 1, "available", &format!(", group_id='{id}'")).await;
    let leaves = seed::volume(&stage.test, 2, "error", &format!(", group_id='{id}'")).await;
    let joins = seed::volume(&stage.test, 3, "in-use", "").await;
    assert_eq!(update(&stage, &id, &[&joins], &[&leaves]).await, "closed succeeded");
    assert_eq!(stage.status("`groups`", &id).await, "available");
    for (volume, group, status) in
        [(&stays, id.as_str(), "available"), (&leaves, "", "error"), (&joins, id.as_str(), "in-use")]
    {
        let row = format!("SELECT COALESCE(group_id, ''), status FROM volumes WHERE id='{volume}'");
        assert_eq!(stage.test.row(&row).await, [group, status]);
    }
    assert_eq!(
        stage.heard.events(),
        [
            format!("group.update.start {id} updating"),
            format!("volume.update.start {stays} available"),
            format!("volume.update.start {leaves} error"),
            format!("group.update.end {id} available"),
            format!("volume.update.end {stays} available"),
            format!("volume.update.end {joins} in-use"),
        ]
    );
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn an_update_that_cannot_be_whole_changes_nothing() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "updating", "disabled").await;
    let other = seed::group(&stage.test, 2, "available", "disabled").await;
    let fine = seed::volume(&stage.test, 1, "available", "").await;
    let busy = seed::volume(&stage.test, 2, "extending", "").await;
    let theirs = seed::volume(&stage.test, 3, "available", &format!(", group_id='{other}'")).await;
    let gone = "gone".to_owned();
    for wrong in [&busy, &theirs, &gone] {
        stage.test.sql(&format!("UPDATE `groups` SET status='updating' WHERE id='{id}'")).await;
        assert_eq!(update(&stage, &id, &[&fine, wrong], &[]).await, "closed failed");
        assert_eq!(stage.status("`groups`", &id).await, "available");
        assert_eq!(stage.column("volumes", "COALESCE(group_id, '')", &fine).await, "");
    }
    assert_eq!(stage.status("volumes", &busy).await, "extending");
    assert_eq!(stage.column("volumes", "group_id", &theirs).await, other);
    assert_eq!(
        stage.messages().await,
        vec![vec!["GROUP".to_owned(), id, String::new(), "027".to_owned()]; 3]
    );
}

#[tokio::test]
async fn a_group_snapshot_is_of_one_instant() {
    let stage = Stage::new().await;
    let owner = seed::group(&stage.test, 1, "available", "disabled").await;
    let volumes = members(&stage, &owner, 2, "in-use").await;
    boots(&stage, &volumes[0]).await;
    let (id, snapshots) = group_snapshot(&stage, &owner, &volumes, "creating").await;
    assert_eq!(take(&stage, &id).await, "closed succeeded");
    assert_eq!(stage.status("group_snapshots", &id).await, "available");
    for (volume, snapshot) in volumes.iter().zip(&snapshots) {
        let row = format!("SELECT status, progress FROM snapshots WHERE id='{snapshot}'");
        assert_eq!(stage.test.row(&row).await, ["available", "100%"]);
        assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().snaps, [format!("snapshot-{snapshot}")]);
    }
    let metadata =
        "SELECT snapshot_id, `key`, value FROM volume_glance_metadata WHERE snapshot_id IS NOT NULL";
    assert_eq!(stage.test.rows(metadata).await, [[snapshots[0].as_str(), "image_name", "cirros"]]);
    assert_eq!(stage.sim.count("SnapCreateTogether"), 1);
    assert_eq!(stage.sim.count("SnapCreate"), 0);
    assert!(stage.messages().await.is_empty());
    assert_eq!(
        stage.heard.events(),
        [
            format!("group_snapshot.create.start {id} creating"),
            format!("snapshot.create.start {} creating", snapshots[0]),
            format!("snapshot.create.start {} creating", snapshots[1]),
            format!("group_snapshot.create.end {id} available"),
            format!("snapshot.create.end {} available", snapshots[0]),
            format!("snapshot.create.end {} available", snapshots[1]),
        ]
    );
}

#[tokio::test]
async fn a_group_that_cannot_be_frozen_has_its_snapshots_and_a_warning() {
    let stage = Stage::new().await;
    let owner = seed::group(&stage.test, 1, "available", "disabled").await;
    let mut volumes = members(&stage, &owner, 1, "available").await;
    let shared = seed::volume(&stage.test, 2, "available", &format!(", group_id='{owner}'")).await;
    let shape = Shape { order: 22, features: features::LAYERING };
    let image = format!("volume-{shared}");
    stage.place().create(&image, 2 << 30, shape, Attempt::First).await.unwrap();
    volumes.push(shared);
    let (id, snapshots) = group_snapshot(&stage, &owner, &volumes, "creating").await;
    assert_eq!(take(&stage, &id).await, "closed succeeded");
    assert_eq!(stage.status("group_snapshots", &id).await, "available");
    for snapshot in &snapshots {
        assert_eq!(stage.status("snapshots", snapshot).await, "available");
    }
    assert_eq!(stage.seen(&image).unwrap().snaps, [format!("snapshot-{}", snapshots[1])]);
    assert_eq!(stage.messages().await, [["GROUP_SNAPSHOT", id.as_str(), "009", "015"]]);
    assert_eq!(stage.test.row("SELECT message_level FROM messages").await, ["WARNING"]);
}

#[tokio::test]
async fn what_a_dead_attempt_left_of_a_set_is_taken_anew() {
    let mut stage = Stage::new().await;
    let owner = seed::group(&stage.test, 1, "available", "disabled").await;
    let volumes = members(&stage, &owner, 2, "available").await;
    let (id, snapshots) = group_snapshot(&stage, &owner, &volumes, "creating").await;
    stage.operation("create_group_snapshot", Some(("GroupSnapshot", &id))).await;
    stage.snapped(&format!("volume-{}", volumes[0]), &snapshots[0]).await;
    stage.restart();
    let mut adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap();
    let operation = adopted.remove(0);
    stage.sim.clear_log();
    group::create_snapshot(&stage.backend, &stage.context, &operation, &id).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!((stage.sim.count("SnapRemove"), stage.sim.count("SnapCreateTogether")), (1, 1));
    for snapshot in &snapshots {
        assert_eq!(stage.status("snapshots", snapshot).await, "available");
    }
}

#[tokio::test]
async fn a_group_snapshot_that_fails_is_an_error_with_all_its_snapshots() {
    let stage = Stage::new().await;
    let owner = seed::group(&stage.test, 1, "available", "disabled").await;
    let volumes = members(&stage, &owner, 2, "available").await;
    let (id, snapshots) = group_snapshot(&stage, &owner, &volumes, "creating").await;
    stage.sim.inject(Fault::on("SnapCreateTogether").fails(When::Before, RbdErrorKind::NoSpace));
    assert_eq!(take(&stage, &id).await, "closed failed");
    assert_eq!(stage.status("group_snapshots", &id).await, "error");
    for snapshot in &snapshots {
        assert_eq!(stage.status("snapshots", snapshot).await, "error");
    }
    assert_eq!(stage.messages().await, [["GROUP_SNAPSHOT", id.as_str(), "009", "013"]]);
}

#[tokio::test]
async fn a_group_snapshot_is_deleted_with_its_snapshots() {
    let stage = Stage::new().await;
    let owner = seed::group(&stage.test, 1, "available", "disabled").await;
    let volumes = members(&stage, &owner, 2, "available").await;
    let (id, snapshots) = group_snapshot(&stage, &owner, &volumes, "deleting").await;
    for (volume, snapshot) in volumes.iter().zip(&snapshots) {
        stage.snapped(&format!("volume-{volume}"), snapshot).await;
    }
    count(&stage, 1, 2, 2).await;
    // The first time, one of them cannot go.
    let stuck = Fault::on("SnapRemove").image(&format!("volume-{}", volumes[1]));
    stage.sim.inject(stuck.fails(When::Before, RbdErrorKind::Other));
    let operation = stage.operation("delete_group_snapshot", Some(("GroupSnapshot", &id))).await;
    group::delete_snapshot(&stage.backend, &stage.context, &operation, &id).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("group_snapshots", &id).await, "error");
    assert_eq!(stage.status("snapshots", &snapshots[0]).await, "deleted");
    assert_eq!(stage.status("snapshots", &snapshots[1]).await, "error");
    assert_eq!(used(&stage, "snapshots").await, "1", "that of the one that went");
    assert_eq!(stage.messages().await, [["GROUP_SNAPSHOT", id.as_str(), "010", "016"]]);

    stage
        .test
        .sql("UPDATE group_snapshots SET status='deleting'; UPDATE snapshots SET status='deleting' WHERE deleted=0")
        .await;
    let operation = stage.operation("delete_group_snapshot", Some(("GroupSnapshot", &id))).await;
    group::delete_snapshot(&stage.backend, &stage.context, &operation, &id).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    let row = format!("SELECT status, deleted FROM group_snapshots WHERE id='{id}'");
    assert_eq!(stage.test.row(&row).await, ["deleted", "1"]);
    assert_eq!(
        (used(&stage, "snapshots").await, used(&stage, "gigabytes_plain").await),
        ("0".into(), "4".into())
    );
    for volume in &volumes {
        assert!(stage.seen(&format!("volume-{volume}")).unwrap().snaps.is_empty());
    }
    let last = stage.heard.events().pop();
    assert_eq!(last, Some(format!("group_snapshot.delete.end {id} deleted")));
}

/// A group with an available group snapshot of two volumes, the first of which boots.
async fn source(stage: &Stage) -> (String, Vec<String>, String, Vec<String>) {
    let owner = seed::group(&stage.test, 1, "available", "disabled").await;
    let volumes = members(stage, &owner, 2, "available").await;
    boots(stage, &volumes[0]).await;
    let (id, snapshots) = group_snapshot(stage, &owner, &volumes, "creating").await;
    assert_eq!(take(stage, &id).await, "closed succeeded");
    (owner, volumes, id, snapshots)
}

/// Volumes 11, 12, … of the new group, each with the source that `column` names.
async fn copies(stage: &Stage, group: &str, column: &str, sources: &[String]) -> Vec<String> {
    let mut ids = Vec::new();
    for (number, source) in (11..).zip(sources) {
        let extra = format!(", group_id='{group}', {column}='{source}'");
        ids.push(seed::volume(&stage.test, number, "creating", &extra).await);
    }
    ids
}

#[tokio::test]
async fn a_group_from_a_group_snapshot_has_clones_of_its_members() {
    let stage = Stage::new().await;
    let (_, _, set, snapshots) = source(&stage).await;
    let new = seed::group(&stage.test, 2, "creating", "disabled").await;
    let volumes = copies(&stage, &new, "snapshot_id", &snapshots).await;
    let request = FromSource { group_id: new.clone(), group_snapshot_id: Some(set), source_group_id: None };
    assert_eq!(clone(&stage, request).await, "closed succeeded");
    assert_eq!(stage.status("`groups`", &new).await, "available");
    for (volume, bootable) in volumes.iter().zip(["1", "0"]) {
        let row = format!(
            "SELECT status, bootable, launched_at IS NOT NULL, shared_targets FROM volumes WHERE id='{volume}'"
        );
        assert_eq!(stage.test.row(&row).await, ["available", bootable, "1", "0"]);
        assert!(stage.seen(&format!("volume-{volume}")).is_some());
    }
    let metadata =
        format!("SELECT `key`, value FROM volume_glance_metadata WHERE volume_id='{}'", volumes[0]);
    assert_eq!(stage.test.rows(&metadata).await, [["image_name", "cirros"]]);
    assert_eq!(stage.backend.allocated_gb(), 4);
}

#[tokio::test]
async fn a_group_from_a_group_is_whole_or_not_at_all() {
    let stage = Stage::new().await;
    let (owner, sources, _, _) = source(&stage).await;
    let new = seed::group(&stage.test, 2, "creating", "disabled").await;
    let volumes = copies(&stage, &new, "source_volid", &sources).await;
    let request =
        FromSource { group_id: new.clone(), group_snapshot_id: None, source_group_id: Some(owner.clone()) };
    stage.sim.inject(Fault::on("ImageClone").nth(2).fails(When::Before, RbdErrorKind::NoSpace));
    assert_eq!(clone(&stage, request.clone()).await, "closed failed");
    assert_eq!(stage.status("`groups`", &new).await, "error");
    for volume in &volumes {
        assert_eq!(stage.status("volumes", volume).await, "error");
        assert!(stage.seen(&format!("volume-{volume}")).is_none());
    }
    for source in &sources {
        assert_eq!(stage.seen(&format!("volume-{source}")).unwrap().snaps.len(), 1, "no helper is left");
    }
    assert_eq!(stage.messages().await, [["GROUP", new.as_str(), "", "001"]]);

    let again = seed::group(&stage.test, 3, "creating", "disabled").await;
    stage
        .test
        .sql(&format!("UPDATE volumes SET group_id='{again}', status='creating' WHERE group_id='{new}'"))
        .await;
    stage.test.sql(&format!("UPDATE volumes SET multiattach=1 WHERE id='{}'", sources[1])).await;
    assert_eq!(clone(&stage, FromSource { group_id: again.clone(), ..request }).await, "closed succeeded");
    assert_eq!(stage.status("`groups`", &again).await, "available");
    for (volume, many) in volumes.iter().zip(["0", "1"]) {
        let row = format!("SELECT status, multiattach FROM volumes WHERE id='{volume}'");
        assert_eq!(stage.test.row(&row).await, ["available", many]);
    }
}

#[tokio::test]
async fn a_source_in_a_wrong_status_is_refused() {
    let stage = Stage::new().await;
    let (_, _, set, snapshots) = source(&stage).await;
    stage.test.sql(&format!("UPDATE snapshots SET status='error' WHERE id='{}'", snapshots[1])).await;
    let new = seed::group(&stage.test, 2, "creating", "disabled").await;
    let volumes = copies(&stage, &new, "snapshot_id", &snapshots).await;
    let request = FromSource { group_id: new.clone(), group_snapshot_id: Some(set), source_group_id: None };
    assert_eq!(clone(&stage, request).await, "closed failed");
    assert_eq!(stage.status("`groups`", &new).await, "error");
    for volume in &volumes {
        assert_eq!(stage.status("volumes", volume).await, "error");
    }
}

#[tokio::test]
async fn a_group_is_deleted_with_its_volumes() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "deleting", "disabled").await;
    let volumes = members(&stage, &id, 3, "deleting").await;
    count(&stage, 1, 3, 0).await;
    // The first time, one of them cannot go.
    let image = format!("volume-{}", volumes[1]);
    stage.sim.inject(Fault::on("ImageRemove").image(&image).fails(When::Before, RbdErrorKind::Other));
    assert_eq!(delete(&stage, &id).await, "closed failed");
    assert_eq!(stage.status("`groups`", &id).await, "error");
    for (volume, status) in volumes.iter().zip(["deleted", "error", "deleted"]) {
        assert_eq!(stage.status("volumes", volume).await, status);
    }
    assert_eq!((used(&stage, "volumes").await, used(&stage, "groups").await), ("1".into(), "1".into()));
    assert_eq!(stage.messages().await, [["GROUP", id.as_str(), "", "001"]]);

    stage
        .test
        .sql("UPDATE `groups` SET status='deleting'; UPDATE volumes SET status='deleting' WHERE deleted=0")
        .await;
    assert_eq!(delete(&stage, &id).await, "closed succeeded");
    assert_eq!(stage.test.row("SELECT status, deleted FROM `groups`").await, ["deleted", "1"]);
    let mapping = format!("SELECT deleted FROM group_volume_type_mapping WHERE volume_type_id='{TYPE}'");
    assert_eq!(stage.test.row(&mapping).await, ["1"]);
    for resource in ["volumes", "gigabytes", "volumes_plain", "groups"] {
        assert_eq!(used(&stage, resource).await, "0", "{resource}");
    }
    for volume in &volumes {
        assert!(stage.seen(&format!("volume-{volume}")).is_none());
    }
    // A late duplicate finds nothing to do.
    assert_eq!(delete(&stage, &id).await, "closed succeeded");
}

#[tokio::test]
async fn a_group_outlives_its_volumes_for_as_long_as_a_listing_takes() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "deleting", "disabled").await;
    let volumes = members(&stage, &id, 2, "deleting").await;
    let listing = async {
        while stage.test.row("SELECT COUNT(*) FROM volumes WHERE deleted=0").await != ["0"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // It has read the volumes' rows right before, and asks for their group now.
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.test.row("SELECT status, deleted FROM `groups`").await
    };
    let (ended, found) = tokio::join!(delete(&stage, &id), listing);
    assert_eq!(found, ["deleting", "0"], "cinder-api would answer the whole listing with 404");
    assert_eq!(ended, "closed succeeded");
    assert_eq!(stage.test.row("SELECT deleted FROM `groups`").await, ["1"]);
    assert!(volumes.iter().all(|volume| stage.seen(&format!("volume-{volume}")).is_none()));
}

#[tokio::test]
async fn a_group_with_an_attached_volume_is_not_deleted() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "deleting", "disabled").await;
    let volumes = members(&stage, &id, 2, "deleting").await;
    stage.test.sql(&format!("UPDATE volumes SET attach_status='attached' WHERE id='{}'", volumes[1])).await;
    assert_eq!(delete(&stage, &id).await, "closed failed");
    assert_eq!(stage.status("`groups`", &id).await, "error");
    for volume in &volumes {
        assert_eq!(stage.status("volumes", volume).await, "error");
        assert!(stage.seen(&format!("volume-{volume}")).is_some(), "nothing is begun");
    }
}

#[tokio::test]
async fn a_clone_and_its_parent_are_deleted_together() {
    let stage = Stage::new().await;
    let id = seed::group(&stage.test, 1, "deleting", "disabled").await;
    let volumes = members(&stage, &id, 1, "deleting").await;
    let extra = format!(", group_id='{id}', source_volid='{}'", volumes[0]);
    let clone = seed::volume(&stage.test, 2, "deleting", &extra).await;
    let shape = Shape { order: 22, features: 61 };
    let (parent, image) = (format!("volume-{}", volumes[0]), format!("volume-{clone}"));
    stage.place().clone_volume(&parent, &image, 2 << 30, shape, 5, Attempt::First).await.unwrap();
    assert_eq!(delete(&stage, &id).await, "closed succeeded");
    assert!(stage.sim.images("a", "volumes").is_empty(), "{:?}", stage.sim.images("a", "volumes"));
}
