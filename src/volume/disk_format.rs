//! Names of disk formats: Glance has its own for some of those that qemu knows.

/// qemu's name of a format of Glance (`QEMU_IMG_FORMAT_MAP` in `cinder/image/image_utils.py`).
pub(super) fn qemu_name(disk_format: &str) -> &str {
    match disk_format {
        "iso" => "raw",
        "vhd" => "vpc",
        "ploop" => "parallels",
        other => other,
    }
}
