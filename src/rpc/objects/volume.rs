//! `Volume` and `VolumeType`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Object;
use super::attachment::read_attachment;
use super::fields::{text_value, time_value};
use crate::error::Result;
use crate::model::{Attachment, Volume, VolumeType};

/// A volume as a message brought it: the columns, and those relations that its sender had loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct WireVolume {
    /// The columns. A column that was absent reads as its default; the row is the truth.
    pub volume: Volume,
    /// `metadata`, when loaded.
    pub metadata: Option<BTreeMap<String, String>>,
    /// `admin_metadata`, when loaded (only under an administrator's context).
    pub admin_metadata: Option<BTreeMap<String, String>>,
    /// `glance_metadata`, when loaded.
    pub glance_metadata: Option<BTreeMap<String, String>>,
    /// `volume_type`, when loaded and not null.
    pub volume_type: Option<VolumeType>,
    /// `volume_attachment`, when loaded.
    pub attachments: Option<Vec<Attachment>>,
    /// The object itself, to be sent on.
    pub object: Object,
}

impl WireVolume {
    /// Reads an argument that must be a Volume.
    pub fn parse(value: &Value) -> Result<WireVolume> {
        WireVolume::from_object(Object::expect(value, "Volume")?)
    }

    pub(crate) fn from_object(o: Object) -> Result<WireVolume> {
        let volume = Volume {
            id: o.required("id")?,
            name_id: o.text("_name_id")?,
            user_id: o.text("user_id")?,
            project_id: o.text("project_id")?,
            // Absent from peers pinned to 1.38, where every volume counted unless it was temporary.
            use_quota: o.boolean("use_quota")?.unwrap_or(true),
            snapshot_id: o.text("snapshot_id")?,
            source_volid: o.text("source_volid")?,
            cluster_name: o.text("cluster_name")?,
            host: o.text("host")?,
            size: o.integer("size")?.unwrap_or(0),
            availability_zone: o.text("availability_zone")?,
            status: o.text("status")?.unwrap_or_default(),
            attach_status: o.text("attach_status")?,
            migration_status: o.text("migration_status")?,
            previous_status: o.text("previous_status")?,
            scheduled_at: o.time("scheduled_at")?,
            launched_at: o.time("launched_at")?,
            terminated_at: o.time("terminated_at")?,
            created_at: o.time("created_at")?,
            updated_at: o.time("updated_at")?,
            display_name: o.text("display_name")?,
            display_description: o.text("display_description")?,
            provider_id: o.text("provider_id")?,
            provider_location: o.text("provider_location")?,
            provider_auth: o.text("provider_auth")?,
            volume_type_id: o.text("volume_type_id")?.unwrap_or_default(),
            encryption_key_id: o.text("encryption_key_id")?,
            group_id: o.text("group_id")?,
            consistencygroup_id: o.text("consistencygroup_id")?,
            bootable: o.boolean("bootable")?.unwrap_or(false),
            multiattach: o.boolean("multiattach")?.unwrap_or(false),
            replication_status: o.text("replication_status")?,
            replication_extended_status: o.text("replication_extended_status")?,
            replication_driver_data: o.text("replication_driver_data")?,
            service_uuid: o.text("service_uuid")?,
            shared_targets: o.boolean("shared_targets")?,
        };
        let attachments = o
            .nested_list("volume_attachment", "VolumeAttachmentList", "VolumeAttachment")?
            .map(|list| list.iter().map(read_attachment).collect::<Result<_>>())
            .transpose()?;
        Ok(WireVolume {
            volume,
            metadata: o.strings("metadata")?,
            admin_metadata: o.strings("admin_metadata")?,
            glance_metadata: o.strings("glance_metadata")?,
            volume_type: o.nested("volume_type", "VolumeType")?.map(|t| read_type(&t)).transpose()?,
            attachments,
            object: o,
        })
    }
}

pub(crate) fn read_type(o: &Object) -> Result<VolumeType> {
    Ok(VolumeType {
        id: o.required("id")?,
        name: o.text("name")?.unwrap_or_default(),
        qos_specs_id: o.text("qos_specs_id")?,
        extra_specs: o.strings("extra_specs")?.unwrap_or_default(),
    })
}

/// A Volume with every column and no relation, as a row that was just read serialises. The two columns
/// that the model leaves out (`ec2_id`, `provider_geometry`) are always null on RBD.
pub fn volume_object(v: &Volume) -> Result<Object> {
    let mut data = Map::new();
    let mut set = |field: &str, value: Value| {
        data.insert(field.to_owned(), value);
    };
    set("id", v.id.clone().into());
    set("_name_id", text_value(v.name_id.as_deref()));
    set("ec2_id", Value::Null);
    set("user_id", text_value(v.user_id.as_deref()));
    set("project_id", text_value(v.project_id.as_deref()));
    set("use_quota", v.use_quota.into());
    set("snapshot_id", text_value(v.snapshot_id.as_deref()));
    set("cluster_name", text_value(v.cluster_name.as_deref()));
    set("host", text_value(v.host.as_deref()));
    set("size", v.size.into());
    set("availability_zone", text_value(v.availability_zone.as_deref()));
    set("status", v.status.clone().into());
    set("attach_status", text_value(v.attach_status.as_deref()));
    set("migration_status", text_value(v.migration_status.as_deref()));
    set("scheduled_at", time_value(v.scheduled_at));
    set("launched_at", time_value(v.launched_at));
    set("terminated_at", time_value(v.terminated_at));
    set("display_name", text_value(v.display_name.as_deref()));
    set("display_description", text_value(v.display_description.as_deref()));
    set("provider_id", text_value(v.provider_id.as_deref()));
    set("provider_location", text_value(v.provider_location.as_deref()));
    set("provider_auth", text_value(v.provider_auth.as_deref()));
    set("provider_geometry", Value::Null);
    set("volume_type_id", v.volume_type_id.clone().into());
    set("source_volid", text_value(v.source_volid.as_deref()));
    set("encryption_key_id", text_value(v.encryption_key_id.as_deref()));
    set("consistencygroup_id", text_value(v.consistencygroup_id.as_deref()));
    set("group_id", text_value(v.group_id.as_deref()));
    set("deleted", false.into());
    set("bootable", v.bootable.into());
    set("multiattach", v.multiattach.into());
    set("replication_status", text_value(v.replication_status.as_deref()));
    set("replication_extended_status", text_value(v.replication_extended_status.as_deref()));
    set("replication_driver_data", text_value(v.replication_driver_data.as_deref()));
    set("previous_status", text_value(v.previous_status.as_deref()));
    set("service_uuid", text_value(v.service_uuid.as_deref()));
    set("shared_targets", v.shared_targets.map_or(Value::Null, Value::Bool));
    set("created_at", time_value(v.created_at));
    set("updated_at", time_value(v.updated_at));
    set("deleted_at", Value::Null);
    Object::new("Volume", data)
}
