//! Whose an image is: what is a Cinder volume is moved, enabled and removed through its row, by other commands.

use std::collections::HashMap;

use super::Sites;
use crate::db;
use crate::error::Result;
use crate::volume::manage::id_in;

/// What an image that has no volume may still be, by its name.
const DELETED: &str = ".deleted";

/// The id in the name of an image that is, or was, a volume's.
pub(super) fn volume_id<'a>(image: &'a str, template: &str) -> Option<&'a str> {
    id_in(image.strip_suffix(DELETED).unwrap_or(image), template)
}

/// The volumes that these images are: image -> id of the volume. A volume that was deleted has none.
///
/// # Errors
/// `Database`.
pub(super) async fn volumes(sites: &Sites, images: &[String]) -> Result<HashMap<String, String>> {
    let ids: Vec<String> =
        images.iter().filter_map(|name| id_in(name, &sites.volume_name)).map(str::to_owned).collect();
    let found = sites
        .db
        .read("volumes of images", async |conn| db::manageable::volumes_by_name(conn, &ids).await)
        .await?;
    let owned = |name: &String| Some((name.clone(), found.get(id_in(name, &sites.volume_name)?)?.clone()));
    Ok(images.iter().filter_map(owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_volume() {
        let id = "51e00000-0000-4000-8000-000000001001";
        assert_eq!(volume_id(&format!("volume-{id}"), "volume-%s"), Some(id));
        assert_eq!(volume_id(&format!("volume-{id}.deleted"), "volume-%s"), Some(id));
        assert_eq!(volume_id("volume-1", "volume-%s"), None);
        assert_eq!(volume_id(id, "volume-%s"), None);
    }
}
