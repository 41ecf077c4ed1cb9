//! Namespace `site`: orders for Ceph sites, and what is known of them.
//!
//! A message of this namespace may hold a key, so none of them is journalled as it comes: what is to be done is
//! written down by the method itself, when the key is in a file.

use super::Args;
use crate::error::{Code, Error, Result};
use crate::rbd::link::{ErasureProfile, Way};
use crate::rbd::types::{Level, MirrorMode};
use crate::rpc::dispatch::Method;
use crate::site::daemon::{Action, Means};
use crate::site::detective::clue::Clue;
use crate::site::detective::{HalfOrder, WhichOrder};
use crate::site::independent::IndependentOrder;
use crate::site::moving::MoveOrder;
use crate::site::replicate::ReplicateOrder;
use crate::site::revert::RevertOrder;
use crate::site::schedule::{ScheduleAct, ScheduleOrder};
use crate::site::switch::SwitchOrder;
use crate::site::{
    BackupsGo, CephKey, Connect, DataPool, Disconnect, Given, LinkMode, Make, Parts, Purge, read_key,
    user_name,
};

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
    Connect {
        order: Box<Connect>,
        keys: AdminKeys,
        id: Option<String>,
    },
    Disconnect {
        order: Box<Disconnect>,
        keys: AdminKeys,
        id: Option<String>,
    },
    Links {
        name: Option<String>,
    },
    Daemon {
        name: String,
        action: Action,
        by: Option<Means>,
        given: Option<Given>,
        placement: Option<String>,
        dry_run: bool,
        order: Option<String>,
    },
    Schedule {
        schedule: ScheduleOrder,
        order: Option<String>,
    },
    Replicate {
        replicate: ReplicateOrder,
        order: Option<String>,
    },
    Which {
        which: WhichOrder,
        order: Option<String>,
    },
    Half {
        half: HalfOrder,
        order: Option<String>,
    },
    Switch {
        switch: SwitchOrder,
        order: Option<String>,
    },
    Revert {
        revert: RevertOrder,
        order: Option<String>,
    },
    Move {
        order: MoveOrder,
        id: Option<String>,
    },
    Independent {
        independent: IndependentOrder,
        /// Of the site's administrator, as the first of two.
        keys: AdminKeys,
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

/// Keys of administrators, for one order.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminKeys {
    /// cephx user without `client.`.
    pub user: String,
    /// Its key on the first site.
    pub a: Option<CephKey>,
    /// On the second.
    pub b: Option<CephKey>,
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

fn keys(args: &mut Args) -> Result<AdminKeys> {
    let user = user_name(args.maybe_text("admin_user")?.as_deref().unwrap_or("admin"))?;
    let mut key = |name: &str| -> Result<Option<CephKey>> {
        args.maybe_text(name)?.map(|text| read_key(&text, &user)).transpose()
    };
    let (a, b) = (key("admin_key_a")?, key("admin_key_b")?);
    Ok(AdminKeys { user, a, b })
}

fn count(args: &mut Args, name: &str) -> Result<Option<u32>> {
    let wrong = || Error::new(Code::InvalidInput, format!("'{name}' is a number from 0 to {}", u32::MAX));
    args.maybe_integer(name)?.map(|n| u32::try_from(n).map_err(|_| wrong())).transpose()
}

fn word<T>(args: &mut Args, name: &str, default: T, read: fn(&str) -> Option<T>, all: &str) -> Result<T> {
    match args.maybe_text(name)? {
        None => Ok(default),
        Some(text) => read(&text).ok_or_else(|| {
            Error::new(Code::InvalidInput, format!("'{name}' is one of {all}, and not '{text}'"))
        }),
    }
}

/// Pools that are made: `create_pools=False, size=None, min_size=None, pg_num=None`, and with `k` and `m` data pools.
fn make(args: &mut Args) -> Result<Option<Make>> {
    let create = args.flag("create_pools", false)?;
    let (size, min_size, pg_num) = (count(args, "size")?, count(args, "min_size")?, count(args, "pg_num")?);
    let (k, m) = (count(args, "k")?, count(args, "m")?);
    let profile = (
        args.maybe_text("profile")?,
        args.maybe_text("plugin")?,
        args.maybe_text("technique")?,
        args.maybe_text("failure_domain")?,
        args.maybe_text("device_class")?,
    );
    let name = args.maybe_text("data_pool")?;
    let (least, data_pg_num) = (count(args, "data_min_size")?, count(args, "data_pg_num")?);
    let data = match (k, m) {
        (None, None) => None,
        (Some(k), Some(m)) => {
            let (of, plugin, technique, failure_domain, device_class) = profile;
            let profile = ErasureProfile {
                name: of.unwrap_or_else(|| format!("scoria-k{k}-m{m}")),
                k,
                m,
                plugin: plugin.unwrap_or_else(|| "jerasure".to_owned()),
                technique,
                failure_domain: failure_domain.unwrap_or_else(|| "host".to_owned()),
                device_class,
            };
            Some(DataPool { name, profile, min_size: least, pg_num: data_pg_num })
        }
        _ => return Err(Error::new(Code::InvalidInput, "An erasure-coded data pool takes both k and m")),
    };
    if !create && (data.is_some() || size.is_some() || min_size.is_some() || pg_num.is_some()) {
        return Err(Error::new(
            Code::InvalidInput,
            "What pools are to be like says nothing without create_pools",
        ));
    }
    Ok(create.then_some(Make { size, min_size, pg_num, data }))
}

/// `connect(a, b, pools, create_pools=False, …, mode='image', way='rx-tx', manual=False, accept_pool_type=False,
/// canary=True, admin_user='admin', admin_key_a=None, admin_key_b=None, dry_run=False, order=None)`
pub(crate) fn site_connect(args: &mut Args) -> Result<Method> {
    let connect = Connect {
        a: args.text("a")?,
        b: args.text("b")?,
        pools: args.texts("pools")?,
        make: make(args)?,
        mode: word(args, "mode", LinkMode::Image, LinkMode::parse, "image, pool")?,
        way: word(args, "way", Way::RxTx, Way::parse, "rx-only, rx-tx")?,
        manual: args.flag("manual", false)?,
        accept_pool_type: args.flag("accept_pool_type", false)?,
        canary: args.flag("canary", true)?,
        admin_a: None,
        admin_b: None,
        dry_run: args.flag("dry_run", false)?,
    };
    site(SiteCall::Connect { order: Box::new(connect), keys: keys(args)?, id: order(args)? })
}

/// `disconnect(a, b, pools=None, force=False, purge_copies=None, purge_bytes=None, flatten_backups=False,
/// delete_backups=None, delete_gib=None, admin_user='admin', admin_key_a=None, admin_key_b=None, dry_run=False,
/// order=None)`
pub(crate) fn site_disconnect(args: &mut Args) -> Result<Method> {
    let amount = |args: &mut Args, name: &str| -> Result<Option<u64>> {
        let wrong = || Error::new(Code::InvalidInput, format!("'{name}' is not negative"));
        args.maybe_integer(name)?.map(|n| u64::try_from(n).map_err(|_| wrong())).transpose()
    };
    let purge = match (amount(args, "purge_copies")?, amount(args, "purge_bytes")?) {
        (None, None) => None,
        (Some(copies), Some(bytes)) => Some(Purge { copies, bytes }),
        _ => {
            return Err(Error::new(
                Code::InvalidInput,
                "Copies are removed when it is said how many, and how many bytes, at most: purge_copies and purge_bytes",
            ));
        }
    };
    let delete_backups = match (amount(args, "delete_backups")?, amount(args, "delete_gib")?) {
        (None, None) => None,
        (Some(backups), Some(gib)) => Some(BackupsGo { backups, gib }),
        _ => {
            return Err(Error::new(
                Code::InvalidInput,
                "Backups are deleted when it is said how many, and how many GiB, at most: delete_backups and delete_gib",
            ));
        }
    };
    let disconnect = Disconnect {
        a: args.text("a")?,
        b: args.text("b")?,
        pools: args.texts("pools")?,
        force: args.flag("force", false)?,
        purge,
        flatten_backups: args.flag("flatten_backups", false)?,
        delete_backups,
        admin_a: None,
        admin_b: None,
        dry_run: args.flag("dry_run", false)?,
    };
    site(SiteCall::Disconnect { order: Box::new(disconnect), keys: keys(args)?, id: order(args)? })
}

/// `list_links(site=None)`
pub(crate) fn site_list_links(args: &mut Args) -> Result<Method> {
    site(SiteCall::Links { name: args.maybe_text("site")? })
}

fn daemon(args: &mut Args, action: Action) -> Result<Method> {
    site(SiteCall::Daemon {
        name: args.text("name")?,
        action,
        by: args.maybe_text("by")?.map(|text| Means::parse(&text)).transpose()?,
        given: given(args)?,
        placement: args.maybe_text("placement")?,
        dry_run: args.flag("dry_run", false)?,
        order: order(args)?,
    })
}

/// `daemon_status(name, order=None)`
pub(crate) fn site_daemon_status(args: &mut Args) -> Result<Method> {
    daemon(args, Action::Status)
}

/// `daemon_start(name, by=None, user='cinder', conf=None, keyring=None, conf_text=None, monitors=None, key=None,
/// placement=None, dry_run=False, order=None)`
pub(crate) fn site_daemon_start(args: &mut Args) -> Result<Method> {
    daemon(args, Action::Start)
}

/// `daemon_stop(name, …)`: the arguments of `daemon_start`.
pub(crate) fn site_daemon_stop(args: &mut Args) -> Result<Method> {
    daemon(args, Action::Stop)
}

/// `daemon_restart(name, …)`: the arguments of `daemon_start`.
pub(crate) fn site_daemon_restart(args: &mut Args) -> Result<Method> {
    daemon(args, Action::Restart)
}

fn schedule(args: &mut Args, act: ScheduleAct) -> Result<Method> {
    let schedule = ScheduleOrder {
        name: args.text("name")?,
        act,
        level: Level { pool: args.maybe_text("pool")?, image: args.maybe_text("image")? },
        schedule: args.maybe_text("schedule")?,
        recursive: args.flag("recursive", act == ScheduleAct::Status)?,
    };
    schedule.check()?;
    site(SiteCall::Schedule { schedule, order: order(args)? })
}

/// `schedule_add(name, schedule, pool=None, image=None, order=None)`
pub(crate) fn site_schedule_add(args: &mut Args) -> Result<Method> {
    schedule(args, ScheduleAct::Add)
}

/// `schedule_remove(name, schedule=None, pool=None, image=None, order=None)`
pub(crate) fn site_schedule_remove(args: &mut Args) -> Result<Method> {
    schedule(args, ScheduleAct::Remove)
}

/// `schedule_list(name, pool=None, image=None, recursive=False, order=None)`
pub(crate) fn site_schedule_list(args: &mut Args) -> Result<Method> {
    schedule(args, ScheduleAct::List)
}

/// `schedule_status(name, pool=None, image=None, order=None)`
pub(crate) fn site_schedule_status(args: &mut Args) -> Result<Method> {
    schedule(args, ScheduleAct::Status)
}

/// `replicate(name, pool, image=None, mode='journal', dry_run=False, order=None)`
pub(crate) fn site_replicate(args: &mut Args) -> Result<Method> {
    let mode = match args.maybe_text("mode")?.as_deref() {
        None | Some("journal") => MirrorMode::Journal,
        Some("snapshot") => MirrorMode::Snapshot,
        Some(_) => return Err(Error::new(Code::InvalidInput, "The mode is journal or snapshot")),
    };
    let replicate = ReplicateOrder {
        name: args.text("name")?,
        pool: args.text("pool")?,
        image: args.maybe_text("image")?,
        mode,
        dry_run: args.flag("dry_run", false)?,
    };
    site(SiteCall::Replicate { replicate, order: order(args)? })
}

/// `which_volume(what, site=None, pool=None, order=None)`
pub(crate) fn site_which_volume(args: &mut Args) -> Result<Method> {
    let which = WhichOrder {
        what: args.text("what")?,
        site: args.maybe_text("site")?,
        pool: args.maybe_text("pool")?,
    };
    Clue::read(&which.what)?;
    site(SiteCall::Which { which, order: order(args)? })
}

/// `half_deleted(name, pool, finish=False, order=None)`
pub(crate) fn site_half_deleted(args: &mut Args) -> Result<Method> {
    let half =
        HalfOrder { name: args.text("name")?, pool: args.text("pool")?, finish: args.flag("finish", false)? };
    site(SiteCall::Half { half, order: order(args)? })
}

/// `switch(name, pool=None, image=None, unplanned=False, dry_run=False, order=None)`
pub(crate) fn site_switch(args: &mut Args) -> Result<Method> {
    let switch = SwitchOrder {
        name: args.text("name")?,
        pool: args.maybe_text("pool")?,
        image: args.maybe_text("image")?,
        unplanned: args.flag("unplanned", false)?,
        dry_run: args.flag("dry_run", false)?,
    };
    site(SiteCall::Switch { switch, order: order(args)? })
}

/// `move(name, pool, image, to, undo=False, dry_run=False, order=None)`
pub(crate) fn site_move(args: &mut Args) -> Result<Method> {
    let moving = MoveOrder {
        name: args.text("name")?,
        pool: args.text("pool")?,
        image: args.text("image")?,
        to: args.text("to")?,
        undo: args.flag("undo", false)?,
        dry_run: args.flag("dry_run", false)?,
    };
    site(SiteCall::Move { order: moving, id: order(args)? })
}

/// `independent(name, unplanned=False, admin_user='admin', admin_key_a=None, dry_run=False, order=None)`
pub(crate) fn site_independent(args: &mut Args) -> Result<Method> {
    let independent = IndependentOrder {
        name: args.text("name")?,
        unplanned: args.flag("unplanned", false)?,
        admin: None,
        dry_run: args.flag("dry_run", false)?,
    };
    site(SiteCall::Independent { independent, keys: keys(args)?, order: order(args)? })
}

/// `revert(name, pool, image, snapshot, order=None)`
pub(crate) fn site_revert(args: &mut Args) -> Result<Method> {
    let revert = RevertOrder {
        name: args.text("name")?,
        pool: args.text("pool")?,
        image: args.text("image")?,
        snap: args.text("snapshot")?,
    };
    site(SiteCall::Revert { revert, order: order(args)? })
}
