//! rbd-mirror daemons as the manager knows them, and the orchestrator that may run them.
//!
//! A pool's own objects tell which clients serve it, but not on which machine, of which release, or what they complain
//! about: that is in the manager's service map, from where `rbd mirror pool status --verbose` has it, too
//! (`src/tools/rbd/action/MirrorPool.cc`). The commands of the orchestrator are those of its module in Ceph 16 to 20
//! (`src/pybind/mgr/orchestrator/module.py`: `orch apply`, `orch`, `orch rm`).

use serde_json::{Map, Value, json};

use crate::rbd::error::RbdErrorKind;
use crate::rbd::ffi::{Cluster, Failure};
use crate::rbd::types::{MirrorService, MirrorServicePool, OrchestratorVerb};

/// Name and type of the service, of all its daemons.
const SERVICE: &str = "rbd-mirror";

/// The daemons; `None` where this client may not ask.
pub(super) fn mirror_daemons(cluster: &Cluster) -> Result<Option<Vec<MirrorService>>, Failure> {
    let ask = |prefix: &str| {
        let output = cluster.mgr_command(&json!({"prefix": prefix, "format": "json"}));
        match output {
            Ok(output) => {
                serde_json::from_slice(&output).map(Some).map_err(|e| unexpected(prefix, &e.to_string()))
            }
            Err(refusal) if refusal.kind() == RbdErrorKind::Permission => Ok(None),
            Err(failure) => Err(failure),
        }
    };
    let Some(dump) = ask("service dump")? else { return Ok(None) };
    let Some(status) = ask("service status")? else { return Ok(None) };
    Ok(Some(read(&dump, &status)))
}

fn unexpected(command: &str, what: &str) -> Failure {
    let what = format!("manager command '{command}' answered something unexpected: {what}");
    Failure::new("rados_mgr_command", what, -i64::from(libc::EPROTO))
}

/// A map without the service is one that never had a daemon.
fn read(dump: &Value, status: &Value) -> Vec<MirrorService> {
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let daemons = dump.pointer("/services/rbd-mirror/daemons").and_then(Value::as_object);
    let one = |(number, daemon): (&String, &Value)| {
        // Beside the daemons there is a `summary`, a text.
        let about = daemon.get("metadata")?;
        let said =
            status.get(SERVICE).and_then(|of| of.get(number)).and_then(|of| of.pointer("/status/json"));
        let pools: Option<Map<String, Value>> =
            said.and_then(Value::as_str).and_then(|said| serde_json::from_str(said).ok());
        let mut pools: Vec<MirrorServicePool> = pools.iter().flatten().filter_map(|(_, p)| pool(p)).collect();
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        Some(MirrorService {
            id: text(about, "id"),
            host: text(about, "hostname"),
            version: text(about, "ceph_version_short"),
            instance: Some(text(about, "instance_id")).filter(|id| !id.is_empty()).unwrap_or(number.clone()),
            pools,
        })
    };
    let mut found: Vec<MirrorService> = daemons.into_iter().flatten().filter_map(one).collect();
    found.sort_by(|a, b| (&a.id, &a.instance).cmp(&(&b.id, &b.instance)));
    found
}

fn pool(said: &Value) -> Option<MirrorServicePool> {
    let count = |key: &str| said.get(key).and_then(Value::as_u64).unwrap_or(0);
    let callouts = said.get("callouts").and_then(Value::as_object);
    let callout = |(_, c): (&String, &Value)| {
        let text = |key: &str| c.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((text("level")?, text("text")?))
    };
    Some(MirrorServicePool {
        name: said.get("name")?.as_str()?.to_owned(),
        leader: said.get("leader").and_then(Value::as_bool).unwrap_or(false),
        images: count("image_assigned_count"),
        errors: count("image_error_count"),
        warnings: count("image_warning_count"),
        callouts: callouts.into_iter().flatten().filter_map(callout).collect(),
    })
}

/// Has the orchestrator run the service.
pub(super) fn apply(cluster: &Cluster, placement: Option<&str>) -> Result<(), Failure> {
    cluster.mgr_command(&apply_command(placement)).map(drop)
}

fn apply_command(placement: Option<&str>) -> Value {
    let mut command = json!({"prefix": "orch apply", "service_type": SERVICE});
    if let (Some(placement), Some(fields)) = (placement, command.as_object_mut()) {
        fields.insert("placement".to_owned(), json!(placement));
    }
    command
}

/// Tells the orchestrator what to do with it.
pub(super) fn act(cluster: &Cluster, act: OrchestratorVerb) -> Result<(), Failure> {
    cluster.mgr_command(&act_command(act)).map(drop)
}

fn act_command(act: OrchestratorVerb) -> Value {
    match act {
        OrchestratorVerb::Rm => json!({"prefix": "orch rm", "service_name": SERVICE}),
        OrchestratorVerb::Start | OrchestratorVerb::Stop | OrchestratorVerb::Restart => {
            json!({"prefix": "orch", "action": act.as_str(), "service_name": SERVICE})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_orchestrator_is_asked_in_its_own_words() {
        assert_eq!(apply_command(None), json!({"prefix": "orch apply", "service_type": "rbd-mirror"}));
        assert_eq!(
            apply_command(Some("2 host:a,b")),
            json!({"prefix": "orch apply", "service_type": "rbd-mirror", "placement": "2 host:a,b"})
        );
        assert_eq!(
            act_command(OrchestratorVerb::Restart),
            json!({"prefix": "orch", "action": "restart", "service_name": "rbd-mirror"})
        );
        assert_eq!(
            act_command(OrchestratorVerb::Rm),
            json!({"prefix": "orch rm", "service_name": "rbd-mirror"})
        );
    }

    #[test]
    fn daemons_are_read_from_both_maps() {
        let about = json!({"id": "a", "hostname": "node1", "ceph_version_short": "16.2.15",
            "instance_id": "4146"});
        let dump = json!({"epoch": 3, "services": {"rbd-mirror": {"daemons": {
            "summary": "", "4137": {"gid": 4137, "metadata": about}}}}});
        let pool = json!({"2": {"name": "volumes", "leader": true, "image_assigned_count": 3, "image_error_count": 1,
            "callouts": {"1": {"level": "error", "text": "peer is away"}}}});
        let status = json!({"rbd-mirror": {"4137": {"status": {"json": pool.to_string()}}}});
        let found = read(&dump, &status);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].host.as_str(), found[0].instance.as_str()), ("node1", "4146"));
        let seen = &found[0].pools[0];
        assert_eq!((seen.name.as_str(), seen.leader, seen.images, seen.errors), ("volumes", true, 3, 1));
        assert_eq!(seen.callouts, [("error".to_owned(), "peer is away".to_owned())]);
        assert!(read(&dump, &json!({}))[0].pools.is_empty(), "it has not reported yet");
        assert!(read(&json!({"services": {}}), &status).is_empty());
    }
}
