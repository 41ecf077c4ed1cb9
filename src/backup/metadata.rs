//! What a backup keeps of its volume's row: an object of JSON beside the base, and what of it comes back with a
//! restoration (`cinder/backup/driver.py`, `BackupMetadataAPI`, version 2).

use std::collections::BTreeMap;

use chrono::NaiveDateTime;
use serde_json::{Map, Value, json};

use super::{Backups, names};
use crate::db;
use crate::db::Conn;
use crate::db::volume::VolumeChanges;
use crate::error::{Code, Error, Result};
use crate::model::{Backup, Volume};
use crate::rbd::protocol::{ObjectRead, ObjectWrite};
use crate::volume::image::Place;

const VERSION: u64 = 2;
const BASE: &str = "volume-base-metadata";
const USER: &str = "volume-metadata";
const GLANCE: &str = "volume-glance-metadata";
/// How the API begins the name of a volume that it makes for a restoration.
const MADE_FOR: &str = "restore_backup_";

/// Writes the object; again, when it is there.
pub(super) async fn save(b: &Backups, store: &Place, backup: &Backup) -> Result<()> {
    let id = &backup.volume_id;
    let read =
        b.db.read("metadata for a backup", async |conn| {
            let Some(volume) = db::volume::find(conn, id).await? else { return Ok(None) };
            let metadata = db::volume::metadata(conn, id).await?;
            let glance = db::volume::glance_metadata(conn, id).await?;
            Ok(Some((volume, metadata, glance)))
        })
        .await?;
    let Some((volume, metadata, glance)) = read else { return Ok(()) };
    let mut container = json!({"version": VERSION, BASE: row(&volume), USER: metadata});
    if !glance.is_empty()
        && let Value::Object(map) = &mut container
    {
        map.insert(GLANCE.to_owned(), json!(glance));
    }
    let write = ObjectWrite {
        pool: store.pool.clone(),
        object: names::metadata_object(&backup.id),
        data: container.to_string().into_bytes(),
    };
    store.site.insist(write).await?;
    Ok(())
}

/// The columns that a restoration may ask for, and those by which a person recognises the volume.
fn row(v: &Volume) -> Value {
    let time = |at: Option<NaiveDateTime>| at.map(|at| at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string());
    json!({
        "id": v.id,
        "_name_id": v.name_id,
        "user_id": v.user_id,
        "project_id": v.project_id,
        "snapshot_id": v.snapshot_id,
        "source_volid": v.source_volid,
        "cluster_name": v.cluster_name,
        "host": v.host,
        "size": v.size,
        "availability_zone": v.availability_zone,
        "status": v.status,
        "attach_status": v.attach_status,
        "previous_status": v.previous_status,
        "created_at": time(v.created_at),
        "launched_at": time(v.launched_at),
        "display_name": v.display_name,
        "display_description": v.display_description,
        "volume_type_id": v.volume_type_id,
        "encryption_key_id": v.encryption_key_id,
        "bootable": v.bootable,
        "multiattach": v.multiattach,
        "replication_status": v.replication_status,
    })
}

/// What a backup says of its volume.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    base: Map<String, Value>,
    /// `None`: nothing is said, so that the target keeps its own.
    user: Option<BTreeMap<String, String>>,
    glance: Option<BTreeMap<String, String>>,
    keys: bool,
}

/// Reads the object; `None` when there is none.
///
/// # Errors
/// `InvalidBackup` for one that cannot be read, or is of a version that nobody knows.
pub(super) async fn load(store: &Place, backup_id: &str) -> Result<Option<Kept>> {
    let ask = ObjectRead { pool: store.pool.clone(), object: names::metadata_object(backup_id) };
    match store.site.insist(ask).await? {
        Some(data) => parse(&data).map(Some).map_err(|why| {
            Error::new(
                Code::InvalidBackup,
                format!("The metadata of backup {backup_id} cannot be read: {why}"),
            )
        }),
        None => Ok(None),
    }
}

fn parse(data: &[u8]) -> Result<Kept, String> {
    let value: Value = serde_json::from_slice(data).map_err(|e| e.to_string())?;
    let version = value.get("version").and_then(Value::as_u64);
    let keys = match version {
        Some(1) => false,
        Some(VERSION) => true,
        _ => return Err("Metadata restore failed due to incompatible version".to_owned()),
    };
    let texts = |name: &str| {
        let map = value.get(name)?.as_object()?;
        Some(map.iter().filter_map(|(k, v)| Some((k.clone(), text(v)?))).collect())
    };
    let base = value.get(BASE).and_then(Value::as_object).cloned().unwrap_or_default();
    Ok(Kept { base, user: texts(USER), glance: texts(GLANCE), keys })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

impl Kept {
    fn field(&self, name: &str) -> Option<&str> {
        self.base.get(name).and_then(Value::as_str)
    }

    /// Whether its content can be read in a volume of another type: that of an encrypted volume only where the type is
    /// the same.
    ///
    /// # Errors
    /// `InvalidBackup`.
    pub(super) fn check(&self, target: &Volume) -> Result<()> {
        if !self.keys || self.field("encryption_key_id").is_none() {
            return Ok(());
        }
        match self.field("volume_type_id") {
            Some(kind) if kind != target.volume_type_id => Err(Error::new(
                Code::InvalidBackup,
                format!(
                    "The source volume type '{kind}' is different than the destination volume type '{}'.",
                    target.volume_type_id
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Gives the target what it is to have of it. `key`: that of an encrypted volume, as it is to be.
    pub(super) async fn apply(&self, conn: &mut Conn, target: &Volume, key: Option<&str>) -> Result<()> {
        let own = target.display_name.as_deref().unwrap_or_default();
        let is_to_be_named = own.is_empty() || own.starts_with(MADE_FOR);
        if let Some(name) = self.field("display_name").filter(|name| is_to_be_named && !name.is_empty()) {
            let description = self.field("display_description");
            db::backup_work::name_volume(conn, &target.id, Some(name), description).await?;
        }
        if let Some(user) = &self.user {
            db::backup_work::set_volume_metadata(conn, &target.id, user, true).await?;
        }
        let mut changes = VolumeChanges::default();
        if let Some(glance) = &self.glance {
            db::volume::replace_glance_metadata(conn, &target.id, glance).await?;
            changes.bootable = Some(true);
        }
        if let Some(key) = key {
            changes.encryption_key_id = Some(Some(key.to_owned()));
        }
        if changes != VolumeChanges::default() {
            db::volume::update(conn, &target.id, &changes).await?;
        }
        Ok(())
    }

    /// Key of the volume that was backed up.
    pub(super) fn key(&self) -> Option<&str> {
        self.field("encryption_key_id").filter(|_| self.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stocks_containers_are_read_and_others_refused() {
        let stock =
            br#"{"version": 2, "volume-base-metadata": {"display_name": "n", "encryption_key_id": null,
            "volume_type_id": "t", "size": 1}, "volume-metadata": {"a": "b"}}"#;
        let kept = parse(stock).unwrap();
        assert_eq!(kept.field("display_name"), Some("n"));
        assert_eq!(kept.user.as_ref().and_then(|m| m.get("a")).map(String::as_str), Some("b"));
        assert!(kept.glance.is_none() && kept.key().is_none());
        let old = parse(br#"{"version": 1, "volume-base-metadata": {"encryption_key_id": "k"}}"#).unwrap();
        assert_eq!(old.key(), None, "version 1 knows no keys");
        for wrong in [&b"{"[..], b"{}", br#"{"version": 3}"#] {
            assert!(parse(wrong).is_err());
        }
    }

    #[test]
    fn the_content_of_an_encrypted_volume_goes_into_its_own_type_alone() {
        let kept = parse(
            br#"{"version": 2, "volume-base-metadata": {"encryption_key_id": "k", "volume_type_id": "t"}}"#,
        )
        .unwrap();
        let volume = |kind: &str| Volume { volume_type_id: kind.to_owned(), ..Volume::default() };
        assert!(kept.check(&volume("t")).is_ok());
        assert_eq!(kept.check(&volume("u")).unwrap_err().code(), Code::InvalidBackup);
        assert_eq!(kept.key(), Some("k"));
    }
}
