//! What a new image takes from its volume type before anybody uses it: limits that Ceph enforces, and no
//! features that two writers would fight over (`RBDDriver._setup_volume`, reference rbd_driver.md 4.4).
//!
//! Both steps may be run again after a crash and end in the same image and row.

use serde_json::json;
use tracing::warn;

use super::image::{Place, Shape};
use crate::backend::Backend;
use crate::db;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::model::VolumeType;
use crate::rbd::protocol::{ImageFeatures, MetadataSet};
use crate::rbd::types::features;

/// Features that a volume with several writers must not have (`MULTIATTACH_EXCLUSIONS`): all of them need
/// the exclusive lock, which only one writer can hold.
pub(super) const OF_ONE_WRITER: u64 =
    features::JOURNALING | features::FAST_DIFF | features::OBJECT_MAP | features::EXCLUSIVE_LOCK;

/// The option of librbd that carries out a spec of Cinder (`QOS_KEY_MAP`; there `total_iops_sec_max` is the
/// burst of bytes, so that it limits nothing that it names, and `total_bytes_sec_max` with it).
pub(super) fn limit(spec: &str) -> Option<&'static str> {
    Some(match spec {
        "total_iops_sec" => "rbd_qos_iops_limit",
        "read_iops_sec" => "rbd_qos_read_iops_limit",
        "write_iops_sec" => "rbd_qos_write_iops_limit",
        "total_bytes_sec" => "rbd_qos_bps_limit",
        "read_bytes_sec" => "rbd_qos_read_bps_limit",
        "write_bytes_sec" => "rbd_qos_write_bps_limit",
        "total_iops_sec_max" => "rbd_qos_iops_burst",
        "total_bytes_sec_max" => "rbd_qos_bps_burst",
        "read_iops_sec_max" => "rbd_qos_read_iops_burst",
        "write_iops_sec_max" => "rbd_qos_write_iops_burst",
        "read_bytes_sec_max" => "rbd_qos_read_bps_burst",
        "write_bytes_sec_max" => "rbd_qos_write_bps_burst",
        _ => return None,
    })
}

/// Refuses what no image can be made for.
///
/// # Errors
/// `UnsupportedCombination`.
pub(super) fn require_makeable(volume_type: &VolumeType) -> Result<()> {
    if volume_type.wants_replication() && volume_type.wants_multiattach() {
        return Err(Error::new(
            Code::UnsupportedCombination,
            "Replication and Multiattach are mutually exclusive: change the volume type",
        ));
    }
    Ok(())
}

/// Does to a new image of `shape` what its type asks for; answers what belongs into the row.
///
/// # Errors
/// `Database`; `VolumeBackend` when Ceph refuses.
pub(super) async fn from_type(
    backend: &Backend,
    place: &Place,
    image: &str,
    volume_type: &VolumeType,
    shape: Shape,
) -> Result<VolumeChanges> {
    let mut changes = VolumeChanges::default();
    if let Some(id) = &volume_type.qos_specs_id {
        let qos = backend
            .db
            .read("QoS of a volume type", async |conn| db::volume_type::qos_specs(conn, id).await)
            .await?;
        if let Some(qos) = qos.filter(db::volume_type::QosSpecs::is_for_back_end) {
            for (spec, value) in &qos.specs {
                write_limit(place, image, spec, value).await?;
            }
        }
    }
    if volume_type.wants_multiattach() {
        let location = allow_many_writers(place, image, shape).await?;
        changes.provider_location = Some(Some(location));
    }
    Ok(changes)
}

async fn write_limit(place: &Place, image: &str, spec: &str, value: &str) -> Result<()> {
    let Some(option) = limit(spec) else {
        warn!(image, qos.spec = spec, "this QoS spec means nothing to Ceph");
        return Ok(());
    };
    let set = MetadataSet {
        pool: place.pool.clone(),
        image: image.to_owned(),
        key: format!("conf_{option}"),
        value: value.to_owned(),
    };
    place.site.insist(set).await.map_err(|e| {
        let text = format!("Failed to set qos spec {spec} for RBD image {image}");
        Error::new(Code::VolumeBackend, text).caused_by(e)
    })
}

/// Answers what to keep in `provider_location`: the features to come back when the volume becomes one of a
/// single writer.
async fn allow_many_writers(place: &Place, image: &str, shape: Shape) -> Result<String> {
    let now = place.stat(image).await?.features;
    if now & OF_ONE_WRITER != 0 {
        let off = ImageFeatures {
            pool: place.pool.clone(),
            image: image.to_owned(),
            features: now & OF_ONE_WRITER,
            enable: false,
        };
        place.site.insist(off).await?;
    }
    // A former attempt may have switched them off already: it is its shape that says what the image had.
    let saved = now | (shape.features & OF_ONE_WRITER);
    Ok(json!({ "saved_features": saved }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_has_a_limit_of_its_own() {
        for (unit, option) in [("iops", "iops"), ("bytes", "bps")] {
            for (which, of) in [("total", ""), ("read", "read_"), ("write", "write_")] {
                let expected = |end: &str| Some(format!("rbd_qos_{of}{option}_{end}"));
                let mapped = |spec: String| limit(&spec).map(str::to_owned);
                assert_eq!(mapped(format!("{which}_{unit}_sec")), expected("limit"));
                assert_eq!(mapped(format!("{which}_{unit}_sec_max")), expected("burst"));
            }
        }
        assert_eq!(limit("read_iops_sec_per_gb"), None);
    }
}
