//! An operator's `cinder.conf`, unchanged, turned into checked values.
//!
//! In this order: [`ini`] reads oslo INI files into raw entries that remember file and line;
//! [`source`] layers files and environment; `interpolate` expands `$option`; [`options`] knows the
//! name, type and default of everything Scoria reads, and `reader` combines them into typed look-ups;
//! `build` and `backend` check and make the [`Config`] below; `unknown` finds misspelt options.
//! Everything after that works with typed values only. Findings name file, line, section and key,
//! and say what would be right; all of them are collected before the first is told.

mod again;
mod backend;
mod backup;
mod build;
mod fragment;
pub mod ini;
mod interpolate;
mod keys;
mod openstack;
pub mod options;
pub mod problem;
mod reader;
pub mod source;
#[cfg(test)]
mod tests;
mod unknown;
mod url;
mod value;
mod values;

use std::path::PathBuf;
use std::time::Duration;

pub use again::Sources;
pub use backup::{BackupConfig, BackupMethod};
pub use fragment::{Fragment, check_name, check_options, is_label};
pub use keys::{BarbicanConfig, KeyBackend, KeyManagerConfig};
pub use openstack::{
    Account, AuthScope, CatalogInfo, GlanceConfig, ImageCacheConfig, ImageConfig, InternalTenant, Named,
    NovaConfig, OpenStackConfig, TlsOptions, identity_base,
};
pub use problem::{Origin, Problem, Severity, Warning};
pub use source::Source;
pub use values::{Values, checksum};

use crate::error::{Code, Error};

use secrecy::SecretString;

use crate::rbd::types::{MirrorMode, Schedule};

/// What a look at a configuration found.
#[derive(Debug)]
pub struct Report {
    /// The configuration; `None` when there are errors.
    pub config: Option<Config>,
    /// All findings, in the order in which they were met.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Findings of at least this severity.
    pub fn at_least(&self, severity: Severity) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(move |p| p.severity >= severity)
    }

    /// What `--check-config` decides: no errors, and nothing that is most likely a mistake.
    pub fn is_clean(&self) -> bool {
        self.at_least(Severity::Suspect).next().is_none()
    }
}

impl Config {
    /// Reads files (later ones override earlier ones), then the `*.conf` of each directory, then
    /// `OS_<GROUP>__<OPTION>` variables, and checks everything. The error has [`Code::Config`] and
    /// one line per problem. Warnings are for the caller to log ([`Problem::log`]), which can only
    /// happen after logging was set up from this very configuration.
    pub fn load(
        files: &[PathBuf],
        dirs: &[PathBuf],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<(Config, Vec<Warning>), Error> {
        let report = Config::check(files, dirs, env);
        let errors: Vec<String> = report.at_least(Severity::Error).map(ToString::to_string).collect();
        match report.config {
            Some(mut config) if errors.is_empty() => {
                config.sources = Sources { files: files.to_vec(), dirs: dirs.to_vec() };
                Ok((config, report.problems))
            }
            _ => Err(Error::new(Code::Config, errors.join("\n"))),
        }
    }

    /// The same for `--check-config`: nothing is dropped, all findings are told.
    pub fn check(files: &[PathBuf], dirs: &[PathBuf], env: impl Iterator<Item = (String, String)>) -> Report {
        match Source::read(files, dirs, env) {
            Ok(source) => {
                let mut report = Config::from_source(&source);
                let sources = Sources { files: files.to_vec(), dirs: dirs.to_vec() };
                fragment::add(&mut report, &source, &sources);
                report
            }
            Err(problems) => Report { config: None, problems },
        }
    }

    /// Checks layers that were read already.
    pub fn from_source(source: &Source) -> Report {
        let reader = reader::Reader::new(source);
        let config = build::config(&reader);
        let problems = reader.finish();
        let failed = problems.iter().any(|p| p.severity == Severity::Error);
        Report { config: (!failed).then_some(config), problems }
    }
}

impl LogConfig {
    /// Reads oslo.log's options only: what SIGHUP applies, even when the rest of the files is
    /// being edited and would not load.
    pub fn load(
        files: &[PathBuf],
        dirs: &[PathBuf],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<(LogConfig, Vec<Warning>), Error> {
        let fail = |problems: &[Problem]| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Error::new(Code::Config, lines.join("\n"))
        };
        let source = Source::read(files, dirs, env).map_err(|problems| fail(&problems))?;
        let reader = reader::Reader::new(&source);
        let config = build::log(&reader);
        let problems = reader.finish();
        let errors: Vec<Problem> =
            problems.iter().filter(|p| p.severity == Severity::Error).cloned().collect();
        if errors.is_empty() { Ok((config, problems)) } else { Err(fail(&errors)) }
    }
}

/// Everything Scoria reads from configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from ([`Config::load`]).
    pub sources: Sources,
    /// `[DEFAULT] host`, or the machine's host name.
    pub host: String,
    /// `[DEFAULT] cluster`: the Cinder cluster, if any.
    pub cluster: Option<String>,
    /// `[DEFAULT] storage_availability_zone` (`nova`).
    pub availability_zone: String,
    /// `[DEFAULT] volume_topic`-derived names are fixed upstream; the control exchange is not.
    pub control_exchange: String,
    /// `[DEFAULT] report_interval` (10 s).
    pub report_interval: Duration,
    /// `[DEFAULT] service_down_time` (60 s).
    pub service_down_time: Duration,
    /// `[DEFAULT] backend_stats_polling_interval` (60 s).
    pub backend_stats_polling_interval: Duration,
    /// `[DEFAULT] enable_new_services` (true).
    pub enable_new_services: bool,
    /// `[DEFAULT] no_snapshot_gb_quota` (false).
    pub no_snapshot_gb_quota: bool,
    /// `[DEFAULT] quota_gigabytes` (1000); negative: no limit.
    pub quota_gigabytes: i64,
    /// `[DEFAULT] quota_backups` (10); negative: no limit.
    pub quota_backups: i64,
    /// `[DEFAULT] quota_backup_gigabytes` (1000); negative: no limit.
    pub quota_backup_gigabytes: i64,
    /// `[DEFAULT] per_volume_size_limit` (-1), GiB; negative: no limit.
    pub per_volume_size_limit: i64,
    /// `[DEFAULT] use_default_quota_class` (true).
    pub use_default_quota_class: bool,
    /// `[DEFAULT] message_ttl` (2592000 s).
    pub message_ttl: Duration,
    /// `[DEFAULT] migration_create_volume_timeout_secs` (300 s).
    pub migration_create_timeout: Duration,
    /// `[DEFAULT] backup_use_same_host` (false).
    pub backup_use_same_host: bool,
    /// `[DEFAULT] volume_name_template` (`volume-%s`).
    pub volume_name_template: String,
    /// `[DEFAULT] snapshot_name_template` (`snapshot-%s`).
    pub snapshot_name_template: String,
    /// `[DEFAULT] graceful_shutdown_timeout` (60 s; 0: no limit).
    pub graceful_shutdown_timeout: Duration,
    /// `[DEFAULT] executor_thread_pool_size` (64): calls, and besides them casts, that each backend works on
    /// at once.
    pub executor_thread_pool_size: usize,
    /// `[database]`.
    pub database: DatabaseConfig,
    /// `[DEFAULT] transport_url` and `[oslo_messaging_rabbit]`.
    pub rabbit: RabbitConfig,
    /// `[oslo_messaging_notifications]`.
    pub notifications: NotificationConfig,
    /// oslo.log's options.
    pub log: LogConfig,
    /// One per name of `enabled_backends` that is on Ceph RBD, in that order, then those of `backends.d`.
    pub backends: Vec<BackendConfig>,
    /// The backup service's.
    pub backup: BackupConfig,
    /// Keystone, glance and nova.
    pub openstack: OpenStackConfig,
    /// What is done with images.
    pub image: ImageConfig,
    /// Scoria's own options that are not per backend (`[scoria]`).
    pub scoria: ScoriaConfig,
}

/// `[scoria]`: what upstream has no option for. Every name begins with `scoria_`.
#[derive(Debug, Clone)]
pub struct ScoriaConfig {
    /// `scoria_worker_path`: the worker binary; default: `scoria-rbd-worker` beside the service.
    pub worker_path: Option<PathBuf>,
    /// `scoria_workers_per_site` (2, at least 2).
    pub workers_per_site: usize,
    /// `scoria_operation_retention` seconds that closed journal entries are kept (86400).
    pub operation_retention: Duration,
    /// `scoria_lease_seconds` (10) and renewal every fifth of it.
    pub lease: Duration,
    /// `scoria_site_dir` (`/etc/scoria/sites`): conf and keyring of sites whose content was given to Scoria.
    pub site_dir: PathBuf,
    /// `scoria_mirror_daemon_dir` (`$state_path/rbd-mirror`): of the rbd-mirror daemons that the service runs itself.
    pub mirror_daemon_dir: PathBuf,
    /// `scoria_mirror_daemon_path` (`rbd-mirror`): the program.
    pub mirror_daemon_path: PathBuf,
}

/// `[database] connection` in SQLAlchemy form, taken apart.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Host name or address.
    pub host: String,
    /// Port (3306).
    pub port: u16,
    /// Unix socket (`?unix_socket=`), used instead of host and port.
    pub socket: Option<PathBuf>,
    /// User.
    pub user: String,
    /// Password.
    pub password: Option<SecretString>,
    /// Schema, normally `cinder`.
    pub name: String,
    /// `ssl_ca` of the URL's query: verify the server with it.
    pub ssl_ca: Option<PathBuf>,
    /// `ssl_cert` and `ssl_key`.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    /// `max_pool_size` (5).
    pub max_pool_size: usize,
    /// `max_overflow` (50): together with the pool size the largest number of connections.
    pub max_overflow: usize,
    /// `max_retries` (10; -1 for ever) at start. Scoria always waits; the number only times the log.
    pub max_retries: i64,
    /// `retry_interval` (10 s).
    pub retry_interval: Duration,
}

/// One broker host of `transport_url`.
#[derive(Debug, Clone)]
pub struct BrokerHost {
    /// Host name or address.
    pub host: String,
    /// Port (5672, with TLS too).
    pub port: u16,
    /// User, percent-decoded.
    pub user: String,
    /// Password, percent-decoded.
    pub password: SecretString,
}

/// The RPC transport (`transport_url`, `[oslo_messaging_rabbit]`; reference rpc.md 1.3 and 1.10).
#[derive(Debug, Clone)]
pub struct RabbitConfig {
    /// All hosts of the URL, in its order (the client shuffles them).
    pub hosts: Vec<BrokerHost>,
    /// Virtual host, `/` when the URL has none.
    pub vhost: String,
    /// `amqp_durable_queues`.
    pub durable_queues: bool,
    /// `amqp_auto_delete`.
    pub auto_delete: bool,
    /// `rabbit_quorum_queue`.
    pub quorum_queue: bool,
    /// `rabbit_transient_quorum_queue`.
    pub transient_quorum_queue: bool,
    /// `rabbit_quorum_delivery_limit` (0: unset).
    pub quorum_delivery_limit: u64,
    /// `rabbit_quorum_max_memory_length` (0: unset).
    pub quorum_max_memory_length: u64,
    /// `rabbit_quorum_max_memory_bytes` (0: unset).
    pub quorum_max_memory_bytes: u64,
    /// `rabbit_ha_queues`.
    pub ha_queues: bool,
    /// `rabbit_transient_queues_ttl` (1800 s; 0: none).
    pub transient_queues_ttl: Duration,
    /// `rabbit_stream_fanout`.
    pub stream_fanout: bool,
    /// `rabbit_qos_prefetch_count` (0 means 100 in Scoria: bounded).
    pub prefetch: u16,
    /// `enable_cancel_on_failover`.
    pub cancel_on_failover: bool,
    /// `use_queue_manager`.
    pub use_queue_manager: bool,
    /// `hostname` (for queue manager names).
    pub hostname: String,
    /// `processname` (for queue manager names).
    pub processname: String,
    /// `rabbit_retry_interval` (1 s).
    pub retry_interval: Duration,
    /// `rabbit_retry_backoff` (2 s).
    pub retry_backoff: Duration,
    /// `rabbit_interval_max` (30 s).
    pub interval_max: Duration,
    /// `heartbeat_timeout_threshold` (60 s; 0: no heartbeat).
    pub heartbeat: Duration,
    /// `rpc_response_timeout` (60 s), `[DEFAULT]`.
    pub response_timeout: Duration,
    /// `kombu_missing_consumer_retry_timeout` (60 s).
    pub missing_consumer_retry: Duration,
    /// `rabbit_login_method` (`AMQPLAIN`, `PLAIN`, `EXTERNAL`).
    pub login_method: String,
    /// TLS, when `ssl` is true.
    pub tls: Option<TlsConfig>,
}

/// TLS to the broker.
#[derive(Debug, Clone, Default)]
pub struct TlsConfig {
    /// `ssl_ca_file`: verification happens only when set (as upstream).
    pub ca: Option<PathBuf>,
    /// `ssl_cert_file`.
    pub cert: Option<PathBuf>,
    /// `ssl_key_file`.
    pub key: Option<PathBuf>,
}

/// How notifications are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationDriver {
    /// Bare JSON.
    Messaging,
    /// In the 2.0 envelope.
    MessagingV2,
}

/// `[oslo_messaging_notifications]`.
#[derive(Debug, Clone)]
pub struct NotificationConfig {
    /// Empty: nothing is emitted.
    pub drivers: Vec<NotificationDriver>,
    /// `topics` (`notifications`).
    pub topics: Vec<String>,
    /// Own `transport_url`, else the RPC transport.
    pub transport: Option<RabbitConfig>,
}

/// oslo.log.
#[derive(Debug, Clone, Default)]
pub struct LogConfig {
    /// `debug`.
    pub debug: bool,
    /// `log_file` joined with `log_dir`.
    pub file: Option<PathBuf>,
    /// `use_stderr`, or true when no file is set.
    pub stderr: bool,
    /// `use_json`.
    pub json: bool,
    /// `default_log_levels`, `target=LEVEL`.
    pub levels: Vec<(String, String)>,
    /// `log_date_format` (strftime); `None`: oslo's default form.
    pub date_format: Option<String>,
}

/// `disk_geometry`: what block sizes a guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskGeometry {
    /// `512`.
    Native512,
    /// `512e`.
    Emulated512,
    /// `4k`.
    Native4k,
}

impl DiskGeometry {
    /// Physical and logical block size, as the texts that Nova expects.
    pub fn block_sizes(self) -> (&'static str, &'static str) {
        match self {
            DiskGeometry::Native512 => ("512", "512"),
            DiskGeometry::Emulated512 => ("4096", "512"),
            DiskGeometry::Native4k => ("4096", "4096"),
        }
    }
}

/// Where a backend's options are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// A section of the service's own files.
    Main,
    /// A file of `backends.d`.
    File(PathBuf),
}

/// One storage backend: a section named in `enabled_backends`, or a file of `backends.d`.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Section name.
    pub section: String,
    /// Where its options are.
    pub home: Home,
    /// `host_cluster_id`: its mark.
    pub label: Option<String>,
    /// The value of every option of a backend, as it counts for this one.
    pub values: Values,
    /// `[<host_cluster_id>!]<backend_host or host>@<section>`: the service host.
    pub host: String,
    /// `<cluster>@<section>`.
    pub cluster: Option<String>,
    /// `volume_backend_name` (`RBD` when unset): pool part of `host@backend#pool`.
    pub backend_name: String,
    /// `backend_availability_zone`, else the default.
    pub availability_zone: String,
    /// `rbd_pool` (`rbd`).
    pub pool: String,
    /// `rbd_cluster_name` (`ceph`).
    pub cluster_name: String,
    /// `rbd_user`.
    pub user: Option<String>,
    /// `rbd_ceph_conf` (empty: librados search).
    pub ceph_conf: PathBuf,
    /// `rbd_secret_uuid` (unset: the fsid).
    pub secret_uuid: Option<String>,
    /// `rbd_flatten_volume_from_snapshot` (false).
    pub flatten_volume_from_snapshot: bool,
    /// `rbd_max_clone_depth` (5).
    pub max_clone_depth: u32,
    /// `rbd_store_chunk_size` (4 MiB).
    pub chunk_size_mib: u32,
    /// `rados_connect_timeout` (-1: none).
    pub connect_timeout: Option<u32>,
    /// `replication_connect_timeout` (5 s).
    pub replication_connect_timeout: Option<u32>,
    /// `report_dynamic_total_capacity` (true).
    pub report_dynamic_total_capacity: bool,
    /// `rbd_exclusive_cinder_pool` (true).
    pub exclusive_pool: bool,
    /// `enable_deferred_deletion` (false).
    pub deferred_deletion: bool,
    /// `deferred_deletion_delay` (0 s).
    pub deferred_deletion_delay: Duration,
    /// `deferred_deletion_purge_interval` (60 s).
    pub deferred_deletion_purge_interval: Duration,
    /// `rbd_concurrent_flatten_operations` (3; 0 = unlimited).
    pub concurrent_flatten: usize,
    /// `reserved_percentage` (0).
    pub reserved_percentage: u32,
    /// `max_over_subscription_ratio` (`20.0`; kept as written, as stock reports it).
    pub max_over_subscription_ratio: String,
    /// `disk_geometry` (unset: hosts are told no block sizes).
    pub disk_geometry: Option<DiskGeometry>,
    /// `image_volume_cache_*`, when `image_volume_cache_enabled`.
    pub image_cache: Option<ImageCacheConfig>,
    /// `filter_function`.
    pub filter_function: Option<String>,
    /// `goodness_function`.
    pub goodness_function: Option<String>,
    /// `extra_capabilities` (JSON object).
    pub extra_capabilities: serde_json::Map<String, serde_json::Value>,
    /// `rbd_replication_mode` (`journal`): Scoria's own choice per backend; the type's extra spec
    /// `replication:mode` overrides it.
    pub replication_mode: MirrorMode,
    /// `scoria_mirror_snapshot_schedule`: of volumes that are mirrored by snapshots; the type's extra spec
    /// `replication:schedule` overrides it.
    pub mirror_schedule: Option<Schedule>,
    /// `replication_device`, in order.
    pub replication_devices: Vec<ReplicationDevice>,
    /// `scoria_replication_poll_interval` (60 s; 0: never): between two looks at all copies.
    pub replication_poll_interval: Duration,
    /// `scoria_failover_concurrency` (32): volumes worked on at once.
    pub failover_concurrency: usize,
    /// `scoria_verdict_timeout` (5 s): one health probe of a site.
    pub verdict_timeout: Duration,
    /// `scoria_demote_timeout` (30 s): until a demote counts as failed.
    pub demote_timeout: Duration,
    /// `scoria_promote_timeout` (60 s): how long a planned failover waits for the promotion to be
    /// accepted before it promotes again on the old side.
    pub promote_timeout: Duration,
    /// `scoria_writable_timeout` (60 s): how long a forced promotion may take to accept writers.
    pub writable_timeout: Duration,
    /// `scoria_frozen_blocks_deletes` (true): a frozen backend destroys nothing.
    pub frozen_blocks_deletes: bool,
    /// `scoria_fence_on_failover` (false): clients of a site that volumes were forced from are fenced there.
    pub fence_on_failover: bool,
}

/// A `replication_device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationDevice {
    /// `backend_id`; never `default`.
    pub backend_id: String,
    /// `conf` (`/etc/ceph/<backend_id>.conf`).
    pub conf: PathBuf,
    /// `user` (`rbd_user` or `cinder`).
    pub user: String,
    /// `secret_uuid` (`rbd_secret_uuid`).
    pub secret_uuid: Option<String>,
    /// All keys as they were written.
    pub written: Written,
}

/// The keys and values of a `replication_device`, those that nobody uses included: an administrator is shown
/// them, a log is not.
#[derive(Clone, PartialEq, Eq)]
pub struct Written(pub Vec<(String, String)>);

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}
