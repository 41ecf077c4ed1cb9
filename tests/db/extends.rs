//! Extending, when somebody changes the row meanwhile.

use std::time::Duration;

use scoria::rbd::sim::Fault;
use scoria::volume::extend::{self, Extend};

use crate::seed::{self, PROJECT};
use crate::stage::Stage;

/// One open reservation of 3 GiB, as the API leaves it.
async fn reserve(stage: &Stage) -> Vec<String> {
    let uuid = uuid::Uuid::new_v4().to_string();
    stage
        .test
        .sql(&format!(
            "INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
             VALUES ('{PROJECT}', 'gigabytes', 2, 3, 1, 0);
             INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
             SELECT '{uuid}', id, project_id, resource, 3, '2099-01-01', 0 FROM quota_usages"
        ))
        .await;
    vec![uuid]
}

async fn gigabytes(stage: &Stage) -> Vec<String> {
    stage.test.row("SELECT in_use, reserved FROM quota_usages").await
}

/// Extends to 5 GiB while `change` happens to the row.
async fn extend_while(stage: &Stage, volume: &str, change: &str) -> Vec<String> {
    stage.image(volume).await;
    let reservations = reserve(stage).await;
    stage.sim.inject(Fault::on("ImageResize").delays(Duration::from_secs(1)));
    let request = Extend { volume_id: volume.to_owned(), new_size: 5, reservations };
    let operation = stage.operation("extend_volume", Some(("Volume", volume))).await;
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        stage.test.sql(&format!("UPDATE volumes SET {change} WHERE id='{volume}'")).await;
    };
    let extended = extend::extend(&stage.backend, &stage.context, &operation, request);
    let (_, ()) = tokio::join!(extended, meanwhile);
    stage.ended(&operation).await
}

#[tokio::test]
async fn an_extension_that_ends_after_a_reset_is_counted_and_keeps_the_reset() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "extending", "").await;
    assert_eq!(extend_while(&stage, &volume, "status='error'").await, ["closed", "succeeded"]);
    assert_eq!(stage.status("volumes", &volume).await, "error");
    assert_eq!(stage.column("volumes", "size", &volume).await, "5");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 5 << 30);
    assert_eq!(gigabytes(&stage).await, ["5", "0"]);
}

#[tokio::test]
async fn an_extension_of_a_volume_that_is_gone_gives_its_quota_back() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "extending", "").await;
    let ended = extend_while(&stage, &volume, "status='deleted', deleted=1").await;
    assert_eq!(ended, ["closed", "failed"]);
    assert_eq!(gigabytes(&stage).await, ["2", "0"]);

    // Gone before it began.
    let stage = Stage::new().await;
    let reservations = reserve(&stage).await;
    let operation = stage.operation("extend_volume", Some(("Volume", "gone"))).await;
    let request = Extend { volume_id: "gone".into(), new_size: 5, reservations };
    let _ = extend::extend(&stage.backend, &stage.context, &operation, request).await;
    assert_eq!(gigabytes(&stage).await, ["2", "0"]);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}

#[tokio::test]
async fn an_extension_that_was_done_elsewhere_is_recorded_and_the_image_made_to_fit() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "extending", "").await;
    stage.image(&volume).await;
    let reservations = reserve(&stage).await;
    let request = Extend { volume_id: volume.clone(), new_size: 5, reservations };
    let operation = stage.operation("extend_volume_completion", Some(("Volume", &volume))).await;
    extend::complete(&stage.backend, &stage.context, &operation, request, false).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.status("volumes", &volume).await, "available");
    assert_eq!(stage.column("volumes", "size", &volume).await, "5");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 5 << 30);
    assert_eq!(gigabytes(&stage).await, ["5", "0"]);
    assert_eq!(stage.heard.events(), [format!("volume.resize.end {volume} available")]);
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn an_extension_that_failed_elsewhere_returns_its_quota() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "extending", "").await;
    stage.image(&volume).await;
    let reservations = reserve(&stage).await;
    let request = Extend { volume_id: volume.clone(), new_size: 5, reservations };
    let operation = stage.operation("extend_volume_completion", Some(("Volume", &volume))).await;
    extend::complete(&stage.backend, &stage.context, &operation, request, true).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("volumes", &volume).await, "error_extending");
    assert_eq!(stage.column("volumes", "size", &volume).await, "2");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 << 30);
    assert_eq!(gigabytes(&stage).await, ["2", "0"]);
    assert_eq!(stage.messages().await, [["VOLUME", volume.as_str(), "007", "010"]]);
}

#[tokio::test]
async fn a_completion_without_an_image_fails() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "extending", "").await;
    let reservations = reserve(&stage).await;
    let request = Extend { volume_id: volume.clone(), new_size: 5, reservations };
    let operation = stage.operation("extend_volume_completion", Some(("Volume", &volume))).await;
    extend::complete(&stage.backend, &stage.context, &operation, request, false).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("volumes", &volume).await, "error_extending");
    assert_eq!(gigabytes(&stage).await, ["2", "0"]);
}
