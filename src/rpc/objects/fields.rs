//! Reading one field of a versioned object, with the coercions of `oslo_versionedobjects/fields.py`.
//!
//! Absent and null both read as `None`; who must tell them apart uses [`Object::get`].

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime};
use serde_json::{Map, Value};

use super::Object;
use crate::error::{Code, Error, Result};

impl Object {
    /// A string field. Numbers become text, as upstream does.
    pub(crate) fn text(&self, field: &str) -> Result<Option<String>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(_) => Err(self.wrong(field, "a string")),
        }
    }

    /// A string field that the object makes no sense without.
    pub(crate) fn required(&self, field: &str) -> Result<String> {
        self.text(field)?.ok_or_else(|| self.wrong(field, "set"))
    }

    pub(crate) fn integer(&self, field: &str) -> Result<Option<i32>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => integer(value).map(Some).ok_or_else(|| self.wrong(field, "an integer")),
        }
    }

    pub(crate) fn boolean(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(Value::Number(n)) => Ok(Some(n.as_f64() != Some(0.0))),
            Some(_) => Err(self.wrong(field, "a boolean")),
        }
    }

    pub(crate) fn time(&self, field: &str) -> Result<Option<NaiveDateTime>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => parse_time(s).map(Some).ok_or_else(|| self.wrong(field, "a time")),
            Some(_) => Err(self.wrong(field, "a time")),
        }
    }

    /// A dictionary of strings; entries that are null are left out.
    pub(crate) fn strings(&self, field: &str) -> Result<Option<BTreeMap<String, String>>> {
        let Some(map) = self.map(field)? else { return Ok(None) };
        let mut strings = BTreeMap::new();
        for (key, value) in map {
            match value {
                Value::Null => {}
                Value::String(s) => {
                    strings.insert(key.clone(), s.clone());
                }
                Value::Number(n) => {
                    strings.insert(key.clone(), n.to_string());
                }
                _ => return Err(self.wrong(field, "a dictionary of strings")),
            }
        }
        Ok(Some(strings))
    }

    pub(crate) fn map(&self, field: &str) -> Result<Option<&Map<String, Value>>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.wrong(field, "a dictionary")),
        }
    }

    pub(crate) fn texts(&self, field: &str) -> Result<Option<Vec<String>>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(items)) => items
                .iter()
                .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| self.wrong(field, "a list of strings")))
                .collect::<Result<_>>()
                .map(Some),
            Some(_) => Err(self.wrong(field, "a list of strings")),
        }
    }

    /// A nested object of class `name`.
    pub(crate) fn nested(&self, field: &str, name: &str) -> Result<Option<Object>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Object::expect(value, name).map(Some),
        }
    }

    /// The elements of a nested list object of class `list`.
    pub(crate) fn nested_list(&self, field: &str, list: &str, name: &str) -> Result<Option<Vec<Object>>> {
        let Some(object) = self.nested(field, list)? else { return Ok(None) };
        match object.get("objects") {
            None | Some(Value::Null) => Ok(Some(Vec::new())),
            Some(Value::Array(items)) => {
                items.iter().map(|v| Object::expect(v, name)).collect::<Result<_>>().map(Some)
            }
            Some(_) => Err(object.wrong("objects", "a list")),
        }
    }

    fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::new(Code::InvalidValue, format!("Field {field} of {} must be {expected}", self.name()))
    }
}

/// An integer as Python's `int()` reads it from JSON: whole numbers and their text.
pub(crate) fn integer(value: &Value) -> Option<i32> {
    match value {
        Value::Number(n) => match n.as_i64() {
            Some(i) => i32::try_from(i).ok(),
            None => n.as_f64().and_then(whole),
        },
        Value::String(s) => s.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn whole(number: f64) -> Option<i32> {
    let truncated = number.trunc();
    // Bounds are exact in f64, so the cast below loses nothing.
    #[allow(clippy::cast_possible_truncation)]
    (truncated >= f64::from(i32::MIN) && truncated <= f64::from(i32::MAX)).then_some(truncated as i32)
}

/// Reads an ISO 8601 time; one without an offset is UTC.
pub fn parse_time(text: &str) -> Option<NaiveDateTime> {
    DateTime::parse_from_rfc3339(text)
        .map(|t| t.naive_utc())
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f"))
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f"))
        .ok()
}

/// A DateTime field as upstream writes it: whole seconds, `Z`.
pub(crate) fn time_value(time: Option<NaiveDateTime>) -> Value {
    time.map_or(Value::Null, |t| Value::String(t.format("%Y-%m-%dT%H:%M:%SZ").to_string()))
}

/// A nullable string field.
pub(crate) fn text_value(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |t| Value::String(t.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn object(data: Value) -> Object {
        Object::new("Volume", data.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn absent_and_null_read_as_none_and_a_wrong_type_is_refused() {
        let o = object(json!({"a": null, "b": "x", "c": 5, "d": [1], "t": "2026-11-20T20:31:48Z"}));
        assert_eq!(o.text("absent").unwrap(), None);
        assert_eq!(o.text("a").unwrap(), None);
        assert!(o.get("absent").is_none() && o.get("a").is_some());
        assert_eq!(o.text("c").unwrap().as_deref(), Some("5"));
        assert_eq!(o.integer("c").unwrap(), Some(5));
        assert_eq!(o.integer("b").unwrap_err().code(), Code::InvalidValue);
        assert_eq!(o.boolean("d").unwrap_err().user(), "Field d of Volume must be a boolean");
        assert_eq!(o.time("t").unwrap().unwrap().to_string(), "2026-11-20 20:31:48");
        assert!(o.time("b").is_err());
    }

    #[test]
    fn integers_outside_the_column_are_refused() {
        assert_eq!(integer(&json!(2_147_483_647_i64)), Some(i32::MAX));
        assert_eq!(integer(&json!(2_147_483_648_i64)), None);
        assert_eq!(integer(&json!(1e300)), None);
        assert_eq!(integer(&json!(2.0)), Some(2));
    }
}
