//! What is called how in a backup pool, exactly as cinder-backup's driver for Ceph calls it
//! (`cinder/backup/drivers/ceph.py`): either service restores, continues and deletes what the other has made. Only
//! the points that mirroring has brought have a name that stock does not know.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::method::Method;
use crate::model::Backup;
use crate::rbd::types::Snap;
pub(super) use crate::volume::image::PIN;

/// `service` of backups that are made by differences.
pub const DRIVER: &str = "cinder.backup.drivers.ceph.CephBackupDriver";

/// `service` of backups that mirroring has brought, which stock refuses to touch.
pub const MIRROR: &str = "scoria.backup.drivers.ceph.Mirror";

/// `service_metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceMetadata {
    /// Image that the backup is a snapshot of.
    pub base: String,
    /// The registered site that has it, by its fsid: names change; absent: the cluster of `backup_ceph_conf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Its checksums are still to be computed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
}

impl ServiceMetadata {
    /// Reads the column; `None` for one that says nothing of a base, as of another driver's backup.
    pub fn read(text: Option<&str>) -> Option<ServiceMetadata> {
        serde_json::from_str(text?).ok().filter(|found: &ServiceMetadata| !found.base.is_empty())
    }

    /// The column's text, with the blank after the colon that the driver writes.
    pub fn write(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let mut written = format!("{{\"base\": {}", text(&self.base));
        if let Some(site) = &self.site {
            written.push_str(&format!(", \"site\": {}", text(site)));
        }
        if self.unverified {
            written.push_str(", \"unverified\": true");
        }
        written.push('}');
        written
    }
}

/// Image of a backup by mirroring: a clone of the volume's copy.
pub fn pin(volume_id: &str, backup_id: &str) -> String {
    format!("{PIN}{volume_id}.{backup_id}")
}

/// Base of a full backup.
pub fn own_base(volume_id: &str, backup_id: &str) -> String {
    format!("volume-{volume_id}.backup.{backup_id}")
}

/// Base of backups by old releases, and of those that stock makes of snapshots.
pub fn legacy_base(volume_id: &str) -> String {
    format!("volume-{volume_id}.backup.base")
}

/// Images that may be the base of a backup, the likeliest first. `parent`: of an incremental one.
pub fn bases(backup: &Backup, parent: Option<&Backup>) -> Vec<String> {
    let metadata = |b: &Backup| ServiceMetadata::read(b.service_metadata.as_deref()).map(|m| m.base);
    if let Some(base) = metadata(backup) {
        return vec![base];
    }
    if Method::of(backup.service.as_deref()) == Method::Mirror {
        return vec![pin(&backup.volume_id, &backup.id)];
    }
    let (own, legacy) = (own_base(&backup.volume_id, &backup.id), legacy_base(&backup.volume_id));
    match parent {
        Some(parent) => vec![metadata(parent).unwrap_or(legacy)],
        None if backup.snapshot_id.is_some() => vec![legacy, own],
        None => vec![own, legacy],
    }
}

/// Snapshot of a backup, on the volume's image and on its base: a new name.
pub fn new_snapshot(backup_id: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("backup.{backup_id}.snap.{}.{:06}", now.as_secs(), now.subsec_micros())
}

/// The backup that a snapshot belongs to.
pub fn backup_of(snap: &str) -> Option<&str> {
    let (id, time) = snap.strip_prefix("backup.")?.split_once(".snap.")?;
    let is_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (!id.is_empty() && id.chars().all(is_id) && !time.is_empty()).then_some(id)
}

/// The snapshots of a backup on an image: stock insists on one at most.
pub fn snapshots<'a>(snaps: &'a [Snap], backup_id: &'a str) -> impl Iterator<Item = &'a Snap> {
    snaps.iter().filter(move |snap| backup_of(&snap.name) == Some(backup_id))
}

/// Object with the metadata of the volume.
pub fn metadata_object(backup_id: &str) -> String {
    format!("backup.{backup_id}.meta")
}

/// Object with the checksums, which stock does not know.
pub fn sums_object(backup_id: &str) -> String {
    format!("backup.{backup_id}.sums")
}

/// Whether this service has made the backup, by either method: stock compares beginnings, because the column held a
/// module's name once.
pub fn is_ours(service: Option<&str>) -> bool {
    service.is_none_or(|service| service == MIRROR || DRIVER.starts_with(service))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(metadata: Option<&str>) -> Backup {
        Backup {
            id: "b1".into(),
            volume_id: "v1".into(),
            service_metadata: metadata.map(str::to_owned),
            ..Backup::default()
        }
    }

    #[test]
    fn names_are_those_of_stock() {
        assert_eq!(own_base("v1", "b1"), "volume-v1.backup.b1");
        assert_eq!(legacy_base("v1"), "volume-v1.backup.base");
        assert_eq!(metadata_object("b1"), "backup.b1.meta");
        let snap = new_snapshot("b-1");
        assert_eq!(backup_of(&snap), Some("b-1"));
        assert_eq!(snap.rsplit_once('.').map(|(_, micros)| micros.len()), Some(6));
        for other in ["snapshot-1", "backup..snap.1", "backup.B.snap.1", "backup.b.snap.", "backup.b"] {
            assert_eq!(backup_of(other), None, "{other}");
        }
    }

    #[test]
    fn service_metadata_reads_like_stocks() {
        let metadata = ServiceMetadata { base: "volume-v1.backup.b1".into(), ..ServiceMetadata::default() };
        assert_eq!(metadata.write(), "{\"base\": \"volume-v1.backup.b1\"}");
        assert_eq!(ServiceMetadata::read(Some(&metadata.write())), Some(metadata.clone()));
        let elsewhere = ServiceMetadata { site: Some("east".into()), ..metadata };
        assert_eq!(ServiceMetadata::read(Some(&elsewhere.write())), Some(elsewhere.clone()));
        let unverified = ServiceMetadata { unverified: true, ..elsewhere };
        assert!(
            unverified.write().ends_with("\"site\": \"east\", \"unverified\": true}"),
            "{}",
            unverified.write()
        );
        assert_eq!(ServiceMetadata::read(Some(&unverified.write())), Some(unverified));
        for odd in [None, Some(""), Some("volume_x_backup_y"), Some("{}"), Some("{\"base\": \"\"}")] {
            assert_eq!(ServiceMetadata::read(odd), None);
        }
    }

    #[test]
    fn a_base_is_looked_for_where_stock_would() {
        assert_eq!(bases(&backup(Some("{\"base\": \"x\"}")), None), ["x"]);
        assert_eq!(bases(&backup(None), None), ["volume-v1.backup.b1", "volume-v1.backup.base"]);
        let of_snapshot = Backup { snapshot_id: Some("s".into()), ..backup(None) };
        assert_eq!(bases(&of_snapshot, None), ["volume-v1.backup.base", "volume-v1.backup.b1"]);
        let parent = backup(Some("{\"base\": \"p\"}"));
        assert_eq!(bases(&backup(None), Some(&parent)), ["p"]);
        assert_eq!(bases(&backup(None), Some(&backup(None))), ["volume-v1.backup.base"]);
        // One by mirroring has its own, whatever it continues.
        let mirrored = Backup { service: Some(MIRROR.into()), ..backup(None) };
        assert_eq!(bases(&mirrored, Some(&parent)), ["scoria-pin-v1.b1"]);
        assert_eq!(
            bases(&Backup { service_metadata: Some("{\"base\": \"x\"}".into()), ..mirrored }, None),
            ["x"]
        );
    }

    #[test]
    fn older_names_of_the_driver_are_ours_and_others_are_not() {
        for ours in [None, Some(DRIVER), Some(MIRROR), Some("cinder.backup.drivers.ceph")] {
            assert!(is_ours(ours));
        }
        assert!(!is_ours(Some("cinder.backup.drivers.posix.PosixBackupDriver")));
        assert!(
            !is_ours(Some("scoria.backup.drivers")) && !DRIVER.starts_with(MIRROR),
            "nor does stock take it for its own"
        );
    }
}
