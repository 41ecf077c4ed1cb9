//! An encrypted volume is a LUKS volume from its first byte: who attaches it must find a header that its key
//! opens, and so must whoever is served from another site after a failover.
//!
//! The header is made by qemu-img, as stock makes it, for any cipher that Nova's QEMU can open: into a file
//! without a name, with the passphrase through a pipe. Then it is written to the beginning of the image before
//! anything else is done to that (`RBDDriver._create_encrypted_volume`). librbd's own formatting is not used: it
//! knows one cipher only, refuses images that are journaled already, and aligns what follows otherwise than
//! stock. What an image is larger than its volume is the room of the header; no change of size may take it.

mod key_slot;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tracing::debug;
use uuid::Uuid;

pub(super) use key_slot::KeyChange;

use super::crash;
use super::image::{Attempt, Place, Shape};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::volume_type::Encryption;
use crate::error::{Code, Error, Result};
use crate::model::Volume;

/// How long qemu-img may take for a header. It takes a few seconds of CPU: so long that guessing a passphrase is
/// no use.
const LIMIT: Duration = Duration::from_secs(300);
/// Headers that are made at once. qemu-img measures how fast the machine is, and must not measure the others.
static MAKING: Semaphore = Semaphore::const_new(2);
/// More than any LUKS header has.
const LARGEST: u64 = 32 << 20;
/// The first bytes of one (version 1).
const MAGIC: &[u8] = b"LUKS\xba\xbe\x00\x01";
/// Where it says how many sectors it has.
const PAYLOAD_OFFSET: usize = 104;
/// The class names by which LUKS went before `luks` (os-brick, `LEGACY_PROVIDER_CLASS_TO_FORMAT_MAP`).
const FORMER_NAMES: [&str; 3] =
    ["nova.volume.encryptors.luks.LuksEncryptor", "os_brick.encryptors.luks.LuksEncryptor", "LuksEncryptor"];

/// A cipher in qemu-img's words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cipher {
    algorithm: String,
    mode: String,
    ivgen: String,
}

impl Cipher {
    /// What the type asks for.
    ///
    /// # Errors
    /// `VolumeBackend` for what upstream's driver refuses, too; `InvalidInput` for a cipher that is none.
    fn of(encryption: Option<&Encryption>) -> Result<Cipher> {
        let Some(encryption) = encryption else {
            return Err(Error::new(Code::VolumeBackend, "Invalid encryption spec."));
        };
        let provider = encryption.provider.as_str();
        if provider != "luks" && !FORMER_NAMES.contains(&provider) {
            return Err(Error::new(Code::VolumeBackend, format!("Provider {provider} not supported.")));
        }
        let (Some(cipher), Some(key_size)) = (&encryption.cipher, encryption.key_size) else {
            let text = "encryption spec must contain \"cipher\" and \"key_size\"";
            return Err(Error::new(Code::VolumeBackend, text));
        };
        let parts: Vec<&str> = cipher.split('-').collect();
        // They become part of a list of options.
        let is_word = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
        };
        match parts[..] {
            [algorithm, mode, ivgen] if parts.iter().all(is_word) => Ok(Cipher {
                algorithm: format!("{algorithm}-{key_size}"),
                mode: mode.to_owned(),
                ivgen: ivgen.to_owned(),
            }),
            _ => Err(Error::new(Code::InvalidInput, "Invalid cipher field in encryption type")),
        }
    }

    fn options(&self) -> String {
        let Cipher { algorithm, mode, ivgen } = self;
        format!("key-secret=luks_sec,cipher-alg={algorithm},cipher-mode={mode},ivgen-alg={ivgen}")
    }
}

/// Makes the image of an empty encrypted volume, `bytes` large for whoever has the key. Repeatable until the
/// volume has been handed out: then a second header would make what was written with the first unreadable.
///
/// # Errors
/// `KeyManager`; `VolumeBackend` for a type that is not for LUKS, without qemu-img, and when Ceph refuses.
pub(super) async fn create_image(
    backend: &Backend,
    context: &RequestContext,
    volume: &Volume,
    place: &Place,
    bytes: u64,
    shape: Shape,
    attempt: Attempt,
) -> Result<()> {
    // All that can fail for want of a key fails before there is an image.
    let Lock { header, .. } = lock(backend, context, volume).await?;
    let image = backend.image_name(volume);
    place.create(&image, bytes + header.len() as u64, shape, attempt).await?;
    crash::point("create_volume:unformatted");
    place.write_head(&image, &header).await?;
    Ok(())
}

/// A new header, and what opens it.
pub(super) struct Lock {
    /// Up to where the data begins.
    pub(super) header: Bytes,
    /// In hex.
    pub(super) passphrase: SecretString,
}

/// Makes a header for the key and the cipher of a volume.
///
/// # Errors
/// `KeyManager`; `VolumeBackend` for a type that is not for LUKS, and without qemu-img.
pub(super) async fn lock(backend: &Backend, context: &RequestContext, volume: &Volume) -> Result<Lock> {
    let Some(key_id) = &volume.encryption_key_id else {
        return Err(Error::internal(format!("Volume {} is not encrypted", volume.id)));
    };
    let encryption = backend
        .db
        .read("encryption of a volume type", async |conn| {
            db::volume_type::encryption_of(conn, &volume.volume_type_id).await
        })
        .await?;
    let cipher = Cipher::of(encryption.as_ref())?;
    let passphrase = backend.globals.openstack.keys.passphrase(context, key_id).await?;
    let failed = |why: String| {
        let text = format!("Volume {} could not be formatted for encryption", volume.id);
        Error::new(Code::VolumeBackend, text).detail(why)
    };
    let made =
        luks_header(&backend.globals.image.conversion_dir, &cipher, &passphrase).await.map_err(failed)?;
    debug!(volume.id = volume.id, bytes = made.len(), "LUKS header made");
    Ok(Lock { header: made.into(), passphrase })
}

/// Bytes of the LUKS header that begins like `head` (512 bytes do), as far as the data; `None` when it is none.
pub(super) fn room_of(head: &[u8]) -> Option<u64> {
    let sectors = head.get(PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4)?;
    let sectors = u32::from_be_bytes(sectors.try_into().ok()?);
    let room = u64::from(sectors) * 512;
    (head.starts_with(MAGIC) && room > 0 && room <= LARGEST).then_some(room)
}

/// A LUKS header that `passphrase` opens, up to where the data begins.
async fn luks_header(
    dir: &Path,
    cipher: &Cipher,
    passphrase: &SecretString,
) -> std::result::Result<Vec<u8>, String> {
    let _turn = MAKING.acquire().await.map_err(|e| e.to_string())?;
    let into = dir.to_owned();
    let file = tokio::task::spawn_blocking(move || nameless(&into)).await.map_err(|e| e.to_string())?;
    let file = file.map_err(|e| format!("image_conversion_dir {} cannot be used: {e}", dir.display()))?;
    let output = file.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "luks", "--object", &with_secret("luks_sec", "/dev/stdin")])
        .args(["-o", &cipher.options(), "/dev/stdout", "0"])
        .stdout(output);
    run(&mut command, passphrase).await?;
    let made = tokio::task::spawn_blocking(move || whole(file)).await.map_err(|e| e.to_string())?;
    let made = made.map_err(|e| e.to_string())?;
    if !made.starts_with(MAGIC) {
        return Err(format!("qemu-img made {} bytes that are no LUKS header", made.len()));
    }
    Ok(made)
}

/// A secret that qemu-img reads from a file.
fn with_secret(id: &str, file: &str) -> String {
    format!("secret,id={id},format=raw,file={file}")
}

/// Runs qemu-img, with a passphrase for its standard input.
async fn run(command: &mut Command, passphrase: &SecretString) -> std::result::Result<(), String> {
    command.env("LC_ALL", "C").stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| format!("qemu-img cannot be run: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why.
        let _ = stdin.write_all(passphrase.expose_secret().as_bytes()).await;
    }
    let ended = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let ended = ended.map_err(|_| format!("qemu-img did not end within {} s", LIMIT.as_secs()))?;
    let ended = ended.map_err(|e| e.to_string())?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!("qemu-img: {}: {}", ended.status, said.trim()))
}

/// A file that nobody else can open, and that goes with the process.
fn nameless(dir: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("luks_{}", Uuid::new_v4()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn whole(mut file: File) -> std::io::Result<Vec<u8>> {
    use std::io::Seek;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A lock that `00ff` opens, and that takes no seconds of CPU.
    pub(in crate::volume) async fn lock(dir: &Path, cipher: &str) -> Lock {
        let cipher = Cipher::of(Some(&spec("luks", Some(cipher), Some(256)))).unwrap();
        let passphrase = SecretString::from("00ff");
        let path = dir.join("header");
        let mut command = Command::new("qemu-img");
        command
            .args(["create", "-q", "-f", "luks", "--object", &with_secret("luks_sec", "/dev/stdin")])
            .args(["-o", &format!("{},iter-time=10", cipher.options())])
            .arg(&path)
            .arg("0");
        run(&mut command, &passphrase).await.unwrap();
        let header = std::fs::read(&path).unwrap().into();
        std::fs::remove_file(path).unwrap();
        Lock { header, passphrase }
    }

    fn spec(provider: &str, cipher: Option<&str>, key_size: Option<i32>) -> Encryption {
        Encryption {
            cipher: cipher.map(str::to_owned),
            control_location: "front-end".to_owned(),
            key_size,
            provider: provider.to_owned(),
        }
    }

    #[test]
    fn a_cipher_is_read_as_upstream_reads_it() {
        let cipher = |provider, cipher, size| Cipher::of(Some(&spec(provider, cipher, size)));
        for provider in ["luks", "nova.volume.encryptors.luks.LuksEncryptor"] {
            let found = cipher(provider, Some("aes-xts-plain64"), Some(256)).unwrap();
            let options = "key-secret=luks_sec,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64";
            assert_eq!(found.options(), options);
        }
        for (provider, text, size, why) in [
            ("luks2", Some("aes-xts-plain64"), Some(256), "Provider luks2 not supported."),
            ("plain", Some("aes-xts-plain64"), Some(256), "Provider plain not supported."),
            ("luks", None, Some(256), "encryption spec must contain"),
            ("luks", Some("aes-xts-plain64"), None, "encryption spec must contain"),
            ("luks", Some("aes"), Some(256), "Invalid cipher field"),
            ("luks", Some("aes-xts-plain64-more"), Some(256), "Invalid cipher field"),
            ("luks", Some("aes-xts,iter-time=1-plain64"), Some(256), "Invalid cipher field"),
        ] {
            let refusal = cipher(provider, text, size).unwrap_err();
            assert!(refusal.user().contains(why), "{refusal}");
        }
        assert_eq!(Cipher::of(None).unwrap_err().user(), "Invalid encryption spec.");
    }

    #[tokio::test]
    async fn qemu_img_makes_a_header_of_the_size_that_stock_has_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("conversion");
        let good = Cipher::of(Some(&spec("luks", Some("aes-xts-plain64"), Some(256)))).unwrap();
        let header = luks_header(&place, &good, &SecretString::from("00ff")).await.unwrap();
        assert_eq!((header.len(), room_of(&header[..512])), (2_068_480, Some(2_068_480)));
        assert_eq!((room_of(&header[..64]), room_of(&[0; 512])), (None, None));
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
        // QEMU knows no such key.
        let bad = Cipher { algorithm: "aes-512".to_owned(), ..good.clone() };
        let refusal = luks_header(&place, &bad, &SecretString::from("s3cret")).await.unwrap_err();
        assert!(refusal.contains("cipher-alg") && !refusal.contains("s3cret"), "{refusal}");
        let nowhere =
            luks_header(Path::new("/proc/none"), &good, &SecretString::from("x")).await.unwrap_err();
        assert!(nowhere.contains("image_conversion_dir /proc/none"), "{nowhere}");
    }
}
