//! Images that Glance keeps in Cinder: location `cinder://[store/]volume-id`.
//!
//! The volume that holds the image may be in the very pool in which a volume of it is to be made; then that is a
//! clone of it. `allowed_direct_url_schemes` must say that this is wanted. Whatever is wrong, the image is downloaded
//! (`cinder/volume/flows/manager/create_volume.py`, `_clone_image_volume`).

use tracing::{debug, info, warn};

use super::super::image::{Attempt, Place, Shape};
use super::Request;
use crate::backend::Backend;
use crate::db;
use crate::error::Result;
use crate::model::{GIB, Volume};
use crate::openstack::glance::{Image, Locations};

/// Who owns an image whose volume belongs to Glance (metadata of the volume).
const OWNER: &str = "image_owner";

/// Clones the volume that holds the image; false when there is none, or it cannot be cloned.
pub(super) async fn clone(
    backend: &Backend,
    request: &Request<'_>,
    place: &Place,
    name: &str,
    image: &Image,
    locations: &Locations,
    shape: Shape,
) -> Result<bool> {
    let volume = request.volume;
    let allowed = backend.globals.image.direct_url_schemes.iter().any(|scheme| scheme == "cinder");
    let as_it_is =
        image.disk_format.as_deref() == Some("raw") && image.container_format.as_deref() == Some("bare");
    if !allowed || !as_it_is || volume.encryption_key_id.is_some() {
        return Ok(false);
    }
    let ids = volumes_of(locations);
    if ids.is_empty() {
        return Ok(false);
    }
    let Some(holder) = holder(backend, volume, image, &ids).await? else {
        debug!(image.id = image.id, "no volume that holds the image can be cloned here");
        return Ok(false);
    };
    let _lock = backend.locks.lock(&format!("{}-delete_volume", holder.id)).await;
    let from = backend.image_name(&holder);
    let bytes = u64::try_from(volume.size).unwrap_or(0) * GIB;
    let depth = match (backend.config.max_clone_depth, volume.use_quota) {
        (0, _) => 0,
        (_, false) => u32::MAX,
        (depth, true) => depth,
    };
    // A snapshot for it may be there from a former attempt.
    let mut made = place.clone_volume(&from, name, bytes, shape, depth, Attempt::Again).await;
    if made.is_ok() && request.independent {
        // Ceph mirrors no clone whose parent it does not mirror.
        made = place.flatten(name).await;
    }
    match made {
        Ok(()) => {
            info!(
                volume.id = volume.id,
                image.id = image.id,
                image_volume.id = holder.id,
                "volume cloned from the one that holds its image"
            );
            Ok(true)
        }
        Err(error) => {
            warn!(
                volume.id = volume.id, image_volume.id = holder.id, %error,
                "the volume that holds the image cannot be cloned, the image is downloaded"
            );
            place.undo_create(name, Some(&from)).await?;
            Ok(false)
        }
    }
}

/// Ids of the volumes in which the image lies.
fn volumes_of(locations: &Locations) -> Vec<String> {
    let direct = locations.direct_url.as_deref().into_iter();
    let all = direct.chain(locations.locations.iter().filter_map(|l| l.get("url")?.as_str()));
    let mut ids: Vec<String> = all
        .filter_map(|url| url.strip_prefix("cinder://")?.rsplit('/').next().map(str::to_owned))
        .filter(|id| !id.is_empty())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The first of them that is in the same place, that fits, and that the volume's owner may read.
async fn holder(backend: &Backend, volume: &Volume, image: &Image, ids: &[String]) -> Result<Option<Volume>> {
    let found = backend
        .db
        .read("volumes that hold an image", async |conn| db::volume::get_many(conn, ids).await)
        .await?;
    let here = backend.place(volume).await?;
    for holder in found.into_iter().filter(|holder| is_beside(holder, volume)) {
        if backend.place(&holder).await?.site.name() != here.site.name() {
            continue;
        }
        let owner = image.owner.as_deref();
        if owner.is_some() && owner == volume.project_id.as_deref() {
            return Ok(Some(holder));
        }
        let id = &holder.id;
        let metadata = backend
            .db
            .read("owner of an image's volume", async |conn| db::volume::metadata(conn, id).await)
            .await?;
        if owner.is_some() && owner == metadata.get(OWNER).map(String::as_str) {
            return Ok(Some(holder));
        }
        info!(image_volume.id = id, image.id = image.id, "the volume that holds the image is not the user's");
    }
    Ok(None)
}

/// In the pool, or the Cinder cluster's pool, of the new volume; and no larger than that.
fn is_beside(holder: &Volume, volume: &Volume) -> bool {
    let same = match volume.cluster_name.as_deref().filter(|c| !c.is_empty()) {
        Some(cluster) => holder.cluster_name.as_deref() == Some(cluster),
        None => holder.host.is_some() && holder.host == volume.host,
    };
    same && holder.size <= volume.size && holder.encryption_key_id.is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_named_with_or_without_its_store() {
        let location = |url: &str| json!({"url": url, "metadata": {}}).as_object().unwrap().clone();
        let locations = Locations {
            direct_url: Some("cinder://v-1".to_owned()),
            locations: ["cinder://v-1", "cinder://store/v-2", "rbd://f/p/i/s", "cinder://", "file:///v-3"]
                .map(location)
                .to_vec(),
        };
        assert_eq!(volumes_of(&locations), ["v-1", "v-2"]);
    }

    #[test]
    fn only_what_is_in_the_same_place_and_fits_is_cloned() {
        let at = |host: &str, cluster: Option<&str>, size: i32| Volume {
            host: Some(host.to_owned()),
            cluster_name: cluster.map(str::to_owned),
            size,
            ..Volume::default()
        };
        assert!(is_beside(&at("a@b#p", None, 1), &at("a@b#p", None, 1)));
        assert!(is_beside(&at("x@b#p", Some("c@b#p"), 1), &at("a@b#p", Some("c@b#p"), 2)));
        for (holder, volume) in [
            (at("a@b#p", None, 2), at("a@b#p", None, 1)),
            (at("a@b#q", None, 1), at("a@b#p", None, 1)),
            (at("a@b#p", None, 1), at("a@b#p", Some("c@b#p"), 1)),
            (Volume { host: None, ..at("", None, 1) }, Volume { host: None, ..at("", None, 1) }),
        ] {
            assert!(!is_beside(&holder, &volume), "{holder:?}");
        }
        let secret = Volume { encryption_key_id: Some("k".into()), ..at("a@b#p", None, 1) };
        assert!(!is_beside(&secret, &at("a@b#p", None, 1)));
    }
}
