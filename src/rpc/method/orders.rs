//! Orders of namespace `replication`: the same that `scoria-manage` writes into the journal.

use super::Args;
use crate::error::{Code, Error, Result};
use crate::replication::foresight::Inquiry;
use crate::replication::intent::Intent;
use crate::replication::orders::{Adopt, Failover, Move, Order, Resync, Retry};
use crate::rpc::dispatch::Method;

fn order(order: Order) -> Result<Method> {
    Ok(Method::Order(Box::new(order)))
}

/// `failover(volumes=None, group=None, target=None, intent='automatic')`
pub(crate) fn order_failover(args: &mut Args) -> Result<Method> {
    let volumes = args.maybe_texts("volumes")?;
    let group = args.maybe_text("group")?;
    let target = args.maybe_text("target")?;
    let intent = match args.maybe_text("intent")? {
        Some(text) => Intent::parse(&text)?,
        None => Intent::Automatic,
    };
    match (volumes, group) {
        (None, None) => order(Order::Failover(Failover { target, intent })),
        (Some(_), Some(_)) => {
            Err(Error::new(Code::BadArguments, "failover() takes volumes or a group, and not both"))
        }
        (volumes, group) => order(Order::Move(Move { target, intent, volumes, group })),
    }
}

/// `retry(volumes=None)`
pub(crate) fn order_retry(args: &mut Args) -> Result<Method> {
    order(Order::Retry(Retry { volumes: args.maybe_texts("volumes")? }))
}

/// `resync(discard, volumes=None)`
pub(crate) fn order_resync(args: &mut Args) -> Result<Method> {
    let discard = args.text("discard")?;
    order(Order::Resync(Resync { discard, volumes: args.maybe_texts("volumes")? }))
}

/// `adopt(leave_behind=False, stop_mirroring=False, fsid=None, dry_run=False)`
pub(crate) fn order_adopt(args: &mut Args) -> Result<Method> {
    order(Order::Adopt(Adopt {
        leave_behind: args.flag("leave_behind", false)?,
        stop_mirroring: args.flag("stop_mirroring", false)?,
        fsid: args.maybe_text("fsid")?,
        dry_run: args.flag("dry_run", false)?,
    }))
}

/// `status(operation=None)`
pub(crate) fn replication_status(args: &mut Args) -> Result<Method> {
    Ok(Method::ReplicationStatus { operation: args.maybe_integer("operation")? })
}

/// `preflight(target=None)`
pub(crate) fn ask_preflight(args: &mut Args) -> Result<Method> {
    Ok(Method::Question(Inquiry::Preflight { to: args.maybe_text("target")? }))
}

/// `plan(volumes=None, target=None)`
pub(crate) fn ask_plan(args: &mut Args) -> Result<Method> {
    let volumes = args.maybe_texts("volumes")?;
    Ok(Method::Question(Inquiry::Plan { to: args.maybe_text("target")?, volumes }))
}
