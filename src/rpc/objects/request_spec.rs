//! `RequestSpec`: what the user asked for when a volume was created, carried through the scheduler.

use serde_json::Value;

use super::Object;
use super::volume::read_type;
use crate::error::{Code, Error, Result};
use crate::model::VolumeType;

/// Where a new volume's content comes from, and what to send back to the scheduler if it has to be
/// created elsewhere.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct RequestSpec {
    pub volume_id: Option<String>,
    pub snapshot_id: Option<String>,
    pub source_volid: Option<String>,
    pub image_id: Option<String>,
    pub backup_id: Option<String>,
    pub group_id: Option<String>,
    pub volume_type: Option<VolumeType>,
    /// The argument as it came (object, or the plain dictionary of an older sender).
    pub value: Value,
}

impl RequestSpec {
    /// Reads an argument that must be a RequestSpec or its dictionary.
    pub fn parse(value: &Value) -> Result<RequestSpec> {
        let object = if Object::is_object(value) {
            Object::expect(value, "RequestSpec")?
        } else if let Some(map) = value.as_object() {
            // A dictionary holds the type as a dictionary too, which is not needed here.
            let mut map = map.clone();
            map.remove("volume_type");
            Object::new("RequestSpec", map)?
        } else {
            return Err(Error::new(Code::InvalidValue, "request_spec must be a RequestSpec"));
        };
        Ok(RequestSpec {
            volume_id: object.text("volume_id")?,
            snapshot_id: object.text("snapshot_id")?,
            source_volid: object.text("source_volid")?,
            image_id: object.text("image_id")?,
            backup_id: object.text("backup_id")?,
            group_id: object.text("group_id")?,
            volume_type: object.nested("volume_type", "VolumeType")?.map(|t| read_type(&t)).transpose()?,
            value: value.clone(),
        })
    }
}
