//! Files that a killed service has left in `image_conversion_dir`.

use scoria::journal::Outcome;
use scoria::volume::scratch;

use crate::seed;
use crate::stage::Stage;

#[tokio::test]
async fn a_service_that_starts_removes_the_files_of_operations_that_have_ended() {
    let stage = Stage::new().await;
    let journal = &stage.backend.journal;
    let (working, done) = (seed::id(1, 1), seed::id(1, 2));
    let open = stage.operation("create_volume", Some(("Volume", &working))).await;
    let ended = stage.operation("create_volume", Some(("Volume", &done))).await;
    journal.finish(&ended, &Outcome::abandoned("deleted meanwhile")).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let image = seed::id(8, 1);
    let kept = [
        format!("image_fetch_{image}_{working}"),
        format!("luks_{working}"),
        format!("nbd-{working}.sock"),
        format!("scoria-upload-{}-1.raw", open.id()),
        // Stock's, and anybody's.
        "tmpabcdef".to_owned(),
        format!("backup-{done}"),
        "luks_".to_owned(),
    ];
    let left = [
        format!("image_fetch_{image}_{done}"),
        format!("luks_{done}"),
        format!("luks-{done}.sock"),
        format!("scoria-upload-{}-1.converted", ended.id()),
    ];
    for name in kept.iter().chain(&left) {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    assert_eq!(scratch::sweep(journal, dir.path()).await.unwrap(), left.len());
    let mut found: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected = kept.to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(scratch::sweep(journal, &dir.path().join("none")).await.unwrap(), 0);
}
