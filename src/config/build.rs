//! Raw layers to the checked [`Config`]: everything but the backends, which are in `backend`.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::options::Group::{Database, Default as Defaults, Notifications, Rabbit, Scoria};
use super::problem::{Origin, Severity};
use super::reader::{Reader, Scope};
use super::url::{self, DatabaseUrl};
use super::{
    BrokerHost, Config, DatabaseConfig, LogConfig, NotificationConfig, NotificationDriver, RabbitConfig,
    ScoriaConfig, TlsConfig, unknown,
};

/// Reads everything. Meaningless when the reader has recorded an error.
pub(super) fn config(reader: &Reader<'_>) -> Config {
    let global = Scope::Global(Defaults);
    let place = place(reader);
    let backends = super::backend::all(reader, &place);
    let super::backend::Place { host, cluster, zone: availability_zone } = place;
    unknown::check(reader, &backends.iter().map(|b| b.section.as_str()).collect::<Vec<_>>());

    let report_interval = reader.seconds_from(global, "report_interval", 1);
    let mut service_down_time = reader.seconds_from(global, "service_down_time", 1);
    if service_down_time <= report_interval {
        // cinder/service.py does the same at start.
        service_down_time = report_interval * 5 / 2;
        let text = format!(
            "must be more than report_interval ({} s): {} s is used; set the same in cinder-scheduler and cinder-api",
            report_interval.as_secs(),
            service_down_time.as_secs(),
        );
        reader.report(Severity::Warning, None, ("DEFAULT", "service_down_time"), text);
    }
    for name in ["volume_name_template", "snapshot_name_template"] {
        if reader.text(global, name).matches("%s").count() != 1 {
            reader.report(Severity::Error, None, ("DEFAULT", name), "must hold `%s` once, for the id");
        }
    }

    let rabbit = rpc(reader);
    let notifications = notifications(reader);
    Config {
        sources: super::Sources::default(),
        host,
        cluster,
        availability_zone,
        control_exchange: required(reader, "control_exchange"),
        report_interval,
        service_down_time,
        backend_stats_polling_interval: reader.seconds(global, "backend_stats_polling_interval"),
        enable_new_services: reader.boolean(global, "enable_new_services"),
        no_snapshot_gb_quota: reader.boolean(global, "no_snapshot_gb_quota"),
        quota_gigabytes: reader.integer(global, "quota_gigabytes"),
        quota_backups: reader.integer(global, "quota_backups"),
        quota_backup_gigabytes: reader.integer(global, "quota_backup_gigabytes"),
        per_volume_size_limit: reader.integer(global, "per_volume_size_limit"),
        use_default_quota_class: reader.boolean(global, "use_default_quota_class"),
        message_ttl: reader.seconds(global, "message_ttl"),
        migration_create_timeout: reader.seconds(global, "migration_create_volume_timeout_secs"),
        backup_use_same_host: reader.boolean(global, "backup_use_same_host"),
        volume_name_template: reader.text(global, "volume_name_template"),
        snapshot_name_template: reader.text(global, "snapshot_name_template"),
        graceful_shutdown_timeout: reader.seconds(global, "graceful_shutdown_timeout"),
        executor_thread_pool_size: size(reader.bounded(global, "executor_thread_pool_size", 1, 65536)),
        database: database(reader),
        rabbit,
        notifications,
        log: log(reader),
        backends,
        backup: super::backup::backup(reader),
        openstack: super::openstack::openstack(reader),
        image: super::openstack::image(reader),
        scoria: scoria(reader),
    }
}

/// What all backends have in common.
pub(super) fn place(reader: &Reader<'_>) -> super::backend::Place {
    let global = Scope::Global(Defaults);
    super::backend::Place {
        host: reader.optional(global, "host").unwrap_or_else(machine_name),
        cluster: reader.optional(global, "cluster").map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()),
        zone: required(reader, "storage_availability_zone"),
    }
}

/// A `[DEFAULT]` text that must not be empty.
pub(super) fn required(reader: &Reader<'_>, option: &str) -> String {
    let value = reader.text(Scope::Global(Defaults), option);
    if value.is_empty() {
        reader.report(Severity::Error, None, ("DEFAULT", option), "must not be empty");
    }
    value
}

/// A number that its option's bounds keep small and not negative.
pub(super) fn size(number: i64) -> usize {
    usize::try_from(number).unwrap_or_default()
}

fn scoria(reader: &Reader<'_>) -> ScoriaConfig {
    let scope = Scope::Global(Scoria);
    ScoriaConfig {
        worker_path: reader.optional(scope, "scoria_worker_path").map(PathBuf::from),
        workers_per_site: size(reader.integer(scope, "scoria_workers_per_site")),
        operation_retention: reader.seconds(scope, "scoria_operation_retention"),
        lease: reader.seconds(scope, "scoria_lease_seconds"),
        site_dir: PathBuf::from(reader.text(scope, "scoria_site_dir")),
        mirror_daemon_dir: PathBuf::from(reader.text(scope, "scoria_mirror_daemon_dir")),
        mirror_daemon_path: PathBuf::from(reader.text(scope, "scoria_mirror_daemon_path")),
    }
}

fn database(reader: &Reader<'_>) -> DatabaseConfig {
    let scope = Scope::Global(Database);
    let place = ("database", "connection");
    let mut url = DatabaseUrl::default();
    match reader.found(scope, "connection").filter(|f| !f.value.is_empty()) {
        None => reader.report(
            Severity::Error,
            None,
            place,
            "is not set; expected mysql+pymysql://USER:PASSWORD@HOST[:PORT]/cinder",
        ),
        Some(found) => {
            let fail = |text: String| reader.complain(Severity::Error, &found, "connection", text);
            match url::database(&found.value) {
                Err(text) => fail(text),
                Ok(parsed) => {
                    let dialect = parsed.driver.split('+').next().unwrap_or_default();
                    if dialect != "mysql" && dialect != "mariadb" {
                        let dialect = super::problem::shown(dialect);
                        fail(format!(
                            "is a {dialect} URL; Scoria needs MySQL or MariaDB (mysql+pymysql://…)"
                        ));
                    } else if parsed.database.as_deref().is_none_or(str::is_empty) {
                        fail("names no database; expected …@HOST[:PORT]/cinder".to_owned());
                    } else if parsed.user.as_deref().is_none_or(str::is_empty) {
                        fail("names no user; expected mysql+pymysql://USER:PASSWORD@HOST/cinder".to_owned());
                    }
                    url = parsed;
                }
            }
        }
    }
    url.query.extend(url::pairs(&reader.text(scope, "connection_parameters")));
    let mut config = DatabaseConfig {
        host: url.host.unwrap_or_else(|| "localhost".to_owned()),
        port: url.port.unwrap_or(3306),
        socket: None,
        user: url.user.unwrap_or_default(),
        password: url.password.filter(|p| !p.expose_secret().is_empty()),
        name: url.database.unwrap_or_default(),
        ssl_ca: None,
        ssl_client: None,
        max_pool_size: 0,
        max_overflow: 0,
        max_retries: reader.bounded(scope, "max_retries", -1, i64::MAX),
        retry_interval: reader.seconds_from(scope, "retry_interval", 1),
    };
    database_query(reader, &url.query, &mut config);
    // SQLAlchemy: a pool size of 0, or an overflow of -1, means "no limit". Scoria always has one.
    const UNLIMITED: usize = 100;
    let limit = |name, unlimited: i64| {
        let number = reader.bounded(scope, name, unlimited, 10_000);
        if number != unlimited {
            return size(number);
        }
        let text = format!("asks for no limit; {UNLIMITED} is used");
        reader.report(Severity::Warning, None, ("database", name), text);
        UNLIMITED
    };
    config.max_pool_size = limit("max_pool_size", 0);
    config.max_overflow = limit("max_overflow", -1);
    config
}

fn database_query(reader: &Reader<'_>, query: &[(String, String)], config: &mut DatabaseConfig) {
    let place = ("database", "connection");
    let (mut cert, mut key) = (None, None);
    for (name, value) in query {
        match name.as_str() {
            "unix_socket" => config.socket = Some(PathBuf::from(value)),
            "ssl_ca" => config.ssl_ca = Some(PathBuf::from(value)),
            "ssl_cert" => cert = Some(PathBuf::from(value)),
            "ssl_key" => key = Some(PathBuf::from(value)),
            // Scoria speaks utf8mb4, of which the others are subsets.
            "charset" if matches!(value.as_str(), "utf8" | "utf8mb3" | "utf8mb4") => {}
            "charset" => reader.report(
                Severity::Warning,
                None,
                place,
                "asks for a charset other than utf8mb4: ignored",
            ),
            other => {
                let text = format!("the URL option `{}` is not used by Scoria", super::problem::shown(other));
                reader.report(Severity::Warning, None, place, text);
            }
        }
    }
    match (cert, key) {
        (Some(cert), Some(key)) => config.ssl_client = Some((cert, key)),
        (None, None) => {}
        _ => reader.report(Severity::Error, None, place, "needs both ssl_cert and ssl_key, or neither"),
    }
}

fn rpc(reader: &Reader<'_>) -> RabbitConfig {
    let found = reader.found(Scope::Global(Defaults), "transport_url");
    let (url, origin) = found.map(|f| (f.value, f.origin)).unwrap_or_default();
    if origin.is_none() {
        let text = "is not set: guest@localhost:5672 is used, as in Cinder";
        reader.report(Severity::Warning, None, ("DEFAULT", "transport_url"), text);
    }
    let url = if url.is_empty() { "rabbit://".to_owned() } else { url };
    rabbit(reader, "DEFAULT", &url, &origin)
}

fn notifications(reader: &Reader<'_>) -> NotificationConfig {
    let scope = Scope::Global(Notifications);
    let section = Notifications.section();
    let mut drivers = Vec::new();
    for found in reader.multi(scope, "driver") {
        match found.value.as_str() {
            "messaging" => drivers.push(NotificationDriver::Messaging),
            "messagingv2" => drivers.push(NotificationDriver::MessagingV2),
            "" | "noop" => {}
            other => {
                let text = format!(
                    "`{}` is not supported: this driver is left out (known: messaging, messagingv2, noop)",
                    super::problem::shown(other)
                );
                reader.complain(Severity::Warning, &found, "driver", text);
            }
        }
    }
    drivers.dedup();
    let transport = reader
        .found(scope, "transport_url")
        .filter(|f| !f.value.is_empty())
        .map(|f| rabbit(reader, section, &f.value, &f.origin));
    let topics = reader.list(scope, "topics").into_iter().filter(|t| !t.is_empty()).collect();
    NotificationConfig { drivers, topics, transport }
}

/// Options of one transport: its URL, over `[oslo_messaging_rabbit]`.
fn rabbit(reader: &Reader<'_>, section: &str, url: &str, origin: &Option<Origin>) -> RabbitConfig {
    let place = (section, "transport_url");
    let fail = |text: String| reader.report(Severity::Error, origin.clone(), place, text);
    let (mut hosts, mut vhost, mut query) = (Vec::new(), String::new(), Vec::new());
    match url::transport(url) {
        Err(text) => fail(text),
        Ok(parsed) => {
            if !matches!(parsed.transport.as_str(), "rabbit" | "kombu+rabbit") {
                fail("is not a rabbit:// URL; Scoria speaks to RabbitMQ only".to_owned());
            }
            let with = parsed.hosts.iter().filter(|h| h.user.is_some() && h.password.is_some()).count();
            if with != 0 && with != parsed.hosts.len() {
                let text = "some hosts have a user and password and some do not: guest is used for those";
                reader.report(Severity::Warning, origin.clone(), place, text);
            }
            for host in parsed.hosts {
                // oslo.messaging: whatever is missing or empty is guest, guest, localhost, 5672.
                let guest = || SecretString::from("guest");
                hosts.push(BrokerHost {
                    host: host.host.unwrap_or_else(|| "localhost".to_owned()),
                    port: host.port.unwrap_or(5672),
                    user: host.user.filter(|u| !u.is_empty()).unwrap_or_else(|| "guest".to_owned()),
                    password: host.password.filter(|p| !p.expose_secret().is_empty()).unwrap_or_else(guest),
                });
            }
            vhost = parsed.vhost;
            query = parsed.query;
        }
    }
    if hosts.is_empty() {
        let (host, user, password) =
            ("localhost".to_owned(), "guest".to_owned(), SecretString::from("guest"));
        hosts.push(BrokerHost { host, port: 5672, user, password });
    }
    if vhost.is_empty() {
        vhost.push('/');
    }
    for (name, _) in &query {
        if !unknown::is_known(Rabbit.section(), name) {
            let near = unknown::nearest(name, unknown::names_of(Rabbit));
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            let name = super::problem::shown(name);
            fail(format!("its query has `{name}`, which is no option of [oslo_messaging_rabbit]{near}"));
        }
    }

    let scope = Scope::Transport(&query, origin);
    let flag = |name| reader.boolean(scope, name);
    let count = |name| reader.bounded(scope, name, 0, i64::MAX).unsigned_abs();
    let section = Rabbit.section();
    let (quorum_queue, ha_queues) = (flag("rabbit_quorum_queue"), flag("rabbit_ha_queues"));
    if quorum_queue && ha_queues {
        let text = "excludes rabbit_ha_queues: set one of them to false";
        reader.report(Severity::Error, None, (section, "rabbit_quorum_queue"), text);
    }
    let prefetch = reader.bounded(scope, "rabbit_qos_prefetch_count", 0, i64::from(u16::MAX));
    let (stream_fanout, transient_quorum) =
        (flag("rabbit_stream_fanout"), flag("rabbit_transient_quorum_queue"));
    if stream_fanout && (prefetch == 0 || !transient_quorum) {
        let text = "needs rabbit_qos_prefetch_count above 0 and rabbit_transient_quorum_queue = true";
        reader.report(Severity::Error, None, (section, "rabbit_stream_fanout"), text);
    }
    let login_method = reader.choice(scope, "rabbit_login_method");
    if login_method == "RABBIT-CR-DEMO" {
        let text = "RABBIT-CR-DEMO is not supported; use AMQPLAIN, PLAIN or EXTERNAL";
        reader.report(Severity::Error, None, (section, "rabbit_login_method"), text);
    }
    let path = |name| reader.optional(scope, name).map(PathBuf::from);
    let tls = flag("ssl").then(|| TlsConfig {
        ca: path("ssl_ca_file"),
        cert: path("ssl_cert_file"),
        key: path("ssl_key_file"),
    });
    match &tls {
        Some(tls) if tls.cert.is_some() != tls.key.is_some() => {
            let text = "and ssl_key_file belong together: set both or neither";
            reader.report(Severity::Error, None, (section, "ssl_cert_file"), text);
        }
        Some(tls) if tls.ca.is_none() => {
            let text = "is on without ssl_ca_file: the broker's certificate is not verified";
            reader.report(Severity::Warning, None, (section, "ssl"), text);
        }
        _ => {}
    }
    RabbitConfig {
        hosts,
        vhost,
        durable_queues: flag("amqp_durable_queues"),
        auto_delete: flag("amqp_auto_delete"),
        quorum_queue,
        transient_quorum_queue: transient_quorum,
        quorum_delivery_limit: count("rabbit_quorum_delivery_limit"),
        quorum_max_memory_length: count("rabbit_quorum_max_memory_length"),
        quorum_max_memory_bytes: count("rabbit_quorum_max_memory_bytes"),
        ha_queues,
        transient_queues_ttl: reader.seconds(scope, "rabbit_transient_queues_ttl"),
        stream_fanout,
        prefetch: u16::try_from(prefetch).ok().filter(|p| *p > 0).unwrap_or(100),
        cancel_on_failover: flag("enable_cancel_on_failover"),
        use_queue_manager: flag("use_queue_manager"),
        hostname: reader.optional(scope, "hostname").unwrap_or_else(machine_name),
        processname: reader.optional(scope, "processname").unwrap_or_else(program_name),
        retry_interval: reader.seconds(scope, "rabbit_retry_interval"),
        retry_backoff: reader.seconds(scope, "rabbit_retry_backoff"),
        interval_max: reader.seconds(scope, "rabbit_interval_max"),
        heartbeat: reader.seconds(scope, "heartbeat_timeout_threshold"),
        response_timeout: reader.seconds_from(Scope::Global(Defaults), "rpc_response_timeout", 1),
        missing_consumer_retry: reader.seconds(scope, "kombu_missing_consumer_retry_timeout"),
        login_method,
        tls,
    }
}

/// oslo.log's options; also read alone, on SIGHUP.
pub(super) fn log(reader: &Reader<'_>) -> LogConfig {
    let scope = Scope::Global(Defaults);
    let dir = reader.optional(scope, "log_dir").map(PathBuf::from);
    let file = match (dir, reader.optional(scope, "log_file")) {
        (Some(dir), Some(file)) => Some(dir.join(file)),
        (Some(dir), None) => Some(dir.join(format!("{}.log", program_name()))),
        (None, file) => file.map(PathBuf::from),
    };
    let mut levels = Vec::new();
    if let Some(found) = reader.found(scope, "default_log_levels") {
        for pair in super::value::list(&found.value).into_iter().filter(|p| !p.is_empty()) {
            let (logger, level) = pair.split_once('=').unwrap_or((&pair, ""));
            match crate::service::logging::parse_level(level) {
                Some(_) => levels.push((logger.trim().to_owned(), level.trim().to_owned())),
                None => {
                    let text = format!(
                        "`{}` is not logger=LEVEL (DEBUG, INFO, WARNING, ERROR, CRITICAL): left out",
                        super::problem::shown(&pair)
                    );
                    reader.complain(Severity::Warning, &found, "default_log_levels", text);
                }
            }
        }
    }
    let ignored = |option, text: &str| {
        if let Some(found) = reader.found(scope, option) {
            reader.complain(Severity::Warning, &found, option, text);
        }
    };
    for option in ["use_syslog", "use_journal"] {
        if reader.boolean(scope, option) {
            ignored(
                option,
                "is not supported; standard error reaches the journal when systemd runs the service",
            );
        }
    }
    if reader.optional(scope, "log_config_append").is_some() {
        ignored("log_config_append", "is not supported: the other log options are used");
    }
    if !matches!(reader.text(scope, "log_rotation_type").to_lowercase().as_str(), "" | "none") {
        ignored("log_rotation_type", "is not supported; use logrotate, a moved log file is noticed");
    }
    let mut date_format = reader.text(scope, "log_date_format");
    let items: Vec<_> = chrono::format::StrftimeItems::new(&date_format).collect();
    if items.iter().any(|item| matches!(item, chrono::format::Item::Error)) {
        let text = "is not a strftime format that Scoria knows: the default is used";
        reader.report(Severity::Warning, None, ("DEFAULT", "log_date_format"), text);
        date_format.clear();
    }
    LogConfig {
        debug: reader.boolean(scope, "debug"),
        stderr: reader.boolean(scope, "use_stderr") || file.is_none(),
        file,
        json: reader.boolean(scope, "use_json"),
        levels,
        date_format: (!date_format.is_empty()).then_some(date_format),
    }
}

/// The kernel's host name, as `socket.gethostname()`.
fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// Base name of the running program.
fn program_name() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "scoria-volume".to_owned())
}
