//! What a backend tells the scheduler about itself.
//!
//! The shape is that of `RBDDriver._update_volume_stats` (reference rbd_driver.md 4.11): one flat map
//! without `pools`, to which the manager adds what it has allocated. Stock raises from the stats call
//! when its cluster is dead; Scoria reports `backend_state: down`, so that the scheduler keeps away and the
//! service stays up for a failover.

use serde_json::{Map, Value, json};

use crate::config::BackendConfig;
use crate::model::GIB;
use crate::rbd::types::PoolCapacity;

/// `driver_version` that stock reports.
const DRIVER_VERSION: &str = "1.3.0";

/// What was measured at the active site; `None` when it did not answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// fsid of the active site.
    pub fsid: String,
    /// Capacity of the pool.
    pub capacity: PoolCapacity,
    /// New images have the exclusive lock, by which several can be frozen together.
    pub exclusive_lock: bool,
    /// Sum of image sizes in GiB, only asked for when the pool is shared with others.
    pub provisioned_gb: Option<u64>,
}

/// Total and free GiB as upstream computes them, rounded to 2 decimals.
pub fn total_and_free(stats: &PoolCapacity, dynamic_total: bool) -> (f64, f64) {
    let (mut total, free) = if stats.quota > 0 {
        (stats.quota, stats.quota.saturating_sub(stats.stored).min(stats.max_avail))
    } else {
        (stats.cluster_total, stats.max_avail)
    };
    if dynamic_total {
        total = free + stats.stored;
    }
    (gib(total), gib(free))
}

fn gib(bytes: u64) -> f64 {
    (bytes as f64 / GIB as f64 * 100.0).round() / 100.0
}

/// The capabilities map of one backend.
pub fn capabilities(
    config: &BackendConfig,
    measured: Option<&Measured>,
    allocated_gb: u64,
) -> Map<String, Value> {
    let mut caps = Map::new();
    let mut set = |key: &str, value: Value| {
        caps.insert(key.to_owned(), value);
    };
    set("vendor_name", json!("Open Source"));
    set("driver_version", json!(DRIVER_VERSION));
    set("storage_protocol", json!("ceph"));
    set("volume_backend_name", json!(config.backend_name));
    set("reserved_percentage", json!(config.reserved_percentage));
    set("thin_provisioning_support", json!(true));
    set("max_over_subscription_ratio", json!(config.max_over_subscription_ratio));
    set("multiattach", json!(true));
    set("qos_support", json!(true));
    set("filter_function", json!(config.filter_function));
    set("goodness_function", json!(config.goodness_function));
    // The built-in group type of consistent snapshots asks for it.
    set("consistent_group_snapshot_enabled", json!(measured.is_some_and(|m| m.exclusive_lock)));
    let replicated = !config.replication_devices.is_empty();
    set("replication_enabled", json!(replicated));
    // The two kinds of group types whose groups can be failed over by themselves ask for these.
    set("group_replication_enabled", json!(replicated));
    set("consistent_group_replication_enabled", json!(replicated));
    if replicated {
        let targets = config.replication_devices.iter().map(|d| d.backend_id.as_str()).chain(["default"]);
        set("replication_targets", json!(targets.collect::<Vec<_>>()));
    }
    match measured {
        Some(m) => {
            let (total, free) = total_and_free(&m.capacity, config.report_dynamic_total_capacity);
            set("total_capacity_gb", json!(total));
            set("free_capacity_gb", json!(free));
            set("backend_state", json!("up"));
            set("location_info", json!(location_info(config, &m.fsid)));
            if let Some(provisioned) = m.provisioned_gb {
                set("provisioned_capacity_gb", json!(provisioned));
            }
        }
        None => {
            set("total_capacity_gb", json!("unknown"));
            set("free_capacity_gb", json!("unknown"));
            set("backend_state", json!("down"));
        }
    }
    set("allocated_capacity_gb", json!(allocated_gb));
    for (key, value) in &config.extra_capabilities {
        set(key, value.clone());
    }
    caps
}

/// `get_capabilities` answers the report with the properties that volume types can ask for
/// (`BaseVD.init_capabilities`, `cinder/volume/driver.py`); the scheduler gets it without.
/// Stock's answer is what the driver said at its start, before the manager adds what it has allocated.
pub fn with_properties(mut report: Map<String, Value>) -> Map<String, Value> {
    for managers in
        ["allocated_capacity_gb", "filter_function", "goodness_function", super::degraded::CAPABILITY]
    {
        report.remove(managers);
    }
    let property = |title: &str, description: &str| json!({"title": title, "description": description, "type": "boolean"});
    report.insert(
        "properties".to_owned(),
        json!({
            "thin_provisioning": property("Thin Provisioning", "Sets thin provisioning."),
            "compression": property("Compression", "Enables compression."),
            "qos": property("QoS", "Enables QoS."),
            "replication_enabled": property("Replication", "Enables replication."),
        }),
    );
    report
}

/// `cluster:conf:fsid:user:pool`, by which migrations recognise the same cluster.
fn location_info(config: &BackendConfig, fsid: &str) -> String {
    format!(
        "{}:{}:{}:{}:{}",
        config.cluster_name,
        config.ceph_conf.display(),
        fsid,
        config.user.as_deref().unwrap_or("None"),
        config.pool
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_bounds_what_is_free() {
        let stats =
            PoolCapacity { stored: 3 * GIB, max_avail: 100 * GIB, cluster_total: 300 * GIB, quota: 10 * GIB };
        assert_eq!(total_and_free(&stats, true), (10.0, 7.0));
        let open = PoolCapacity { quota: 0, ..stats };
        assert_eq!(total_and_free(&open, false), (300.0, 100.0));
        assert_eq!(total_and_free(&open, true), (103.0, 100.0));
        let over = PoolCapacity { stored: 12 * GIB, quota: 10 * GIB, ..open };
        assert_eq!(total_and_free(&over, false), (10.0, 0.0));
    }
}
