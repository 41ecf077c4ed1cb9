//! `CleanupRequest`, `LogLevel` and `LogLevelList`: what administrators ask of a service.

use chrono::NaiveDateTime;
use serde_json::{Map, Value};

use super::{Object, fields::text_value};
use crate::error::Result;

/// Which `workers` rows `do_cleanup` shall clean. Unset fields do not restrict.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct CleanupRequest {
    pub service_id: Option<i32>,
    pub cluster_name: Option<String>,
    pub host: Option<String>,
    pub binary: Option<String>,
    pub is_up: Option<bool>,
    pub disabled: Option<bool>,
    pub resource_id: Option<String>,
    /// `Volume` or `Snapshot`.
    pub resource_type: Option<String>,
    /// Rows touched later than this are in use; unset: now.
    pub until: Option<NaiveDateTime>,
}

impl CleanupRequest {
    /// Reads an argument that must be a CleanupRequest.
    pub fn parse(value: &Value) -> Result<CleanupRequest> {
        let o = Object::expect(value, "CleanupRequest")?;
        Ok(CleanupRequest {
            service_id: o.integer("service_id")?,
            cluster_name: o.text("cluster_name")?,
            host: o.text("host")?,
            binary: o.text("binary")?,
            is_up: o.boolean("is_up")?,
            disabled: o.boolean("disabled")?,
            resource_id: o.text("resource_id")?,
            resource_type: o.text("resource_type")?,
            until: o.time("until")?,
        })
    }
}

/// A logger and its level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogLevel {
    /// Prefix of logger names; unset or empty: all.
    pub prefix: Option<String>,
    /// `DEBUG`, `INFO`, `WARNING`, `ERROR`, `CRITICAL`.
    pub level: Option<String>,
}

impl LogLevel {
    /// Reads an argument that must be a LogLevel.
    pub fn parse(value: &Value) -> Result<LogLevel> {
        let o = Object::expect(value, "LogLevel")?;
        Ok(LogLevel { prefix: o.text("prefix")?, level: o.text("level")? })
    }
}

/// The answer of `get_log_levels`: upstream builds these objects afresh, so their fields are `changes`.
pub fn log_level_list(levels: &[LogLevel]) -> Result<Value> {
    let objects = levels
        .iter()
        .map(|l| {
            let mut data = Map::new();
            data.insert("prefix".to_owned(), text_value(l.prefix.as_deref()));
            data.insert("level".to_owned(), text_value(l.level.as_deref()));
            Ok(Object::new("LogLevel", data)?.with_changes(&["level", "prefix"]).to_value())
        })
        .collect::<Result<Vec<_>>>()?;
    let mut data = Map::new();
    data.insert("objects".to_owned(), Value::Array(objects));
    Ok(Object::new("LogLevelList", data)?.with_changes(&["objects"]).to_value())
}
