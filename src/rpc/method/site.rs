//! Namespace `site`: orders for Ceph sites, and what is known of them.
//!
//! A message of this namespace may hold a key, so none of them is journalled as it comes: what is to be done is
//! written down by the method itself, when the key is in a file.

use super::Args;
use crate::error::{Code, Error, Result};
use crate::rpc::dispatch::Method;
use crate::site::{Given, Parts};

/// What is asked of a host.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum SiteCall {
    Register {
        name: String,
        given: Given,
        pools: Vec<String>,
        dry_run: bool,
        order: Option<String>,
    },
    Update {
        name: String,
        new_name: Option<String>,
        given: Option<Given>,
        pools: Vec<String>,
        dry_run: bool,
        order: Option<String>,
    },
    Delete {
        name: String,
        dry_run: bool,
        order: Option<String>,
    },
    List,
    Show {
        name: String,
    },
    GetOperation {
        operation: i64,
    },
    ListOperations {
        open: bool,
    },
    CancelOperation {
        operation: i64,
    },
}

fn site(call: SiteCall) -> Result<Method> {
    Ok(Method::Site(Box::new(call)))
}

fn given(args: &mut Args) -> Result<Option<Given>> {
    let parts = Parts {
        user: args.maybe_text("user")?,
        conf: args.maybe_text("conf")?,
        keyring: args.maybe_text("keyring")?,
        conf_text: args.maybe_text("conf_text")?,
        monitors: args.maybe_text("monitors")?,
        key: args.maybe_text("key")?,
    };
    parts.given()
}

/// The caller's own number of an order: one that is sent again is not taken twice.
fn order(args: &mut Args) -> Result<Option<String>> {
    match args.maybe_text("order")? {
        Some(id) if id.is_empty() || id.len() > 64 => {
            Err(Error::new(Code::InvalidInput, "The number of an order has 1 to 64 characters"))
        }
        id => Ok(id),
    }
}

fn number(args: &mut Args) -> Result<i64> {
    let missing = || Error::new(Code::BadArguments, "The number of an operation is missing");
    args.maybe_integer("operation")?.ok_or_else(missing)
}

/// `register(name, user='cinder', conf=None, keyring=None, conf_text=None, monitors=None, key=None, pools=None,
/// dry_run=False, order=None)`
pub(crate) fn site_register(args: &mut Args) -> Result<Method> {
    let given = given(args)?;
    let missing = || {
        Error::new(Code::InvalidInput, "Nothing was given to reach the site by: conf, or monitors and key")
    };
    site(SiteCall::Register {
        name: args.text("name")?,
        given: given.ok_or_else(missing)?,
        pools: args.texts("pools")?,
        dry_run: args.flag("dry_run", false)?,
        order: order(args)?,
    })
}

/// `update(name, new_name=None, …, dry_run=False, order=None)`
pub(crate) fn site_update(args: &mut Args) -> Result<Method> {
    site(SiteCall::Update {
        name: args.text("name")?,
        new_name: args.maybe_text("new_name")?,
        given: given(args)?,
        pools: args.texts("pools")?,
        dry_run: args.flag("dry_run", false)?,
        order: order(args)?,
    })
}

/// `delete(name, dry_run=False, order=None)`
pub(crate) fn site_delete(args: &mut Args) -> Result<Method> {
    site(SiteCall::Delete {
        name: args.text("name")?,
        dry_run: args.flag("dry_run", false)?,
        order: order(args)?,
    })
}

/// `list()`
pub(crate) fn site_list(_: &mut Args) -> Result<Method> {
    site(SiteCall::List)
}

/// `show(name)`
pub(crate) fn site_show(args: &mut Args) -> Result<Method> {
    site(SiteCall::Show { name: args.text("name")? })
}

/// `get_operation(operation)`
pub(crate) fn site_get_operation(args: &mut Args) -> Result<Method> {
    site(SiteCall::GetOperation { operation: number(args)? })
}

/// `list_operations(open=False)`
pub(crate) fn site_list_operations(args: &mut Args) -> Result<Method> {
    site(SiteCall::ListOperations { open: args.flag("open", false)? })
}

/// `cancel_operation(operation)`
pub(crate) fn site_cancel_operation(args: &mut Args) -> Result<Method> {
    site(SiteCall::CancelOperation { operation: number(args)? })
}
