//! Schedules of mirror snapshots, as ceph-mgr's module rbd_support keeps them.
//!
//! It keeps those of an image under the image's internal id, in the image's own cluster, and carries them out only
//! where the image is primary. A schedule whose image is gone, or is not mirrored by snapshots any more, it forgets
//! within a minute. Right after the manager has started it answers EAGAIN.

use serde_json::{Value, json};

use crate::rbd::ffi::{Cluster, Failure};
use crate::rbd::types::{Schedule, Scheduled};

const LIST: &str = "rbd mirror snapshot schedule list";

pub(super) fn list(cluster: &Cluster, pool: &str) -> Result<Vec<Scheduled>, Failure> {
    let output = cluster.mgr_command(&json!({"prefix": LIST, "level_spec": format!("{pool}/")}))?;
    read_list(&output, pool)
}

pub(super) fn add(cluster: &Cluster, pool: &str, image: &str, schedule: &Schedule) -> Result<(), Failure> {
    change(cluster, "rbd mirror snapshot schedule add", pool, image, schedule)
}

pub(super) fn remove(cluster: &Cluster, pool: &str, image: &str, schedule: &Schedule) -> Result<(), Failure> {
    change(cluster, "rbd mirror snapshot schedule remove", pool, image, schedule)
}

fn change(
    cluster: &Cluster,
    prefix: &str,
    pool: &str,
    image: &str,
    schedule: &Schedule,
) -> Result<(), Failure> {
    let mut command = json!({
        "prefix": prefix, "level_spec": format!("{pool}/{image}"), "interval": schedule.interval,
    });
    if let (Some(start), Some(fields)) = (&schedule.start, command.as_object_mut()) {
        fields.insert("start_time".to_owned(), json!(start));
    }
    cluster.mgr_command(&command).map(drop)
}

/// Levels are called `` (all pools), `pool/`, `pool/namespace/`, `pool//image` or `pool/image`.
fn read_list(output: &[u8], pool: &str) -> Result<Vec<Scheduled>, Failure> {
    let unexpected = |what: &str| {
        let what = format!("manager command '{LIST}' answered something unexpected: {what}");
        Failure::new("rados_mgr_command", what, -i64::from(libc::EPROTO))
    };
    let all: Value = serde_json::from_slice(output).map_err(|e| unexpected(&e.to_string()))?;
    let levels = all.as_object().ok_or_else(|| unexpected("no object"))?;
    let mut found = Vec::new();
    for level in levels.values() {
        let name = level.get("name").and_then(Value::as_str).ok_or_else(|| unexpected("no name"))?;
        let image = match name.split('/').collect::<Vec<_>>().as_slice() {
            [""] => None,
            [of, ""] | [of, "", ""] if *of == pool => None,
            [of, image] | [of, "", image] if *of == pool => Some((*image).to_owned()),
            // Of a namespace, where no volume is.
            _ => continue,
        };
        let items =
            level.get("schedule").and_then(Value::as_array).ok_or_else(|| unexpected("no schedule"))?;
        let one = |item: &Value| {
            let interval = item.get("interval")?.as_str()?.to_owned();
            let start = item.get("start_time").and_then(Value::as_str).map(str::to_owned);
            Some(Schedule { interval, start })
        };
        found.push(Scheduled { image, schedules: items.iter().filter_map(one).collect() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn every_level_is_told_from_its_name() {
        let output = json!({
            "": {"name": "", "schedule": [{"interval": "1d", "start_time": null}]},
            "2": {"name": "volumes/", "schedule": [{"interval": "1h", "start_time": "00:30:00"}]},
            "2//10ab": {"name": "volumes//v1", "schedule": [{"interval": "5m", "start_time": null}]},
            "2//10cd": {"name": "volumes/v2", "schedule": []},
            "2/ns/10ef": {"name": "volumes/ns/v3", "schedule": []},
        });
        let mut found = read_list(output.to_string().as_bytes(), "volumes").unwrap();
        found.sort_by(|a, b| a.image.cmp(&b.image));
        let names: Vec<_> = found.iter().map(|s| s.image.as_deref()).collect();
        assert_eq!(names, [None, None, Some("v1"), Some("v2")]);
        assert_eq!(found[2].schedules, [Schedule { interval: "5m".into(), start: None }]);
        assert!(read_list(b"{}", "volumes").unwrap().is_empty());
        assert!(read_list(b"nonsense", "volumes").is_err());
    }
}
