//! What Nova is told to connect to: `initialize_connection` and the flat form of `attachment_update`.
//!
//! Upstream asks `ceph mon dump` by spawning the command on every call; here it is one request to a
//! worker that is connected already. The keys, their types and the cluster name of a replication
//! target (its `backend_id`) are upstream's (reference rbd_driver.md 4.10, volume_rpc.md 2.5): libvirt
//! secrets and keyring file names on the hosts depend on them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{Code, Error, Result};

/// A monitor's address taken apart for libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// IP address, without brackets.
    pub host: String,
    /// Port as text, as libvirt's XML wants it.
    pub port: String,
}

/// Splits `ip:port/nonce`; brackets of IPv6 are removed.
pub fn monitor(address: &str) -> Option<Monitor> {
    let address = address.split('/').next().unwrap_or(address);
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || port.parse::<u16>().is_err() {
        return None;
    }
    Some(Monitor { host: host.to_owned(), port: port.to_owned() })
}

/// Everything that goes into the connection info of one volume.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    /// Pool.
    pub pool: &'a str,
    /// Image.
    pub image: &'a str,
    /// Volume id.
    pub volume_id: &'a str,
    /// Monitors of the active site.
    pub monitors: &'a [Monitor],
    /// `rbd_cluster_name`, or the target's `backend_id`.
    pub cluster_name: &'a str,
    /// cephx user of the active site.
    pub user: Option<&'a str>,
    /// libvirt secret of the active site.
    pub secret_uuid: &'a str,
    /// Front-end QoS specs, already expanded.
    pub qos_specs: Option<Map<String, Value>>,
    /// `ro` or `rw`.
    pub access_mode: &'a str,
    /// The volume has an encryption key.
    pub encrypted: bool,
    /// The connector's wish.
    pub enforce_multipath: Value,
    /// Physical and logical block size, when they are configured.
    pub block_sizes: Option<(&'static str, &'static str)>,
    /// The type's `cacheable` spec.
    pub cacheable: bool,
}

/// The `{driver_volume_type, data}` document of `initialize_connection`.
pub fn info(connect: &Connect<'_>) -> Value {
    let mut info = json!({
        "driver_volume_type": "rbd",
        "data": {
            "name": format!("{}/{}", connect.pool, connect.image),
            "hosts": connect.monitors.iter().map(|m| m.host.as_str()).collect::<Vec<_>>(),
            "ports": connect.monitors.iter().map(|m| m.port.as_str()).collect::<Vec<_>>(),
            "cluster_name": connect.cluster_name,
            "auth_enabled": connect.user.is_some(),
            "auth_username": connect.user,
            "secret_type": "ceph",
            "secret_uuid": connect.secret_uuid,
            "volume_id": connect.volume_id,
            "discard": true,
            "qos_specs": connect.qos_specs,
            "access_mode": connect.access_mode,
            "encrypted": connect.encrypted,
            "cacheable": connect.cacheable,
            "enforce_multipath": connect.enforce_multipath,
        }
    });
    if let Some((physical, logical)) = connect.block_sizes {
        info["data"]["physical_block_size"] = json!(physical);
        info["data"]["logical_block_size"] = json!(logical);
    }
    info
}

/// `attachment_update` answers the same, with `data` lifted to the top level.
pub fn flat(info: Value, attachment_id: &str) -> Value {
    let Value::Object(mut info) = info else { return info };
    let mut flat = match info.remove("data") {
        Some(Value::Object(data)) => data,
        _ => Map::new(),
    };
    flat.insert("driver_volume_type".into(), info.remove("driver_volume_type").unwrap_or(Value::Null));
    flat.insert("attachment_id".into(), Value::String(attachment_id.to_owned()));
    Value::Object(flat)
}

/// The connector's wish as it is, false when it has none (`connector.get('enforce_multipath', False)`).
pub fn enforce_multipath(connector: &Value) -> Value {
    connector.get("enforce_multipath").cloned().unwrap_or(Value::Bool(false))
}

/// `initialize_connection` refuses a connector that is not an object (`InvalidInput`).
pub fn check_connector(connector: &Value) -> Result<&Map<String, Value>> {
    connector.as_object().ok_or_else(|| {
        Error::new(
            Code::InvalidInput,
            "The connector of the host must be an object with at least its host name",
        )
    })
}

/// Front-end QoS specs as Nova wants them: for the six tunables a `…_per_gb` value is multiplied by the
/// size, not less than `…_per_gb_min`, not more than `…_max`; the rest stays as it is
/// (`cinder/volume/manager.py`, `_parse_connection_options`).
///
/// # Errors
/// `InvalidInput` when one of these values is not a whole number.
pub fn expand_qos(
    specs: impl IntoIterator<Item = (String, String)>,
    size_gb: i32,
) -> Result<Map<String, Value>> {
    const TUNABLES: [&str; 6] = [
        "read_iops_sec",
        "read_bytes_sec",
        "write_iops_sec",
        "write_bytes_sec",
        "total_iops_sec",
        "total_bytes_sec",
    ];
    let mut specs: BTreeMap<String, String> = specs.into_iter().collect();
    let mut expanded = Map::new();
    for option in TUNABLES {
        let Some(per_gb) = specs.remove(&format!("{option}_per_gb")) else { continue };
        let min = specs.remove(&format!("{option}_per_gb_min"));
        let value = whole(option, &per_gb)?
            .saturating_mul(i64::from(size_gb))
            .max(min.map_or(Ok(0), |m| whole(option, &m))?);
        let max = specs.remove(&format!("{option}_max")).map_or(Ok(value), |m| whole(option, &m))?;
        specs.remove(option);
        expanded.insert(option.to_owned(), json!(value.min(max)));
    }
    expanded.extend(specs.into_iter().map(|(k, v)| (k, Value::String(v))));
    Ok(expanded)
}

fn whole(option: &str, value: &str) -> Result<i64> {
    value.trim().parse().map_err(|_| {
        Error::new(
            Code::InvalidInput,
            format!(
                "QoS spec {option}: '{value}' is not a whole number; correct the specs of the volume type"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitors_of_both_families() {
        let v4 = monitor("127.0.0.1:6789/0").unwrap();
        assert_eq!((v4.host.as_str(), v4.port.as_str()), ("127.0.0.1", "6789"));
        assert_eq!(monitor("[fd00::1]:6789/0").unwrap().host, "fd00::1");
        assert_eq!(monitor("nonsense"), None);
        assert_eq!(monitor("h:notaport/0"), None);
    }

    #[test]
    fn qos_per_gb_is_expanded_and_has_a_floor() {
        let specs =
            [("total_iops_sec_per_gb", "30"), ("total_iops_sec_per_gb_min", "100"), ("read_bytes_sec", "5")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()));
        let small = expand_qos(specs.clone(), 2).unwrap();
        assert_eq!(small["total_iops_sec"], json!(100));
        assert_eq!(expand_qos(specs.clone(), 10).unwrap()["total_iops_sec"], json!(300));
        assert_eq!(small["read_bytes_sec"], json!("5"));
        let capped = specs.into_iter().chain([("total_iops_sec_max".to_owned(), "120".to_owned())]);
        assert_eq!(expand_qos(capped, 10).unwrap()["total_iops_sec"], json!(120));
        assert!(expand_qos([("read_iops_sec_per_gb".to_owned(), "many".to_owned())], 1).is_err());
    }
}
