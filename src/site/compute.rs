//! What a compute node needs to open images of a site.
//!
//! A hypervisor that serves volumes of several Ceph clusters needs a libvirt secret for each, under the UUID that
//! Cinder hands to Nova with the connection, and a conf that leads QEMU's librbd to the right monitors.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::files::CephKey;
use crate::error::{Code, Error, Result};

/// A libvirt secret for the key of a site's client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The UUID that Cinder hands out: `rbd_secret_uuid`, the device's `secret_uuid`, or the fsid.
    pub uuid: String,
    /// cephx user without `client.`.
    pub user: String,
    /// The site's name.
    pub site: String,
}

impl Secret {
    /// Its definition. The usage name is unique on the hypervisor, as libvirt asks of it.
    pub fn xml(&self) -> String {
        format!(
            "<secret ephemeral='no' private='no'>\n  <uuid>{}</uuid>\n  <usage type='ceph'>\n    \
             <name>client.{} of site {} ({})</name>\n  </usage>\n</secret>\n",
            escape(&self.uuid),
            escape(&self.user),
            escape(&self.site),
            escape(&self.uuid),
        )
    }

    /// Name of the file with the definition.
    pub fn xml_name(&self) -> String {
        format!("secret-{}.xml", self.uuid)
    }

    /// Name of the file with the key.
    pub fn key_name(&self) -> String {
        format!("secret-{}.key", self.uuid)
    }

    /// The commands for each compute node. The key is read from a file: what is an argument is seen by everybody.
    pub fn commands(&self, dir: &Path) -> String {
        let (xml, key) = (dir.join(self.xml_name()), dir.join(self.key_name()));
        format!(
            "virsh secret-define --file {}\nvirsh secret-set-value --secret {} --file {}\n",
            quoted(&xml),
            self.uuid,
            quoted(&key)
        )
    }

    /// Writes definition and key into `dir`, the key for its owner alone.
    ///
    /// # Errors
    /// `Config` when that cannot be done, or a file is there already.
    pub fn write(&self, dir: &Path, key: &CephKey) -> Result<[PathBuf; 2]> {
        let (xml, secret) = (dir.join(self.xml_name()), dir.join(self.key_name()));
        for (path, text, mode) in [(&xml, self.xml(), 0o644), (&secret, key.expose().to_owned(), 0o600)] {
            create(path, &text, mode).map_err(|e| {
                Error::new(Code::Config, format!("Cannot write {}", path.display())).caused_by(e)
            })?;
        }
        Ok([xml, secret])
    }
}

/// A file that was not there before: one with a wider mode would keep it.
fn create(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}

/// The smallest ceph.conf that leads a client to a site.
pub fn client_conf(site: &str, fsid: &str, monitors: &[String], user: &str, keyring: &Path) -> String {
    let mut text = format!(
        "# Site {site}: what a client needs.\n[global]\nfsid = {fsid}\nmon_host = {}\n",
        monitors.join(" ")
    );
    let _ = write!(text, "\n[client.{user}]\nkeyring = {}\n", keyring.display());
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==";

    fn secret() -> Secret {
        Secret {
            uuid: "457eb676-33da-42ec-9a8c-9293d545c337".into(),
            user: "cinder".into(),
            site: "paris".into(),
        }
    }

    #[test]
    fn the_definition_is_the_golden_one() {
        assert_eq!(secret().xml(), include_str!("../../tests/fixtures/libvirt-secret.xml"));
        let odd = Secret { site: "a<b".into(), ..secret() };
        assert!(odd.xml().contains("a&lt;b"));
    }

    #[test]
    fn the_key_is_in_a_file_of_its_owner_and_not_in_a_command() {
        let dir = tempfile::tempdir().unwrap();
        let [xml, key] = secret().write(dir.path(), &CephKey::parse(KEY).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&key).unwrap(), KEY);
        assert!(xml.exists());
        let commands = secret().commands(Path::new("/root/a b"));
        assert!(
            commands.contains("--file '/root/a b/secret-457eb676-33da-42ec-9a8c-9293d545c337.key'"),
            "{commands}"
        );
        assert!(!commands.contains("AQ"));
        assert!(
            secret().write(dir.path(), &CephKey::parse(KEY).unwrap()).is_err(),
            "nothing is written over"
        );
    }

    #[test]
    fn a_conf_has_what_a_client_needs() {
        let monitors = [
            "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]".to_owned(),
            "[v2:10.0.0.2:3300,v1:10.0.0.2:6789]".to_owned(),
        ];
        let conf = client_conf("paris", "f-1", &monitors, "cinder", Path::new("/etc/ceph/k"));
        assert_eq!(
            conf,
            "# Site paris: what a client needs.\n[global]\nfsid = f-1\n\
             mon_host = [v2:10.0.0.1:3300,v1:10.0.0.1:6789] [v2:10.0.0.2:3300,v1:10.0.0.2:6789]\n\n\
             [client.cinder]\nkeyring = /etc/ceph/k\n"
        );
    }
}
