//! Every option that Scoria reads: name, type, default, deprecated names, bounds.
//!
//! One table answers every question about an option: what to parse (`build`), what is a misspelling
//! (`unknown`), what the sample file must mention, what `--check-config` knows. Names, defaults and
//! bounds are those of cinder 29.0.0, oslo.messaging 18.3.1, oslo.db 18.1.1 and oslo.log 8.3.2 (a
//! test compares them with a dump of those); what exists only here begins with `scoria_`, with the
//! exception of `rbd_replication_mode`.

/// Where an option lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// `[DEFAULT]`.
    Default,
    /// `[database]`.
    Database,
    /// `[oslo_messaging_rabbit]`.
    Rabbit,
    /// `[oslo_messaging_notifications]`.
    Notifications,
    /// `[service_user]`; its options of keystoneauth are those of `[glance]` and `[nova]` too.
    ServiceUser,
    /// What only `[glance]` has.
    Glance,
    /// What only `[nova]` has.
    Nova,
    /// `[key_manager]`.
    KeyManager,
    /// `[barbican]`.
    Barbican,
    /// `[barbican_service_user]`: an account and nothing else.
    BarbicanUser,
    /// `[scoria]`.
    Scoria,
    /// A section named in `enabled_backends`, then `[backend_defaults]`.
    Backend,
}

impl Group {
    /// All groups, in the order of the sample file.
    pub const ALL: [Group; 12] = [
        Group::Default,
        Group::Database,
        Group::Rabbit,
        Group::Notifications,
        Group::ServiceUser,
        Group::Glance,
        Group::Nova,
        Group::KeyManager,
        Group::Barbican,
        Group::BarbicanUser,
        Group::Scoria,
        Group::Backend,
    ];

    /// Section name; for [`Group::Backend`] the shared one.
    pub fn section(self) -> &'static str {
        match self {
            Group::Default => "DEFAULT",
            Group::Database => "database",
            Group::Rabbit => "oslo_messaging_rabbit",
            Group::Notifications => "oslo_messaging_notifications",
            Group::ServiceUser => "service_user",
            Group::Glance => "glance",
            Group::Nova => "nova",
            Group::KeyManager => "key_manager",
            Group::Barbican => "barbican",
            Group::BarbicanUser => "barbican_service_user",
            Group::Scoria => "scoria",
            Group::Backend => "backend_defaults",
        }
    }
}

/// Type of an option (`oslo_config.types`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
    /// `1/0`, `yes/no`, `true/false`, `on/off`.
    Bool,
    /// A whole number; empty means unset.
    Int {
        /// Smallest allowed value.
        min: i64,
        /// Largest allowed value.
        max: i64,
    },
    /// Comma-separated texts.
    List,
    /// May be given repeatedly.
    Multi,
    /// Repeatable `key:value,key:value`.
    MultiDict,
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    /// Where it lives.
    pub group: Group,
    /// Its name in files.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Default as it would be written in a file; `None`: unset.
    pub default: Option<&'static str>,
    /// Older names, as (section, name).
    pub deprecated: &'static [(&'static str, &'static str)],
    /// Its value is never shown.
    pub secret: bool,
    /// Not looked up in `[backend_defaults]`.
    pub section_only: bool,
    /// Why setting it changes nothing here; `None`: it does.
    pub no_effect: Option<&'static str>,
    /// One sentence for the operator.
    pub help: &'static str,
}

impl OptionSpec {
    const fn deprecated(mut self, names: &'static [(&'static str, &'static str)]) -> Self {
        self.deprecated = names;
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    const fn without_effect(mut self, why: &'static str) -> Self {
        self.no_effect = Some(why);
        self
    }

    const fn section_only(mut self) -> Self {
        self.section_only = true;
        self
    }
}

const fn opt(
    group: Group,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionSpec {
    OptionSpec {
        group,
        name,
        kind,
        default,
        deprecated: &[],
        secret: false,
        section_only: false,
        no_effect: None,
        help,
    }
}

/// The option's specification.
pub fn find(group: Group, name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|o| o.group == group && o.name == name)
}

const INT: Kind = Kind::Int { min: i64::MIN, max: i64::MAX };

const fn from(min: i64) -> Kind {
    Kind::Int { min, max: i64::MAX }
}

const fn between(min: i64, max: i64) -> Kind {
    Kind::Int { min, max }
}

use Group::{
    Backend as Be, Barbican as Ba, Database as Db, Default as De, Glance as Gl, KeyManager as Km,
    Notifications as No, Nova as Nv, Rabbit as Ra, Scoria as Sc, ServiceUser as Su,
};
use Kind::{Bool, Choice, List, Multi, MultiDict, Text};

/// oslo.log's own default of `default_log_levels`.
pub const DEFAULT_LOG_LEVELS: &str = "amqp=WARN,boto=WARN,sqlalchemy=WARN,suds=INFO,oslo.messaging=INFO,\
oslo_messaging=INFO,iso8601=WARN,requests.packages.urllib3.connectionpool=WARN,\
urllib3.connectionpool=WARN,websocket=WARN,requests.packages.urllib3.util.retry=WARN,\
urllib3.util.retry=WARN,keystonemiddleware=WARN,routes.middleware=WARN,stevedore=WARN,taskflow=WARN,\
keystoneauth=WARN,oslo.cache=INFO,oslo_policy=INFO,dogpile.core.dogpile=INFO";

/// The registry.
#[rustfmt::skip]
pub static OPTIONS: &[OptionSpec] = &[
    // The service.
    opt(De, "host", Text, None, "Name of this host; part of every service and volume host. Unset: the machine's host name."),
    opt(De, "host_cluster_id", Text, None, "Mark of all backends of this service that have none of their own; their service host becomes MARK!HOST@BACKEND."),
    opt(De, "cluster", Text, None, "Cinder cluster that this service joins (active/active)."),
    opt(De, "storage_availability_zone", Text, Some("nova"), "Availability zone of this service."),
    opt(De, "enabled_backends", List, None, "Sections to serve, one storage backend each."),
    opt(De, "control_exchange", Text, Some("openstack"), "Exchange of RPC and notifications; the same in all Cinder services."),
    opt(De, "transport_url", Text, Some("rabbit://"), "Message broker: rabbit://USER:PASSWORD@HOST:PORT[,USER:PASSWORD@HOST:PORT]/VHOST[?OPTION=VALUE].").secret(),
    opt(De, "rpc_response_timeout", INT, Some("60"), "Seconds to wait for the answer to an RPC call."),
    opt(De, "executor_thread_pool_size", INT, Some("64"), "Calls, and besides them casts, that each backend works on at once; more wait in order.").deprecated(&[("DEFAULT", "rpc_thread_pool_size")]),
    opt(De, "report_interval", INT, Some("10"), "Seconds between heartbeats in the services table."),
    opt(De, "service_down_time", INT, Some("60"), "Seconds after the last heartbeat when others take this service for dead; more than report_interval."),
    opt(De, "periodic_interval", INT, Some("60"), "Seconds between periodic tasks.").without_effect("capabilities are reported every backend_stats_polling_interval"),
    opt(De, "backend_stats_polling_interval", from(3), Some("60"), "Seconds between capacity queries to Ceph."),
    opt(De, "enable_new_services", Bool, Some("true"), "Whether a service that starts for the first time is enabled."),
    opt(De, "no_snapshot_gb_quota", Bool, Some("false"), "Whether snapshots are left out of the gigabytes quota."),
    opt(De, "quota_gigabytes", INT, Some("1000"), "Gigabytes of a project without a quota of its own, when the default quota class has none; -1: no limit."),
    opt(De, "per_volume_size_limit", INT, Some("-1"), "Largest volume in GiB, in the same case; -1: no limit."),
    opt(De, "quota_backups", INT, Some("10"), "Backups, in the same case; counts for those that schedules and scoria-manage order; -1: no limit."),
    opt(De, "quota_backup_gigabytes", INT, Some("1000"), "Gigabytes of backups, likewise; -1: no limit."),
    opt(De, "use_default_quota_class", Bool, Some("true"), "Whether the default quota class counts for projects without quotas of their own."),
    opt(De, "message_ttl", INT, Some("2592000"), "Seconds that user messages are kept."),
    opt(De, "migration_create_volume_timeout_secs", INT, Some("300"), "Seconds that a migration waits for its destination to make the volume."),
    opt(De, "backup_use_same_host", Bool, Some("false"), "Whether a volume is made from a backup by the backup service that has made the backup, and by no other."),
    // The backup service.
    opt(De, "backup_ceph_conf", Text, Some("/etc/ceph/ceph.conf"), "ceph.conf of the cluster that backups go to."),
    opt(De, "backup_ceph_user", Text, Some("cinder"), "Ceph client there."),
    opt(De, "backup_ceph_pool", Text, Some("backups"), "Pool of backups, unless a request names another (container)."),
    opt(De, "backup_ceph_image_journals", Bool, Some("false"), "Whether images of backups are journaled, so that they can be mirrored."),
    opt(De, "backup_ceph_max_snapshots", INT, Some("0"), "Snapshots of backups that are kept on a volume, the newest ones; 0: all. An incremental backup without a common one compares all data instead of becoming a full one."),
    opt(De, "backup_site", Text, None, "Registered site that backups go to, into backup_ceph_pool there, unless the volume's type names another (backup:site); without it the cluster of backup_ceph_conf."),
    opt(De, "backup_method", Choice(&["mirror", "diff", "auto"]), Some("diff"), "How backups are made. diff: what has changed is read and written, so that stock can restore it. mirror: a point of the copy that RBD mirroring keeps on the site of the backups is pinned; a volume without one is refused. auto: mirror where there is such a copy, else diff."),
    opt(De, "backup_max_operations", from(0), Some("15"), "Backups and restorations worked on at once; more wait in order; 0: no limit."),
    opt(De, "backup_timer_interval", INT, Some("120"), "Seconds between two notifications of how far a backup is."),
    opt(De, "backup_driver_stats_polling_interval", from(10), Some("60"), "Seconds between two reports of the backup service to the scheduler.").deprecated(&[("DEFAULT", "backup_driver_status_check_interval")]),
    opt(De, "volume_name_template", Text, Some("volume-%s"), "Image name of a volume; %s is its id."),
    opt(De, "snapshot_name_template", Text, Some("snapshot-%s"), "Name of a snapshot; %s is its id."),
    opt(De, "graceful_shutdown_timeout", INT, Some("60"), "Seconds that running operations get on SIGTERM; 0: no limit."),
    // oslo.log.
    opt(De, "debug", Bool, Some("false"), "Log at DEBUG instead of INFO."),
    opt(De, "log_file", Text, None, "Log file; relative to log_dir when that is set.").deprecated(&[("DEFAULT", "logfile")]),
    opt(De, "log_dir", Text, None, "Directory of the log file; alone: <log_dir>/<program>.log.").deprecated(&[("DEFAULT", "logdir")]),
    opt(De, "log_date_format", Text, Some("%Y-%m-%d %H:%M:%S"), "strftime format of the time in a log line."),
    opt(De, "use_stderr", Bool, Some("false"), "Log to standard error (always so without a log file)."),
    opt(De, "use_json", Bool, Some("false"), "Log one JSON object per line."),
    opt(De, "default_log_levels", List, Some(DEFAULT_LOG_LEVELS), "logger=LEVEL pairs; Python logger names of Cinder and Rust targets both work."),
    opt(De, "use_syslog", Bool, Some("false"), "Not supported: standard error reaches the journal under systemd."),
    opt(De, "use_journal", Bool, Some("false"), "Not supported: standard error reaches the journal under systemd."),
    opt(De, "log_config_append", Text, None, "Not supported: a Python logging configuration means nothing here.").deprecated(&[("DEFAULT", "log_config")]),
    opt(De, "log_rotation_type", Text, Some("none"), "Only none: use logrotate. A moved log file is noticed, SIGHUP is not needed."),
    // The database.
    opt(Db, "connection", Text, None, "SQLAlchemy URL: mysql+pymysql://USER:PASSWORD@HOST[:PORT]/cinder[?charset=utf8mb4&ssl_ca=FILE].").secret().deprecated(&[("DEFAULT", "sql_connection"), ("database", "sql_connection"), ("sql", "connection")]),
    opt(Db, "connection_parameters", Text, Some(""), "More URL parameters, appended to connection."),
    opt(Db, "max_pool_size", INT, Some("5"), "Connections kept open."),
    opt(Db, "max_overflow", INT, Some("50"), "Connections on top of max_pool_size under load."),
    opt(Db, "max_retries", INT, Some("10"), "Attempts to reach the database at start that are only warned about; Scoria always goes on waiting."),
    opt(Db, "retry_interval", INT, Some("10"), "Seconds between those attempts."),
    // RPC.
    opt(Ra, "amqp_durable_queues", Bool, Some("false"), "Durable topic exchanges and queues."),
    opt(Ra, "amqp_auto_delete", Bool, Some("false"), "Auto-delete topic exchanges and queues."),
    opt(Ra, "ssl", Bool, Some("false"), "TLS to the broker."),
    opt(Ra, "ssl_ca_file", Text, Some(""), "CA file; the broker is verified only when it is set."),
    opt(Ra, "ssl_cert_file", Text, Some(""), "Client certificate."),
    opt(Ra, "ssl_key_file", Text, Some(""), "Key of the client certificate."),
    opt(Ra, "heartbeat_timeout_threshold", INT, Some("60"), "Seconds of silence after which the broker connection is dead; 0: no heartbeat."),
    opt(Ra, "kombu_missing_consumer_retry_timeout", INT, Some("60"), "Seconds that a reply is retried while its queue is away.").deprecated(&[("oslo_messaging_rabbit", "kombu_reconnect_timeout")]),
    opt(Ra, "rabbit_login_method", Choice(&["PLAIN", "AMQPLAIN", "EXTERNAL", "RABBIT-CR-DEMO"]), Some("AMQPLAIN"), "SASL mechanism: AMQPLAIN, PLAIN or EXTERNAL."),
    opt(Ra, "rabbit_retry_interval", from(1), Some("1"), "Seconds before the first reconnect."),
    opt(Ra, "rabbit_retry_backoff", from(0), Some("2"), "Seconds added for every further reconnect."),
    opt(Ra, "rabbit_interval_max", from(1), Some("30"), "Longest wait between reconnects in seconds."),
    opt(Ra, "rabbit_ha_queues", Bool, Some("false"), "x-ha-policy: all; excludes rabbit_quorum_queue."),
    opt(Ra, "rabbit_quorum_queue", Bool, Some("false"), "Topic queues are quorum queues."),
    opt(Ra, "rabbit_transient_quorum_queue", Bool, Some("false"), "Reply and fanout queues are quorum queues."),
    opt(Ra, "rabbit_quorum_delivery_limit", INT, Some("0"), "x-delivery-limit of quorum queues; 0: unset."),
    opt(Ra, "rabbit_quorum_max_memory_length", INT, Some("0"), "x-max-in-memory-length of quorum queues; 0: unset."),
    opt(Ra, "rabbit_quorum_max_memory_bytes", INT, Some("0"), "x-max-in-memory-bytes of quorum queues; 0: unset."),
    opt(Ra, "rabbit_transient_queues_ttl", from(0), Some("1800"), "Seconds until unused reply and fanout queues expire; 0: never."),
    opt(Ra, "rabbit_stream_fanout", Bool, Some("false"), "Fanout queues are one stream; needs rabbit_qos_prefetch_count and rabbit_transient_quorum_queue."),
    opt(Ra, "rabbit_qos_prefetch_count", INT, Some("0"), "Unacknowledged messages per consumer; 0 means 100 here."),
    opt(Ra, "enable_cancel_on_failover", Bool, Some("false"), "x-cancel-on-ha-failover for consumers."),
    opt(Ra, "use_queue_manager", Bool, Some("false"), "Predictable names for reply and fanout queues."),
    opt(Ra, "hostname", Text, None, "Host part of those names. Unset: the machine's host name."),
    opt(Ra, "processname", Text, None, "Process part of those names. Unset: the program's name."),
    // Notifications.
    opt(No, "driver", Multi, None, "messaging, messagingv2 or noop; may be repeated. Unset: nothing is emitted."),
    opt(No, "transport_url", Text, None, "Broker of notifications. Unset: that of RPC.").secret(),
    opt(No, "topics", List, Some("notifications"), "Topics that notifications are sent to."),
    // Images and the services that have them.
    opt(De, "auth_strategy", Choice(&["noauth", "noauth_include_project_id", "keystone"]), Some("keystone"), "keystone: requests to other services carry tokens; noauth: they do not."),
    opt(De, "glance_api_servers", List, None, "Glance servers, HOST:PORT or URL each. Unset: glance_catalog_info."),
    opt(De, "glance_catalog_info", Text, Some("image:glance:publicURL"), "Where glance stands in the catalogue: <service_type>:<service_name>:<endpoint_type>."),
    opt(De, "glance_num_retries", from(0), Some("3"), "Further attempts, each at the next server, when glance cannot be reached."),
    opt(De, "glance_request_timeout", INT, None, "Seconds that glance may be silent. Unset: 600."),
    opt(De, "glance_api_insecure", Bool, Some("false"), "Whether glance's certificate is not verified."),
    opt(De, "glance_ca_certificates_file", Text, None, "CA file for glance. Unset: the system's certificates."),
    opt(De, "glance_certfile", Text, None, "Client certificate for glance."),
    opt(De, "glance_keyfile", Text, None, "Its key."),
    opt(De, "glance_api_ssl_compression", Bool, Some("false"), "TLS compression.").without_effect("no TLS library of today compresses"),
    opt(De, "allowed_direct_url_schemes", List, Some(""), "Image locations that may be used instead of a download: file, cinder."),
    opt(De, "verify_glance_signatures", Choice(&["disabled", "enabled"]), Some("enabled"), "Whether the signature of a signed image is verified."),
    opt(De, "image_compress_on_upload", Bool, Some("true"), "Whether volumes that are uploaded as qcow2 are compressed."),
    opt(De, "allow_compression_on_image_upload", Bool, Some("false"), "Whether images may be gzipped (container_format compressed)."),
    opt(De, "image_conversion_dir", Text, Some("$state_path/conversion"), "Directory for images that are being converted."),
    opt(De, "image_conversion_disable", Bool, Some("false"), "Whether images in other formats than the volume's are refused."),
    opt(De, "image_introspection_cpu_limit", INT, Some("60"), "Seconds of CPU for a look into an image.").deprecated(&[("DEFAULT", "image_conversion_cpu_limit")]),
    opt(De, "image_introspection_address_space_limit", INT, Some("1"), "GiB of memory for it.").deprecated(&[("DEFAULT", "image_conversion_address_space_limit")]),
    opt(De, "cinder_internal_tenant_project_id", Text, None, "Project that owns cached images."),
    opt(De, "cinder_internal_tenant_user_id", Text, None, "User that owns cached images."),
    opt(Su, "send_service_user_token", Bool, Some("false"), "Send the token of this account along with the user's."),
    opt(Su, "auth_type", Text, None, "password or v3password.").deprecated(&[("service_user", "auth_plugin")]),
    opt(Su, "auth_section", Text, None, "Another section that has the account."),
    opt(Su, "auth_url", Text, None, "Keystone."),
    opt(Su, "username", Text, None, "User.").deprecated(&[("service_user", "user-name"), ("service_user", "user_name")]),
    opt(Su, "user_id", Text, None, "Or its id."),
    opt(Su, "password", Text, None, "Password.").secret(),
    opt(Su, "user_domain_name", Text, None, "Domain of the user."),
    opt(Su, "user_domain_id", Text, None, "Or its id."),
    opt(Su, "project_name", Text, None, "Project that the token is for.").deprecated(&[("service_user", "tenant-name"), ("service_user", "tenant_name")]),
    opt(Su, "project_id", Text, None, "Or its id.").deprecated(&[("service_user", "tenant-id"), ("service_user", "tenant_id")]),
    opt(Su, "project_domain_name", Text, None, "Domain of the project."),
    opt(Su, "project_domain_id", Text, None, "Or its id."),
    opt(Su, "default_domain_name", Text, None, "Domain of both, where theirs is not set."),
    opt(Su, "default_domain_id", Text, None, "Or its id."),
    opt(Su, "domain_name", Text, None, "Domain that the token is for, instead of a project."),
    opt(Su, "domain_id", Text, None, "Or its id."),
    opt(Su, "system_scope", Text, None, "all: the token is for the system, instead of a project."),
    opt(Su, "cafile", Text, None, "CA file. Unset: the system's certificates."),
    opt(Su, "insecure", Bool, Some("false"), "Whether certificates are not verified."),
    opt(Su, "certfile", Text, None, "Client certificate."),
    opt(Su, "keyfile", Text, None, "Its key."),
    opt(Su, "timeout", Text, None, "Seconds that an answer may take. Unset: 60."),
    opt(Gl, "region_name", Text, None, "Region of glance in the catalogue."),
    opt(Nv, "region_name", Text, None, "Region of nova in the catalogue."),
    opt(Nv, "interface", Choice(&["public", "admin", "internal"]), Some("public"), "Endpoint of nova: public, internal or admin."),
    opt(Nv, "token_auth_url", Text, None, "Keystone for requests with the user's token. Unset: that of the user's catalogue."),
    // The keys of encrypted volumes.
    opt(Km, "backend", Text, Some("barbican"), "Who keeps the keys of encrypted volumes: barbican, or cinder.keymgr.conf_key_mgr.ConfKeyManager (fixed_key).").deprecated(&[("key_manager", "api_class")]),
    opt(Km, "fixed_key", Text, None, "Key of all volumes of ConfKeyManager, in hex; with barbican, of those from before it.").secret().deprecated(&[("keymgr", "fixed_key")]),
    opt(Ba, "barbican_endpoint", Text, None, "Barbican. Unset: that of the user's catalogue."),
    opt(Ba, "barbican_api_version", Text, None, "Version in its paths. Unset: v1."),
    opt(Ba, "barbican_endpoint_type", Choice(&["public", "internal", "admin"]), Some("public"), "Endpoint in the catalogue: public, internal or admin."),
    opt(Ba, "barbican_region_name", Text, None, "Region in the catalogue."),
    opt(Ba, "verify_ssl", Bool, Some("true"), "Whether Barbican's certificate is verified."),
    opt(Ba, "verify_ssl_path", Text, None, "CA file. Unset: the system's certificates."),
    opt(Ba, "send_service_user_token", Bool, Some("false"), "Send the token of [barbican_service_user] along with the user's."),
    // Scoria's own.
    opt(Sc, "scoria_worker_path", Text, None, "The worker program. Unset: scoria-rbd-worker beside the service."),
    opt(Sc, "scoria_workers_per_site", between(2, 64), Some("2"), "Worker processes for each Ceph cluster in use."),
    opt(Sc, "scoria_operation_retention", from(0), Some("86400"), "Seconds that finished operations stay in the journal."),
    opt(Sc, "scoria_lease_seconds", between(5, 300), Some("10"), "Lease of a running operation; renewed every fifth of it."),
    opt(Sc, "scoria_backup_bandwidth", from(0), Some("0"), "MiB a second that one backup or restoration reads at most; 0: no limit."),
    opt(Sc, "scoria_backup_verify_on_restore", Bool, Some("true"), "Whether all that is restored is compared with the checksums of the backup; a volume whose content does not match ends in error_restoring."),
    opt(Sc, "scoria_backup_restore_by_clone", Bool, Some("true"), "Whether a backup by mirroring that is on the volume's own site is restored by a clone that takes the place of the volume's image, and is flattened in the background; false: its data is copied. The client of the volume's backend, and whoever attaches the volume, must be able to read the pool of the backups."),
    opt(Sc, "scoria_backup_site_timeout", from(10), Some("120"), "Seconds that a backup, a restoration or a deletion goes on while a Ceph site that it needs answers nothing, counted from the last answer; after a shorter outage it goes on where it was."),
    opt(Sc, "scoria_backup_mirror_timeout", from(1), Some("21600"), "Seconds that the snapshot of a backup by mirroring may be on its way to the other site; a first copy of a large volume takes hours."),
    opt(Sc, "scoria_backup_flatten_pool", Text, None, "Pool for backups by mirroring, which are flattened there in the background, so that they depend on no copy; unset: they are clones in backup_ceph_pool."),
    opt(Sc, "scoria_backup_checksum_bandwidth", from(0), Some("64"), "MiB a second that are read in the background for the checksums of backups by mirroring; 0: no limit."),
    opt(Sc, "scoria_site_dir", Text, Some("/etc/scoria/sites"), "Directory of the files that Scoria keeps for Ceph sites; the service's user must be able to write there."),
    opt(Sc, "scoria_mirror_daemon_dir", Text, Some("$state_path/rbd-mirror"), "Directory of the rbd-mirror daemons that the service runs itself: conf, key, log and lock of each."),
    opt(Sc, "scoria_mirror_daemon_path", Text, Some("rbd-mirror"), "The rbd-mirror program that they are started from."),
    // A backend: general.
    opt(Be, "volume_driver", Text, None, "cinder.volume.drivers.rbd.RBDDriver or unset: Scoria serves only Ceph RBD."),
    opt(Be, "backend_host", Text, None, "Host part of this backend's service host, instead of [DEFAULT] host.").section_only(),
    opt(Be, "host_cluster_id", Text, None, "Mark of this backend: its service host becomes MARK!HOST@BACKEND."),
    opt(Be, "volume_backend_name", Text, None, "Name that volume types refer to; RBD when unset."),
    opt(Be, "backend_availability_zone", Text, None, "Availability zone of this backend."),
    opt(Be, "reserved_percentage", between(0, 100), Some("0"), "Percent of the capacity that the scheduler keeps free."),
    opt(Be, "max_over_subscription_ratio", Text, Some("20.0"), "Provisioned over physical capacity: a number of at least 1, or auto."),
    opt(Be, "report_discard_supported", Bool, Some("false"), "Tell consumers that discard works.").without_effect("of an RBD volume it is always told, as by upstream's driver"),
    opt(Be, "disk_geometry", Choice(&["512", "512e", "4k"]), None, "Block sizes that hosts are told: 512, 512e (4096/512) or 4k. Unset: none."),
    opt(Be, "filter_function", Text, None, "Equation by which the scheduler filters this backend."),
    opt(Be, "goodness_function", Text, None, "Equation by which the scheduler rates this backend."),
    opt(Be, "image_volume_cache_enabled", Bool, Some("false"), "Keep a volume of every image that a volume was made from."),
    opt(Be, "image_volume_cache_max_size_gb", INT, Some("0"), "GiB that the cache may have; 0: no limit."),
    opt(Be, "image_volume_cache_max_count", INT, Some("0"), "Volumes that the cache may have; 0: no limit."),
    opt(Be, "extra_capabilities", Text, Some("{}"), "JSON object added to the capability report."),
    // A backend: RBD.
    opt(Be, "rbd_cluster_name", Text, Some("ceph"), "Name of the Ceph cluster."),
    opt(Be, "rbd_pool", Text, Some("rbd"), "Pool of the volumes; the same name on every replication device."),
    opt(Be, "rbd_user", Text, None, "Ceph client; unset: no cephx."),
    opt(Be, "rbd_ceph_conf", Text, Some(""), "ceph.conf; empty: librados' search path."),
    opt(Be, "rbd_secret_uuid", Text, None, "libvirt secret of the key; unset: the cluster's fsid."),
    opt(Be, "rbd_flatten_volume_from_snapshot", Bool, Some("false"), "Flatten volumes created from a snapshot."),
    opt(Be, "rbd_max_clone_depth", INT, Some("5"), "Clones of clones before a flatten; 0: full copies."),
    opt(Be, "rbd_store_chunk_size", INT, Some("4"), "Object size in MiB."),
    opt(Be, "rados_connect_timeout", INT, Some("-1"), "Seconds for each librados and monitor call; negative: librados' default."),
    opt(Be, "rados_connection_retries", INT, Some("3"), "Attempts to connect.").without_effect("Scoria goes on trying"),
    opt(Be, "rados_connection_interval", INT, Some("5"), "Seconds between attempts, doubling.").without_effect("Scoria goes on trying, at most 10 s apart"),
    opt(Be, "replication_connect_timeout", INT, Some("5"), "Seconds for calls to either side during failover; negative: librados' default."),
    opt(Be, "report_dynamic_total_capacity", Bool, Some("true"), "Total capacity = free + used of the pool."),
    opt(Be, "rbd_exclusive_cinder_pool", Bool, Some("true"), "Only Cinder uses the pool; false: provisioned capacity is summed over all images."),
    opt(Be, "backup_use_temp_snapshot", Bool, Some("false"), "Back up a volume in use by a temporary snapshot.").without_effect("a snapshot of an RBD image cannot be attached, so a temporary volume is backed up instead"),
    opt(Be, "enable_deferred_deletion", Bool, Some("false"), "The images of deleted volumes wait in the trash for deferred_deletion_delay (scoria-manage trash)."),
    opt(Be, "deferred_deletion_delay", INT, Some("0"), "Seconds until an image in the trash may be purged."),
    opt(Be, "deferred_deletion_purge_interval", INT, Some("60"), "Seconds between purges of the trash, on each site."),
    opt(Be, "rbd_concurrent_flatten_operations", from(0), Some("3"), "Flattens at once; 0: no limit."),
    opt(Be, "replication_device", MultiDict, None, "backend_id:ID,conf:FILE,user:CLIENT,secret_uuid:UUID of a peer cluster; may be repeated.").secret(),
    opt(Be, "rbd_replication_mode", Choice(&["journal", "snapshot"]), Some("journal"), "How volumes are mirrored; the extra spec replication:mode overrides it. A clone that is mirrored by snapshots keeps its parent, which stays busy (docs/differences.md)."),
    opt(Be, "scoria_replication_poll_interval", between(0, 86400), Some("60"), "Seconds between two looks at how far behind the copies are (daemons report every 30 s); 0: never."),
    opt(Be, "scoria_mirror_snapshot_schedule", Text, None, "When mirror snapshots of volumes that are mirrored by snapshots are made, for example 5m or 1h@00:30; the extra spec replication:schedule overrides it. Unset: by the schedules that Ceph has for the pool, if any."),
    opt(Be, "scoria_failover_concurrency", between(1, 1024), Some("32"), "Volumes worked on at once in a failover."),
    opt(Be, "scoria_verdict_timeout", between(1, 300), Some("5"), "Seconds for one health probe of a Ceph cluster."),
    opt(Be, "scoria_demote_timeout", between(1, 3600), Some("30"), "Seconds until a demotion counts as failed."),
    opt(Be, "scoria_promote_timeout", between(1, 3600), Some("60"), "Seconds until a planned promotion that was not accepted is given up and the old side promoted again."),
    opt(Be, "scoria_writable_timeout", between(1, 3600), Some("60"), "Seconds that a forced promotion may take to accept writers."),
    opt(Be, "scoria_frozen_blocks_deletes", Bool, Some("true"), "A frozen backend deletes nothing and writes nothing over, whoever asks; false: only cinder-api looks."),
    opt(Be, "scoria_fence_on_failover", Bool, Some("false"), "After volumes were forced away from a site, fence the clients that use them there, as soon as it answers again."),
];
