//! Namespaces `backend` and `cluster`: orders for a host's backends, what is known of them, and the marks they bear.
//!
//! An order is written down by the method itself and answered with its number. Nothing in it is secret: options that an
//! RBD backend does not read, among which other drivers have passwords, are refused before anything is written.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::Args;
use crate::backends::{Create, Delete, Disable, Named, Options, Order, Rename, Stop, Update};
use crate::config::check_options;
use crate::error::{Code, Error, Result};
use crate::rpc::dispatch::Method;

/// Deadline of another host's answer, when the caller names none.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST: i64 = 60;

/// What is asked of a host.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum BackendCall {
    Order { order: Order, id: Option<String> },
    List { all_hosts: bool, limit: Duration },
    Show { name: String },
    Validate { name: String, options: Options, update: bool },
    GetOperation { operation: i64 },
    ListOperations { open: bool },
    CancelOperation { operation: i64 },
}

/// What is asked about marks.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum LabelCall {
    Create { id: Option<String>, name: Option<String>, description: Option<String> },
    List,
    Show { id: String },
    Update { id: String, name: Option<String>, description: Option<String> },
    Delete { id: String },
}

fn backend(call: BackendCall) -> Result<Method> {
    Ok(Method::Backend(Box::new(call)))
}

fn ordered(order: Order, args: &mut Args) -> Result<Method> {
    backend(BackendCall::Order { order, id: own_number(args)? })
}

/// The caller's own number of an order: one that is sent again is not taken twice.
fn own_number(args: &mut Args) -> Result<Option<String>> {
    match args.maybe_text("order")? {
        Some(id) if id.is_empty() || id.len() > 64 => {
            Err(Error::new(Code::InvalidInput, "The number of an order has 1 to 64 characters"))
        }
        id => Ok(id),
    }
}

/// `{option: value}`; a value is a text, a number, a truth value, a list of them, or null: the option is taken out.
fn options(args: &mut Args, required: bool) -> Result<Options> {
    let map = if required { args.map("options")? } else { args.maybe_map("options")?.unwrap_or_default() };
    let text = |name: &str, value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Bool(flag) => Ok(if flag { "True" } else { "False" }.to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Error::new(
            Code::InvalidInput,
            format!(
                "The value of option {} must be a text, a number, a truth value or a list of them",
                name.escape_debug()
            ),
        )),
    };
    let mut options = BTreeMap::new();
    for (name, value) in map {
        let values = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items.into_iter().map(|item| text(&name, item)).collect::<Result<_>>()?,
            one => vec![text(&name, one)?],
        };
        options.insert(name, values);
    }
    check_options(options.keys().map(String::as_str))?;
    Ok(options)
}

fn number(args: &mut Args) -> Result<i64> {
    let missing = || Error::new(Code::BadArguments, "The number of an operation is missing");
    args.maybe_integer("operation")?.ok_or_else(missing)
}

/// `create(name, options, volume_type=None, enabled=True, dry_run=False, order=None)`
pub(crate) fn backend_create(args: &mut Args) -> Result<Method> {
    let order = Create {
        name: args.text("name")?,
        options: options(args, true)?,
        volume_type: args.maybe_text("volume_type")?.filter(|name| !name.is_empty()),
        enabled: args.flag("enabled", true)?,
        dry_run: args.flag("dry_run", false)?,
    };
    crate::config::check_name(&order.name)?;
    ordered(Order::Create(order), args)
}

/// `update(name, options, dry_run=False, order=None)`
pub(crate) fn backend_update(args: &mut Args) -> Result<Method> {
    let order = Update {
        name: args.text("name")?,
        options: options(args, true)?,
        dry_run: args.flag("dry_run", false)?,
    };
    ordered(Order::Update(order), args)
}

/// `enable(name, order=None)`
pub(crate) fn backend_enable(args: &mut Args) -> Result<Method> {
    let order = Order::Enable(Named { name: args.text("name")? });
    ordered(order, args)
}

/// `disable(name, reason=None, order=None)`
pub(crate) fn backend_disable(args: &mut Args) -> Result<Method> {
    let order = Disable { name: args.text("name")?, reason: args.maybe_text("reason")? };
    ordered(Order::Disable(order), args)
}

/// `start(name, order=None)`
pub(crate) fn backend_start(args: &mut Args) -> Result<Method> {
    let order = Order::Start(Named { name: args.text("name")? });
    ordered(order, args)
}

/// `stop(name, drain=False, order=None)`
pub(crate) fn backend_stop(args: &mut Args) -> Result<Method> {
    let order = Stop { name: args.text("name")?, drain: args.flag("drain", false)? };
    ordered(Order::Stop(order), args)
}

/// `delete(name, force=False, drain=False, dry_run=False, order=None)`
pub(crate) fn backend_delete(args: &mut Args) -> Result<Method> {
    let order = Delete {
        name: args.text("name")?,
        force: args.flag("force", false)?,
        drain: args.flag("drain", false)?,
        dry_run: args.flag("dry_run", false)?,
    };
    ordered(Order::Delete(order), args)
}

/// `rename(name, new_name=None, from_service=None, dry_run=False, order=None)`
pub(crate) fn backend_rename(args: &mut Args) -> Result<Method> {
    let name = args.text("name")?;
    let order = Rename {
        new_name: args.maybe_text("new_name")?.unwrap_or_else(|| name.clone()),
        name,
        from: args.maybe_text("from_service")?,
        dry_run: args.flag("dry_run", false)?,
    };
    ordered(Order::Rename(order), args)
}

/// `validate(name, options=None, update=False)`
pub(crate) fn backend_validate(args: &mut Args) -> Result<Method> {
    backend(BackendCall::Validate {
        name: args.text("name")?,
        options: options(args, false)?,
        update: args.flag("update", false)?,
    })
}

/// `list(all_hosts=False, timeout=5)`
pub(crate) fn backend_list(args: &mut Args) -> Result<Method> {
    let all_hosts = args.flag("all_hosts", false)?;
    let limit = match args.maybe_integer("timeout")? {
        None => DEADLINE,
        Some(seconds @ 1..=LONGEST) => Duration::from_secs(seconds.unsigned_abs()),
        Some(_) => {
            return Err(Error::new(Code::InvalidInput, "timeout is between 1 and 60 seconds"));
        }
    };
    backend(BackendCall::List { all_hosts, limit })
}

/// `show(name)`
pub(crate) fn backend_show(args: &mut Args) -> Result<Method> {
    backend(BackendCall::Show { name: args.text("name")? })
}

/// `get_operation(operation)`
pub(crate) fn backend_get_operation(args: &mut Args) -> Result<Method> {
    backend(BackendCall::GetOperation { operation: number(args)? })
}

/// `list_operations(open=False)`
pub(crate) fn backend_list_operations(args: &mut Args) -> Result<Method> {
    backend(BackendCall::ListOperations { open: args.flag("open", false)? })
}

/// `cancel_operation(operation)`
pub(crate) fn backend_cancel_operation(args: &mut Args) -> Result<Method> {
    backend(BackendCall::CancelOperation { operation: number(args)? })
}

fn label(call: LabelCall) -> Result<Method> {
    Ok(Method::Label(Box::new(call)))
}

/// `create(id=None, name=None, description=None)`
pub(crate) fn cluster_create(args: &mut Args) -> Result<Method> {
    label(LabelCall::Create {
        id: args.maybe_text("id")?,
        name: args.maybe_text("name")?,
        description: args.maybe_text("description")?,
    })
}

/// `list()`
pub(crate) fn cluster_list(_: &mut Args) -> Result<Method> {
    label(LabelCall::List)
}

/// `show(id)`
pub(crate) fn cluster_show(args: &mut Args) -> Result<Method> {
    label(LabelCall::Show { id: args.text("id")? })
}

/// `update(id, name=None, description=None)`
pub(crate) fn cluster_update(args: &mut Args) -> Result<Method> {
    label(LabelCall::Update {
        id: args.text("id")?,
        name: args.maybe_text("name")?,
        description: args.maybe_text("description")?,
    })
}

/// `delete(id)`
pub(crate) fn cluster_delete(args: &mut Args) -> Result<Method> {
    label(LabelCall::Delete { id: args.text("id")? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn read(decode: fn(&mut Args) -> Result<Method>, value: Value) -> Result<Method> {
        let mut args = Args::new("backend.m", value)?;
        let method = decode(&mut args)?;
        args.finish()?;
        Ok(method)
    }

    #[test]
    fn values_of_options_may_be_of_any_simple_type() {
        let given = json!({"name": "fast", "options": {"rbd_pool": "p", "reserved_percentage": 5,
            "rbd_exclusive_cinder_pool": false, "replication_device": ["backend_id:b", "backend_id:c"]}});
        let Method::Backend(call) = read(backend_create, given).unwrap() else {
            panic!("no call of a backend")
        };
        let BackendCall::Order { order: Order::Create(order), id: None } = *call else {
            panic!("no creation")
        };
        assert_eq!(order.options["reserved_percentage"], ["5"]);
        assert_eq!(order.options["rbd_exclusive_cinder_pool"], ["False"]);
        assert_eq!(order.options["replication_device"].len(), 2);
        assert!(order.enabled && !order.dry_run);
        let out = json!({"name": "fast", "options": {"filter_function": null}});
        let Method::Backend(call) = read(backend_update, out).unwrap() else {
            panic!("no call of a backend")
        };
        let BackendCall::Order { order: Order::Update(order), .. } = *call else { panic!("no update") };
        assert!(order.options["filter_function"].is_empty());
    }

    #[test]
    fn what_means_nothing_is_refused_before_it_is_written_down() {
        for (given, code) in [
            (json!({"name": "fast", "options": {"rbd_pol": "p"}}), Code::InvalidInput),
            (json!({"name": "fast", "options": {"san_password": "p"}}), Code::InvalidInput),
            (json!({"name": "fast", "options": {"rbd_pool": {"a": 1}}}), Code::InvalidInput),
            (json!({"name": "a@b", "options": {}}), Code::InvalidInput),
            (json!({"name": "fast"}), Code::BadArguments),
            (json!({"name": "fast", "options": {}, "pool": "x"}), Code::BadArguments),
        ] {
            assert_eq!(read(backend_create, given.clone()).unwrap_err().code(), code, "{given}");
        }
        assert_eq!(read(backend_list, json!({"timeout": 0})).unwrap_err().code(), Code::InvalidInput);
    }
}
