//! The answers of `get_manageable_volumes` and `get_manageable_snapshots`, as cinder-api reads them: versioned
//! objects, or plain dictionaries for an API that is pinned below 3.10.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::error::Result;
use crate::rpc::method;
use crate::rpc::objects::{ManageableSnapshot, ManageableVolume, manageable_snapshot, manageable_volume};
use crate::volume::manageable::{self, Manageable, Page};

/// A page of the pool's images.
///
/// # Errors
/// As [`manageable::volumes`].
pub(super) async fn volumes(backend: &Backend, asked: &method::Page) -> Result<Value> {
    let found = manageable::volumes(backend, &page(asked)).await?;
    found.into_iter().map(|entry| volume(entry, asked.want_objects)).collect()
}

/// A page of the snapshots of the pool's images.
///
/// # Errors
/// As [`manageable::snapshots`].
pub(super) async fn snapshots(backend: &Backend, asked: &method::Page) -> Result<Value> {
    let found = manageable::snapshots(backend, &page(asked)).await?;
    found.into_iter().map(|entry| snapshot(entry, asked.want_objects)).collect()
}

fn page(asked: &method::Page) -> Page {
    Page {
        marker: asked.marker.clone(),
        limit: asked.limit,
        offset: asked.offset.unwrap_or(0),
        sort_keys: asked.sort_keys.clone(),
        sort_dirs: asked.sort_dirs.clone(),
    }
}

fn volume(entry: Manageable, as_object: bool) -> Result<Value> {
    let object = object(entry);
    if as_object { manageable_volume(&object) } else { Ok(plain(&object)) }
}

fn snapshot(entry: Manageable, as_object: bool) -> Result<Value> {
    let source_reference = reference(entry.image.clone().unwrap_or_default());
    let snapshot = object(entry);
    if as_object {
        return manageable_snapshot(&ManageableSnapshot { snapshot, source_reference });
    }
    let mut entry = plain(&snapshot);
    entry["source_reference"] = json!(source_reference);
    Ok(entry)
}

fn object(entry: Manageable) -> ManageableVolume {
    ManageableVolume {
        reference: reference(entry.name),
        size: entry.gib,
        safe_to_manage: entry.reason.is_none(),
        reason_not_safe: entry.reason.map(str::to_owned),
        cinder_id: entry.cinder_id,
    }
}

fn reference(name: String) -> BTreeMap<String, String> {
    BTreeMap::from([("source-name".to_owned(), name)])
}

fn plain(entry: &ManageableVolume) -> Value {
    json!({
        "reference": entry.reference,
        "size": entry.size,
        "cinder_id": entry.cinder_id,
        "extra_info": null,
        "safe_to_manage": entry.safe_to_manage,
        "reason_not_safe": entry.reason_not_safe,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_old_api_gets_dictionaries() {
        let entry = Manageable {
            name: "s".into(),
            image: Some("i".into()),
            gib: 2,
            reason: Some("used for clone snap"),
            ..Manageable::default()
        };
        let expected = json!({
            "reference": {"source-name": "s"}, "size": 2, "cinder_id": null, "extra_info": null,
            "safe_to_manage": false, "reason_not_safe": "used for clone snap",
            "source_reference": {"source-name": "i"},
        });
        assert_eq!(snapshot(entry.clone(), false).unwrap(), expected);
        let object = snapshot(entry, true).unwrap();
        assert_eq!(object["versioned_object.name"], "ManageableSnapshot");
        assert_eq!(object["versioned_object.data"]["reason_not_safe"], "used for clone snap");
    }
}
