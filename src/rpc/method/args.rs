//! Taking arguments out of a request the way a Python call would: by name, complaining about what is
//! missing, of the wrong type, or left over.

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};
use crate::rpc::objects::{WireGroup, WireGroupSnapshot, WireSnapshot, WireVolume};

/// The arguments of one request, emptied by the decoder of its method.
#[derive(Debug)]
pub struct Args {
    method: &'static str,
    map: Map<String, Value>,
}

impl Args {
    /// Starts decoding.
    ///
    /// # Errors
    /// [`Code::BadArguments`] when `args` is no object.
    pub fn new(method: &'static str, args: Value) -> Result<Args> {
        match args {
            Value::Object(map) => Ok(Args { method, map }),
            _ => Err(Error::new(Code::BadArguments, format!("{method}() needs named arguments"))),
        }
    }

    /// Ends decoding: an argument that nobody took is as unexpected as it is to Python.
    ///
    /// # Errors
    /// [`Code::BadArguments`] naming it.
    pub fn finish(self) -> Result<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::new(
                Code::BadArguments,
                format!("{}() got an unexpected keyword argument '{name}'", self.method),
            )),
        }
    }

    pub(super) fn required(&mut self, name: &str) -> Result<Value> {
        self.map.remove(name).ok_or_else(|| {
            Error::new(
                Code::BadArguments,
                format!("{}() missing 1 required positional argument: '{name}'", self.method),
            )
        })
    }

    /// Absent and null are the same to a Python default of None.
    pub(super) fn optional(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String> {
        match self.required(name)? {
            Value::String(s) => Ok(s),
            _ => Err(self.wrong(name, "a string")),
        }
    }

    pub(super) fn maybe_text(&mut self, name: &str) -> Result<Option<String>> {
        match self.optional(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(name, "a string or null")),
        }
    }

    /// A flag that may be left out; null is false, as `None` is in Python.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool> {
        match self.map.remove(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(b)) => Ok(b),
            Some(_) => Err(self.wrong(name, "a boolean")),
        }
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<i32> {
        let value = self.required(name)?;
        value.as_i64().and_then(|i| i32::try_from(i).ok()).ok_or_else(|| self.wrong(name, "an integer"))
    }

    pub(super) fn maybe_flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.optional(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "a boolean or null")),
        }
    }

    pub(super) fn maybe_integer(&mut self, name: &str) -> Result<Option<i64>> {
        match self.optional(name) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| self.wrong(name, "an integer or null")),
        }
    }

    /// A list of strings; absent and null are an empty one.
    pub(super) fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        Ok(self.maybe_texts(name)?.unwrap_or_default())
    }

    /// A list of strings; absent and null are none, which is not an empty one.
    pub(super) fn maybe_texts(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        match self.optional(name) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|v| match v {
                    Value::String(s) => Ok(s),
                    _ => Err(self.wrong(name, "a list of strings")),
                })
                .collect::<Result<_>>()
                .map(Some),
            Some(_) => Err(self.wrong(name, "a list of strings")),
        }
    }

    pub(super) fn map(&mut self, name: &str) -> Result<Map<String, Value>> {
        match self.required(name)? {
            Value::Object(map) => Ok(map),
            _ => Err(self.wrong(name, "a dictionary")),
        }
    }

    pub(super) fn maybe_map(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        match self.optional(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.wrong(name, "a dictionary or null")),
        }
    }

    pub(super) fn volume(&mut self, name: &str) -> Result<Box<WireVolume>> {
        WireVolume::parse(&self.required(name)?).map(Box::new)
    }

    pub(super) fn maybe_volume(&mut self, name: &str) -> Result<Option<Box<WireVolume>>> {
        self.optional(name).map(|v| WireVolume::parse(&v).map(Box::new)).transpose()
    }

    pub(super) fn snapshot(&mut self, name: &str) -> Result<Box<WireSnapshot>> {
        WireSnapshot::parse(&self.required(name)?).map(Box::new)
    }

    pub(super) fn maybe_snapshot(&mut self, name: &str) -> Result<Option<Box<WireSnapshot>>> {
        self.optional(name).map(|v| WireSnapshot::parse(&v).map(Box::new)).transpose()
    }

    pub(super) fn group(&mut self, name: &str) -> Result<Box<WireGroup>> {
        WireGroup::parse(&self.required(name)?).map(Box::new)
    }

    pub(super) fn maybe_group(&mut self, name: &str) -> Result<Option<Box<WireGroup>>> {
        self.optional(name).map(|v| WireGroup::parse(&v).map(Box::new)).transpose()
    }

    pub(super) fn group_snapshot(&mut self, name: &str) -> Result<Box<WireGroupSnapshot>> {
        WireGroupSnapshot::parse(&self.required(name)?).map(Box::new)
    }

    pub(super) fn maybe_group_snapshot(&mut self, name: &str) -> Result<Option<Box<WireGroupSnapshot>>> {
        self.optional(name).map(|v| WireGroupSnapshot::parse(&v).map(Box::new)).transpose()
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        Error::new(Code::BadArguments, format!("{}() argument '{name}' must be {expected}", self.method))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn missing_wrong_and_left_over_arguments_are_named() {
        let mut args = Args::new("m", json!({"a": 1, "b": "x", "n": null})).unwrap();
        assert_eq!(args.text("c").unwrap_err().user(), "m() missing 1 required positional argument: 'c'");
        assert_eq!(args.text("a").unwrap_err().user(), "m() argument 'a' must be a string");
        assert!(!args.flag("n", true).unwrap());
        assert!(args.flag("absent", true).unwrap());
        assert_eq!(args.finish().unwrap_err().user(), "m() got an unexpected keyword argument 'b'");
        assert_eq!(Args::new("m", json!([])).unwrap_err().code(), Code::BadArguments);
    }
}
