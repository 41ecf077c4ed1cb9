//! Whose methods a request names: cinder-volume's, cinder-backup's, or those that only Scoria has.
//!
//! oslo.messaging tells methods of the same name apart by a namespace with a version of its own. cinder-volume's and
//! cinder-backup's have none and come by their topics; their versions begin with another number. Scoria's come by a topic of their own, to a server that is named: a failover
//! must never reach whichever backend happens to listen, as a message to a bare topic does.

use super::dispatch::{Journal, Kind, METHODS, Spec, VERSION, spec};
use super::method::decode as d;

/// The topic of Scoria's own namespaces; servers are `host@backend` and `cluster@backend`, and `host` for what is
/// asked of a host.
pub const TOPIC: &str = "scoria";

/// The topic of namespace `backup`; its servers are the hosts of backup services.
pub const BACKUP_ORDERS: &str = "scoria-backup";

/// Methods that belong together.
#[derive(Debug)]
pub struct Namespace {
    /// On the wire; `None`: cinder-volume's, and cinder-backup's.
    pub name: Option<&'static str>,
    /// The newest version served.
    pub version: (u32, u32),
    /// Its methods. Their names carry the namespace before a dot, so that no journal and no log takes a
    /// `replication.failover` for a `failover`.
    pub methods: &'static [Spec],
}

/// All that are served. A new one is a line here and a decoder for each method.
pub static NAMESPACES: &[Namespace] = &[
    Namespace { name: None, version: VERSION, methods: METHODS },
    Namespace { name: None, version: super::backup::VERSION, methods: BACKUP },
    Namespace { name: Some("replication"), version: (1, 1), methods: REPLICATION },
    Namespace { name: Some("backup"), version: (1, 0), methods: BACKUP_POLICY },
    Namespace { name: Some("site"), version: (1, 4), methods: SITE },
    Namespace { name: Some("backend"), version: (1, 0), methods: BACKEND },
    Namespace { name: Some("cluster"), version: (1, 0), methods: CLUSTER },
];

/// Orders for a backend's replication: they answer with the number of an operation, which does the work. A call
/// is one transaction and may be repeated; a cast is journalled, since nobody would. Questions answer with the
/// document that the operator's tool prints, within the caller's time.
static REPLICATION: &[Spec] = &[
    spec("replication.failover", (1, 0), Kind::CallOrCast, Journal::No, d::order_failover),
    spec("replication.retry", (1, 0), Kind::CallOrCast, Journal::No, d::order_retry),
    spec("replication.resync", (1, 0), Kind::CallOrCast, Journal::No, d::order_resync),
    spec("replication.adopt", (1, 1), Kind::CallOrCast, Journal::No, d::order_adopt),
    spec("replication.status", (1, 0), Kind::Call, Journal::No, d::replication_status),
    spec("replication.preflight", (1, 0), Kind::Call, Journal::No, d::ask_preflight),
    spec("replication.plan", (1, 0), Kind::Call, Journal::No, d::ask_plan),
];

/// cinder-backup's RPC API 2.4 (`cinder/backup/rpcapi.py`).
pub static BACKUP: &[Spec] = &[
    spec("create_backup", (2, 0), Kind::Cast, Journal::Yes, d::create_backup),
    spec("continue_backup", (2, 3), Kind::Cast, Journal::Yes, d::continue_backup),
    spec("restore_backup", (2, 4), Kind::Cast, Journal::Yes, d::restore_backup),
    spec("delete_backup", (2, 0), Kind::Cast, Journal::Yes, d::delete_backup),
    spec("export_record", (2, 0), Kind::Call, Journal::No, d::export_record),
    spec("import_record", (2, 0), Kind::Cast, Journal::Yes, d::import_record),
    spec("reset_status", (2, 0), Kind::Cast, Journal::Yes, d::reset_status),
    spec("check_support_to_force_delete", (2, 0), Kind::Call, Journal::No, d::check_support_to_force_delete),
    spec("publish_service_capabilities", (2, 2), Kind::Fanout, Journal::No, d::publish_service_capabilities),
    spec("set_log_levels", (2, 1), Kind::Cast, Journal::No, d::set_log_levels),
    spec("get_log_levels", (2, 1), Kind::Call, Journal::No, d::get_log_levels),
];

/// Orders for Ceph sites, and what is known of them, by a host. They may hold a key, so none is journalled as it comes,
/// a cast neither.
static SITE: &[Spec] = &[
    spec("site.register", (1, 0), Kind::Call, Journal::No, d::site_register),
    spec("site.update", (1, 0), Kind::Call, Journal::No, d::site_update),
    spec("site.delete", (1, 0), Kind::Call, Journal::No, d::site_delete),
    spec("site.list", (1, 0), Kind::Call, Journal::No, d::site_list),
    spec("site.show", (1, 0), Kind::Call, Journal::No, d::site_show),
    spec("site.get_operation", (1, 0), Kind::Call, Journal::No, d::site_get_operation),
    spec("site.list_operations", (1, 0), Kind::Call, Journal::No, d::site_list_operations),
    spec("site.cancel_operation", (1, 0), Kind::Call, Journal::No, d::site_cancel_operation),
    spec("site.connect", (1, 1), Kind::Call, Journal::No, d::site_connect),
    spec("site.disconnect", (1, 1), Kind::Call, Journal::No, d::site_disconnect),
    spec("site.list_links", (1, 1), Kind::Call, Journal::No, d::site_list_links),
    spec("site.daemon_status", (1, 2), Kind::Call, Journal::No, d::site_daemon_status),
    spec("site.daemon_start", (1, 2), Kind::Call, Journal::No, d::site_daemon_start),
    spec("site.daemon_stop", (1, 2), Kind::Call, Journal::No, d::site_daemon_stop),
    spec("site.daemon_restart", (1, 2), Kind::Call, Journal::No, d::site_daemon_restart),
    spec("site.schedule_add", (1, 2), Kind::Call, Journal::No, d::site_schedule_add),
    spec("site.schedule_remove", (1, 2), Kind::Call, Journal::No, d::site_schedule_remove),
    spec("site.schedule_list", (1, 2), Kind::Call, Journal::No, d::site_schedule_list),
    spec("site.schedule_status", (1, 2), Kind::Call, Journal::No, d::site_schedule_status),
    spec("site.replicate", (1, 2), Kind::Call, Journal::No, d::site_replicate),
    spec("site.which_volume", (1, 2), Kind::Call, Journal::No, d::site_which_volume),
    spec("site.half_deleted", (1, 2), Kind::Call, Journal::No, d::site_half_deleted),
    spec("site.switch", (1, 2), Kind::Call, Journal::No, d::site_switch),
    spec("site.revert", (1, 2), Kind::Call, Journal::No, d::site_revert),
    spec("site.move", (1, 3), Kind::Call, Journal::No, d::site_move),
    spec("site.independent", (1, 3), Kind::Call, Journal::No, d::site_independent),
];

/// Orders for a host's backends, and what is known of them. An order is written down by its method.
static BACKEND: &[Spec] = &[
    spec("backend.create", (1, 0), Kind::Call, Journal::No, d::backend_create),
    spec("backend.show", (1, 0), Kind::Call, Journal::No, d::backend_show),
    spec("backend.list", (1, 0), Kind::Call, Journal::No, d::backend_list),
    spec("backend.update", (1, 0), Kind::Call, Journal::No, d::backend_update),
    spec("backend.enable", (1, 0), Kind::Call, Journal::No, d::backend_enable),
    spec("backend.disable", (1, 0), Kind::Call, Journal::No, d::backend_disable),
    spec("backend.start", (1, 0), Kind::Call, Journal::No, d::backend_start),
    spec("backend.stop", (1, 0), Kind::Call, Journal::No, d::backend_stop),
    spec("backend.delete", (1, 0), Kind::Call, Journal::No, d::backend_delete),
    spec("backend.validate", (1, 0), Kind::Call, Journal::No, d::backend_validate),
    spec("backend.rename", (1, 0), Kind::Call, Journal::No, d::backend_rename),
    spec("backend.get_operation", (1, 0), Kind::Call, Journal::No, d::backend_get_operation),
    spec("backend.list_operations", (1, 0), Kind::Call, Journal::No, d::backend_list_operations),
    spec("backend.cancel_operation", (1, 0), Kind::Call, Journal::No, d::backend_cancel_operation),
];

/// Backups that are ordered, how many stay, when they are made; by the backup service of a host. An order is written
/// down by its method.
static BACKUP_POLICY: &[Spec] = &[
    spec("backup.create", (1, 0), Kind::Call, Journal::No, d::backup_create),
    spec("backup.get_retention", (1, 0), Kind::Call, Journal::No, d::backup_get_retention),
    spec("backup.set_retention", (1, 0), Kind::Call, Journal::No, d::backup_set_retention),
    spec("backup.clear_retention", (1, 0), Kind::Call, Journal::No, d::backup_clear_retention),
    spec("backup.preview_retention", (1, 0), Kind::Call, Journal::No, d::backup_preview_retention),
    spec("backup.apply_retention", (1, 0), Kind::Call, Journal::No, d::backup_apply_retention),
    spec("backup.audit", (1, 0), Kind::Call, Journal::No, d::backup_audit),
    spec("backup.create_schedule", (1, 0), Kind::Call, Journal::No, d::backup_create_schedule),
    spec("backup.list_schedules", (1, 0), Kind::Call, Journal::No, d::backup_list_schedules),
    spec("backup.show_schedule", (1, 0), Kind::Call, Journal::No, d::backup_show_schedule),
    spec("backup.update_schedule", (1, 0), Kind::Call, Journal::No, d::backup_update_schedule),
    spec("backup.delete_schedule", (1, 0), Kind::Call, Journal::No, d::backup_delete_schedule),
    spec("backup.pause_schedule", (1, 0), Kind::Call, Journal::No, d::backup_pause_schedule),
    spec("backup.run_schedule", (1, 0), Kind::Call, Journal::No, d::backup_run_schedule),
    spec("backup.get_operation", (1, 0), Kind::Call, Journal::No, d::backup_get_operation),
    spec("backup.list_operations", (1, 0), Kind::Call, Journal::No, d::backup_list_operations),
    spec("backup.cancel_operation", (1, 0), Kind::Call, Journal::No, d::backup_cancel_operation),
];

/// Marks of backends (`host_cluster_id`): one transaction each, by any host.
static CLUSTER: &[Spec] = &[
    spec("cluster.create", (1, 0), Kind::Call, Journal::No, d::cluster_create),
    spec("cluster.list", (1, 0), Kind::Call, Journal::No, d::cluster_list),
    spec("cluster.show", (1, 0), Kind::Call, Journal::No, d::cluster_show),
    spec("cluster.update", (1, 0), Kind::Call, Journal::No, d::cluster_update),
    spec("cluster.delete", (1, 0), Kind::Call, Journal::No, d::cluster_delete),
];

impl Namespace {
    /// The namespace of that name whose versions begin with `major`.
    pub fn of(name: Option<&str>, major: u32) -> Option<&'static Namespace> {
        NAMESPACES.iter().find(|n| n.name == name && n.version.0 == major)
    }

    /// Its method of that name on the wire.
    pub fn method(&self, name: &str) -> Option<&'static Spec> {
        self.methods.iter().find(|s| match self.name {
            None => s.name == name,
            Some(namespace) => {
                s.name.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('.')) == Some(name)
            }
        })
    }
}

/// Whether a method, by its name in the table and the first number of its version, is served where messages with
/// this routing key arrive. One without a key came by a fanout, to whoever listens to its topic.
pub fn is_served(name: &str, major: u32, routing_key: &str) -> bool {
    let of = |topic: &str| {
        let rest = routing_key.strip_prefix(topic);
        (rest.is_some_and(str::is_empty), rest.is_some_and(|rest| rest.starts_with('.')))
    };
    if let Some((namespace, _)) = name.split_once('.') {
        return of(if namespace == "backup" { BACKUP_ORDERS } else { TOPIC }).1;
    }
    if of(TOPIC).1 || of(BACKUP_ORDERS).1 {
        return false;
    }
    let (bare, server) = of(super::topology::BACKUP_TOPIC);
    routing_key.is_empty() || (major == super::backup::VERSION.0) == (bare || server)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::Code;
    use crate::replication::foresight::Inquiry;
    use crate::replication::intent::Intent;
    use crate::replication::orders::{Adopt, Failover, Move, Order, Resync, Retry};
    use crate::rpc::{Call, Method, envelope};
    use serde_json::{Value, json};

    fn read(method: &str, namespace: Option<&str>, version: &str, args: Value) -> Result<Call, Code> {
        let message = json!({"method": method, "args": args, "version": version, "namespace": namespace,
            "_unique_id": "u", "_msg_id": "i", "_reply_q": "q", "_context_request_id": "req-1"});
        Call::from_delivery(&envelope::seal(message.as_object().unwrap()), None).map_err(|r| r.error.code())
    }

    fn order(method: &str, args: Value) -> Result<Order, Code> {
        match read(method, Some("replication"), "1.0", args)?.method {
            Method::Order(order) => Ok(*order),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_told_apart_by_their_namespace() {
        let stock = read("failover", None, "3.8", json!({"secondary_backend_id": "b"})).unwrap();
        assert_eq!((stock.name, stock.journaled), ("failover", true));
        let ours = read("failover", Some("replication"), "1.0", json!({})).unwrap();
        assert_eq!((ours.name, ours.journaled), ("replication.failover", false));
        for (namespace, version) in
            [(Some("replication"), "3.8"), (Some("replication"), "1.2"), (Some("else"), "1.0"), (None, "1.0")]
        {
            let refused = read("failover", namespace, version, json!({})).unwrap_err();
            assert_eq!(refused, Code::UnsupportedVersion);
        }
        for method in ["failover", "restore_backups"] {
            assert_eq!(read(method, None, "2.0", json!({})).unwrap_err(), Code::NoSuchMethod);
        }
        for method in ["replication.failover", "create_volume"] {
            assert_eq!(read(method, Some("replication"), "1.0", json!({})).unwrap_err(), Code::NoSuchMethod);
        }
        assert_eq!(read("replication.failover", None, "3.0", json!({})).unwrap_err(), Code::NoSuchMethod);
    }

    #[test]
    fn an_order_means_what_it_says_and_never_more() {
        let whole = Failover { target: None, intent: Intent::Automatic };
        assert_eq!(order("failover", json!({})), Ok(Order::Failover(whole)));
        let some = Move {
            target: Some("b".into()),
            intent: Intent::Planned,
            volumes: Some(vec!["v".into()]),
            group: None,
        };
        let args = json!({"volumes": ["v"], "target": "b", "intent": "planned"});
        assert_eq!(order("failover", args), Ok(Order::Move(some)));
        // An empty list is no volume, not all of them.
        assert!(matches!(order("failover", json!({"volumes": []})), Ok(Order::Move(_))));
        assert_eq!(order("failover", json!({"volumes": ["v"], "group": "g"})), Err(Code::BadArguments));
        assert_eq!(order("failover", json!({"volume": "v"})), Err(Code::BadArguments));
        assert_eq!(order("failover", json!({"intent": "brutal"})), Err(Code::InvalidInput));
        assert_eq!(order("retry", json!({})), Ok(Order::Retry(Retry { volumes: None })));
        let adopt = Adopt { leave_behind: true, stop_mirroring: false, fsid: None, dry_run: false };
        let newer = read("adopt", Some("replication"), "1.1", json!({"leave_behind": true})).unwrap();
        assert!(matches!(newer.method, Method::Order(order) if *order == Order::Adopt(adopt)));
        assert_eq!(order("adopt", json!({"volumes": ["v"]})), Err(Code::BadArguments));
        let resync = Resync { discard: "b".into(), volumes: None };
        assert_eq!(order("resync", json!({"discard": "b"})), Ok(Order::Resync(resync)));
        assert_eq!(order("resync", json!({})), Err(Code::BadArguments));
        let asked = read("plan", Some("replication"), "1.0", json!({"target": "b", "volumes": ["v"]}));
        let plan = Inquiry::Plan { to: Some("b".into()), volumes: Some(vec!["v".into()]) };
        assert!(matches!(asked.unwrap().method, Method::Question(found) if found == plan));
        let asked = read("preflight", Some("replication"), "1.0", json!({"volumes": ["v"]}));
        assert_eq!(asked.unwrap_err(), Code::BadArguments);
    }

    #[test]
    fn a_method_is_served_on_its_own_topic_alone() {
        assert!(is_served("failover", 3, "cinder-volume.h@b.h") && is_served("failover", 3, "cinder-volume"));
        assert!(is_served("replication.failover", 1, "scoria.h@b"));
        assert!(!is_served("replication.failover", 1, "cinder-volume.h@b.h"));
        assert!(
            !is_served("replication.failover", 1, "scoria")
                && !is_served("replication.failover", 1, "scoriable.x")
        );
        assert!(!is_served("failover", 3, "scoria.h@b"));
        assert!(is_served("backup.create", 1, "scoria-backup.h"));
        for key in ["scoria.h", "scoria-backup", "cinder-backup.h", ""] {
            assert!(!is_served("backup.create", 1, key), "{key}");
        }
        for (name, major) in [("backend.create", 1), ("create_backup", 2), ("create_volume", 3)] {
            assert!(!is_served(name, major, "scoria-backup.h"), "{name}");
        }
        for key in ["cinder-backup", "cinder-backup.h", ""] {
            assert!(is_served("create_backup", 2, key), "{key}");
        }
        for key in ["cinder-volume.h@b.h", "scoria.h", "cinder-backups"] {
            assert!(!is_served("create_backup", 2, key), "{key}");
        }
        assert!(
            !is_served("set_log_levels", 3, "cinder-backup.h")
                && is_served("set_log_levels", 2, "cinder-backup.h")
        );
    }

    #[test]
    fn the_names_of_a_namespace_carry_it() {
        for namespace in NAMESPACES {
            for method in namespace.methods {
                let prefix = method.name.split_once('.').map(|(prefix, _)| prefix);
                assert_eq!(prefix, namespace.name, "{}", method.name);
            }
        }
    }
}
