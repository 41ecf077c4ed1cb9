//! A LUKS header that was made for another key than the volume's.
//!
//! An image that is an encrypted volume has a key of its own, and a volume that gets its content keeps the one that
//! the API knows. Nothing need be encrypted anew for that: what encrypts the data lies in the header, locked with a
//! passphrase, and qemu-img locks it with another one and forgets the first (as `cryptsetup luksChangeKey` does, by
//! which stock changes the keys of clones where its drivers attach them).

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;

use super::{LARGEST, MAKING, room_of, run, with_secret};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::Result;
use crate::model::Volume;
use crate::volume::from_image::Temporary;

/// From one passphrase to another, in hex.
pub(in crate::volume) struct KeyChange {
    from: SecretString,
    to: SecretString,
}

impl KeyChange {
    /// From the key `other` to the volume's, if it is another one.
    ///
    /// # Errors
    /// `KeyManager`.
    pub(in crate::volume) async fn needed(
        backend: &Backend,
        context: &RequestContext,
        volume: &Volume,
        other: &str,
    ) -> Result<Option<KeyChange>> {
        let own = volume.encryption_key_id.as_deref().unwrap_or_default();
        if own == other {
            return Ok(None);
        }
        // Each volume has an id of its own for a key that it shares.
        let keys = &backend.globals.openstack.keys;
        let (from, to) = (keys.passphrase(context, other).await?, keys.passphrase(context, own).await?);
        Ok((from.expose_secret() != to.expose_secret()).then_some(KeyChange { from, to }))
    }

    /// The header as the other passphrase opens it, and the first does no more. Lies in a file of `dir` meanwhile.
    ///
    /// # Errors
    /// Why it cannot be made: `header` is none that the first passphrase opens, …
    pub(in crate::volume) async fn apply(
        &self,
        dir: &Path,
        volume_id: &str,
        header: &[u8],
    ) -> std::result::Result<Bytes, String> {
        let _turn = MAKING.acquire().await.map_err(|e| e.to_string())?;
        let path = Temporary(dir.join(format!("luks_{volume_id}")));
        let (name, old) = (path.0.clone(), header.to_vec());
        let written = tokio::task::spawn_blocking(move || write(&name, &old)).await;
        written.map_err(|e| e.to_string())?.map_err(|e| format!("{}: {e}", dir.display()))?;
        self.amend(&path.0, "from", "state=active,new-secret=to").await?;
        self.amend(&path.0, "to", "state=inactive,old-secret=from").await?;
        let made = tokio::task::spawn_blocking(move || read(&path.0)).await;
        let made = made.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        if made.len() != header.len() || room_of(&made) != room_of(header) {
            return Err(format!("qemu-img made {} bytes of a header of {}", made.len(), header.len()));
        }
        Ok(made.into())
    }

    /// Opens a header with the secret `key`, and changes it.
    async fn amend(&self, path: &Path, key: &str, change: &str) -> std::result::Result<(), String> {
        let name = path.to_str().ok_or("its path is not in UTF-8")?.replace(',', ",,");
        // The second passphrase comes through a pipe, too: it fits into that at once.
        let (second, mut into) = std::io::pipe().map_err(|e| e.to_string())?;
        into.write_all(self.to.expose_secret().as_bytes()).map_err(|e| e.to_string())?;
        drop(into);
        let mut command = Command::new("qemu-img");
        command
            .args(["amend", "--object", &with_secret("from", "/dev/stdin")])
            .args(["--object", &with_secret("to", "/dev/stdout"), "-o", change, "--image-opts"])
            .arg(format!("driver=luks,key-secret={key},file.driver=file,file.filename={name}"))
            .stdout(Stdio::from(second));
        run(&mut command, &self.from).await
    }
}

fn write(path: &Path, header: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(header)
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::lock;
    use super::*;

    fn change(from: &str, to: &str) -> KeyChange {
        KeyChange { from: SecretString::from(from), to: SecretString::from(to) }
    }

    #[tokio::test]
    async fn a_header_gets_another_passphrase_and_the_first_opens_it_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let header = lock(dir.path(), "aes-xts-plain64").await.header;
        let refused = change("s3cret", "aa").apply(dir.path(), "v", &header).await.unwrap_err();
        assert!(!refused.contains("s3cret"), "{refused}");
        let made = change("00ff", "aa").apply(dir.path(), "v", &header).await.unwrap();
        assert_eq!(made.len(), header.len());
        // The second has opened it already, or the first would not be gone.
        assert!(change("00ff", "bb").apply(dir.path(), "v", &made).await.is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays behind");
    }
}
