//! A deleted volume's image gets its name back, as long as it is in the trash.
//!
//! The volume's row is gone for good: with its image back, the volume is one that can be managed.

use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Standing, list};
use crate::backend::Backend;
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::rbd::RbdErrorKind;
use crate::rbd::protocol::{ImageStat, TrashRestore};
use crate::volume::crash;

/// Journal step: what is given back. Its name may be another image's by the time that the order is run again.
const CHOSEN: &str = "chosen";

#[derive(Debug, Serialize, Deserialize)]
struct Chosen {
    site: String,
    id: String,
}

/// Restores the image of a volume on the site that has it, the one that was deleted last where there are several.
/// Repeatable.
///
/// # Errors
/// `ImageNotFound` when no trash has it; `Invalid` while there is such a volume, or an image of its name; what Ceph
/// answers.
pub async fn restore(backend: &Backend, operation: &Operation, volume: &str) -> Result<()> {
    let name = backend.globals.volume_name_template.replace("%s", volume);
    let Chosen { site, id } = match operation.last_step().await?.filter(|s| s.name == CHOSEN) {
        Some(step) => step.parse()?,
        None => {
            let chosen = choose(backend, volume).await?;
            operation.step(CHOSEN, &chosen).await?;
            crash::point("restore_trash:chosen");
            chosen
        }
    };
    give_back(backend, &site, &id, &name).await?;
    crash::point("restore_trash:restored");
    let detail = format!(
        "Image {name} is on site {site} again; cinder manage makes a volume of it. It is not mirrored, and an encrypted \
         one is of use only to whoever has its key: cinder-api deletes that with the volume"
    );
    info!(backend = backend.host(), site, volume.id = volume, image = name, "restored from the trash");
    backend.journal.finish(operation, &Outcome { detail: Some(detail), ..Outcome::succeeded() }).await
}

async fn choose(backend: &Backend, volume: &str) -> Result<Chosen> {
    let trash = list(backend).await?;
    let all = trash.iter().flat_map(|site| site.images.iter().map(|image| (&site.site, image)));
    let last = all.filter(|(_, i)| i.volume == volume).max_by_key(|(_, i)| i.deferment_end);
    let Some((site, image)) = last else { return Err(missing(volume, &trash)) };
    if image.standing == Standing::Kept {
        let text = format!("There is a volume {volume}: nothing is restored over it");
        return Err(Error::new(Code::Invalid, text));
    }
    Ok(Chosen { site: site.clone(), id: image.id.clone() })
}

async fn give_back(backend: &Backend, site: &str, id: &str, name: &str) -> Result<()> {
    let (pool, site) = (backend.config.pool.clone(), backend.site(site)?);
    let restore = TrashRestore { pool: pool.clone(), id: id.to_owned(), name: name.to_owned() };
    let error = match site.insist(restore).await {
        Ok(()) => return Ok(()),
        Err(e) if matches!(e.kind, RbdErrorKind::Exists | RbdErrorKind::NotFound) => e,
        Err(e) => return Err(e.into()),
    };
    // By an attempt that was cut short?
    match site.insist(ImageStat { pool, image: name.to_owned() }).await {
        Ok(there) if there.id == id => Ok(()),
        Ok(_) => {
            let text = format!("Site {} has another image {name}", site.name());
            Err(Error::new(Code::Invalid, text).caused_by(error))
        }
        Err(_) => Err(error.into()),
    }
}

fn missing(volume: &str, trash: &[super::Contents]) -> Error {
    let silent: Vec<&str> = trash.iter().filter(|s| s.error.is_some()).map(|s| s.site.as_str()).collect();
    let text = match silent.is_empty() {
        true => format!("Volume {volume} is in no trash of this backend"),
        false => format!(
            "Volume {volume} is not in the trash, as far as that can be read: {} gave no answer",
            silent.join(", ")
        ),
    };
    Error::new(Code::ImageNotFound, text)
}
