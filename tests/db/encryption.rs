//! Encrypted volumes: what becomes of a creation whose key or cipher cannot be had, and of one that is repeated.

use scoria::backend::peers::Reschedule;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageRead, MirrorInfo};
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorState;
use scoria::volume::create::{self, Create};
use scoria::volume::extend::{self, Extend};

use crate::seed;
use crate::stage::Stage;

const GIB: u64 = 1 << 30;
const HEADER: u64 = 2_068_480;
const KEY: &str = ", encryption_key_id='00000000-0000-0000-0000-000000000000'";
const FIXED: &str = "[key_manager]\nbackend=cinder.keymgr.conf_key_mgr.ConfKeyManager\nfixed_key=00ff\n";

async fn stage(sites: &str, provider: &str) -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let conversion = dir.path().join("conversion");
    let options = format!("{sites}{FIXED}[DEFAULT]\nimage_conversion_dir={}\n", conversion.display());
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
