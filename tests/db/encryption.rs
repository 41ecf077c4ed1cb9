//! Encrypted volumes: what becomes of a creation whose key or cipher cannot be had, and of one that is repeated;
//! what they get of images, which only the key shows.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scoria::backend::peers::Reschedule;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageRead, MirrorInfo};
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorState;
use scoria::volume::create::{self, Create};
use scoria::volume::extend::{self, Extend};
use scoria::volume::image::{Attempt, Shape};
use scoria::volume::reimage::{self, Reimage};
use serde_json::{Value, json};

use crate::images::{CERTIFICATE, Glance, IMAGE, SECRET, converted, disk, of_image};
use crate::seed;
use crate::stage::Stage;

const GIB: u64 = 1 << 30;
const HEADER: u64 = 2_068_480;
const KEY: &str = ", encryption_key_id='00000000-0000-0000-0000-000000000000'";
const FIXED: &str = "[key_manager]\nbackend=cinder.keymgr.conf_key_mgr.ConfKeyManager\nfixed_key=00ff\n";

async fn stage(sites: &str, provider: &str) -> (Stage, tempfile::TempDir) {
    stage_of(sites, provider, FIXED).await
}

async fn stage_of(sites: &str, provider: &str, keys: &str) -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let conversion = dir.path().join("conversion");
    let options = format!("{sites}{keys}[DEFAULT]\nimage_conversion_dir={}\n", conversion.display());
    let stage = Stage::with(&options).await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO encryption (encryption_id, volume_type_id, cipher, key_size, provider, control_location,
               deleted) VALUES ('e', '{}', 'aes-xts-plain64', 256, '{provider}', 'front-end', 0)",
            seed::TYPE
        ))
        .await;
    (stage, dir)
}

async fn run(stage: &Stage, volume: &str) {
    let operation = stage.operation("create_volume", Some(("Volume", volume))).await;
    let reschedule = Some(Reschedule::default());
    let request = Create { volume_id: volume.to_owned(), reschedule, ..Create::default() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
}

async fn begin(stage: &Stage, volume: &str) -> Vec<u8> {
    let (pool, image) = ("volumes".to_owned(), format!("volume-{volume}"));
    stage.sim.site("a").call(ImageRead { pool, image, snap: None, offset: 0, length: 8 }).await.unwrap()
}

#[tokio::test]
async fn an_encrypted_volume_has_a_header_in_front_of_its_data_and_is_mirrored() {
    let sites = "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\n\
                 replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n";
    let (stage, _dir) = stage(sites, "luks").await;
    let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
    // The header's second piece is written twice.
    stage.sim.inject(Fault::on("ImageWrite").fails(When::After, RbdErrorKind::WorkerLost));
    run(&stage, &volume).await;
    assert_eq!(stage.status("volumes", &volume).await, "available");
    assert_eq!(stage.column("volumes", "replication_status", &volume).await, "enabled");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 * GIB + HEADER);
    assert_eq!(begin(&stage, &volume).await, b"LUKS\xba\xbe\x00\x01");
    let info = MirrorInfo { pool: "volumes".into(), image: format!("volume-{volume}") };
    assert_eq!(stage.sim.site("a").call(info).await.unwrap().state, MirrorState::Enabled);

    stage.test.sql("UPDATE volumes SET status='extending', previous_status='available'").await;
    let operation = stage.operation("extend_volume", Some(("Volume", &volume))).await;
    let request = Extend { volume_id: volume.clone(), new_size: 3, reservations: Vec::new() };
    extend::extend(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.column("volumes", "size", &volume).await, "3");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 3 * GIB + HEADER);
}

#[tokio::test]
async fn without_its_key_or_its_cipher_there_is_no_image() {
    for (provider, key) in
        [("luks2", KEY), ("luks", ", encryption_key_id='5b8a3d6e-1111-4222-8333-444455556666'")]
    {
        let (stage, _dir) = stage("", provider).await;
        stage.test.sql("DELETE FROM volume_type_extra_specs").await;
        let volume = seed::volume(&stage.test, 1, "creating", key).await;
        run(&stage, &volume).await;
        // Another backend's service may have another key manager: upstream tries them, too.
        assert_eq!(stage.heard.rescheduled().len(), 1, "{provider}");
        assert!(stage.seen(&format!("volume-{volume}")).is_none(), "{provider}");
        assert_eq!(stage.messages().await[0][1], volume, "{provider}");
    }
}

const SITES: &str = "rbd_ceph_conf=/sim/a.conf\nrbd_secret_uuid=s\n\
                     replication_device=backend_id:b,conf:/sim/b.conf,user:cinder\n";
const KEY_OF_IMAGE: &str = "cinder_encryption_key_id";
const FIXED_ID: &str = "00000000-0000-0000-0000-000000000000";

/// A backend with a Glance, replicated or not, and with an image-volume cache that encrypted volumes leave alone.
async fn stage_with(glance: &Glance, sites: &str) -> (Stage, tempfile::TempDir) {
    stage_with_keys(glance, sites, FIXED).await
}

async fn stage_with_keys(glance: &Glance, sites: &str, keys: &str) -> (Stage, tempfile::TempDir) {
    let options = format!(
        "{sites}image_volume_cache_enabled=true\n[DEFAULT]\nauth_strategy=noauth\nglance_num_retries=0\n\
         glance_api_servers={}\ncinder_internal_tenant_project_id=internal\n\
         cinder_internal_tenant_user_id=keeper\n",
        glance.url
    );
    stage_of(&options, "luks", keys).await
}

async fn fill(stage: &Stage, volume: &str) {
    let operation = stage.operation("create_volume", Some(("Volume", volume))).await;
    let request = Create { volume_id: volume.to_owned(), ..of_image() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", volume).await, "available", "{:?}", stage.messages().await);
}

/// The secret that QEMU opens a file with.
fn opening(dir: &Path, file: &Path) -> [String; 4] {
    let key = dir.join("key");
    std::fs::write(&key, "00ff").unwrap();
    [
        "--object".into(),
        format!("secret,id=k,file={}", key.display()),
        "--image-opts".into(),
        format!("driver=luks,key-secret=k,file.filename={}", file.display()),
    ]
}

/// The first `length` bytes of what the key opens.
async fn opened(stage: &Stage, volume: &str, length: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (image, plain) = (dir.path().join("image"), dir.path().join("plain"));
    let file = File::create(&image).unwrap();
    let name = format!("volume-{volume}");
    file.set_len(stage.seen(&name).unwrap().size).unwrap();
    let read = ImageRead {
        pool: "volumes".into(),
        image: name,
        snap: None,
        offset: 0,
        length: HEADER + length as u64,
    };
    file.write_all_at(&stage.sim.site("a").call(read).await.unwrap(), 0).unwrap();
    let [object, secret, options, image] = opening(dir.path(), &image);
    let done = Command::new("qemu-img")
        .args(["dd", &object, &secret, &options, "-O", "raw", &format!("if={image}")])
        .args([&format!("of={}", plain.display()), "bs=1M", &format!("count={}", length >> 20)])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    std::fs::read(plain).unwrap()
}

/// An encrypted volume with this content, as a file.
fn encrypted(content: &[u8]) -> Vec<u8> {
    encrypted_with("00ff", content)
}

fn encrypted_with(passphrase: &str, content: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, luks): (PathBuf, PathBuf) = (dir.path().join("raw"), dir.path().join("luks"));
    std::fs::write(&raw, content).unwrap();
    let [object, secret, ..] = opening(dir.path(), &luks);
    std::fs::write(dir.path().join("key"), passphrase).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", &object, &secret, "-O", "luks", "-o", "key-secret=k,iter-time=10"])
        .args([&raw, &luks])
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::read(luks).unwrap()
}

#[tokio::test]
#[ignore = "for the long matrix: each header is meant to take seconds of CPU, and the images area makes them too"]
async fn the_content_of_an_image_is_encrypted_on_its_way_into_a_volume() {
    // Zeros between both ends, that neither format has to keep, are zeros in the volume too.
    for (format, data) in [("raw", disk()), ("qcow2", converted("qcow2", &disk(), &[]))] {
        let glance = Glance::start(format, &data);
        let (stage, dir) = stage_with(&glance, SITES).await;
        let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
        stage.sim.inject(Fault::on("ImageImport").fails(When::Midway, RbdErrorKind::WorkerLost));
        fill(&stage, &volume).await;
        assert_eq!(glance.downloads(), 2, "{format}: the worker died under the first");
        assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 * GIB + HEADER);
        assert!(opened(&stage, &volume, 5 << 20).await == disk(), "{format}");
        assert_eq!(stage.column("volumes", "replication_status", &volume).await, "enabled");
        assert_eq!(stage.column("volumes", "bootable", &volume).await, "1");
        assert!(stage.test.rows("SELECT volume_id FROM image_volume_cache_entries").await.is_empty());
        let left = std::fs::read_dir(dir.path().join("conversion")).unwrap().count();
        assert_eq!(left, 0, "nothing stays behind");
    }
}

#[tokio::test]
async fn a_volume_that_was_half_encrypted_at_a_crash_is_begun_anew() {
    let glance = Glance::start("raw", &disk());
    let (mut stage, _dir) = stage_with(&glance, SITES).await;
    let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
    let image = format!("volume-{volume}");
    for (stuck, downloads) in [("ImageImport", 1), ("MirrorEnable", 2)] {
        let operation = match stuck {
            "ImageImport" => stage.operation("create_volume", Some(("Volume", &volume))).await,
            _ => stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0),
        };
        stage.sim.inject(Fault::on(stuck).sticks());
        let request = Create { volume_id: volume.clone(), ..of_image() };
        let reached = async {
            while stage.sim.count(stuck) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = create::create(&stage.backend, &stage.context, &operation, request) => panic!("{stuck} does not end"),
            () = reached => {}
        }
        assert_eq!(glance.downloads(), downloads);
        assert!(stage.seen(&image).is_some());
        stage.sim.clear_faults();
        stage.restart();
    }
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    let request = Create { volume_id: volume.clone(), ..of_image() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", &volume).await, "available");
    assert_eq!(glance.downloads(), 2, "what was complete is not downloaded again");
    assert!(opened(&stage, &volume, 5 << 20).await == disk());
    assert_eq!(stage.column("volumes", "replication_status", &volume).await, "enabled");
}

#[tokio::test]
async fn an_image_that_is_an_encrypted_volume_is_taken_as_it_is() {
    let bytes = encrypted(&disk());
    let glance = Glance::start("raw", &bytes);
    glance.set(KEY_OF_IMAGE, json!("5b8a3d6e-1111-4222-8333-444455556666"));
    let (stage, _dir) = stage_with(&glance, "").await;
    stage.test.sql("DELETE FROM volume_type_extra_specs").await;
    let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
    fill(&stage, &volume).await;
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 * GIB + HEADER);
    assert!(opened(&stage, &volume, 5 << 20).await == disk());

    // It says so, but whoever has the key could not open it.
    let glance = Glance::start("raw", &disk());
    glance.set(KEY_OF_IMAGE, json!(FIXED_ID));
    let (stage, _dir) = stage_with(&glance, "").await;
    let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    let request = Create { volume_id: volume.clone(), reschedule: Some(Reschedule::default()), ..of_image() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", &volume).await, "error");
    assert_eq!(stage.messages().await[0][2..], ["005", "001"]);
    assert!(stage.seen(&format!("volume-{volume}")).is_none());
}

#[tokio::test]
async fn without_its_key_a_volume_gets_no_image() {
    let glance = Glance::start("raw", &disk());
    let (stage, _dir) = stage_with(&glance, "").await;
    let key = ", encryption_key_id='5b8a3d6e-1111-4222-8333-444455556666'";
    let volume = seed::volume(&stage.test, 1, "creating", key).await;
    let operation = stage.operation("create_volume", Some(("Volume", &volume))).await;
    let request = Create { volume_id: volume.clone(), reschedule: Some(Reschedule::default()), ..of_image() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", &volume).await, "error");
    assert!(stage.heard.rescheduled().is_empty(), "as upstream");
    assert_eq!(stage.messages().await[0][2..], ["005", "001"]);
    assert_eq!((glance.downloads(), stage.seen(&format!("volume-{volume}")).is_none()), (0, true));
}

#[tokio::test]
#[ignore = "for the long matrix: each header is meant to take seconds of CPU, and the images area makes them too"]
async fn an_encrypted_volume_is_written_over_with_an_image_that_is_or_is_not_encrypted() {
    let glance = Glance::start("qcow2", &converted("qcow2", &disk(), &[]));
    let (stage, _dir) = stage_with(&glance, "").await;
    let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
    run(&stage, &volume).await;
    let reimage = async || {
        let again = format!(
            "UPDATE volumes SET status='downloading', previous_status='available' WHERE id='{volume}'"
        );
        stage.test.sql(&again).await;
        let Value::Object(image_meta) = json!({"id": IMAGE}) else { unreachable!() };
        let request = Reimage { volume_id: volume.clone(), image_meta, snapshot_id: None };
        let operation = stage.operation("reimage", Some(("Volume", &volume))).await;
        reimage::reimage(&stage.backend, &stage.context, &operation, request).await.unwrap();
        stage.status("volumes", &volume).await
    };
    assert_eq!(reimage().await, "available");
    assert!(opened(&stage, &volume, 5 << 20).await == disk());
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 * GIB + HEADER);

    let other: Vec<u8> = disk().into_iter().rev().collect();
    glance.replace("raw", encrypted(&other));
    glance.set(KEY_OF_IMAGE, json!(FIXED_ID));
    assert_eq!(reimage().await, "available");
    assert!(opened(&stage, &volume, 5 << 20).await == other);
    // Of a key that cannot be had nobody knows whether it is the volume's.
    glance.set(KEY_OF_IMAGE, json!("5b8a3d6e-1111-4222-8333-444455556666"));
    assert_eq!(reimage().await, "error");
    assert!(opened(&stage, &volume, 5 << 20).await == other, "it was left as it was");
}

#[tokio::test]
#[ignore = "for the long matrix: each header is meant to take seconds of CPU, and the images area makes them too"]
async fn what_is_encrypted_with_another_key_is_opened_by_the_volumes_own_after_a_reimage() {
    let other: Vec<u8> = disk().into_iter().rev().collect();
    let theirs: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = encrypted_with(&theirs, &other);
    let glance = Glance::start("raw", &bytes);
    glance.set(KEY_OF_IMAGE, json!(CERTIFICATE));
    let keys = format!(
        "[key_manager]\nbackend=barbican\nfixed_key=00ff\n[barbican]\nbarbican_endpoint={}\n",
        glance.url
    );
    let (stage, dir) = stage_with_keys(&glance, "", &keys).await;
    let volume = seed::volume(&stage.test, 1, "creating", KEY).await;
    run(&stage, &volume).await;
    // A snapshot of another volume, with that key; its image is the same.
    let extra = format!(", encryption_key_id='{CERTIFICATE}'");
    let parent = seed::volume(&stage.test, 2, "available", &extra).await;
    let image = format!("volume-{parent}");
    let shape = Shape { order: 22, features: 61 };
    stage.place().create(&image, 2 * GIB + HEADER, shape, Attempt::First).await.unwrap();
    stage.place().write_head(&image, &bytes).await.unwrap();
    let snapshot = seed::snapshot(&stage.test, 1, &parent, "available").await;
    stage.snapped(&image, &snapshot).await;
    for snapshot_id in [None, Some(snapshot)] {
        let again = format!(
            "UPDATE volumes SET status='downloading', previous_status='available' WHERE id='{volume}'"
        );
        stage.test.sql(&again).await;
        let Value::Object(image_meta) = json!({"id": IMAGE}) else { unreachable!() };
        let request = Reimage { volume_id: volume.clone(), image_meta, snapshot_id };
        let operation = stage.operation("reimage", Some(("Volume", &volume))).await;
        reimage::reimage(&stage.backend, &stage.context, &operation, request).await.unwrap();
        assert_eq!(stage.status("volumes", &volume).await, "available");
        assert!(opened(&stage, &volume, 5 << 20).await == other);
        assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 * GIB + HEADER);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("conversion")).unwrap().count(), 0);
}
