//! Schedules of mirror snapshots at any level, as an operator sets them: for all pools, a pool, or an image.
//!
//! The same module of ceph-mgr as in [`super::schedule`], which is about the images that Scoria itself looks after.

use serde_json::{Map, Value, json};

use crate::rbd::ffi::{Cluster, Failure};
use crate::rbd::types::{Due, Level, LevelScheduled, Schedule};

const LIST: &str = "rbd mirror snapshot schedule list";
const STATUS: &str = "rbd mirror snapshot schedule status";

pub(super) fn list(cluster: &Cluster, level: &Level) -> Result<Vec<LevelScheduled>, Failure> {
    read_list(&cluster.mgr_command(&json!({"prefix": LIST, "level_spec": level.spec()}))?)
}

pub(super) fn add(cluster: &Cluster, level: &Level, schedule: &Schedule) -> Result<(), Failure> {
    cluster.mgr_command(&change("rbd mirror snapshot schedule add", level, Some(schedule))).map(drop)
}

pub(super) fn remove(cluster: &Cluster, level: &Level, schedule: Option<&Schedule>) -> Result<(), Failure> {
    cluster.mgr_command(&change("rbd mirror snapshot schedule remove", level, schedule)).map(drop)
}

pub(super) fn due(cluster: &Cluster, level: &Level) -> Result<Vec<Due>, Failure> {
    read_due(&cluster.mgr_command(&json!({"prefix": STATUS, "level_spec": level.spec()}))?)
}

fn change(prefix: &str, level: &Level, schedule: Option<&Schedule>) -> Value {
    let mut fields = Map::new();
    fields.insert("prefix".to_owned(), json!(prefix));
    fields.insert("level_spec".to_owned(), json!(level.spec()));
    if let Some(schedule) = schedule {
        fields.insert("interval".to_owned(), json!(schedule.interval));
    }
    if let Some(start) = schedule.and_then(|s| s.start.as_ref()) {
        fields.insert("start_time".to_owned(), json!(start));
    }
    Value::Object(fields)
}

fn unexpected(command: &str, what: &str) -> Failure {
    let what = format!("manager command '{command}' answered something unexpected: {what}");
    Failure::new("rados_mgr_command", what, -i64::from(libc::EPROTO))
}

/// Levels are called `` (all pools), `pool/`, `pool/namespace/`, `pool//image` or `pool/image`. Those of namespaces
/// are left out: no volume is there.
fn read_list(output: &[u8]) -> Result<Vec<LevelScheduled>, Failure> {
    let all: Map<String, Value> =
        serde_json::from_slice(output).map_err(|e| unexpected(LIST, &e.to_string()))?;
    let mut found = Vec::new();
    for entry in all.values() {
        let name = entry.get("name").and_then(Value::as_str).ok_or_else(|| unexpected(LIST, "no name"))?;
        let of = |pool: &str, image: Option<&str>| Level {
            pool: Some(pool.to_owned()),
            image: image.map(str::to_owned),
        };
        let level = match name.split('/').collect::<Vec<_>>().as_slice() {
            [""] => Level::default(),
            [pool] | [pool, ""] | [pool, "", ""] => of(pool, None),
            [pool, image] | [pool, "", image] => of(pool, Some(*image)),
            _ => continue,
        };
        let items = entry.get("schedule").and_then(Value::as_array);
        let one = |item: &Value| {
            let interval = item.get("interval")?.as_str()?.to_owned();
            let start = item.get("start_time").and_then(Value::as_str).map(str::to_owned);
            Some(Schedule { interval, start })
        };
        let schedules =
            items.ok_or_else(|| unexpected(LIST, "no schedule"))?.iter().filter_map(one).collect();
        found.push(LevelScheduled { level, schedules });
    }
    found.sort_by(|a, b| a.level.cmp(&b.level));
    Ok(found)
}

fn read_due(output: &[u8]) -> Result<Vec<Due>, Failure> {
    let answer: Value = serde_json::from_slice(output).map_err(|e| unexpected(STATUS, &e.to_string()))?;
    let images = answer.get("scheduled_images").and_then(Value::as_array);
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).map(str::to_owned);
    let one = |item: &Value| Some(Due { at: text(item, "schedule_time")?, image: text(item, "image")? });
    Ok(images.ok_or_else(|| unexpected(STATUS, "no images"))?.iter().filter_map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(pool: Option<&str>, image: Option<&str>) -> Level {
        Level { pool: pool.map(str::to_owned), image: image.map(str::to_owned) }
    }

    #[test]
    fn every_level_is_named_and_read_back() {
        let output = json!({
            "": {"name": "", "schedule": [{"interval": "1d", "start_time": null}]},
            "2": {"name": "volumes/", "schedule": [{"interval": "1h", "start_time": "00:30:00"}]},
            "2//10ab": {"name": "volumes/v1", "schedule": [{"interval": "5m", "start_time": null}]},
            "2/ns/10ef": {"name": "volumes/ns/v3", "schedule": []},
        });
        let found = read_list(output.to_string().as_bytes()).unwrap();
        let levels: Vec<(String, &str)> = found.iter().map(|s| (s.level.spec(), s.level.kind())).collect();
        let named = |spec: &str, kind| (spec.to_owned(), kind);
        assert_eq!(levels, [named("", "global"), named("volumes/", "pool"), named("volumes/v1", "image")]);
        assert_eq!(found[1].schedules[0].to_string(), "1h@00:30");
        assert!(read_list(b"[]").is_err());
    }

    #[test]
    fn a_change_names_the_schedule_or_all_of_them() {
        let schedule: Schedule = "1h@00:30".parse().unwrap();
        assert_eq!(
            change("p", &level(Some("volumes"), None), Some(&schedule)),
            json!({"prefix": "p", "level_spec": "volumes/", "interval": "1h", "start_time": "00:30:00"})
        );
        assert_eq!(change("p", &level(None, None), None), json!({"prefix": "p", "level_spec": ""}));
    }

    #[test]
    fn what_is_due_is_read() {
        let output =
            br#"{"scheduled_images": [{"image": "volumes/v1", "schedule_time": "2026-01-01 00:05:00"}]}"#;
        let due = Due { at: "2026-01-01 00:05:00".into(), image: "volumes/v1".into() };
        assert_eq!(read_due(output).unwrap(), [due]);
        assert!(read_due(b"{}").is_err());
    }
}
