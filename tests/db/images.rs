//! Volumes made of images, of a Glance that is a thread of the test: what is downloaded, kept, refused, taken up again.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use scoria::backend::peers::Reschedule;
use scoria::error::{Code, Error};
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageRead, ImageWrite};
use scoria::rbd::sim::{Fault, When};
use scoria::volume::create::{self, Create};
use scoria::volume::reimage::{self, Reimage};
use serde_json::{Value, json};

use crate::seed;
use crate::stage::Stage;

pub(crate) const IMAGE: &str = "11111111-0000-4000-8000-000000000001";

/// Of the certificate in the key manager.
pub(crate) const CERTIFICATE: &str = "22222222-0000-4000-8000-000000000001";
/// Its bytes. They can be a key as well.
pub(crate) const SECRET: &[u8] = include_bytes!("../../src/openstack/testdata/signatures/p384.pem");

/// A server with one image, and a key manager with one certificate. Its thread ends with the process.
#[derive(Clone)]
pub(crate) struct Glance {
    pub(crate) url: String,
    image: Arc<Mutex<(Value, Vec<u8>)>>,
    downloads: Arc<Mutex<usize>>,
}

impl Glance {
    pub(crate) fn start(disk_format: &str, data: &[u8]) -> Glance {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let image = json!({
            "id": IMAGE, "name": "an image", "status": "active", "visibility": "public", "owner": "o",
            "disk_format": disk_format, "container_format": "bare", "size": data.len(), "min_disk": 0, "min_ram": 0,
            "checksum": null, "updated_at": "2026-01-02T03:04:05Z", "os_distro": "x",
        });
        let glance =
            Glance { url, image: Arc::new(Mutex::new((image, data.to_vec()))), downloads: Arc::default() };
        let serving = glance.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serving.serve(stream);
            }
        });
        glance
    }

    pub(crate) fn set(&self, key: &str, value: Value) {
        self.image.lock().unwrap().0[key] = value;
    }

    pub(crate) fn replace(&self, disk_format: &str, data: Vec<u8>) {
        let mut image = self.image.lock().unwrap();
        image.0["disk_format"] = json!(disk_format);
        image.0["size"] = json!(data.len());
        image.1 = data;
    }

    pub(crate) fn downloads(&self) -> usize {
        *self.downloads.lock().unwrap()
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut path = String::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
        }
        let (status, body) = {
            let image = self.image.lock().unwrap();
            if path == format!("/v2/images/{IMAGE}") {
                (200, image.0.to_string().into_bytes())
            } else if path == format!("/v2/images/{IMAGE}/file") {
                *self.downloads.lock().unwrap() += 1;
                (200, image.1.clone())
            } else if path == format!("/v1/secrets/{CERTIFICATE}/payload") {
                (200, SECRET.to_vec())
            } else {
                (404, Vec::new())
            }
        };
        let head =
            format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().write_all(&body)
    }
}

/// 5 MiB with data at both ends.
pub(crate) fn disk() -> Vec<u8> {
    let mut data = vec![0; 5 << 20];
    data[..4].copy_from_slice(b"head");
    let end = data.len();
    data[end - 4..].copy_from_slice(b"tail");
    data
}

/// The same in a file of another format.
pub(crate) fn converted(format: &str, data: &[u8], more: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, other) = (dir.path().join("raw"), dir.path().join("other"));
    std::fs::write(&raw, data).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format])
        .args(more)
        .args([&raw, &other])
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::read(other).unwrap()
}

async fn stage(glance: &Glance, dir: &tempfile::TempDir, more: &str) -> Stage {
    Stage::with(&format!(
        "{more}[DEFAULT]\nauth_strategy=noauth\nglance_num_retries=0\nglance_api_servers={}\nimage_conversion_dir={}\n\
         cinder_internal_tenant_project_id=internal\ncinder_internal_tenant_user_id=keeper\n",
        glance.url,
        dir.path().display()
    ))
    .await
}

pub(crate) fn of_image() -> Create {
    Create { image_id: Some(IMAGE.to_owned()), ..Create::default() }
}

async fn run(stage: &Stage, volume: &str, request: Create) -> Result<(), Error> {
    let operation = stage.operation("create_volume", Some(("Volume", volume))).await;
    let request = Create { volume_id: volume.to_owned(), ..request };
    create::create(&stage.backend, &stage.context, &operation, request).await
}

async fn read(stage: &Stage, volume: &str, offset: u64, length: u64) -> Vec<u8> {
    let image = format!("volume-{volume}");
    let read = ImageRead { pool: "volumes".into(), image, snap: None, offset, length };
    stage.sim.site("a").call(read).await.unwrap()
}

async fn assert_content(stage: &Stage, volume: &str) {
    assert_eq!(read(stage, volume, 0, 6).await, b"head\0\0");
    assert_eq!(read(stage, volume, (5 << 20) - 6, 8).await, b"\0\0tail\0\0");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 << 30);
}

async fn metadata(stage: &Stage, volume: &str) -> Vec<Vec<String>> {
    stage
        .test
        .rows(&format!(
            "SELECT `key`, value FROM volume_glance_metadata WHERE volume_id='{volume}' AND deleted=0 ORDER BY `key`"
        ))
        .await
}

#[tokio::test]
async fn images_are_downloaded_whatever_their_format() {
    for (format, data) in [
        ("raw", disk()),
        ("qcow2", converted("qcow2", &disk(), &[])),
        ("vmdk", converted("vmdk", &disk(), &[])),
        ("vhd", converted("vpc", &disk(), &["-o", "subformat=dynamic"])),
    ] {
        let glance = Glance::start(format, &data);
        let dir = tempfile::tempdir().unwrap();
        let stage = stage(&glance, &dir, "").await;
        let volume = seed::volume(&stage.test, 1, "creating", "").await;
        run(&stage, &volume, of_image()).await.unwrap();
        assert_eq!(
            stage.status("volumes", &volume).await,
            "available",
            "{format}: {:?}",
            stage.messages().await
        );
        assert_content(&stage, &volume).await;
        assert_eq!(stage.column("volumes", "bootable", &volume).await, "1");
        let size = data.len().to_string();
        let expected = [
            ["container_format", "bare"],
            ["disk_format", format],
            ["image_id", IMAGE],
            ["image_name", "an image"],
            ["min_disk", "0"],
            ["min_ram", "0"],
            ["os_distro", "x"],
            ["signature_verified", "False"],
            ["size", size.as_str()],
        ];
        assert_eq!(metadata(&stage, &volume).await, expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays behind");
    }
}

#[tokio::test]
async fn what_is_no_image_to_use_makes_an_error_and_goes_nowhere_else() {
    let large = converted("qcow2", &[0; 512], &[]);
    let glance = Glance::start("qcow2", &large);
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&glance, &dir, "").await;
    let elsewhere = || Create {
        reschedule: Some(Reschedule {
            filter_properties: json!({"retry": {"num_attempts": 1}}),
            ..Reschedule::default()
        }),
        ..of_image()
    };
    let mut number = 0;
    let mut expect = async |detail: &str| {
        number += 1;
        let volume = seed::volume(&stage.test, number, "creating", "").await;
        run(&stage, &volume, elsewhere()).await.unwrap();
        assert_eq!(stage.status("volumes", &volume).await, "error", "{detail}");
        let told = stage.messages().await.into_iter().find(|m| m[1] == volume).unwrap();
        assert_eq!(told[2..], ["005", detail], "volume {number}");
        assert!(stage.seen(&format!("volume-{volume}")).is_none());
        assert!(metadata(&stage, &volume).await.is_empty());
    };
    // As glance says.
    glance.set("virtual_size", json!((2u64 << 30) + 1));
    expect("007").await;
    glance.set("virtual_size", Value::Null);
    // As the file says.
    glance.image.lock().unwrap().1 = {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let made =
            Command::new("qemu-img").args(["create", "-f", "qcow2"]).arg(&file).arg("3G").status().unwrap();
        assert!(made.success());
        std::fs::read(file).unwrap()
    };
    glance.set("size", Value::Null);
    expect("007").await;
    // Another format than it is called by, both ways.
    glance.set("disk_format", json!("raw"));
    expect("001").await;
    glance.set("disk_format", json!("qcow2"));
    glance.image.lock().unwrap().1 = disk();
    expect("001").await;
    // A signature that nobody can verify, and a part of one.
    glance.set("img_signature", json!("s"));
    expect("011").await;
    for key in ["img_signature_hash_method", "img_signature_certificate_uuid", "img_signature_key_type"] {
        glance.set(key, json!("x"));
    }
    expect("011").await;
    assert!(stage.heard.rescheduled().is_empty());
    // It may work elsewhere: glance does not answer, or the image has a backing file (as upstream).
    glance.set("img_signature_hash_method", Value::Null);
    glance.set("img_signature", Value::Null);
    glance.set("img_signature_certificate_uuid", Value::Null);
    glance.set("img_signature_key_type", Value::Null);
    let mut backed = large.clone();
    backed[8..16].copy_from_slice(&512u64.to_be_bytes());
    glance.image.lock().unwrap().1 = backed;
    let volume = seed::volume(&stage.test, 90, "creating", "").await;
    run(&stage, &volume, elsewhere()).await.unwrap();
    assert_eq!(stage.heard.rescheduled().len(), 1);
    assert_eq!(stage.status("volumes", &volume).await, "creating");
}

#[tokio::test]
async fn a_signed_image_must_be_what_was_signed() {
    let data = b"the bytes of an image\n".repeat(1000);
    let glance = Glance::start("raw", &data);
    let dir = tempfile::tempdir().unwrap();
    let keys = format!("[key_manager]\nbackend=barbican\n[barbican]\nbarbican_endpoint={}\n", glance.url);
    let stage = stage(&glance, &dir, &keys).await;
    let signatures = include_str!("../../src/openstack/testdata/signatures/signatures.txt");
    let signature = signatures.lines().find_map(|line| line.strip_prefix("p384 ECC_SECP384R1 SHA-256 "));
    glance.set("img_signature", json!(signature.unwrap()));
    glance.set("img_signature_hash_method", json!("SHA-256"));
    glance.set("img_signature_key_type", json!("ECC_SECP384R1"));
    glance.set("img_signature_certificate_uuid", json!(CERTIFICATE));
    let good = seed::volume(&stage.test, 1, "creating", "").await;
    run(&stage, &good, of_image()).await.unwrap();
    assert_eq!(stage.status("volumes", &good).await, "available");
    assert_eq!(read(&stage, &good, 0, 9).await, b"the bytes");
    let verified = format!(
        "SELECT value FROM volume_glance_metadata WHERE volume_id='{good}' AND `key`='signature_verified'"
    );
    assert_eq!(stage.test.row(&verified).await, ["True"]);

    // One bit is another; then nobody knows the certificate.
    let refused = async |number: u32| {
        let bad = seed::volume(&stage.test, number, "creating", "").await;
        run(&stage, &bad, of_image()).await.unwrap();
        assert_eq!(stage.status("volumes", &bad).await, "error");
        assert!(stage.seen(&format!("volume-{bad}")).is_none());
        let said = stage.messages().await;
        assert!(said.contains(&vec!["VOLUME".into(), bad, "005".into(), "011".into()]), "{said:?}");
    };
    glance.image.lock().unwrap().1[21_999] ^= 1;
    refused(2).await;
    glance.image.lock().unwrap().1[21_999] ^= 1;
    glance.set("img_signature_certificate_uuid", json!("another"));
    refused(3).await;
    assert_eq!(glance.downloads(), 2, "it is not read in vain");
}

#[tokio::test]
async fn a_gzipped_image_is_unzipped_where_that_is_allowed() {
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let glance = Glance::start("raw", &gzip(&disk()));
    glance.set("container_format", json!("compressed"));
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&glance, &dir, "[DEFAULT]\nallow_compression_on_image_upload=true\n").await;
    let put = |disk_format: &str, data: Vec<u8>| {
        glance.set("disk_format", json!(disk_format));
        glance.set("size", json!(data.len()));
        glance.image.lock().unwrap().1 = data;
    };
    for (number, format, data) in
        [(1, "raw", gzip(&disk())), (2, "qcow2", gzip(&converted("qcow2", &disk(), &[])))]
    {
        put(format, data);
        let volume = seed::volume(&stage.test, number, "creating", "").await;
        run(&stage, &volume, of_image()).await.unwrap();
        assert_eq!(stage.status("volumes", &volume).await, "available", "{format}");
        assert_content(&stage, &volume).await;
    }
    // It is cut short; it is none; what is in it is not what it is called.
    let mut cut = gzip(&disk());
    cut.truncate(cut.len() - 9);
    for (number, format, data) in [(4, "raw", cut), (5, "raw", disk()), (6, "qcow2", gzip(&disk()))] {
        put(format, data);
        let volume = seed::volume(&stage.test, number, "creating", "").await;
        run(&stage, &volume, of_image()).await.unwrap();
        assert_eq!(stage.status("volumes", &volume).await, "error", "{number}");
        assert!(stage.seen(&format!("volume-{volume}")).is_none());
    }
}

#[tokio::test]
async fn an_image_that_is_a_volume_here_is_cloned_from_it_if_it_is_the_users() {
    let glance = Glance::start("raw", &disk());
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&glance, &dir, "[DEFAULT]\nallowed_direct_url_schemes=cinder\n").await;
    let holder = seed::volume(&stage.test, 1, "available", "").await;
    let image = stage.image(&holder).await;
    let (pool, data) = ("volumes".to_owned(), b"head\0\0".to_vec());
    let write = ImageWrite { pool, image: image.clone(), offset: 0, data };
    stage.sim.site("a").call(write).await.unwrap();
    glance.set("direct_url", json!(format!("cinder://store/{holder}")));

    // It is somebody else's.
    let other = seed::volume(&stage.test, 2, "creating", "").await;
    run(&stage, &other, of_image()).await.unwrap();
    assert_eq!((stage.status("volumes", &other).await.as_str(), glance.downloads()), ("available", 1));

    let owner = format!(
        "INSERT INTO volume_metadata (volume_id, `key`, value, deleted) VALUES ('{holder}', 'image_owner', 'o', 0)"
    );
    stage.test.sql(&owner).await;
    let cloned = seed::volume(&stage.test, 3, "creating", "").await;
    run(&stage, &cloned, of_image()).await.unwrap();
    assert_eq!((stage.status("volumes", &cloned).await.as_str(), glance.downloads()), ("available", 1));
    assert_eq!(read(&stage, &cloned, 0, 6).await, b"head\0\0");
    let parent = stage.place().stat(&format!("volume-{cloned}")).await.unwrap().parent.expect("a clone");
    assert_eq!(parent.image, image);
    assert_eq!(stage.column("volumes", "bootable", &cloned).await, "1");

    // It cannot be cloned: the image is downloaded, and nothing is left of the attempt.
    stage.sim.inject(Fault::on("ImageClone").fails(When::Before, RbdErrorKind::Other));
    let downloaded = seed::volume(&stage.test, 4, "creating", "").await;
    run(&stage, &downloaded, of_image()).await.unwrap();
    assert_eq!((stage.status("volumes", &downloaded).await.as_str(), glance.downloads()), ("available", 2));
    assert_content(&stage, &downloaded).await;
}

#[tokio::test]
async fn a_download_that_was_cut_short_is_begun_anew() {
    let glance = Glance::start("raw", &disk());
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&glance, &dir, "").await;
    // The worker dies: the bytes are downloaded again, over what is there.
    let volume = seed::volume(&stage.test, 1, "creating", "").await;
    stage.sim.inject(Fault::on("ImageImport").fails(When::Midway, RbdErrorKind::WorkerLost));
    run(&stage, &volume, of_image()).await.unwrap();
    assert_content(&stage, &volume).await;
    assert_eq!(glance.downloads(), 2);
    // Ceph refuses.
    let volume = seed::volume(&stage.test, 2, "creating", "").await;
    stage.sim.inject(Fault::on("ImageImport").fails(When::Midway, RbdErrorKind::NoSpace));
    run(&stage, &volume, of_image()).await.unwrap();
    assert_eq!(stage.status("volumes", &volume).await, "error");
    assert!(stage.seen(&format!("volume-{volume}")).is_none());
}

#[tokio::test]
async fn the_second_volume_of_an_image_is_a_clone_of_what_was_kept_of_the_first() {
    let glance = Glance::start("qcow2", &converted("qcow2", &disk(), &[]));
    let dir = tempfile::tempdir().unwrap();
    let mut stage =
        stage(&glance, &dir, "image_volume_cache_enabled=true\nimage_volume_cache_max_count=1\n").await;
    let first = seed::volume(&stage.test, 1, "creating", "").await;
    run(&stage, &first, of_image()).await.unwrap();
    assert_content(&stage, &first).await;
    let entry = "SELECT image_id, size, host, volume_id FROM image_volume_cache_entries";
    let entry = stage.test.row(entry).await;
    let host = stage.column("volumes", "host", &first).await;
    assert_eq!(entry[..3], [IMAGE.to_owned(), "1".to_owned(), host]);
    let copy = entry[3].clone();
    let row = format!(
        "SELECT status, size, project_id, user_id, display_name, source_volid, bootable FROM volumes WHERE id='{copy}'"
    );
    let name = format!("image-{IMAGE}");
    let expected = ["available", "1", "internal", "keeper", name.as_str(), first.as_str(), "0"];
    assert_eq!(stage.test.row(&row).await, expected);
    assert_eq!(stage.seen(&format!("volume-{copy}")).unwrap().size, 1 << 30);

    let second = seed::volume(&stage.test, 2, "creating", "").await;
    run(&stage, &second, of_image()).await.unwrap();
    assert_content(&stage, &second).await;
    assert_eq!(glance.downloads(), 1);
    assert_eq!(stage.column("volumes", "bootable", &second).await, "1");
    assert!(metadata(&stage, &second).await.contains(&vec!["image_id".to_owned(), IMAGE.to_owned()]));

    // An image that has changed is downloaded again, and what was kept of it goes.
    glance.set("updated_at", json!("2026-02-02T03:04:05Z"));
    let third = seed::volume(&stage.test, 3, "creating", "").await;
    // The broker is away just then: whoever takes the request up asks for the deletion.
    stage.set_deaf(true);
    assert_eq!(run(&stage, &third, of_image()).await.unwrap_err().code(), Code::Broker);
    assert_eq!(stage.status("volumes", &third).await, "creating");
    assert_eq!(stage.status("volumes", &copy).await, "deleting");
    stage.set_deaf(false);
    stage.restart();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    let request = Create { volume_id: third.clone(), ..of_image() };
    create::create(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!((stage.status("volumes", &third).await.as_str(), glance.downloads()), ("available", 2));
    assert_eq!(stage.status("volumes", &copy).await, "deleting");
    assert!(stage.heard.cast()[0].starts_with(&format!("delete {copy} at ")));
    let kept = stage.test.rows("SELECT volume_id FROM image_volume_cache_entries").await;
    assert!(kept.len() == 1 && kept[0][0] != copy, "{kept:?}");
}

#[tokio::test]
async fn a_volume_is_written_over_with_an_image() {
    let glance = Glance::start("qcow2", &converted("qcow2", &disk(), &[]));
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&glance, &dir, "").await;
    let volume = seed::volume(&stage.test, 1, "downloading", ", previous_status='available'").await;
    let image = stage.image(&volume).await;
    let old = ImageWrite { pool: "volumes".into(), image, offset: 4 << 20, data: vec![7; 8192] };
    stage.sim.site("a").call(old).await.unwrap();
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_glance_metadata (volume_id, `key`, value, deleted) VALUES ('{volume}', 'old', 'x', 0)"
        ))
        .await;
    let Value::Object(image_meta) = json!({"id": IMAGE, "name": "n", "properties": {"os_distro": "y"}})
    else {
        unreachable!()
    };
    let request = Reimage { volume_id: volume.clone(), image_meta, snapshot_id: None };
    let operation = stage.operation("reimage", Some(("Volume", &volume))).await;
    reimage::reimage(&stage.backend, &stage.context, &operation, request.clone()).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.status("volumes", &volume).await, "available");
    assert_eq!(read(&stage, &volume, 0, 6).await, b"head\0\0");
    assert_eq!(read(&stage, &volume, (5 << 20) - 6, 6).await, b"\0\0tail");
    let expected = [["image_id", IMAGE], ["image_name", "n"], ["os_distro", "y"]];
    assert_eq!(metadata(&stage, &volume).await, expected);

    // One that fails.
    stage.test.sql(&format!("UPDATE volumes SET status='downloading' WHERE id='{volume}'")).await;
    glance.image.lock().unwrap().1 = disk();
    let operation = stage.operation("reimage", Some(("Volume", &volume))).await;
    reimage::reimage(&stage.backend, &stage.context, &operation, request.clone()).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.status("volumes", &volume).await, "error");
    assert_eq!(stage.column("volumes", "previous_status", &volume).await, "downloading");
    assert_eq!(stage.messages().await[0][2..], ["016", "001"]);

    // One that somebody has taken back.
    let operation = stage.operation("reimage", Some(("Volume", &volume))).await;
    reimage::reimage(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.status("volumes", &volume).await, "error");
}
