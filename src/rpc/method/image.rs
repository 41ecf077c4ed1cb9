//! Volumes to and from Glance images.

use serde_json::{Map, Value};

use super::Args;
use crate::error::Result;
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{WireSnapshot, WireVolume};

/// `copy_volume_to_image`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct CopyVolumeToImage {
    pub volume_id: String,
    pub image_meta: Map<String, Value>,
}

/// `reimage`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Reimage {
    pub volume: Box<WireVolume>,
    pub image_meta: Map<String, Value>,
    /// Since 3.20.
    pub image_snap: Option<Box<WireSnapshot>>,
}

pub(crate) fn copy_volume_to_image(args: &mut Args) -> Result<Method> {
    Ok(Method::CopyVolumeToImage(CopyVolumeToImage {
        volume_id: args.text("volume_id")?,
        image_meta: args.map("image_meta")?,
    }))
}

pub(crate) fn reimage(args: &mut Args) -> Result<Method> {
    Ok(Method::Reimage(Reimage {
        volume: args.volume("volume")?,
        image_meta: args.map("image_meta")?,
        image_snap: args.maybe_snapshot("image_snap")?,
    }))
}
