//! Commands that connect clusters: pools, peers, and the users by which they reach each other.
//!
//! Keys and tokens are made, carried from one cluster to the other and forgotten here: the service never has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::about;
use super::monitor::{ask, unexpected};
use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Cluster, Failure, IoCtx};
use crate::rbd::link::{BOOTSTRAP_USER, ErasureProfile, OsdPlace, PoolShape, Redundancy, Way};
use crate::rbd::mirror_survey::PeerDirection;
use crate::rbd::protocol::PeerAdd;

/// Where librbd notes which user bootstrap tokens are for (`RBD_MIRROR_PEER_CLIENT_ID_CONFIG_KEY`).
const BOOTSTRAP_NOTE: &str = "rbd/mirror/peer_client_id";

/// The other site of a command that has two.
pub(super) fn other(second: Option<&Arc<Cluster>>) -> Result<&Arc<Cluster>, Failure> {
    let missing = || Failure::new("rados_connect", "the other site is missing", -i64::from(libc::EINVAL));
    second.ok_or_else(missing)
}

/// All OSDs with the buckets above them.
pub(super) fn osds(cluster: &Cluster) -> Result<Vec<OsdPlace>, Failure> {
    let tree = ask(cluster, json!({"prefix": "osd tree", "format": "json"}))?;
    read_tree(&tree).ok_or_else(|| unexpected("osd tree", "no list of nodes"))
}

fn read_tree(tree: &Value) -> Option<Vec<OsdPlace>> {
    let nodes = tree.get("nodes")?.as_array()?;
    let number = |node: &Value| node.get("id").and_then(Value::as_i64);
    let text = |node: &Value, key: &str| node.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut above: BTreeMap<i64, &Value> = BTreeMap::new();
    for node in nodes {
        let children = node.get("children").and_then(Value::as_array).into_iter().flatten();
        above.extend(children.filter_map(Value::as_i64).map(|child| (child, node)));
    }
    let place = |node: &Value| -> Option<OsdPlace> {
        let id = number(node)?;
        let mut within = BTreeMap::new();
        let mut at = id;
        // As deep as CRUSH has types, and no deeper, whatever the answer says.
        for _ in 0..16 {
            let Some(bucket) = above.get(&at) else { break };
            within.insert(text(bucket, "type"), text(bucket, "name"));
            let Some(next) = number(bucket) else { break };
            at = next;
        }
        let weight = node.get("reweight").and_then(Value::as_f64).unwrap_or(0.0);
        let serves = text(node, "status") == "up" && weight > 0.0;
        Some(OsdPlace { id, class: text(node, "device_class"), serves, within })
    };
    Some(nodes.iter().filter(|node| text(node, "type") == "osd").filter_map(place).collect())
}

/// Makes a profile; the same again is a success.
pub(super) fn set_profile(cluster: &Cluster, profile: &ErasureProfile) -> Result<(), Failure> {
    let command =
        json!({"prefix": "osd erasure-code-profile set", "name": profile.name, "profile": profile.words()});
    cluster.mon_command(&command).map(drop)
}

/// Makes a pool, sets what it is to have, and says what it is for.
pub(super) fn ensure_pool(cluster: &Cluster, pool: &str, shape: &PoolShape) -> Result<(), Failure> {
    let mut create = json!({"prefix": "osd pool create", "pool": pool});
    let mut put =
        |key: &str, value: Value| create.as_object_mut().map(|map| map.insert(key.to_owned(), value));
    if let Some(pg_num) = shape.pg_num {
        put("pg_num", json!(pg_num));
        put("pgp_num", json!(pg_num));
    }
    match &shape.redundancy {
        Redundancy::Replicated(size) => {
            put("pool_type", json!("replicated"));
            if let Some(size) = size {
                put("size", json!(size));
            }
        }
        Redundancy::Erasure(profile) => {
            put("pool_type", json!("erasure"));
            put("erasure_code_profile", json!(profile));
        }
    }
    cluster.mon_command(&create)?;
    let set = |key: &str, value: String| {
        cluster.mon_command(&json!({"prefix": "osd pool set", "pool": pool, "var": key, "val": value}))
    };
    if let Some(min_size) = shape.min_size {
        set("min_size", min_size.to_string())?;
    }
    if matches!(shape.redundancy, Redundancy::Erasure(_)) {
        set("allow_ec_overwrites", "true".to_owned())?;
    }
    let enable = json!({"prefix": "osd pool application enable", "pool": pool, "app": "rbd"});
    cluster.mon_command(&enable).map(drop)
}

/// Carries a token from the source to the receiver.
pub(super) fn bootstrap(pool: &IoCtx, source: &IoCtx, way: Way) -> Result<(), Failure> {
    let token = source.bootstrap_token()?;
    pool.bootstrap_import(way, &token)
}

/// Makes the user on the source, and the peer on the receiver.
pub(super) fn add_peer(pool: &IoCtx, source: &Cluster, c: &PeerAdd) -> Result<(), Failure> {
    let receiving = |direction: PeerDirection| direction != PeerDirection::Sends;
    let peers = pool.mirror_peers()?;
    let client = format!("client.{}", c.user);
    // librbd takes a second one, and then no rbd-mirror works with the pool.
    if let Some(other) = peers.iter().find(|p| receiving(p.direction) && p.site_name != c.source_name) {
        let what = format!("pool {} receives from {} already", c.pool, other.site_name);
        return Err(Failure::new("rbd_mirror_peer_site_add", what, -i64::from(libc::EEXIST)));
    }
    // One that is there keeps its key, and may have to get other capabilities.
    ask(source, json!({"prefix": "auth get-or-create", "entity": client, "format": "json"}))?;
    allow(source, &c.user, &c.pools)?;
    let made = ask(source, json!({"prefix": "auth get", "entity": client, "format": "json"}))?;
    let key =
        made.pointer("/0/key").and_then(Value::as_str).ok_or_else(|| unexpected("auth get", "no key"))?;
    let monitors = about::addresses(&ask(source, json!({"prefix": "mon dump", "format": "json"}))?);
    let known = peers.iter().find(|p| receiving(p.direction) && p.client_name == client);
    let uuid = match known {
        Some(peer) => peer.uuid.clone(),
        None => {
            // One for the other way, or of another user, would be a second one of the same name.
            for peer in peers.iter().filter(|p| p.site_name == c.source_name) {
                pool.remove_peer(&peer.uuid)?;
            }
            pool.add_peer(&c.source_name, &client)?
        }
    };
    pool.set_peer(&uuid, &monitors.join(","), key)
}

/// Gives the user of a link the capabilities for these pools, in place of those that it has.
pub(super) fn allow(cluster: &Cluster, user: &str, pools: &[String]) -> Result<(), Failure> {
    let of = |pool: &String| format!("profile rbd pool={pool}");
    let osd = pools.iter().map(of).collect::<Vec<_>>().join(", ");
    let caps = json!(["mon", "profile rbd-mirror-peer", "osd", osd]);
    let entity = format!("client.{user}");
    cluster.mon_command(&json!({"prefix": "auth caps", "entity": entity, "caps": caps})).map(drop)
}

/// Whether there is such a client.
pub(super) fn client_exists(cluster: &Cluster, user: &str) -> Result<bool, Failure> {
    let command = json!({"prefix": "auth get", "entity": format!("client.{user}"), "format": "json"});
    match cluster.mon_command(&command) {
        Ok(_) => Ok(true),
        Err(failure) if failure.kind() == RbdErrorKind::NotFound => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Removes a client; one that is gone is a success for the monitors, too.
pub(super) fn remove_client(cluster: &Cluster, user: &str) -> Result<(), Failure> {
    cluster.mon_command(&json!({"prefix": "auth del", "entity": format!("client.{user}")}))?;
    if user == BOOTSTRAP_USER {
        cluster.mon_command(&json!({"prefix": "config-key rm", "key": BOOTSTRAP_NOTE}))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn osds_are_read_with_all_that_is_above_them() {
        let tree = json!({"nodes": [
            {"id": -1, "name": "default", "type": "root", "children": [-5]},
            {"id": -5, "name": "r1", "type": "rack", "children": [-3]},
            {"id": -3, "name": "h1", "type": "host", "children": [1, 0]},
            {"id": 0, "name": "osd.0", "type": "osd", "status": "up", "reweight": 1.0, "device_class": "ssd"},
            {"id": 1, "name": "osd.1", "type": "osd", "status": "up", "reweight": 0.0},
        ], "stray": []});
        let osds = read_tree(&tree).unwrap();
        assert_eq!((osds.len(), osds[0].serves, osds[1].serves), (2, true, false));
        assert_eq!((osds[0].class.as_str(), osds[0].within["host"].as_str()), ("ssd", "h1"));
        assert_eq!((osds[0].within["rack"].as_str(), osds[0].within["root"].as_str()), ("r1", "default"));
        assert!(read_tree(&json!({})).is_none());
    }
}
