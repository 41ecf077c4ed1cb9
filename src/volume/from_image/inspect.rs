//! What format an image is really in, and whether it may be read.
//!
//! An image is what somebody has uploaded. A qcow2 image can name a file of this host as its backing file; an
//! image that is called raw can be one. So the format is told from the bytes, never by probing, and
//! everything that points out of the image is refused (`cinder/image/format_inspector.py`,
//! `image_utils.check_image_format`).

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::model::GIB;
use crate::volume::disk_format::qemu_name;

/// Bytes of the beginning of an image that tell its format.
pub(super) const HEAD: usize = 512;
/// Subformats of VMDK that point to no other file (`vmdk_allowed_types`).
const VMDK_TYPES: [&str; 2] = ["streamOptimized", "monolithicSparse"];

/// Refuses an image that is larger than the volume (`check_virtual_size`).
///
/// # Errors
/// `ImageDoesNotFit`.
pub(super) fn require_fit(bytes: u64, gib: i32, image_id: &str) -> Result<()> {
    let needed = bytes.div_ceil(GIB);
    if needed <= u64::try_from(gib).unwrap_or(0) {
        return Ok(());
    }
    let reason = format!("Image virtual size is {needed}GB and doesn't fit in a volume of size {gib}GB.");
    Err(Error::new(Code::ImageDoesNotFit, format!("Image {image_id} is unacceptable: {reason}")))
}

/// An image that cannot be used as it is.
pub(super) fn unacceptable(image_id: &str, reason: &str) -> Error {
    Error::new(Code::ImageUnacceptable, format!("Image {image_id} is unacceptable: {reason}"))
}

/// qemu's name of the format that an image begins like; `raw` for anything else.
///
/// # Errors
/// `Invalid` when it may not be read at all: it has a backing file, a data file, features that nobody knows.
pub(super) fn format_of(head: &[u8]) -> Result<&'static str> {
    if head.len() < HEAD {
        return Ok("raw");
    }
    if head.starts_with(b"QFI\xfb") {
        return if qcow2_is_safe(head) { Ok("qcow2") } else { Err(unsafe_image()) };
    }
    if head.starts_with(b"QED\0") {
        return Err(unsafe_image());
    }
    let known = [
        (&b"conectix"[..], 0, "vpc"),
        (b"vhdxfile", 0, "vhdx"),
        (b"KDMV", 0, "vmdk"),
        (b"\x7f\x10\xda\xbe", 0x40, "vdi"),
    ];
    let found =
        known.iter().find(|(magic, at, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    Ok(found.map_or("raw", |(_, _, name)| *name))
}

fn unsafe_image() -> Error {
    Error::new(Code::Invalid, "Image/Volume failed safety check")
}

fn qcow2_is_safe(head: &[u8]) -> bool {
    let number = |at: usize| {
        head.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).map_or(u64::MAX, u64::from_be_bytes)
    };
    // Without a backing file, without an external data file (bit 3), without a bit beyond those.
    let version = head.get(4..8).and_then(|b| <[u8; 4]>::try_from(b).ok()).map_or(0, u32::from_be_bytes);
    number(8) == 0 && (version < 3 || number(0x48) & !0b111 == 0)
}

/// Refuses an image that calls itself something else than it is.
///
/// # Errors
/// `ImageUnacceptable`.
pub(super) fn require_format(claimed: &str, found: &str, image_id: &str) -> Result<()> {
    let claimed = qemu_name(claimed);
    if claimed == found || claimed.eq_ignore_ascii_case("ami") {
        return Ok(());
    }
    let reason = format!(
        "The image format was claimed to be '{claimed}' but the image data appears to be in a different format."
    );
    Err(unacceptable(image_id, &reason))
}

/// Looks at what `qemu-img info` says; answers the size of the disk inside, in bytes.
///
/// # Errors
/// `ImageUnacceptable`.
pub(super) fn judge(info: &Value, format: &str, image_id: &str) -> Result<u64> {
    let refuse = |reason: &str| Err(unacceptable(image_id, reason));
    let (Some(found), Some(size)) = (info["format"].as_str(), info["virtual-size"].as_u64()) else {
        return refuse("'qemu-img info' parsing failed.");
    };
    require_format(format, found, image_id)?;
    if let Some(backing) = info["backing-filename"].as_str() {
        return refuse(&format!("fmt={found} backed by: {backing}"));
    }
    let specific = &info["format-specific"]["data"];
    match found {
        "qcow2" if !specific.is_object() => refuse("Cannot determine format-specific information"),
        "qcow2" if specific.get("data-file").is_some_and(|file| !file.is_null()) => {
            refuse("A qcow2 format image is not allowed to have a data file")
        }
        "vmdk" => match specific["create-type"].as_str() {
            None => refuse("Unable to determine VMDK createType"),
            Some(kind) if VMDK_TYPES.contains(&kind) => Ok(size),
            Some(_) => refuse("Invalid VMDK create-type specified"),
        },
        _ => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn qcow2(version: u32, backing: u64, features: u64) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[8..16].copy_from_slice(&backing.to_be_bytes());
        head[0x48..0x50].copy_from_slice(&features.to_be_bytes());
        head
    }

    #[test]
    fn the_format_is_what_the_bytes_say() {
        let head = |magic: &[u8], at: usize| {
            let mut head = vec![0; HEAD];
            head[at..at + magic.len()].copy_from_slice(magic);
            head
        };
        assert_eq!(format_of(b"QFI\xfb").unwrap(), "raw");
        assert_eq!(format_of(&head(b"MBR", 0)).unwrap(), "raw");
        assert_eq!(format_of(&head(b"conectix", 0)).unwrap(), "vpc");
        assert_eq!(format_of(&head(b"vhdxfile", 0)).unwrap(), "vhdx");
        assert_eq!(format_of(&head(b"KDMV", 0)).unwrap(), "vmdk");
        assert_eq!(format_of(&head(&0xbeda_107f_u32.to_le_bytes(), 0x40)).unwrap(), "vdi");
        assert_eq!(format_of(&qcow2(3, 0, 0b101)).unwrap(), "qcow2");
        assert_eq!(format_of(&qcow2(2, 0, 0)).unwrap(), "qcow2");
        for bad in [
            qcow2(3, 512, 0),
            qcow2(3, 0, 1 << 3),
            qcow2(3, 0, 1 << 4),
            qcow2(3, 0, 1 << 40),
            head(b"QED\0", 0),
        ] {
            assert_eq!(format_of(&bad).unwrap_err().code(), Code::Invalid);
        }
    }

    #[test]
    fn an_image_must_be_what_it_is_called() {
        for (claimed, found) in
            [("raw", "raw"), ("iso", "raw"), ("vhd", "vpc"), ("ami", "qcow2"), ("qcow2", "qcow2")]
        {
            require_format(claimed, found, "i").unwrap();
        }
        for (claimed, found) in [("raw", "qcow2"), ("qcow2", "raw"), ("iso", "vmdk"), ("aki", "raw")] {
            assert_eq!(require_format(claimed, found, "i").unwrap_err().code(), Code::ImageUnacceptable);
        }
    }

    #[test]
    fn an_image_must_fit() {
        require_fit(GIB, 1, "i").unwrap();
        let refusal = require_fit(GIB + 1, 1, "i").unwrap_err();
        assert_eq!(refusal.code(), Code::ImageDoesNotFit);
        assert_eq!(
            refusal.user(),
            "Image i is unacceptable: Image virtual size is 2GB and doesn't fit in a volume of size 1GB."
        );
    }

    #[test]
    fn what_points_out_of_the_image_is_refused() {
        let qcow2 =
            json!({"format": "qcow2", "virtual-size": 5, "format-specific": {"data": {"compat": "1.1"}}});
        assert_eq!(judge(&qcow2, "qcow2", "i").unwrap(), 5);
        let vmdk = |kind: Value| json!({"format": "vmdk", "virtual-size": 5, "format-specific": {"data": {"create-type": kind}}});
        assert_eq!(judge(&vmdk(json!("monolithicSparse")), "vmdk", "i").unwrap(), 5);
        let mut backed = qcow2.clone();
        backed["backing-filename"] = json!("/etc/shadow");
        let mut split = qcow2.clone();
        split["format-specific"]["data"]["data-file"] = json!("/dev/sda");
        let bare = json!({"format": "qcow2", "virtual-size": 5});
        for (info, format) in [
            (backed, "qcow2"),
            (split, "qcow2"),
            (bare, "qcow2"),
            (qcow2, "vpc"),
            (vmdk(json!("monolithicFlat")), "vmdk"),
            (vmdk(Value::Null), "vmdk"),
            (json!({}), "raw"),
        ] {
            assert_eq!(judge(&info, format, "i").unwrap_err().code(), Code::ImageUnacceptable, "{info}");
        }
    }
}
