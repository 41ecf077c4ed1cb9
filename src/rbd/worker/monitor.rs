//! Commands that the monitors answer, as JSON.

use serde_json::{Value, json};

use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Cluster, Failure};
use crate::rbd::types::{BlocklistEntry, PoolCapacity};

/// The fsid, from monitors that have a quorum: `quorum_status` waits for one, `fsid` does not.
pub(super) fn quorum_fsid(cluster: &Cluster) -> Result<String, Failure> {
    let status = ask(cluster, json!({"prefix": "quorum_status", "format": "json"}))?;
    match status.pointer("/monmap/fsid").and_then(Value::as_str) {
        Some(fsid) => Ok(fsid.to_owned()),
        None => Err(unexpected("quorum_status", "no monmap.fsid")),
    }
}

/// Legacy addresses of the monitors.
pub(super) fn addresses(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let dump = ask(cluster, json!({"prefix": "mon dump", "format": "json"}))?;
    let mons = dump.get("mons").and_then(Value::as_array);
    let mons = mons.ok_or_else(|| unexpected("mon dump", "no list of monitors"))?;
    Ok(mons.iter().filter_map(|mon| mon.get("addr")?.as_str()).map(str::to_owned).collect())
}

/// Capacity of a pool that exists.
pub(super) fn capacity(cluster: &Cluster, pool: &str) -> Result<PoolCapacity, Failure> {
    let df = ask(cluster, json!({"prefix": "df", "format": "json"}))?;
    let quota = ask(cluster, json!({"prefix": "osd pool get-quota", "pool": pool, "format": "json"}))?;
    read_capacity(&df, &quota, pool)
}

fn read_capacity(df: &Value, quota: &Value, pool: &str) -> Result<PoolCapacity, Failure> {
    let pools = df.get("pools").and_then(Value::as_array);
    let entry = pools.and_then(|pools| pools.iter().find(|p| p.get("name").is_some_and(|n| n == pool)));
    let stats = entry.and_then(|pool| pool.get("stats"));
    let stats = stats.ok_or_else(|| unexpected("df", &format!("no figures of pool {pool}")))?;
    let bytes = |of: &Value, key: &str| of.get(key).and_then(Value::as_u64);
    let stored = bytes(stats, "stored").or_else(|| bytes(stats, "bytes_used"));
    let total = df.get("stats").and_then(|stats| bytes(stats, "total_bytes"));
    match (stored, bytes(stats, "max_avail"), total) {
        (Some(stored), Some(max_avail), Some(cluster_total)) => Ok(PoolCapacity {
            stored,
            max_avail,
            cluster_total,
            quota: bytes(quota, "quota_max_bytes").unwrap_or(0),
        }),
        _ => Err(unexpected("df", "stored, max_avail or total_bytes is missing")),
    }
}

/// Ends a client's fence.
pub(super) fn blocklist_remove(cluster: &Cluster, address: &str) -> Result<(), Failure> {
    let command = json!({"prefix": "osd blocklist", "blocklistop": "rm", "addr": address});
    cluster.mon_command(&command).map(drop)
}

/// No address, but of the form that `profile rbd` lets be fenced (`MonCap.cc`). The monitors look at a client's
/// capabilities before they look at what it asks for.
const NO_ADDRESS: &str = "scoria-may-fence/1";

/// Whether this client may fence others: the monitors refuse either the client, or the address.
pub(super) fn may_fence(cluster: &Cluster) -> Result<bool, Failure> {
    let command = json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": NO_ADDRESS});
    match cluster.mon_command(&command) {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.kind() == RbdErrorKind::Invalid => Ok(true),
        Err(refusal) if refusal.kind() == RbdErrorKind::Permission => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Addresses of all fenced clients.
pub(super) fn blocklist(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    Ok(blocklist_entries(cluster)?.into_iter().map(|entry| entry.address).collect())
}

/// The same with the end of each entry.
pub(super) fn blocklist_entries(cluster: &Cluster) -> Result<Vec<BlocklistEntry>, Failure> {
    read_blocklist(&cluster.mon_command(&json!({"prefix": "osd blocklist ls", "format": "json"}))?)
}

/// Ceph 16.2.15 prints two arrays one after the other (clients, then ranges), others one.
fn read_blocklist(output: &[u8]) -> Result<Vec<BlocklistEntry>, Failure> {
    let mut found = Vec::new();
    for list in serde_json::Deserializer::from_slice(output).into_iter::<Value>() {
        let list = list.map_err(|e| unexpected("osd blocklist ls", &e.to_string()))?;
        let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let read = |entry: &Value| {
            let address = entry.get("addr").or_else(|| entry.get("range"))?.as_str()?.to_owned();
            let until = entry.get("until").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some(BlocklistEntry { address, until })
        };
        found.extend(entries.iter().filter_map(read));
    }
    Ok(found)
}

pub(super) fn ask(cluster: &Cluster, command: Value) -> Result<Value, Failure> {
    let output = cluster.mon_command(&command)?;
    let prefix = command.get("prefix").and_then(Value::as_str).unwrap_or_default();
    serde_json::from_slice(&output).map_err(|e| unexpected(prefix, &e.to_string()))
}

pub(super) fn unexpected(command: &str, what: &str) -> Failure {
    let what = format!("monitor command '{command}' answered something unexpected: {what}");
    Failure::new("rados_mon_command", what, -i64::from(libc::EPROTO))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn the_blocklist_of_any_release_is_read() {
        assert!(read_blocklist(b"[][]").unwrap().is_empty());
        let two = br#"[{"addr":"10.0.0.1:0/7","until":"2026-01-01"}][{"range":"10.1.0.0:0/16","until":"x"}]"#;
        let read = |output: &[u8]| -> Vec<(String, String)> {
            read_blocklist(output).unwrap().into_iter().map(|e| (e.address, e.until)).collect()
        };
        let pair = |address: &str, until: &str| (address.to_owned(), until.to_owned());
        assert_eq!(read(two), [pair("10.0.0.1:0/7", "2026-01-01"), pair("10.1.0.0:0/16", "x")]);
        assert_eq!(read(br#"[{"addr":"10.0.0.1:0/7"}]"#), [pair("10.0.0.1:0/7", "")]);
        assert!(read_blocklist(b"nonsense").is_err());
    }

    #[test]
    fn capacity_prefers_stored_and_wants_all_figures() {
        let df = json!({
            "stats": {"total_bytes": 1000},
            "pools": [
                {"name": "images", "stats": {"stored": 1, "max_avail": 2}},
                {"name": "volumes", "stats": {"stored": 10, "bytes_used": 30, "max_avail": 900}},
                {"name": "old", "stats": {"bytes_used": 30, "max_avail": 900}},
                {"name": "broken", "stats": {"stored": 10}},
            ],
        });
        let quota = json!({"quota_max_bytes": 500});
        let expected = PoolCapacity { stored: 10, max_avail: 900, cluster_total: 1000, quota: 500 };
        assert_eq!(read_capacity(&df, &quota, "volumes"), Ok(expected));
        assert_eq!(read_capacity(&df, &json!({}), "old").unwrap().stored, 30);
        assert!(read_capacity(&df, &quota, "broken").is_err());
        assert!(read_capacity(&df, &quota, "absent").is_err());
    }
}
