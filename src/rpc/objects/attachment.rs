//! `VolumeAttachment`: read inside volumes, and the answer of `attach_volume`.

use serde_json::{Map, Value};

use super::fields::{text_value, time_value};
use super::{Object, volume_object};
use crate::error::Result;
use crate::model::{Attachment, Volume};

/// Reads a VolumeAttachment.
pub fn read_attachment(o: &Object) -> Result<Attachment> {
    let json = |field: &str| o.get(field).filter(|v| !v.is_null()).cloned();
    Ok(Attachment {
        id: o.required("id")?,
        volume_id: o.text("volume_id")?.unwrap_or_default(),
        instance_uuid: o.text("instance_uuid")?,
        attached_host: o.text("attached_host")?,
        mountpoint: o.text("mountpoint")?,
        attach_time: o.time("attach_time")?,
        detach_time: o.time("detach_time")?,
        attach_status: o.text("attach_status")?,
        attach_mode: o.text("attach_mode")?,
        connection_info: json("connection_info"),
        connector: json("connector"),
        created_at: o.time("created_at")?,
        updated_at: o.time("updated_at")?,
    })
}

/// The object that `attach_volume` answers with. `volume` is the row as it was read with the attachment;
/// upstream sends it along when the relation was loaded.
pub fn attachment_object(a: &Attachment, volume: Option<&Volume>) -> Result<Object> {
    let mut data = Map::new();
    let mut set = |field: &str, value: Value| {
        data.insert(field.to_owned(), value);
    };
    set("id", a.id.clone().into());
    set("volume_id", a.volume_id.clone().into());
    set("instance_uuid", text_value(a.instance_uuid.as_deref()));
    set("attached_host", text_value(a.attached_host.as_deref()));
    set("mountpoint", text_value(a.mountpoint.as_deref()));
    set("attach_time", time_value(a.attach_time));
    set("detach_time", time_value(a.detach_time));
    set("attach_status", text_value(a.attach_status.as_deref()));
    set("attach_mode", text_value(a.attach_mode.as_deref()));
    set("connection_info", a.connection_info.clone().unwrap_or(Value::Null));
    set("connector", a.connector.clone().unwrap_or(Value::Null));
    set("created_at", time_value(a.created_at));
    set("updated_at", time_value(a.updated_at));
    set("deleted_at", Value::Null);
    set("deleted", false.into());
    if let Some(volume) = volume {
        set("volume", volume_object(volume)?.to_value());
    }
    Object::new("VolumeAttachment", data)
}
