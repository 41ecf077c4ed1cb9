//! The words of tests with Glance: a file that is known byte for byte, and the image made of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::driver::Answer;
use super::lab::Lab;
use super::{row_str, wait_for};

const MIB: u64 = 1 << 20;

/// A disk in a file of any format that qemu-img knows, with data at its begin, in its middle and at its very
/// end, and holes between them. Removed with this value.
pub(crate) struct ImageFile {
    dir: tempfile::TempDir,
    /// As glance calls it; qemu-img has other names for some.
    pub(crate) disk_format: String,
    /// Bytes of the disk, not of the file.
    pub(crate) size: u64,
    /// SHA-256 of the disk, in hex.
    pub(crate) checksum: String,
}

impl ImageFile {
    /// A disk of so many MiB whose content depends on `seed`.
    pub(crate) fn new(disk_format: &str, mib: u64, seed: u32) -> ImageFile {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let file = File::create(&raw).unwrap();
        let size = mib * MIB;
        file.set_len(size).unwrap();
        for (number, offset) in [0, size / 2, size - MIB].into_iter().enumerate() {
            file.write_all_at(&pattern(u64::from(seed) << 8 | number as u64), offset).unwrap();
        }
        let made =
            ImageFile { disk_format: disk_format.to_owned(), size, checksum: checksum(&raw, 0, size), dir };
        if disk_format != "raw" {
            qemu_img(&["convert", "-f", "raw", "-O", qemu_name(disk_format), text(&raw), text(&made.path())]);
            fs::remove_file(raw).unwrap();
        }
        made
    }

    /// Writes over bytes of the file.
    pub(crate) fn spoil(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(self.path()).unwrap().write_all_at(bytes, offset).unwrap();
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join(format!("disk.{}", self.disk_format))
    }
}

/// A megabyte that depends on the seed alone, and does not compress.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..MIB / 8).flat_map(|_| word()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// qemu-img's name of what glance calls so.
fn qemu_name(disk_format: &str) -> &str {
    if disk_format == "vhd" { "vpc" } else { disk_format }
}

#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let out = Command::new("qemu-img").args(args).stdin(Stdio::null()).output().expect("qemu-img can be run");
    assert!(out.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What qemu-img says of a file.
#[track_caller]
pub(crate) fn qemu_info(path: &Path) -> Value {
    serde_json::from_str(&qemu_img(&["info", "--output=json", text(path)])).unwrap()
}

/// SHA-256 of a range of a raw file, in hex. By another program: a debug build takes a minute for a gigabyte.
#[track_caller]
pub(crate) fn checksum(path: &Path, offset: u64, length: u64) -> String {
    let script = r#"tail -c "+$(($2 + 1))" "$1" | head -c "$3" | sha256sum"#;
    let (offset, length) = (offset.to_string(), length.to_string());
    let out = Command::new("sh").args(["-c", script, "sh", text(path), &offset, &length]).output().unwrap();
    assert!(out.status.success(), "sha256sum: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

impl Lab {
    /// A method of python-glanceclient that has to succeed.
    #[track_caller]
    pub(crate) fn glance(&self, call: &str, args: Value, kwargs: Value) -> Value {
        self.try_glance(call, args.clone(), kwargs.clone())
            .unwrap_or_else(|e| panic!("glance {call} {args} {kwargs}: {e}"))
    }

    /// The same when the answer may be a refusal.
    pub(crate) fn try_glance(&self, call: &str, args: Value, kwargs: Value) -> Answer {
        self.driver.call("image", json!({"call": call, "args": args, "kwargs": kwargs}))
    }

    /// An active image of a file; its id. `attributes` are those of glance (`visibility`, `min_disk`, properties),
    /// and `store` and `user` if it is not to be the default one's and admin's.
    #[track_caller]
    pub(crate) fn image_of(&self, file: &ImageFile, attributes: Value) -> String {
        let mut request = attributes;
        request["path"] = json!(file.path());
        request["disk_format"] = json!(file.disk_format);
        if request.get("name").is_none() {
            request["name"] = json!(format!("a disk in {}", file.disk_format));
        }
        let made = self.driver.call("image_of_file", request.clone());
        let made = made.unwrap_or_else(|e| panic!("an image {request}: {e}"));
        assert_eq!(made["status"], "active", "{made}");
        row_str(&made, "id").to_owned()
    }

    /// What glance says of an image.
    #[track_caller]
    pub(crate) fn glance_image(&self, id: &str) -> Value {
        self.glance("images.get", json!([id]), json!({}))
    }

    /// Until glance gives an image this status.
    #[track_caller]
    pub(crate) fn wait_glance_image(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("image {id} becomes {status}"), 120, || {
            let image = self.glance_image(id);
            assert_ne!(image["status"], "killed", "{image}");
            (image["status"] == status).then_some(image)
        })
    }

    /// An image's data in a file of the test's.
    #[track_caller]
    pub(crate) fn download(&self, id: &str, to: &Path) -> u64 {
        let size = self.driver.call("image_to_file", json!({"ident": id, "path": to}));
        size.unwrap_or_else(|e| panic!("download of image {id}: {e}")).as_u64().unwrap()
    }

    /// Delete images; glance does it at once.
    #[track_caller]
    pub(crate) fn delete_images(&self, ids: &[&str]) {
        for id in ids {
            self.glance("images.delete", json!([id]), json!({}));
        }
    }

    /// SHA-256 of the first bytes of a volume.
    #[track_caller]
    pub(crate) fn checksum_of(&self, site: &str, pool: &str, volume: &str, length: u64) -> String {
        let args = json!({"site": site, "pool": pool, "image": format!("volume-{volume}"), "length": length});
        self.ceph("checksum", args).as_str().unwrap().to_owned()
    }
}
