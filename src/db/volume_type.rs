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

/// The type with this id, or with this name; not a deleted one.
///
/// # Errors
/// `VolumeTypeNotFound`; `Database`.
pub async fn resolve(conn: &mut Conn, id_or_name: &str) -> Result<VolumeType> {
    let found: Vec<(String, Option<String>)> = volume_types::table
        .filter(volume_types::deleted.eq(false))
        .filter(volume_types::id.eq(id_or_name).or(volume_types::name.eq(id_or_name)))
        .select((volume_types::id, volume_types::name))
        .load(conn)
        .await?;
    // The column's collation does not tell capitals from small letters.
    let by_id = found.iter().find(|(id, _)| id == id_or_name);
    let by_name = || found.iter().find(|(_, name)| name.as_deref() == Some(id_or_name));
    let Some((id, _)) = by_id.or_else(by_name) else {
        return Err(Error::new(
            Code::VolumeTypeNotFound,
            format!("Volume type {} could not be found.", id_or_name.escape_debug()),
        ));
    };
    get(conn, id).await
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

/// How volumes of the type are encrypted: what Cinder compares of it; `None` when they are not.
///
/// # Errors
/// `Database`.
pub async fn encryption_of(conn: &mut Conn, id: &str) -> Result<Option<Encryption>> {
    Ok(encryption::table
        .filter(encryption::volume_type_id.eq(id))
        .filter(encryption::deleted.eq(false))
        .select((
            encryption::cipher,
            encryption::control_location,
            encryption::key_size,
            encryption::provider,
        ))
        .first(conn)
        .await
        .optional()?
        .map(|(cipher, control_location, key_size, provider)| Encryption {
            cipher,
            control_location,
            key_size,
            provider,
        }))
}

/// A row of `encryption`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Encryption {
    pub cipher: Option<String>,
    pub control_location: String,
    pub key_size: Option<i32>,
    pub provider: String,
}

/// All that Cinder compares of two types (`volume_types_diff`).
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// The type itself.
    pub volume_type: VolumeType,
    /// Its QoS specs.
    pub qos: Option<QosSpecs>,
    /// Its encryption.
    pub encryption: Option<Encryption>,
}

impl Content {
    /// Reads it.
    ///
    /// # Errors
    /// `VolumeTypeNotFound`; `Database`.
    pub async fn read(conn: &mut Conn, id: &str) -> Result<Content> {
        let volume_type = get(conn, id).await?;
        let qos = match &volume_type.qos_specs_id {
            Some(qos) => qos_specs(conn, qos).await?,
            None => None,
        };
        Ok(Content { encryption: encryption_of(conn, id).await?, volume_type, qos })
    }

    /// The limits that the storage applies to its volumes; none without QoS specs for it.
    pub fn limits(&self) -> BTreeMap<String, String> {
        self.qos.as_ref().filter(|qos| qos.is_for_back_end()).map(|qos| qos.specs.clone()).unwrap_or_default()
    }

    /// True when a volume of one is in no way different from a volume of the other.
    pub fn equals(&self, other: &Content) -> bool {
        self.differing(other).is_empty() && !self.limits_differ(other) && self.encryption == other.encryption
    }

    /// Names of the extra specs that are not the same.
    pub fn differing(&self, other: &Content) -> Vec<String> {
        let (one, two) = (&self.volume_type.extra_specs, &other.volume_type.extra_specs);
        let mut names: Vec<String> =
            one.keys().chain(two.keys()).filter(|key| one.get(*key) != two.get(*key)).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// True when the QoS specs, whoever applies them, are not the same.
    pub fn limits_differ(&self, other: &Content) -> bool {
        let of = |content: &Content| content.qos.clone().map(|qos| (qos.consumer, qos.specs));
        of(self) != of(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(extra: &[(&str, &str)], consumer: &str) -> Content {
        let texts = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let qos = QosSpecs {
            id: uuid::Uuid::new_v4().to_string(),
            consumer: consumer.to_owned(),
            specs: texts(&[("total_iops_sec", "5")]),
            ..QosSpecs::default()
        };
        let volume_type = VolumeType { extra_specs: texts(extra), ..VolumeType::default() };
        Content { volume_type, qos: Some(qos), encryption: None }
    }

    #[test]
    fn types_are_compared_by_what_they_ask_for() {
        let plain = content(&[("a", "1")], "back-end");
        assert!(plain.equals(&content(&[("a", "1")], "back-end")), "whatever their ids and names are");
        let front = content(&[("a", "1")], "both");
        assert!(plain.limits_differ(&front) && !plain.equals(&front));
        assert_eq!(front.limits().len(), 1);
        assert!(content(&[], "front-end").limits().is_empty());
        let other = content(&[("a", "2"), ("volume_backend_name", "x")], "back-end");
        assert_eq!(plain.differing(&other), ["a", "volume_backend_name"]);
        let encryption = Encryption {
            cipher: None,
            control_location: "front-end".into(),
            key_size: Some(256),
            provider: "luks".into(),
        };
        let secret = Content { encryption: Some(encryption), ..plain.clone() };
        assert!(!plain.equals(&secret));
    }
}
