//! Images that are not raw: kept in a temporary file, looked at by qemu-img, read by qemu-nbd.
//!
//! Such formats have tables all over the file, so that they cannot be read from front to back. What they hold
//! is read through qemu, block by block and without its holes, and needs no second file of the disk's size.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::inspect;
use super::nbd::{self, Disk};
use super::scratch::{Temporary, socket_path};
use super::sink::{Sink, Target};
use super::write::{Broken, Source};
use crate::backend::Backend;
use crate::config::ImageConfig;
use crate::error::{Code, Error, Result};
use crate::openstack::glance::Image;
use crate::rbd::stream::PART;

/// Writes the disk inside an image of `format` to the target; answers its GiB, and the bytes written.
pub(super) async fn convert(
    backend: &Backend,
    image: &Image,
    format: &str,
    volume_id: &str,
    mut source: Source<'_>,
    target: (&Target<'_>, u64, &mut bool),
) -> Result<(i32, u64), Broken> {
    let config = &backend.globals.image;
    let dir = &config.conversion_dir;
    tokio::fs::create_dir_all(dir).await.map_err(|e| unusable(dir, e))?;
    require_space(dir, image).await?;
    let file = Temporary(dir.join(format!("image_fetch_{}_{volume_id}", image.id)));
    let done = match save(&file.0, &mut source, &image.id).await {
        Ok(()) => read(config, image, format, volume_id, &file.0, target).await,
        Err(failure) => Err(failure.into()),
    };
    // Unlinking gigabytes takes a while.
    let _ = tokio::task::spawn_blocking(move || drop(file)).await;
    done
}

/// What [`convert`] does with the file.
async fn read(
    config: &ImageConfig,
    image: &Image,
    format: &str,
    volume_id: &str,
    file: &Path,
    (target, room, made): (&Target<'_>, u64, &mut bool),
) -> Result<(i32, u64), Broken> {
    let dir = &config.conversion_dir;
    let info = info(config, file, format, &image.id).await?;
    let size = inspect::judge(&info, format, &image.id)?;
    inspect::require_fit(size, target.gib, &image.id)?;

    let socket = Temporary(socket_path(dir, "nbd", volume_id));
    let mut disk = Disk::open(file, format, &socket.0).await.map_err(|e| {
        Error::new(Code::ImageCopy, "Failed to copy image to volume: qemu-nbd does not serve it").caused_by(e)
    })?;
    let (gib, mut sink) = Sink::open(dir, volume_id, target, (size, room), made).await?;
    let copied = copy(&mut disk, &mut sink).await;
    disk.close().await;
    match copied {
        Ok(()) => Ok((gib, sink.finish(size).await?)),
        Err(failure) => {
            sink.abandon().await;
            Err(failure)
        }
    }
}

async fn copy(disk: &mut Disk, sink: &mut Sink) -> Result<(), Broken> {
    let size = disk.size();
    let mut at = 0;
    while at < size {
        let length = (PART as u64).min(size - at);
        let data = disk.read(at, length).await.map_err(|e| {
            Error::new(Code::ImageCopy, "Failed to copy image to volume: it cannot be read to its end")
                .caused_by(e)
        })?;
        for (offset, bytes) in data {
            sink.write(offset, bytes).await?;
        }
        at += length;
    }
    Ok(())
}

fn unusable(dir: &Path, error: std::io::Error) -> Error {
    let text = format!("image_conversion_dir {} cannot be used", dir.display());
    Error::new(Code::ImageCopy, "Failed to copy image to volume: no temporary file can be made")
        .detail(text)
        .caused_by(error)
}

/// Refuses an image that the directory has no room for (`check_available_space`).
async fn require_space(dir: &Path, image: &Image) -> Result<()> {
    let Some(wanted) = image.size else { return Ok(()) };
    let asked = Command::new("stat")
        .args(["--file-system", "--format=%a %S"])
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .await;
    let text = asked.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
    let (Some(blocks), Some(size)) = (numbers.next(), numbers.next()) else {
        // It will be seen when there is none.
        return Ok(());
    };
    let free = blocks.saturating_mul(size);
    if free > wanted {
        return Ok(());
    }
    let reason = format!(
        "There is no space on {} to convert image. Requested: {wanted}, available: {free}.",
        dir.display()
    );
    Err(too_big(&image.id, &reason))
}

fn too_big(image_id: &str, reason: &str) -> Error {
    Error::new(Code::ImageTooBig, format!("Image {image_id} size exceeded available disk space: {reason}"))
}

async fn save(path: &Path, source: &mut Source<'_>, image_id: &str) -> Result<()> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            let dir = path.parent().unwrap_or(path).display();
            let reason = format!(
                "No space left in image_conversion_dir path ({dir}) while fetching image {image_id}."
            );
            too_big(image_id, &reason).caused_by(e)
        }
        _ => Error::new(
            Code::ImageDownload,
            format!("Failed to download image {image_id}, reason: IOError: {e}"),
        ),
    };
    let mut options = tokio::fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).await.map_err(failed)?;
    while let Some(bytes) = source.piece().await? {
        file.write_all(&bytes).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)
}

/// What `qemu-img info` says, which may take so much time and memory and no more.
async fn info(config: &ImageConfig, path: &Path, format: &str, image_id: &str) -> Result<Value> {
    let memory = config.introspection_memory_gib.saturating_mul(crate::model::GIB);
    let asked = Command::new("prlimit")
        .arg(format!("--as={memory}"))
        .arg(format!("--cpu={}", config.introspection_cpu.as_secs().max(1)))
        .args(["qemu-img", "info", "-f", format, "--output=json"])
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let out = asked.map_err(|e| nbd::missing("prlimit", &e)).map_err(|e| {
        inspect::unacceptable(
            image_id,
            "qemu-img is not installed, and only RAW images can be used without it.",
        )
        .caused_by(e)
    })?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).trim().chars().take(500).collect::<String>();
        return Err(inspect::unacceptable(image_id, "qemu-img cannot read it.").detail(said));
    }
    Ok(serde_json::from_slice(&out.stdout).unwrap_or(Value::Null))
}
