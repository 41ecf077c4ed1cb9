//! `copy_volume_to_image`: what a volume holds becomes the data of an image, which the API has made in Glance.
//!
//! The image is of use only when all of it has arrived, and the volume can do nothing else meanwhile. So a failure
//! takes the image away, if it is still without data, and gives the volume back with a message; and after a crash
//! Glance is asked first how far it has come: what is complete is not sent again, what was cut short is begun
//! anew. Nothing is held during the transfer, which may take hours: a failover does not wait for it.
//!
//! Raw data goes from Ceph to Glance in parts, without a file between; only for another format is there one,
//! because qemu-img wants to seek (`convert.rs`).

mod content;
mod convert;

pub(super) use convert::operation_of;

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::crash;
use super::image::Place;
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db::message::{Action, Detail, Message};
use crate::db::{self, Conn};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::Volume;
use crate::openstack::{Glance, glance};

/// How long Glance may take to notice that whoever uploaded before has died.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// How often it is asked.
const LOOK: Duration = Duration::from_secs(1);
/// Extra spec of a volume type: Glance's store for images of its volumes.
const STORE_SPEC: &str = "image_service:store_id";

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Upload {
    /// The volume.
    pub volume_id: String,
    /// The image.
    pub image_id: String,
    /// The format of the image's disk, in Glance's words.
    pub disk_format: String,
    /// What the disk is in; `compressed` is gzip.
    pub container_format: String,
}

impl Upload {
    /// The request that is made by image metadata as the API sends it.
    pub fn new(volume_id: &str, image_meta: &Map<String, Value>) -> Upload {
        let text = |key| image_meta.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Upload {
            volume_id: volume_id.to_owned(),
            image_id: text("id"),
            disk_format: text("disk_format"),
            container_format: text("container_format"),
        }
    }

    fn is_raw(&self) -> bool {
        self.disk_format == "raw"
    }

    fn is_compressed(&self) -> bool {
        self.container_format == "compressed"
    }

    /// What is not done at all. An encrypted volume leaves as it is, header and all: the API has made its image a
    /// key of its own, and nobody here can convert it.
    fn refuse(&self, volume: &Volume, conversion_disabled: bool) -> Result<()> {
        if volume.encryption_key_id.is_some() && (!self.is_raw() || self.is_compressed()) {
            return Err(Error::new(
                Code::InvalidInput,
                "An encrypted volume uploaded as an image must use 'raw' disk_format and 'bare' container_format, \
                 which are the defaults for these options.",
            ));
        }
        if conversion_disabled && !self.is_raw() {
            return Err(Error::new(
                Code::NotSupported,
                format!(
                    "Image conversion is disabled. The image disk_format you have requested is '{}', but your \
                     volume can only be uploaded in the format 'raw'.",
                    self.disk_format
                ),
            ));
        }
        Ok(())
    }
}

/// Uploads the volume.
///
/// # Errors
/// Only when nothing could be recorded; a failed upload is recorded, and its message written.
pub async fn upload(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Upload,
) -> Result<()> {
    crash::point("copy_volume_to_image:accepted");
    match Box::pin(send(backend, context, operation, &request)).await {
        Ok(()) => succeed(backend, operation, &request).await,
        // It will be taken up again.
        Err(e) if matches!(e.code(), Code::Cancelled | Code::Database) => Err(e),
        Err(e) => fail(backend, context, operation, &request, e).await,
    }
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Upload,
    failure: Error,
) -> Result<()> {
    fail(backend, context, operation, &request, failure).await
}

async fn send(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &Upload,
) -> Result<()> {
    let (volume, with) = read(backend, request).await?;
    backend.require_up()?;
    let (glance, id) = (&backend.globals.openstack.glance, &request.image_id);
    if operation.is_adopted() {
        convert::sweep(&backend.globals.image.conversion_dir, operation).await;
        if is_complete(glance, context, id).await? {
            info!(volume.id = volume.id, image.id = id, "the image had been uploaded before");
            return Ok(());
        }
    }
    request.refuse(&volume, backend.globals.image.conversion_disabled)?;
    let place = {
        let _passage = backend.gate.pass().await;
        backend.place(&volume).await?
    };
    let began = Instant::now();
    let source =
        Source { size: place.stat(&backend.image_name(&volume)).await?.size, place, volume: &volume };
    let sent = match request.is_raw() {
        true => source.stream(backend, context, request, with).await?,
        false => source.convert(backend, context, operation, request, with).await?,
    };
    let upload_ms = began.elapsed().as_millis() as u64;
    let bytes = sent.size.unwrap_or_default();
    info!(volume.id = volume.id, image.id = id, bytes, upload_ms, "volume uploaded");
    crash::point("copy_volume_to_image:uploaded");
    Ok(())
}

/// The volume, and what Glance is told beside the bytes.
async fn read(backend: &Backend, request: &Upload) -> Result<(Volume, glance::Upload)> {
    backend
        .db
        .read("volume to upload", async |conn| {
            let volume = db::volume::get(conn, &request.volume_id).await?;
            let metadata = db::volume::glance_metadata(conn, &volume.id).await?;
            let store = match volume.volume_type_id.as_str() {
                "" => None,
                id => db::volume_type::get(conn, id).await?.extra_specs.remove(STORE_SPEC),
            };
            let base_image_ref = metadata.get("image_id").cloned();
            Ok((volume, glance::Upload { store, base_image_ref, size: None }))
        })
        .await
}

/// Whether the attempt before the crash has filled the image. While Glance still believes that data will come,
/// it takes none from anybody else.
async fn is_complete(glance: &Glance, context: &RequestContext, id: &str) -> Result<bool> {
    let until = Instant::now() + NOTICED_WITHIN;
    loop {
        let status = glance.show(context, id).await?.status;
        match status.as_str() {
            "active" => return Ok(true),
            "queued" => return Ok(false),
            "saving" if Instant::now() < until => tokio::time::sleep(LOOK).await,
            _ => {
                let text = format!("Image {id} is {status}: it takes no data any more");
                return Err(Error::new(Code::Glance, text));
            }
        }
    }
}

/// A volume's image in Ceph.
struct Source<'a> {
    place: Place,
    volume: &'a Volume,
    /// Bytes.
    size: u64,
}

impl Source<'_> {
    /// Sends the bytes as they are, or gzipped.
    async fn stream(
        &self,
        backend: &Backend,
        context: &RequestContext,
        request: &Upload,
        with: glance::Upload,
    ) -> Result<glance::Image> {
        let (glance, id) = (&backend.globals.openstack.glance, &request.image_id);
        let image = backend.image_name(self.volume);
        let bytes = || content::of_image(&self.place, &image, self.size);
        if request.is_compressed() {
            return glance.upload(context, id, &with, || content::gzipped(bytes())).await;
        }
        let with = glance::Upload { size: Some(self.size), ..with };
        glance.upload(context, id, &with, bytes).await
    }

    /// Sends them in another format.
    async fn convert(
        &self,
        backend: &Backend,
        context: &RequestContext,
        operation: &Operation,
        request: &Upload,
        with: glance::Upload,
    ) -> Result<glance::Image> {
        let (glance, id) = (&backend.globals.openstack.glance, &request.image_id);
        let image = backend.image_name(self.volume);
        let config = &backend.globals.image;
        let files = convert::Files::new(&config.conversion_dir, operation).await?;
        files.fill(&self.place, &image, self.size).await?;
        let size = files.convert(&request.disk_format, config.compress_on_upload).await?;
        crash::point("copy_volume_to_image:converted");
        let bytes = || content::of_file(files.converted());
        if request.is_compressed() {
            return glance.upload(context, id, &with, || content::gzipped(bytes())).await;
        }
        let with = glance::Upload { size: Some(size), ..with };
        glance.upload(context, id, &with, bytes).await
    }
}

async fn succeed(backend: &Backend, operation: &Operation, request: &Upload) -> Result<()> {
    let service = backend.service()?;
    backend
        .journal
        .complete(operation, &backend.done(), async |conn| end(conn, &request.volume_id, service.id).await)
        .await
}

/// The volume is what its attachments say, and nobody's work any more.
async fn end(conn: &mut Conn, id: &str, service_id: i32) -> Result<()> {
    db::unfinished::end_uploads(conn, &[id.to_owned()]).await?;
    db::worker::release_resource(conn, "Volume", id, service_id).await?;
    Ok(())
}

async fn fail(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: &Upload,
    failure: Error,
) -> Result<()> {
    let id = &request.volume_id;
    error!(volume.id = id, image.id = request.image_id, error = %failure, "volume could not be uploaded");
    discard(&backend.globals.openstack.glance, context, &request.image_id).await;
    let detail = Detail::of(failure.code(), Detail::FailedToUploadVolume);
    let message = Message::volume(id, Action::CopyVolumeToImage, detail);
    let ttl = backend.globals.message_ttl;
    let service = backend.service()?;
    backend
        .journal
        .complete(operation, &Outcome::failed(&failure), async |conn| {
            end(conn, id, service.id).await?;
            db::message::create(conn, context, &message, ttl).await.map(|_| ())
        })
        .await
}

/// Deletes an image that waits for data. One that has some is somebody else's by now.
async fn discard(glance: &Glance, context: &RequestContext, id: &str) {
    let deleted = match glance.show(context, id).await {
        Ok(image) if matches!(image.status.as_str(), "queued" | "saving") => glance.delete(context, id).await,
        Ok(_) => return,
        Err(error) => Err(error),
    };
    match deleted {
        Ok(()) => info!(image.id = id, "image without data deleted"),
        Err(error) if error.code() == Code::ImageNotFound => {}
        Err(error) => warn!(image.id = id, %error, "the image of a failed upload may be left in glance"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(disk_format: &str, container_format: &str) -> Upload {
        let Value::Object(meta) = json!({"id": "i", "disk_format": disk_format, "container_format": container_format, "name": null})
        else {
            unreachable!()
        };
        Upload::new("v", &meta)
    }

    #[test]
    fn an_encrypted_volume_leaves_as_it_is_or_not_at_all() {
        let plain = Volume::default();
        let encrypted = Volume { encryption_key_id: Some("k".into()), ..Volume::default() };
        for (request, allowed) in [
            (of("raw", "bare"), true),
            (of("raw", "compressed"), false),
            (of("qcow2", "bare"), false),
            (of("qcow2", "compressed"), false),
        ] {
            assert!(request.refuse(&plain, false).is_ok(), "{request:?}");
            let refused = request.refuse(&encrypted, false).err().map(|e| e.code());
            assert_eq!(refused, (!allowed).then_some(Code::InvalidInput), "{request:?}");
        }
    }

    #[test]
    fn nothing_is_converted_where_that_is_disabled() {
        let volume = Volume::default();
        for (request, allowed) in
            [(of("raw", "bare"), true), (of("raw", "compressed"), true), (of("vmdk", "bare"), false)]
        {
            let refused = request.refuse(&volume, true).err().map(|e| e.code());
            assert_eq!(refused, (!allowed).then_some(Code::NotSupported), "{request:?}");
        }
    }
}
