//! The purge of the trash: with `enable_deferred_deletion`, what a deletion had to leave there goes for good
//! once its time has come (`RBDDriver._trash_purge`).
//!
//! Upstream empties the whole trash of the pool. Here only what bears the name of a volume goes: what an
//! operator has put there is the operator's.

use chrono::Utc;
use tracing::{debug, info, warn};

use super::image::DELETED;
use crate::backend::Backend;
use crate::error::Result;
use crate::rbd::RbdErrorKind;
use crate::rbd::protocol::{TrashList, TrashRemove};

/// Removes what is due from the trash of the active site's pool; answers how many images went. What cannot
/// go now is tried again the next time.
///
/// # Errors
/// When the site does not tell what is in the trash.
pub async fn purge(backend: &Backend) -> Result<usize> {
    let site = backend.active_site()?;
    let pool = &backend.config.pool;
    let entries = site.insist(TrashList { pool: pool.clone() }).await?;
    let mut removed = 0;
    for entry in entries.iter().filter(|e| is_a_volumes(&backend.globals.volume_name_template, &e.name)) {
        if entry.deferment_end > Utc::now().timestamp() {
            continue;
        }
        match site.call(TrashRemove { pool: pool.clone(), id: entry.id.clone() }).await {
            Ok(()) => {
                info!(image = entry.name, image.id = entry.id, "removed from the trash");
                removed += 1;
            }
            // Another member of the cluster was faster.
            Err(error) if error.is_not_found() => {}
            // Not due by the site's clock; or its clones need it still.
            Err(error) if matches!(error.kind, RbdErrorKind::Busy | RbdErrorKind::HasSnapshots) => {
                debug!(image = entry.name, image.id = entry.id, %error, "stays in the trash");
            }
            Err(error) => {
                warn!(image = entry.name, image.id = entry.id, %error, "could not be removed from the trash");
            }
        }
    }
    Ok(removed)
}

/// Whether an image of this name was a volume's, under `volume_name_template`.
fn is_a_volumes(template: &str, name: &str) -> bool {
    let name = name.strip_suffix(DELETED).unwrap_or(name);
    let (before, after) = template.split_once("%s").unwrap_or((template, ""));
    let id = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    id.is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_volumes_are_purged() {
        let id = "0e1fd8c5-7a3c-4f65-8a5f-0d7f8f0b8a11";
        assert!(is_a_volumes("volume-%s", &format!("volume-{id}")));
        assert!(is_a_volumes("volume-%s", &format!("volume-{id}.deleted")));
        assert!(is_a_volumes("%s-disk", &format!("{id}-disk")));
        assert!(!is_a_volumes("volume-%s", "volume-of-an-operator"));
        assert!(!is_a_volumes("volume-%s", &format!("image-{id}")));
    }
}
