//! Namespace `backup`: backups that are ordered and not asked of the API, how many stay, when they are made, and what is
//! under way.

use super::Args;
use crate::backup::ordered::Create;
use crate::backup::orders::Order;
use crate::backup::retention::Reach;
use crate::backup::schedule::{Given, Of};
use crate::error::{Code, Error, Result};
use crate::rpc::dispatch::Method;

/// What is asked of a backup service.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum PolicyCall {
    /// `id` is the caller's own number of it.
    Order {
        order: Order,
        id: Option<String>,
    },
    GetRetention {
        volume: String,
    },
    SetRetention {
        volume: String,
        keep: [Option<i64>; 4],
        time_zone: Option<String>,
    },
    ClearRetention {
        volume: String,
    },
    PreviewRetention {
        volume: String,
        reach: Reach,
    },
    CreateSchedule {
        of: Of,
        given: Given,
    },
    ListSchedules,
    ShowSchedule {
        id: String,
    },
    UpdateSchedule {
        id: String,
        given: Given,
        paused: Option<bool>,
    },
    DeleteSchedule {
        id: String,
    },
    RunSchedule {
        id: String,
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

fn made(call: PolicyCall) -> Result<Method> {
    Ok(Method::BackupPolicy(Box::new(call)))
}

fn ordered(order: Order, args: &mut Args) -> Result<Method> {
    let id = match args.maybe_text("order")? {
        Some(id) if id.is_empty() || id.len() > 64 => {
            return Err(Error::new(Code::InvalidInput, "The number of an order has 1 to 64 characters"));
        }
        id => id,
    };
    made(PolicyCall::Order { order, id })
}

fn number(args: &mut Args) -> Result<i64> {
    let missing = || Error::new(Code::BadArguments, "The number of an operation is missing");
    args.maybe_integer("operation")?.ok_or_else(missing)
}

/// `create(volume=None, group=None, volume_type=None, incremental=False, name=None, description=None, container=None,
/// retention=False, order=None)`
pub(crate) fn backup_create(args: &mut Args) -> Result<Method> {
    let create = Create {
        volume: args.maybe_text("volume")?,
        group: args.maybe_text("group")?,
        volume_type: args.maybe_text("volume_type")?,
        incremental: args.flag("incremental", false)?,
        name: args.maybe_text("name")?,
        description: args.maybe_text("description")?,
        container: args.maybe_text("container")?,
        retention: args.flag("retention", false)?,
        schedule: None,
    };
    create.check()?;
    ordered(Order::Create(Box::new(create)), args)
}

/// `get_retention(volume)`
pub(crate) fn backup_get_retention(args: &mut Args) -> Result<Method> {
    made(PolicyCall::GetRetention { volume: args.text("volume")? })
}

/// `set_retention(volume, keep_last=None, keep_daily=None, keep_weekly=None, keep_monthly=None, time_zone=None)`
pub(crate) fn backup_set_retention(args: &mut Args) -> Result<Method> {
    made(PolicyCall::SetRetention {
        volume: args.text("volume")?,
        keep: [
            args.maybe_integer("keep_last")?,
            args.maybe_integer("keep_daily")?,
            args.maybe_integer("keep_weekly")?,
            args.maybe_integer("keep_monthly")?,
        ],
        time_zone: args.maybe_text("time_zone")?,
    })
}

/// `clear_retention(volume)`
pub(crate) fn backup_clear_retention(args: &mut Args) -> Result<Method> {
    made(PolicyCall::ClearRetention { volume: args.text("volume")? })
}

/// `preview_retention(volume, failed=False, deleted_volumes=False)`
pub(crate) fn backup_preview_retention(args: &mut Args) -> Result<Method> {
    let reach =
        Reach { failed: args.flag("failed", false)?, deleted_volumes: args.flag("deleted_volumes", false)? };
    made(PolicyCall::PreviewRetention { volume: args.text("volume")?, reach })
}

/// `apply_retention(volume=None, volume_type=None, all=False, failed=False, deleted_volumes=False, order=None)`: of a volume, of all volumes of
/// a type, or of all that have backups.
pub(crate) fn backup_apply_retention(args: &mut Args) -> Result<Method> {
    let (volume, volume_type) = (args.maybe_text("volume")?, args.maybe_text("volume_type")?);
    let (all, failed) = (args.flag("all", false)?, args.flag("failed", false)?);
    let deleted_volumes = args.flag("deleted_volumes", false)?;
    let of_many = |volume_type| Order::ApplyAllRetention { volume_type, failed, deleted_volumes };
    let order = match (volume, volume_type, all) {
        (Some(volume), None, false) => Order::ApplyRetention { volume, failed, deleted_volumes },
        (None, Some(kind), false) => of_many(Some(kind)),
        (None, None, true) => of_many(None),
        _ => {
            let text = "Name one of: a volume, a volume type, all";
            return Err(Error::new(Code::InvalidInput, text));
        }
    };
    ordered(order, args)
}

/// `audit(repair=False, purged=False, order=None)`
pub(crate) fn backup_audit(args: &mut Args) -> Result<Method> {
    let (repair, purged) = (args.flag("repair", false)?, args.flag("purged", false)?);
    if purged && !repair {
        let text = "purged says what a repair removes, too: it needs repair";
        return Err(Error::new(Code::InvalidInput, text));
    }
    ordered(Order::Audit { repair, purged }, args)
}

fn given(args: &mut Args) -> Result<Given> {
    Ok(Given {
        name: args.maybe_text("name")?,
        cron: args.maybe_text("cron")?,
        time_zone: args.maybe_text("time_zone")?,
        full_every: args.maybe_integer("full_every")?,
        retention: args.maybe_flag("retention")?,
        container: args.maybe_text("container")?,
    })
}

/// `create_schedule(cron, volume=None, group=None, volume_type=None, time_zone='UTC', full_every=1, retention=False,
/// name=None, container=None)`
pub(crate) fn backup_create_schedule(args: &mut Args) -> Result<Method> {
    let of = Of {
        volume: args.maybe_text("volume")?,
        group: args.maybe_text("group")?,
        volume_type: args.maybe_text("volume_type")?,
    };
    made(PolicyCall::CreateSchedule { of, given: given(args)? })
}

/// `list_schedules()`
pub(crate) fn backup_list_schedules(_: &mut Args) -> Result<Method> {
    made(PolicyCall::ListSchedules)
}

/// `show_schedule(id)`
pub(crate) fn backup_show_schedule(args: &mut Args) -> Result<Method> {
    made(PolicyCall::ShowSchedule { id: args.text("id")? })
}

/// `update_schedule(id, …)`, with what changes of `create_schedule`'s arguments.
pub(crate) fn backup_update_schedule(args: &mut Args) -> Result<Method> {
    made(PolicyCall::UpdateSchedule { id: args.text("id")?, given: given(args)?, paused: None })
}

/// `delete_schedule(id)`
pub(crate) fn backup_delete_schedule(args: &mut Args) -> Result<Method> {
    made(PolicyCall::DeleteSchedule { id: args.text("id")? })
}

/// `pause_schedule(id, paused=True)`
pub(crate) fn backup_pause_schedule(args: &mut Args) -> Result<Method> {
    made(PolicyCall::UpdateSchedule {
        id: args.text("id")?,
        given: Given::default(),
        paused: Some(args.flag("paused", true)?),
    })
}

/// `run_schedule(id)`
pub(crate) fn backup_run_schedule(args: &mut Args) -> Result<Method> {
    made(PolicyCall::RunSchedule { id: args.text("id")? })
}

/// `get_operation(operation)`
pub(crate) fn backup_get_operation(args: &mut Args) -> Result<Method> {
    made(PolicyCall::GetOperation { operation: number(args)? })
}

/// `list_operations(open=False)`
pub(crate) fn backup_list_operations(args: &mut Args) -> Result<Method> {
    made(PolicyCall::ListOperations { open: args.flag("open", false)? })
}

/// `cancel_operation(operation)`
pub(crate) fn backup_cancel_operation(args: &mut Args) -> Result<Method> {
    made(PolicyCall::CancelOperation { operation: number(args)? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn read(decode: fn(&mut Args) -> Result<Method>, value: Value) -> Result<PolicyCall> {
        let mut args = Args::new("backup.m", value)?;
        let method = decode(&mut args)?;
        args.finish()?;
        match method {
            Method::BackupPolicy(call) => Ok(*call),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_asked_is_what_it_says_and_no_more() {
        let asked = json!({"group": "g", "incremental": true, "order": "mine"});
        let PolicyCall::Order { order: Order::Create(create), id } = read(backup_create, asked).unwrap()
        else {
            panic!("no order")
        };
        assert_eq!(
            (create.group.as_deref(), create.incremental, id.as_deref()),
            (Some("g"), true, Some("mine"))
        );
        let asked = json!({"volume": "v", "keep_daily": 7});
        let set = read(backup_set_retention, asked).unwrap();
        let keep = [None, Some(7), None, None];
        assert_eq!(set, PolicyCall::SetRetention { volume: "v".into(), keep, time_zone: None });
        let paused = read(backup_pause_schedule, json!({"id": "s", "paused": false})).unwrap();
        assert!(matches!(paused, PolicyCall::UpdateSchedule { paused: Some(false), .. }));
        let changed = read(backup_update_schedule, json!({"id": "s", "retention": true})).unwrap();
        assert!(
            matches!(changed, PolicyCall::UpdateSchedule { given, paused: None, .. } if given.retention == Some(true))
        );
        let everywhere = read(backup_apply_retention, json!({"all": true, "failed": true})).unwrap();
        let order = Order::ApplyAllRetention { volume_type: None, failed: true, deleted_volumes: false };
        assert_eq!(everywhere, PolicyCall::Order { order, id: None });
        let asked = json!({"volume": "v", "deleted_volumes": true});
        let reach = Reach { failed: false, deleted_volumes: true };
        let preview = read(backup_preview_retention, asked.clone()).unwrap();
        assert_eq!(preview, PolicyCall::PreviewRetention { volume: "v".into(), reach });
        let one = read(backup_apply_retention, asked).unwrap();
        let order = Order::ApplyRetention { volume: "v".into(), failed: false, deleted_volumes: true };
        assert_eq!(one, PolicyCall::Order { order, id: None });
        for wrong in
            [json!({}), json!({"volume": "v", "all": true}), json!({"volume_type": "t", "volume": "v"})]
        {
            assert_eq!(read(backup_apply_retention, wrong).unwrap_err().code(), Code::InvalidInput);
        }
        let audit = read(backup_audit, json!({"repair": true})).unwrap();
        let order = Order::Audit { repair: true, purged: false };
        assert_eq!(audit, PolicyCall::Order { order, id: None });
        assert_eq!(read(backup_audit, json!({"purged": true})).unwrap_err().code(), Code::InvalidInput);
        let of_type = read(backup_create_schedule, json!({"cron": "@daily", "volume_type": "gold"})).unwrap();
        assert!(
            matches!(of_type, PolicyCall::CreateSchedule { of, .. } if of.volume_type.as_deref() == Some("gold"))
        );
        for (wrong, code) in [
            (json!({}), Code::InvalidInput),
            (json!({"volume": "v", "volume_type": "t"}), Code::InvalidInput),
            (json!({"volume": "v", "group": "g"}), Code::InvalidInput),
            (json!({"volume": "v", "force": true}), Code::BadArguments),
            (json!({"volume": 3}), Code::BadArguments),
            (json!({"volume": "v", "order": ""}), Code::InvalidInput),
        ] {
            assert_eq!(read(backup_create, wrong.clone()).unwrap_err().code(), code, "{wrong}");
        }
        assert_eq!(read(backup_cancel_operation, json!({})).unwrap_err().code(), Code::BadArguments);
    }
}
