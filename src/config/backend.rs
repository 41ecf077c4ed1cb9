//! One storage backend: a section named in `enabled_backends`, over `[backend_defaults]`.
//!
//! `[DEFAULT]` is not a fallback for these options (cinder/volume/configuration.py).

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::build::size;
use super::options::Group;
use super::problem::{Severity, shown};
use super::reader::{Found, Reader, Scope};
use super::{
    BackendConfig, DiskGeometry, Home, ReplicationDevice, Values, Written, fragment, unknown, value,
};
use crate::rbd::types::{MirrorMode, Schedule};

impl BackendConfig {
    /// cephx user and libvirt secret of a site, as they are configured.
    pub fn credentials(&self, site: &str) -> (Option<String>, Option<String>) {
        match self.replication_devices.iter().find(|d| d.backend_id == site) {
            Some(device) => (Some(device.user.clone()), device.secret_uuid.clone()),
            None => (self.user.clone(), self.secret_uuid.clone()),
        }
    }
}

/// What all backends of a service have in common.
pub(super) struct Place {
    /// `[DEFAULT] host`.
    pub(super) host: String,
    /// `[DEFAULT] cluster`.
    pub(super) cluster: Option<String>,
    /// `[DEFAULT] storage_availability_zone`.
    pub(super) zone: String,
}

/// Reads every enabled backend.
pub(super) fn all(reader: &Reader<'_>, place_of: &Place) -> Vec<BackendConfig> {
    let place = ("DEFAULT", "enabled_backends");
    let found = reader.found(Scope::Global(Group::Default), "enabled_backends");
    let names = found.as_ref().map(|f| value::list(&f.value)).unwrap_or_default();
    let names: Vec<String> = names.into_iter().filter(|n| !n.is_empty()).collect();
    let origin = found.and_then(|f| f.origin);
    let fail = |text: String| reader.report(Severity::Error, origin.clone(), place, text);
    if names.is_empty() {
        // Sites can be registered before there is a backend on them.
        let text = "names no backend: no volumes are served, only orders for Ceph sites; list the sections to serve, \
                    for example `enabled_backends = ceph`";
        reader.report(Severity::Suspect, origin.clone(), place, text);
    }
    let mut seen = BTreeSet::new();
    let mut backends = Vec::new();
    let mut left_out = false;
    for name in names {
        if !seen.insert(name.clone()) {
            fail(format!("names `{}` twice", shown(&name)));
        } else if name.contains(['@', '#']) {
            fail(format!(
                "`{}` must not hold `@` or `#`, which separate host, backend and pool",
                shown(&name)
            ));
        } else if !reader.source().has_section(&name) {
            let sections = reader.source().sections();
            let near = unknown::nearest(&name, sections.into_iter());
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            fail(format!("names `{}`, but there is no section [{}]{near}", shown(&name), shown(&name)));
        } else if driver(reader, &name) {
            backends.push(one(reader, &name, place_of, Home::Main));
        } else {
            left_out = true;
        }
    }
    if backends.is_empty() && left_out {
        fail("names no backend that Scoria can serve".to_owned());
    }
    backends
}

/// Reads one backend.
pub(super) fn one(reader: &Reader<'_>, section: &str, place: &Place, home: Home) -> BackendConfig {
    let scope = Scope::Backend(section);
    let whole =
        |name, min: i64, max: i64| u32::try_from(reader.bounded(scope, name, min, max)).unwrap_or_default();
    // Below zero means librados' own default.
    let timeout =
        |name| u32::try_from(reader.bounded(scope, name, i64::from(i32::MIN), i64::from(i32::MAX))).ok();
    let cluster_name = named(reader, section, "rbd_cluster_name");
    let pool = named(reader, section, "rbd_pool");
    let user = reader.optional(scope, "rbd_user");
    let secret_uuid = reader.optional(scope, "rbd_secret_uuid");
    let replication_devices = devices(reader, section, user.as_deref(), secret_uuid.as_deref());
    if !replication_devices.is_empty() && user.is_none() {
        let text = "is not set although replication_device is: the local cluster is used without cephx, \
                    the others as `cinder`";
        reader.report(Severity::Warning, None, (section, "rbd_user"), text);
    }
    let mode = match reader.choice(scope, "rbd_replication_mode").as_str() {
        "snapshot" => MirrorMode::Snapshot,
        _ => MirrorMode::Journal,
    };
    let own_host = reader.optional(scope, "backend_host").unwrap_or_else(|| place.host.clone());
    let label = label(reader, section);
    let prefix = label.as_deref().map(|label| format!("{label}!")).unwrap_or_default();
    BackendConfig {
        section: section.to_owned(),
        home,
        label,
        values: Values::read(reader, section),
        host: format!("{prefix}{own_host}@{section}"),
        cluster: place.cluster.as_deref().map(|c| format!("{c}@{section}")),
        backend_name: reader.optional(scope, "volume_backend_name").unwrap_or_else(|| "RBD".to_owned()),
        availability_zone: reader
            .optional(scope, "backend_availability_zone")
            .unwrap_or_else(|| place.zone.clone()),
        pool,
        cluster_name,
        user,
        ceph_conf: PathBuf::from(reader.text(scope, "rbd_ceph_conf")),
        secret_uuid,
        flatten_volume_from_snapshot: reader.boolean(scope, "rbd_flatten_volume_from_snapshot"),
        // Upstream: anything up to 0 means full copies.
        max_clone_depth: u32::try_from(reader.bounded(
            scope,
            "rbd_max_clone_depth",
            i64::MIN,
            i64::from(u32::MAX),
        ))
        .unwrap_or_default(),
        // librbd accepts object sizes up to 2^25 bytes (RBD_MAX_OBJ_ORDER).
        chunk_size_mib: whole("rbd_store_chunk_size", 1, 32),
        connect_timeout: timeout("rados_connect_timeout"),
        replication_connect_timeout: timeout("replication_connect_timeout"),
        report_dynamic_total_capacity: reader.boolean(scope, "report_dynamic_total_capacity"),
        exclusive_pool: reader.boolean(scope, "rbd_exclusive_cinder_pool"),
        deferred_deletion: reader.boolean(scope, "enable_deferred_deletion"),
        deferred_deletion_delay: reader.seconds(scope, "deferred_deletion_delay"),
        deferred_deletion_purge_interval: reader.seconds_from(scope, "deferred_deletion_purge_interval", 1),
        concurrent_flatten: size(reader.integer(scope, "rbd_concurrent_flatten_operations")),
        reserved_percentage: whole("reserved_percentage", 0, 100),
        max_over_subscription_ratio: over_subscription(reader, section),
        disk_geometry: geometry(reader, section),
        image_cache: super::openstack::image_cache(reader, scope),
        filter_function: reader.optional(scope, "filter_function"),
        goodness_function: reader.optional(scope, "goodness_function"),
        extra_capabilities: extra_capabilities(reader, section),
        replication_mode: mode,
        mirror_schedule: schedule(reader, section),
        replication_devices,
        replication_poll_interval: reader.seconds(scope, "scoria_replication_poll_interval"),
        failover_concurrency: size(reader.integer(scope, "scoria_failover_concurrency")),
        verdict_timeout: reader.seconds(scope, "scoria_verdict_timeout"),
        demote_timeout: reader.seconds(scope, "scoria_demote_timeout"),
        promote_timeout: reader.seconds(scope, "scoria_promote_timeout"),
        writable_timeout: reader.seconds(scope, "scoria_writable_timeout"),
        frozen_blocks_deletes: reader.boolean(scope, "scoria_frozen_blocks_deletes"),
        fence_on_failover: reader.boolean(scope, "scoria_fence_on_failover"),
    }
}

/// The mark of a backend: its own, or that of the whole service.
fn label(reader: &Reader<'_>, section: &str) -> Option<String> {
    let option = "host_cluster_id";
    let set = |found: &Found| !found.value.is_empty();
    let found = reader
        .found(Scope::Backend(section), option)
        .filter(set)
        .or_else(|| reader.found(Scope::Global(Group::Default), option).filter(set))?;
    if !fragment::is_label(&found.value) {
        let text = format!(
            "must have 1 to 64 letters, digits, `.`, `_` or `-`, since it becomes a part of the service's host; \
             `{}` has not",
            shown(&found.value)
        );
        reader.complain(Severity::Error, &found, option, text);
    }
    Some(found.value)
}

fn schedule(reader: &Reader<'_>, section: &str) -> Option<Schedule> {
    let option = "scoria_mirror_snapshot_schedule";
    let found = reader.found(Scope::Backend(section), option).filter(|f| !f.value.is_empty())?;
    match found.value.parse() {
        Ok(schedule) => Some(schedule),
        Err(why) => {
            reader.complain(Severity::Error, &found, option, why.to_string());
            None
        }
    }
}

fn geometry(reader: &Reader<'_>, section: &str) -> Option<DiskGeometry> {
    let scope = Scope::Backend(section);
    reader.optional(scope, "disk_geometry")?;
    match reader.choice(scope, "disk_geometry").as_str() {
        "512" => Some(DiskGeometry::Native512),
        "512e" => Some(DiskGeometry::Emulated512),
        "4k" => Some(DiskGeometry::Native4k),
        _ => None,
    }
}

/// Text that must not be empty.
fn named(reader: &Reader<'_>, section: &str, option: &str) -> String {
    let Some(found) = reader.found(Scope::Backend(section), option) else { return String::new() };
    if found.value.is_empty() {
        reader.complain(Severity::Error, &found, option, "must not be empty");
    }
    found.value
}

/// Whether it is a backend on Ceph RBD. Of one that is not, upstream's process would fail to start, alone;
/// here it is left out. It takes no part of that service host either, neither its queue nor its row: a stock
/// cinder-volume may be serving it from the same file.
pub(super) fn driver(reader: &Reader<'_>, section: &str) -> bool {
    let Some(found) = reader.found(Scope::Backend(section), "volume_driver") else { return true };
    if found.value.rsplit('.').next() == Some("RBDDriver") {
        return true;
    }
    let text = format!(
        "is `{}`: Scoria serves only Ceph RBD (cinder.volume.drivers.rbd.RBDDriver); backend [{section}] is left \
         out and stays down unless another cinder-volume serves it; take it out of enabled_backends here",
        shown(&found.value)
    );
    reader.complain(Severity::LeftOut, &found, "volume_driver", text);
    false
}

/// `auto` or a number of at least 1, kept as written because stock reports it as written.
fn over_subscription(reader: &Reader<'_>, section: &str) -> String {
    let option = "max_over_subscription_ratio";
    let Some(found) = reader.found(Scope::Backend(section), option) else { return String::new() };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    // Upstream's pattern: ^(auto|\d*\.\d+|\d+)$
    let number = match found.value.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction) && !fraction.is_empty(),
        None => digits(&found.value) && !found.value.is_empty(),
    };
    let large_enough = found.value.parse::<f64>().is_ok_and(|ratio| ratio >= 1.0);
    if found.value != "auto" && !(number && large_enough) {
        let text = format!("must be a number of at least 1, or `auto`, not `{}`", shown(&found.value));
        reader.complain(Severity::Error, &found, option, text);
    }
    found.value
}

/// Stock logs a bad value and goes on without it.
fn extra_capabilities(reader: &Reader<'_>, section: &str) -> serde_json::Map<String, serde_json::Value> {
    let option = "extra_capabilities";
    let Some(found) = reader.found(Scope::Backend(section), option) else { return serde_json::Map::new() };
    match serde_json::from_str(&found.value) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => {
            reader.complain(Severity::Warning, &found, option, "is not a JSON object: left out");
            serde_json::Map::new()
        }
    }
}

/// Keys of `replication_device` that the RBD driver knows.
const DEVICE_KEYS: [&str; 4] = ["backend_id", "conf", "user", "secret_uuid"];

fn devices(
    reader: &Reader<'_>,
    section: &str,
    user: Option<&str>,
    secret_uuid: Option<&str>,
) -> Vec<ReplicationDevice> {
    let mut devices: Vec<ReplicationDevice> = Vec::new();
    for found in reader.multi(Scope::Backend(section), "replication_device") {
        match device(reader, &found, user, secret_uuid) {
            Err(text) => reader.complain(Severity::Error, &found, "replication_device", text),
            Ok(device) if devices.iter().any(|d| d.backend_id == device.backend_id) => {
                let text = format!("has the backend_id `{}` of another one", shown(&device.backend_id));
                reader.complain(Severity::Error, &found, "replication_device", text);
            }
            Ok(device) => devices.push(device),
        }
    }
    devices
}

fn device(
    reader: &Reader<'_>,
    found: &Found,
    user: Option<&str>,
    secret_uuid: Option<&str>,
) -> Result<ReplicationDevice, String> {
    let pairs = value::dict(&found.value)?;
    let get =
        |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).filter(|v| !v.is_empty());
    for (key, _) in pairs.iter().filter(|(key, _)| !DEVICE_KEYS.contains(&key.as_str())) {
        let near = unknown::nearest(key, DEVICE_KEYS.into_iter());
        let severity = if near.is_some() { Severity::Suspect } else { Severity::Warning };
        let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        let text = format!("the key `{}` is not used{near}", shown(key));
        reader.complain(severity, found, "replication_device", text);
    }
    let backend_id = get("backend_id").ok_or("has no backend_id")?;
    if backend_id == "default" {
        return Err(
            "has the backend_id `default`, which means the backend itself; use another name".to_owned()
        );
    }
    Ok(ReplicationDevice {
        conf: get("conf")
            .map_or_else(|| PathBuf::from(format!("/etc/ceph/{backend_id}.conf")), PathBuf::from),
        user: get("user").unwrap_or_else(|| user.unwrap_or("cinder").to_owned()),
        secret_uuid: get("secret_uuid").or_else(|| secret_uuid.map(str::to_owned)),
        backend_id,
        written: Written(pairs),
    })
}
