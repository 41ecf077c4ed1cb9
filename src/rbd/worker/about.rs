//! What a cluster says of itself, and what it lets this client do.
//!
//! A client cannot read its own capabilities (`profile rbd` lets nobody look at keys), so they are found out by
//! asking for things that change nothing when they are granted: an object that is not there is read, and removed;
//! the key of a client that does not exist is looked at. Who may not is told so before anybody looks whether it is
//! there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::monitor::{ask, unexpected};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Cluster, Failure, IoCtx};
use crate::rbd::types::{Access, ClusterReport, PoolInfo, Rights};

/// No client has this name, no object either.
const NOBODY: &str = "scoria-no-such-thing";
/// `pg_pool_t::TYPE_ERASURE`.
const ERASURE: u64 = 3;

/// fsid, release, health, monitors and pools.
pub(super) fn status(cluster: &Cluster) -> Result<ClusterReport, Failure> {
    let health = ask(cluster, json!({"prefix": "health", "format": "json"}))?;
    let versions = ask(cluster, json!({"prefix": "versions", "format": "json"}))?;
    let monitors = ask(cluster, json!({"prefix": "mon dump", "format": "json"}))?;
    let pools = ask(cluster, json!({"prefix": "osd pool ls", "detail": "detail", "format": "json"}))?;
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).map(str::to_owned);
    Ok(ClusterReport {
        fsid: text(&monitors, "fsid").ok_or_else(|| unexpected("mon dump", "no fsid"))?,
        version: oldest(&versions).ok_or_else(|| unexpected("versions", "no release"))?,
        health: text(&health, "status").ok_or_else(|| unexpected("health", "no status"))?,
        checks: checks(&health),
        monitors: addresses(&monitors),
        pools: read_pools(&pools).ok_or_else(|| unexpected("osd pool ls", "no list of pools"))?,
    })
}

/// Lowest of `ceph version 16.2.15 (…) pacific (stable)`.
fn oldest(versions: &Value) -> Option<String> {
    let number = |text: &str| text.split_whitespace().nth(2).map(str::to_owned);
    let parts =
        |text: &String| text.split(['.', '-']).map(|p| p.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>();
    versions.get("overall")?.as_object()?.keys().filter_map(|text| number(text)).min_by_key(parts)
}

fn checks(health: &Value) -> Vec<(String, String)> {
    let all = health.get("checks").and_then(Value::as_object);
    let open = all.into_iter().flatten().filter(|(_, check)| check.get("muted") != Some(&Value::Bool(true)));
    open.map(|(code, check)| {
        let message = check.pointer("/summary/message").and_then(Value::as_str).unwrap_or_default();
        (code.clone(), message.to_owned())
    })
    .collect()
}

pub(super) fn addresses(dump: &Value) -> Vec<String> {
    let mons = dump.get("mons").and_then(Value::as_array);
    let one = |mon: &Value| -> Option<String> {
        let vector = mon.pointer("/public_addrs/addrvec")?.as_array()?;
        let part = |a: &Value| Some(format!("{}:{}", a.get("type")?.as_str()?, a.get("addr")?.as_str()?));
        let parts: Vec<String> = vector.iter().filter_map(part).collect();
        (!parts.is_empty()).then(|| format!("[{}]", parts.join(",")))
    };
    mons.into_iter().flatten().filter_map(one).collect()
}

fn read_pools(list: &Value) -> Option<Vec<PoolInfo>> {
    let number = |pool: &Value, key: &str| {
        pool.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    };
    let one = |pool: &Value| {
        let uses = pool.get("application_metadata").and_then(Value::as_object);
        Some(PoolInfo {
            name: pool.get("pool_name")?.as_str()?.to_owned(),
            erasure: pool.get("type").and_then(Value::as_u64) == Some(ERASURE),
            size: number(pool, "size"),
            min_size: number(pool, "min_size"),
            applications: uses.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
        })
    };
    Some(list.as_array()?.iter().filter_map(one).collect())
}

/// Whether this client sees keys, and its capabilities where it does. Of the answers only those leave this function.
pub(super) fn rights(cluster: &Cluster, user: &str) -> Result<Rights, Failure> {
    let look = |name: &str| {
        let command = json!({"prefix": "auth get", "entity": format!("client.{name}"), "format": "json"});
        match cluster.mon_command(&command) {
            Ok(output) => Ok(Some(output)),
            Err(refusal) => match refusal.kind() {
                RbdErrorKind::NotFound => Ok(Some(Vec::new())),
                RbdErrorKind::Permission => Ok(None),
                _ => Err(refusal),
            },
        }
    };
    let reads_keys = look(NOBODY)?.is_some();
    let caps = look(user)?.and_then(|output| caps(&output));
    Ok(Rights { caps, reads_keys })
}

fn caps(output: &[u8]) -> Option<BTreeMap<String, String>> {
    let found: Value = serde_json::from_slice(output).ok()?;
    let caps = found.pointer("/0/caps")?.as_object()?;
    Some(caps.iter().filter_map(|(daemon, text)| Some((daemon.clone(), text.as_str()?.to_owned()))).collect())
}

/// Whether objects may be read, and written: what is not there can be neither, which is found out after whether one
/// may.
pub(super) fn access(pool: &IoCtx) -> Result<Access, Failure> {
    fn granted<T>(answer: Result<T, Failure>) -> Result<bool, Failure> {
        match answer {
            Ok(_) => Ok(true),
            Err(failure) => match failure.kind() {
                RbdErrorKind::NotFound => Ok(true),
                RbdErrorKind::Permission => Ok(false),
                _ => Err(failure),
            },
        }
    }
    Ok(Access { read: granted(pool.read_object(NOBODY, 1))?, write: granted(pool.remove_object(NOBODY))? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_oldest_release_counts() {
        let versions = json!({"mon": {}, "overall": {
            "ceph version 16.2.15 (618f44) pacific (stable)": 3, "ceph version 16.2.9 (4c3647) pacific (stable)": 1}});
        assert_eq!(oldest(&versions), Some("16.2.9".to_owned()));
        assert_eq!(oldest(&json!({"overall": {}})), None);
    }

    #[test]
    fn health_monitors_and_pools_are_read() {
        let health = json!({"status": "HEALTH_WARN", "checks": {
            "POOL_NO_REDUNDANCY": {"severity": "HEALTH_WARN", "summary": {"message": "1 pool(s)", "count": 1}, "muted": false},
            "MON_DISK_LOW": {"summary": {"message": "low"}, "muted": true}}});
        assert_eq!(checks(&health), [("POOL_NO_REDUNDANCY".to_owned(), "1 pool(s)".to_owned())]);
        let dump = json!({"mons": [{"name": "a", "public_addrs": {"addrvec": [
            {"type": "v2", "addr": "10.0.0.1:3300", "nonce": 0}, {"type": "v1", "addr": "10.0.0.1:6789", "nonce": 0}]}}]});
        assert_eq!(addresses(&dump), ["[v2:10.0.0.1:3300,v1:10.0.0.1:6789]"]);
        let list = json!([
            {"pool_name": "volumes", "type": 1, "size": 3, "min_size": 2, "application_metadata": {"rbd": {}}},
            {"pool_name": "ec", "type": 3, "size": 6, "min_size": 5, "application_metadata": {}}]);
        let pools = read_pools(&list).unwrap();
        assert_eq!((pools[0].erasure, pools[1].erasure), (false, true));
        assert_eq!(pools[0].applications, ["rbd"]);
    }

    #[test]
    fn of_an_answer_with_a_key_only_the_capabilities_are_taken() {
        let answer = br#"[{"entity":"client.x","key":"AQ==","caps":{"mon":"profile rbd"}}]"#;
        assert_eq!(caps(answer), Some(BTreeMap::from([("mon".to_owned(), "profile rbd".to_owned())])));
        assert_eq!(caps(b""), None);
    }
}
