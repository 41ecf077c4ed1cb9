//! Volume types with their extra specs and QoS specs.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::Conn;
use super::schema::{encryption, quality_of_service_specs, volume_type_extra_specs, volume_types};
use super::volume::to_map;
use crate::error::{Code, Error, Result};
use crate::model::VolumeType;

/// Quality-of-service specs of a type (`quality_of_service_specs`: a tree of two levels in one table).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QosSpecs {
    /// Id of the root row.
    pub id: String,
    /// Name (`value` of the root row).
    pub name: String,
    /// `front-end`, `back-end` or `both`.
    pub consumer: String,
    /// The specs themselves.
    pub specs: BTreeMap<String, String>,
}

impl QosSpecs {
    /// True when the hypervisor applies them.
    pub fn for_front_end(&self) -> bool {
        matches!(self.consumer.as_str(), "front-end" | "both")
    }

    /// True when the storage applies them.
    pub fn is_for_back_end(&self) -> bool {
        matches!(self.consumer.as_str(), "back-end" | "both")
    }
}

/// The type, also a deleted one: a volume may outlive its type.
///
/// # Errors
/// `VolumeTypeNotFound`.
pub async fn get(conn: &mut Conn, id: &str) -> Result<VolumeType> {
    let row: Option<(Option<String>, Option<String>)> = volume_types::table
        .filter(volume_types::id.eq(id))
        .select((volume_types::name, volume_types::qos_specs_id))
        .first(conn)
        .await
        .optional()?;
    let (name, qos_specs_id) = row.ok_or_else(|| {
        Error::new(Code::VolumeTypeNotFound, format!("Volume type {id} could not be found."))
    })?;
    let specs: Vec<(Option<String>, Option<String>)> = volume_type_extra_specs::table
        .filter(volume_type_extra_specs::volume_type_id.eq(id))
        .filter(volume_type_extra_specs::deleted.eq(false))
        .select((volume_type_extra_specs::key, volume_type_extra_specs::value))
        .load(conn)
        .await?;
    Ok(VolumeType {
        id: id.to_owned(),
        name: name.unwrap_or_default(),
        qos_specs_id,
        extra_specs: to_map(specs),
    })
}

/// The QoS specs with this id; `None` when deleted or unknown.
///
/// # Errors
/// `Database`.
pub async fn qos_specs(conn: &mut Conn, id: &str) -> Result<Option<QosSpecs>> {
    use quality_of_service_specs::dsl as q;
    // The root row has the reserved key QoS_Specs_Name, and the name as its value.
    let root: Option<Option<String>> = q::quality_of_service_specs
        .filter(q::id.eq(id))
        .filter(q::deleted.eq(false))
        .select(q::value)
        .first(conn)
        .await
        .optional()?;
    let Some(name) = root else {
        return Ok(None);
    };
    let children: Vec<(Option<String>, Option<String>)> = q::quality_of_service_specs
        .filter(q::specs_id.eq(id))
        .filter(q::deleted.eq(false))
        .select((q::key, q::value))
        .load(conn)
        .await?;
    let mut specs = to_map(children);
    let consumer = specs.remove("consumer").unwrap_or_else(|| "back-end".to_owned());
    Ok(Some(QosSpecs { id: id.to_owned(), name: name.unwrap_or_default(), consumer, specs }))
}

/// True when volumes of the type are encrypted.
///
/// # Errors
/// `Database`.
pub async fn is_encrypted(conn: &mut Conn, id: &str) -> Result<bool> {
    let found: i64 = encryption::table
        .filter(encryption::volume_type_id.eq(id))
        .filter(encryption::deleted.eq(false))
        .count()
        .get_result(conn)
        .await?;
    Ok(found > 0)
}
