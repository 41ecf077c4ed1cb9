//! Encrypted volumes: their types, and the only proof that counts, which is to open them with the key, as Nova's
//! QEMU would.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::images::checksum;
use super::lab::Lab;

/// What a LUKS header of AES-256 in XTS mode takes, as qemu-img lays it out.
pub(crate) const HEADER: u64 = 2_068_480;

/// The secret that QEMU opens an image with, and the image.
fn options(key: &Path, image: &Path) -> [String; 4] {
    [
        "--object".to_owned(),
        format!("secret,id=k,file={}", key.display()),
        "--image-opts".to_owned(),
        format!("driver=luks,key-secret=k,file.filename={}", image.display()),
    ]
}

fn said(command: &mut Command) -> Result<String, String> {
    let out = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(text) } else { Err(text) }
}

impl Lab {
    /// A volume type with these extra specs whose volumes are encrypted; its id.
    #[track_caller]
    pub(crate) fn encrypted_type(&self, name: &str, key_size: u32, specs: &[(&str, &str)]) -> Value {
        let kind = self.api("volume_types.create", json!([name]), json!({}))["id"].clone();
        for (key, value) in specs {
            self.sql(
                "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) \
                 VALUES (%s, %s, %s, 0)",
                &[kind.clone(), json!(key), json!(value)],
            );
        }
        let spec = json!({"provider": "luks", "cipher": "aes-xts-plain64", "key_size": key_size,
                          "control_location": "front-end"});
        self.api("volume_encryption_types.create", json!([kind, spec]), json!({}));
        kind
    }

    /// The one key of the lab's volumes, in hex.
    pub(crate) fn fixed_key(&self) -> String {
        let state: Value =
            serde_json::from_str(&fs::read_to_string(self.root.join("lab.json")).unwrap()).unwrap();
        state["secrets"]["fixed-key"].as_str().unwrap().to_owned()
    }

    /// A volume's image in a file, and the passphrase in another.
    fn exported(&self, name: &str, site: &str, passphrase: &str) -> Result<(TempDir, [String; 4]), String> {
        let dir = tempfile::tempdir().unwrap();
        let (key, image) = (dir.path().join("key"), dir.path().join("image"));
        fs::write(&key, passphrase).unwrap();
        let exported =
            self.try_tool(&["rbd", site, "export", name, image.to_str().unwrap(), "--no-progress"]);
        if !exported.status.success() {
            return Err(String::from_utf8_lossy(&exported.stderr).into_owned());
        }
        let with = options(&key, &image);
        Ok((dir, with))
    }

    /// SHA-256 of the first bytes of what a passphrase opens a volume to, in hex.
    #[track_caller]
    pub(crate) fn checksum_inside(&self, pool: &str, volume: &str, passphrase: &str, length: u64) -> String {
        let name = format!("{pool}/volume-{volume}");
        let (dir, [object, secret, flag, image]) = self.exported(&name, "a", passphrase).unwrap();
        let plain = dir.path().join("plain");
        let mut command = Command::new("qemu-img");
        command.args(["dd", &object, &secret, &flag, "-O", "raw", &format!("if={image}"), "bs=1M"]);
        command.args([&format!("of={}", plain.display()), &format!("count={}", length.div_ceil(1 << 20))]);
        said(&mut command).unwrap();
        checksum(&plain, 0, length)
    }

    /// Opens a volume's image with a passphrase; how many bytes it then has, or what QEMU says.
    pub(crate) fn opened(
        &self,
        site: &str,
        pool: &str,
        volume: &str,
        passphrase: &str,
    ) -> Result<u64, String> {
        let name = format!("{pool}/volume-{volume}");
        let (_dir, with) = self.exported(&name, site, passphrase)?;
        said(Command::new("qemu-io").arg("-r").args(&with).args(["-c", "read 0 64k"]))?;
        let info = said(Command::new("qemu-img").args(["info", "--output=json"]).args(&with))?;
        let info: Value = serde_json::from_str(&info).map_err(|e| e.to_string())?;
        info["virtual-size"].as_u64().ok_or_else(|| info.to_string())
    }

    /// That the key, and nothing else, opens the volume, which has so many GiB then.
    #[track_caller]
    pub(crate) fn expect_opens(&self, site: &str, pool: &str, volume: &str, gib: u64) {
        assert_eq!(self.opened(site, pool, volume, &self.fixed_key()), Ok(gib << 30), "{site}/{volume}");
    }
}
