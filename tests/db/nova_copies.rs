//! Migrations of volumes that servers have: nova is asked to copy, once, and what it answers decides.

use std::time::Duration;

use scoria::journal::Operation;
use scoria::volume::migrate::{self, Migrate};
use scoria::volume::retype::{self, Retype};
use serde_json::{Value, json};

use crate::extend_in_use::{Control, Nova};
use crate::migrates::{THERE, adopt, at, complete, other_service, row, serve};
use crate::seed::{self, BACKEND};
use crate::stage::Stage;

/// A volume in `status` that a server has; the server.
async fn attached(stage: &Stage, status: &str, extra: &str) -> (String, String) {
    let extra = format!(", previous_status='in-use', attach_status='attached'{extra}");
    let volume = seed::volume(&stage.test, 1, status, &extra).await;
    stage.image(&volume).await;
    let server = seed::id(7, 1);
    attach(stage, "old", &volume, &server).await;
    (volume, server)
}

async fn attach(stage: &Stage, id: &str, volume: &str, server: &str) {
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, instance_uuid, attach_status, deleted)
             VALUES ('{id}', '{volume}', '{server}', 'attached', 0)"
        ))
        .await;
}

async fn migrate(stage: &Stage, operation: &Operation, volume: &str) {
    let destination = at(stage, "b", "volumes2").await;
    let request = Migrate { volume_id: volume.to_owned(), destination, force_host_copy: false };
    migrate::migrate(&stage.backend, &stage.context, operation, request).await.unwrap();
}

fn asked(server: &str, volume: &str, new: &str) -> Value {
    json!([format!("/v2.1/servers/{server}/os-volume_attachments/{volume}"), new])
}

#[tokio::test]
async fn nova_copies_what_a_server_has_and_completes_the_migration() {
    let nova = Control::start(Nova::Takes).await;
    let stage = Stage::with(&nova.options()).await;
    other_service(&stage).await;
    let (volume, server) = attached(&stage, "in-use", ", migration_status='starting'").await;
    let operation = stage.operation("migrate_volume", Some(("Volume", &volume))).await;
    let (_, new) =
        tokio::join!(migrate(&stage, &operation, &volume), serve(&stage, "b", "volumes2", &volume));
    assert_eq!(nova.heard(), [asked(&server, &volume, &new)]);
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    let host = format!("{BACKEND}#pool");
    assert_eq!(row(&stage, &volume).await[..3], ["in-use", "migrating", host.as_str()], "it is nova's now");
    assert_eq!(row(&stage, &new).await[..2], ["available", format!("target:{volume}").as_str()]);
    assert_eq!(stage.sim.count("ImageTransfer"), 0, "not under the guest");

    attach(&stage, "new", &new, &server).await;
    stage.test.sql("UPDATE volume_attachment SET deleted=1 WHERE id='old'").await;
    assert_eq!(complete(&stage, &volume, &new, false).await, Ok(volume.clone()));
    assert_eq!(row(&stage, &volume).await[..3], ["in-use", "success", THERE]);
    assert_eq!(row(&stage, &volume).await[4], new);
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn what_nova_refuses_stays_and_the_destination_is_deleted() {
    for answer in [Nova::Refuses, Nova::Fails] {
        let nova = Control::start(answer).await;
        let stage = Stage::with(&nova.options()).await;
        other_service(&stage).await;
        let (volume, _) = attached(&stage, "in-use", ", migration_status='starting'").await;
        let operation = stage.operation("migrate_volume", Some(("Volume", &volume))).await;
        let (_, new) =
            tokio::join!(migrate(&stage, &operation, &volume), serve(&stage, "b", "volumes2", &volume));
        assert_eq!(stage.ended(&operation).await, ["closed", "failed"], "{answer:?}");
        assert_eq!(row(&stage, &volume).await[..2], ["in-use", "error"]);
        assert_eq!(row(&stage, &new).await[0], "deleting");
        assert!(stage.heard.cast().contains(&format!("delete {new} at {THERE}")));
        assert_eq!(stage.messages().await.len(), 1);
        assert_eq!(complete(&stage, &volume, &new, false).await, Err(scoria::error::Code::InvalidVolume));
    }
}

/// The request until the service is killed, with a destination that is made meanwhile; the destination's row.
async fn migrate_until_killed(stage: &Stage, volume: &str) -> String {
    let operation = stage.operation("migrate_volume", Some(("Volume", volume))).await;
    let asking = tokio::time::timeout(Duration::from_secs(3), migrate(stage, &operation, volume));
    let (asking, new) = tokio::join!(asking, serve(stage, "b", "volumes2", volume));
    assert!(asking.is_err(), "it does not end");
    new
}

/// What nova does before it answers.
async fn mark(stage: &Stage, id: &str, new: &str, server: &str) {
    attach(stage, id, new, server).await;
    stage.test.sql(&format!("UPDATE volumes SET status='reserved' WHERE id='{new}'")).await;
}

#[tokio::test]
async fn after_a_crash_nova_is_asked_again_only_if_it_has_not_begun() {
    for (answer, begun, before, after) in
        [(Nova::IsNotReached, false, 0, 1), (Nova::Hangs, true, 1, 1), (Nova::Hangs, false, 1, 2)]
    {
        let nova = Control::start(answer).await;
        let mut stage = Stage::with(&nova.options()).await;
        other_service(&stage).await;
        let (volume, server) = attached(&stage, "in-use", ", migration_status='starting'").await;
        let new = migrate_until_killed(&stage, &volume).await;
        assert_eq!(nova.heard().len(), before);
        if begun {
            mark(&stage, "new", &new, &server).await;
        }
        nova.set(Nova::Takes);
        stage.restart();
        let operation = adopt(&stage).await;
        migrate(&stage, &operation, &volume).await;
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        assert_eq!(row(&stage, &volume).await[1], "migrating");
        assert_eq!(nova.heard().len(), after, "{answer:?}");
        let creates = stage.heard.cast().iter().filter(|c| c.starts_with("create")).count();
        assert_eq!(creates, 1);
    }
}

/// A second server that has the volume.
async fn shared(stage: &Stage) -> (String, [String; 2]) {
    let (volume, first) = attached(stage, "in-use", ", migration_status='starting', multiattach=1").await;
    let second = seed::id(7, 2);
    attach(stage, "old2", &volume, &second).await;
    (volume, [first, second])
}

#[tokio::test]
async fn after_a_crash_between_two_servers_only_the_other_is_asked_for() {
    for begun in [true, false] {
        let nova = Control::start(Nova::TakesOne).await;
        let mut stage = Stage::with(&nova.options()).await;
        other_service(&stage).await;
        let (volume, servers) = shared(&stage).await;
        let new = migrate_until_killed(&stage, &volume).await;
        let each = servers.each_ref().map(|server| asked(server, &volume, &new));
        assert_eq!(nova.heard(), each, "one was taken, and the other did not come back");
        mark(&stage, "new", &new, &servers[0]).await;
        if begun {
            mark(&stage, "new2", &new, &servers[1]).await;
        }
        nova.set(Nova::Takes);
        stage.restart();
        let operation = adopt(&stage).await;
        migrate(&stage, &operation, &volume).await;
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        assert_eq!(nova.heard()[2..], each[1..][usize::from(begun)..], "{begun}");
        assert_eq!(row(&stage, &volume).await[..2], ["in-use", "migrating"]);
        assert_eq!(row(&stage, &new).await[..2], ["reserved", format!("target:{volume}").as_str()]);
    }
}

#[tokio::test]
async fn the_destination_is_not_taken_from_a_server_that_copies_because_another_cannot() {
    let nova = Control::start(Nova::RefusesMore).await;
    let stage = Stage::with(&nova.options()).await;
    other_service(&stage).await;
    let (volume, _) = shared(&stage).await;
    let operation = stage.operation("migrate_volume", Some(("Volume", &volume))).await;
    let (_, new) =
        tokio::join!(migrate(&stage, &operation, &volume), serve(&stage, "b", "volumes2", &volume));
    assert_eq!(nova.heard().len(), 2);
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await[..2], ["in-use", "migrating"], "nova's report decides");
    assert_eq!(row(&stage, &new).await[0], "available");
    assert!(!stage.heard.cast().contains(&format!("delete {new} at {THERE}")));
}

/// A volume that a server has and whose retype has reserved quota of another type.
async fn retyping(stage: &Stage) -> (String, String, Retype) {
    let (volume, server) = attached(stage, "retyping", ", replication_status='disabled'").await;
    let kind = seed::id(5, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{kind}', 'there', 0, 1);
             INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
             VALUES ('{0}', 'volumes_there', 0, 1, 1, 0), ('{0}', 'gigabytes_there', 5, 0, 1, 0);
             INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
             SELECT 'r', id, project_id, resource, 1, '2099-01-01', 0 FROM quota_usages
             WHERE resource='volumes_there'",
            seed::PROJECT
        ))
        .await;
    let request = Retype {
        volume_id: volume.clone(),
        new_type_id: kind,
        destination: at(stage, "b", "volumes2").await,
        may_move: true,
        reservations: vec!["r".into()],
        old_reservations: Vec::new(),
    };
    (volume, server, request)
}

const USAGE: &str = "SELECT in_use, reserved FROM quota_usages WHERE resource='volumes_there'";

#[tokio::test]
async fn a_retype_by_nova_counts_when_it_begins_and_counts_back_when_it_fails() {
    let nova = Control::start(Nova::Takes).await;
    let stage = Stage::with(&nova.options()).await;
    other_service(&stage).await;
    let (volume, _, request) = retyping(&stage).await;
    let kind = request.new_type_id.clone();
    let operation = stage.operation("retype", Some(("Volume", &volume))).await;
    let retyped = retype::retype(&stage.backend, &stage.context, &operation, request);
    let (retyped, new) = tokio::join!(retyped, serve(&stage, "b", "volumes2", &volume));
    retyped.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await[..2], ["retyping", "migrating"]);
    assert_eq!(stage.column("volumes", "volume_type_id", &new).await, kind);
    assert_eq!(stage.test.row(USAGE).await, ["1", "0"]);

    // Nova's hypervisor cannot.
    for _ in 0..2 {
        assert_eq!(complete(&stage, &volume, &new, true).await, Ok(volume.clone()));
        assert_eq!(row(&stage, &volume).await[..2], ["in-use", "error"]);
        assert_eq!(stage.column("volumes", "volume_type_id", &volume).await, seed::TYPE);
        assert_eq!(stage.test.row(USAGE).await, ["0", "0"]);
        assert_eq!(row(&stage, &new).await[0], "deleting");
    }
}

#[tokio::test]
async fn a_retype_that_was_killed_counts_once_whoever_comes_first() {
    for failed in [false, true] {
        let nova = Control::start(Nova::Hangs).await;
        let mut stage = Stage::with(&nova.options()).await;
        other_service(&stage).await;
        let (volume, server, request) = retyping(&stage).await;
        let operation = stage.operation("retype", Some(("Volume", &volume))).await;
        let retyped = retype::retype(&stage.backend, &stage.context, &operation, request.clone());
        let asking = tokio::time::timeout(Duration::from_secs(3), retyped);
        let (asking, new) = tokio::join!(asking, serve(&stage, "b", "volumes2", &volume));
        assert!(asking.is_err() && nova.heard().len() == 1);
        mark(&stage, "new", &new, &server).await;
        // Nova's report comes before anybody has taken up the dead service's operation.
        stage.restart();
        if failed {
            assert_eq!(complete(&stage, &volume, &new, true).await, Ok(volume.clone()));
        }
        let operation = adopt(&stage).await;
        retype::retype(&stage.backend, &stage.context, &operation, request).await.unwrap();
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        assert_eq!(stage.test.row(USAGE).await, if failed { ["0", "0"] } else { ["1", "0"] }, "{failed}");
        let told = stage.heard.events().iter().any(|event| event.starts_with("volume.retype"));
        assert_eq!(told, !failed, "nobody is told of a retype that has failed");
        assert_eq!(nova.heard().len(), 1);
    }
}
