//! The whole way from text to [`Config`]: what an operator writes, and what comes of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::options::{Group, Kind, OPTIONS};
use super::problem::Severity;
use super::*;

/// Put in front of what a test writes; later values override it.
const BASE: &str = "[DEFAULT]\nhost=h1\nenabled_backends=ceph\ntransport_url=rabbit://u:mqpw@h/v\n\
                    [database]\nconnection=mysql+pymysql://cinder:dbpw@db/cinder\n\
                    [ceph]\nvolume_driver=cinder.volume.drivers.rbd.RBDDriver\n";

fn report_env(texts: &[&str], env: &[(&str, &str)]) -> Report {
    let files = texts
        .iter()
        .enumerate()
        .map(|(i, text)| ini::parse(Path::new(&format!("/etc/f{i}.conf")), text.as_bytes()).unwrap())
        .collect();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::from_source(&Source::new(files, env))
}

fn report(text: &str) -> Report {
    report_env(&[BASE, text], &[])
}

fn config(text: &str) -> Config {
    let report = report(text);
    let problems = report.problems;
    report.config.unwrap_or_else(|| panic!("{problems:?}"))
}

/// The findings of at least a severity, as shown.
fn found(text: &str, severity: Severity) -> Vec<String> {
    report(text).at_least(severity).map(ToString::to_string).collect()
}

/// The only error of a configuration.
fn error(text: &str) -> String {
    let all = found(text, Severity::Error);
    assert_eq!(all.len(), 1, "{text}: {all:?}");
    all[0].clone()
}

#[test]
fn the_registry_is_upstreams_where_upstream_has_the_option() {
    let mut seen = 0;
    for line in include_str!("upstream_defaults.txt").lines().filter(|l| !l.starts_with('#')) {
        let [group, name, kind, default, min, max] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let spec = OPTIONS.iter().find(|o| o.group.section() == group && o.name == name).expect(line);
        seen += 1;
        if name == "volume_driver" {
            continue; // Upstream's default is LVM.
        }
        assert_eq!(spec.default.unwrap_or("-"), default, "{line}");
        let bound = |text: &str, none: i64| if text == "-" { none } else { text.parse().unwrap() };
        let fits = match spec.kind {
            Kind::Text if kind == "float" => name == "timeout",
            Kind::Text | Kind::Choice(_) => kind == "str",
            Kind::Bool => kind == "bool",
            Kind::List => kind == "list",
            Kind::Multi => kind == "multistr",
            Kind::MultiDict => kind == "multi",
            Kind::Int { min: low, max: high } => {
                kind == "int" && low == bound(min, i64::MIN) && high == bound(max, i64::MAX)
            }
        };
        assert!(fits, "{line}: {:?}", spec.kind);
    }
    let own = OPTIONS.iter().filter(|o| {
        o.name.starts_with("scoria_")
            || matches!(o.name, "rbd_replication_mode" | "host_cluster_id" | "backup_site" | "backup_method")
    });
    assert_eq!(seen + own.count(), OPTIONS.len(), "an option is neither upstream's nor named scoria_…");
}

#[test]
fn defaults_are_cinders() {
    let c = config("");
    assert_eq!((c.host.as_str(), c.availability_zone.as_str()), ("h1", "nova"));
    assert_eq!(c.control_exchange, "openstack");
    assert_eq!((c.report_interval, c.service_down_time), (Duration::from_secs(10), Duration::from_secs(60)));
    let b = &c.backends[0];
    assert_eq!((b.host.as_str(), b.backend_name.as_str(), b.pool.as_str()), ("h1@ceph", "RBD", "rbd"));
    assert_eq!((b.connect_timeout, b.replication_connect_timeout), (None, Some(5)));
    assert_eq!((b.max_clone_depth, b.chunk_size_mib, b.concurrent_flatten), (5, 4, 3));
    assert_eq!(b.replication_mode, MirrorMode::Journal);
    assert!(b.user.is_none() && b.exclusive_pool && b.replication_devices.is_empty());
    assert_eq!(c.rabbit.prefetch, 100);
    assert_eq!((c.rabbit.response_timeout, c.rabbit.vhost.as_str()), (Duration::from_secs(60), "v"));
    assert!(c.notifications.drivers.is_empty() && c.notifications.topics == ["notifications"]);
    assert_eq!((c.database.port, c.database.max_pool_size, c.database.max_overflow), (3306, 5, 50));
    assert!(c.log.stderr && c.log.file.is_none() && !c.log.debug && c.log.levels.len() == 20);
    assert_eq!(c.scoria.lease, Duration::from_secs(10));
}

#[test]
fn a_backend_falls_back_to_backend_defaults_but_not_to_default() {
    let c = config(
        "[DEFAULT]\nrbd_pool=no\nrbd_user=no\ncluster = c1 \nenabled_backends=ceph,,Other\n\
         [backend_defaults]\nrbd_pool=shared\nrbd_user=shared\nbackend_host=no\nrados_connect_timeout=7\n\
         [ceph]\nrbd_pool=mine\nrados_connect_timeout=\nbackend_host=bh\n[other]\nrbd_max_clone_depth=-1\n",
    );
    let (a, b) = (&c.backends[0], &c.backends[1]);
    assert_eq!((a.pool.as_str(), a.user.as_deref(), a.connect_timeout), ("mine", Some("shared"), Some(7)));
    assert_eq!((a.host.as_str(), a.cluster.as_deref()), ("bh@ceph", Some("c1@ceph")));
    assert_eq!((b.host.as_str(), b.pool.as_str(), b.max_clone_depth), ("h1@Other", "shared", 0));
}

#[test]
fn the_environment_overrides_files_and_is_expanded() {
    let env = [
        ("OS_DEFAULT__HOST", "env-$DEFAULT.report_interval"),
        ("OS_CEPH__RBD_POOL", "from-env"),
        ("OS_CEPH__REPLICATION_DEVICE", "backend_id:b"),
        ("OS_DATABASE__CONNECTION", "mysql://e:x@edb/cinder"),
        ("OS_AUTH_URL", "http://unrelated"),
    ];
    let c = report_env(&[BASE], &env).config.unwrap();
    assert_eq!(c.backends[0].host, "env-10@ceph");
    assert_eq!(c.backends[0].pool, "from-env");
    assert_eq!(c.backends[0].replication_devices.len(), 1);
    assert_eq!((c.database.host.as_str(), c.database.user.as_str()), ("edb", "e"));
}

#[test]
fn references_reach_other_groups_and_registry_defaults() {
    let c = config(
        "[DEFAULT]\nlog_dir=$state_path/log\nlog_file=${host}.log\n\
         [ceph]\nvolume_backend_name=$rbd_pool-$host\nrbd_user=$backend_defaults.rbd_user\n\
         [backend_defaults]\nrbd_user=shared\nrbd_pool=p\n",
    );
    assert_eq!(c.log.file, Some(PathBuf::from("/var/lib/cinder/log/h1.log")));
    assert_eq!(
        (c.backends[0].backend_name.as_str(), c.backends[0].user.as_deref()),
        ("p-h1", Some("shared"))
    );
    assert!(error("[ceph]\nrbd_pool=$nosuch\n").contains("`$nosuch`"));
    assert!(
        error(
            "[ceph]\nrbd_pool=$rbd_user\nrbd_user=$rbd_pool\nvolume_driver=\n[DEFAULT]\nhost=x\n\
                   enabled_backends=b\n[b]\nrbd_pool=$rbd_pool\n"
        )
        .contains("lead back")
    );
}

#[test]
fn database_urls() {
    let c = config(
        "[database]\nconnection=mysql+pymysql://c:p%40ss@[::1]:3307/cinder?charset=utf8&ssl_ca=/ca\n\
         connection_parameters=ssl_cert=/crt&ssl_key=/key\nmax_pool_size=0\nmax_overflow=-1\n",
    );
    let d = &c.database;
    assert_eq!((d.host.as_str(), d.port, d.name.as_str()), ("::1", 3307, "cinder"));
    assert_eq!(d.password.as_ref().unwrap().expose_secret(), "p@ss");
    assert_eq!(d.ssl_ca, Some(PathBuf::from("/ca")));
    assert_eq!(d.ssl_client, Some((PathBuf::from("/crt"), PathBuf::from("/key"))));
    assert_eq!((d.max_pool_size, d.max_overflow), (100, 100));

    let socket = config("[database]\nconnection=mysql://c@/cinder?unix_socket=/run/m.sock\n").database;
    assert_eq!((socket.socket, socket.host.as_str()), (Some(PathBuf::from("/run/m.sock")), "localhost"));
    assert!(socket.password.is_none());

    assert!(error("[database]\nconnection=sqlite:////x.db\n").contains("is a sqlite URL"));
    assert!(error("[database]\nconnection=\n").contains("is not set"));
    assert!(error("[database]\nconnection=mysql://u:p@h/\n").contains("names no database"));
    assert!(error("[database]\nconnection=mysql://u:p@h/c?ssl_cert=/x\n").contains("ssl_key"));
    assert!(found("[database]\nsql_connection=mysql://u:p@h/c\n", Severity::Warning)[0].contains("old name"));
}

#[test]
fn transport_urls_and_their_query() {
    let r = config(
        "[DEFAULT]\ntransport_url=rabbit://u:p%2F1@h1:1,u2:p2@[fe80::2]/%2Fvh?rabbit_quorum_queue=true&ssl=1\n\
         [oslo_messaging_rabbit]\nrabbit_quorum_queue=false\nrabbit_qos_prefetch_count=7\nssl_ca_file=/ca\n",
    )
    .rabbit;
    let hosts: Vec<_> = r
        .hosts
        .iter()
        .map(|h| (h.host.as_str(), h.port, h.user.as_str(), h.password.expose_secret()))
        .collect();
    assert_eq!(hosts, [("h1", 1, "u", "p/1"), ("fe80::2", 5672, "u2", "p2")]);
    assert_eq!((r.vhost.as_str(), r.quorum_queue, r.prefetch), ("/vh", true, 7));
    assert_eq!(r.tls.unwrap().ca, Some(PathBuf::from("/ca")));

    let guest = config("[DEFAULT]\ntransport_url=rabbit://\n").rabbit;
    assert_eq!((guest.hosts[0].host.as_str(), guest.hosts[0].user.as_str()), ("localhost", "guest"));
    assert_eq!(guest.vhost, "/");

    let e = error("[DEFAULT]\ntransport_url=rabbit://u:p@h/v?rabit_quorum_queue=1\n");
    assert!(e.starts_with("/etc/f1.conf:2: [DEFAULT] transport_url: "), "{e}");
    assert!(e.contains("did you mean `rabbit_quorum_queue`?"), "{e}");
    // An option of the group that Scoria has no use for is as good in the query as in the section.
    config("[DEFAULT]\ntransport_url=rabbit://u:p@h/v?heartbeat_rate=4\n");
    assert!(error("[DEFAULT]\ntransport_url=rabbit://u:p@h/v?ssl=maybe\n").contains("true or false"));
    assert!(error("[DEFAULT]\ntransport_url=kafka://u:p@h/\n").contains("rabbit://"));
    assert!(
        error("[oslo_messaging_rabbit]\nrabbit_ha_queues=1\nrabbit_quorum_queue=1\n").contains("excludes")
    );
    assert!(error("[oslo_messaging_rabbit]\nrabbit_stream_fanout=1\n").contains("prefetch"));
}

#[test]
fn log_options() {
    let log = config("[DEFAULT]\nlogdir=/var/log\nlog-file=x\nuse_json=1\nuse_stderr=yes\ndebug=on\n").log;
    let file = log.file.unwrap();
    assert!(file.starts_with("/var/log") && file.extension().is_some_and(|e| e == "log"), "{file:?}");
    assert!(log.json && log.stderr && log.debug);
    let log = config("[DEFAULT]\nlog_file=/x/y.log\ndefault_log_levels=a.b=WARN,c=10,bad\n").log;
    assert_eq!(log.levels, [("a.b".into(), "WARN".into()), ("c".into(), "10".into())]);
    assert!(!log.stderr);
    for (text, about) in [
        ("default_log_levels=a=LOUD", "logger=LEVEL"),
        ("log_date_format=%Q", "strftime"),
        ("use_syslog=1", "not supported"),
        ("log_config_append=/x", "not supported"),
        ("log_rotation_type=size", "logrotate"),
    ] {
        let all = found(&format!("[DEFAULT]\n{text}\n"), Severity::Warning);
        assert!(all.len() == 1 && all[0].contains(about), "{text}: {all:?}");
    }
}

#[test]
fn notifications_have_drivers_and_maybe_a_broker_of_their_own() {
    let n = config(
        "[oslo_messaging_notifications]\ndriver=messagingv2\ndriver=noop\ndriver=log\ntopics=a, b\n\
         transport_url=rabbit://n:np@nh/nv\n",
    )
    .notifications;
    assert_eq!(n.drivers, [NotificationDriver::MessagingV2]);
    assert_eq!(n.topics, ["a", "b"]);
    assert_eq!(n.transport.unwrap().hosts[0].host, "nh");
}

#[test]
fn replication_devices() {
    let c = config(
        "[ceph]\nrbd_user=vol\nrbd_secret_uuid=s\nrbd_replication_mode=snapshot\n\
         replication_device=backend_id:b\n\
         replication_device = backend_id : c , conf: /c.conf, user:x,secret_uuid:t\n",
    );
    let b = &c.backends[0];
    assert_eq!(b.replication_mode, MirrorMode::Snapshot);
    let device =
        |id: &str, conf: &str, user: &str, secret: &str, written: &[(&str, &str)]| ReplicationDevice {
            backend_id: id.into(),
            conf: conf.into(),
            user: user.into(),
            secret_uuid: Some(secret.into()),
            written: Written(written.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
        };
    let all = [("backend_id", "c"), ("conf", "/c.conf"), ("user", "x"), ("secret_uuid", "t")];
    let expected = [
        device("b", "/etc/ceph/b.conf", "vol", "s", &[("backend_id", "b")]),
        device("c", "/c.conf", "x", "t", &all),
    ];
    assert!(!format!("{:?}", expected[1].written).contains("/c.conf"));
    assert_eq!(b.replication_devices, expected);

    let device = |text: &str| error(&format!("[ceph]\nrbd_user=u\nreplication_device={text}\n"));
    assert!(device("conf:/x").contains("no backend_id"));
    assert!(device("").contains("no backend_id"));
    assert!(device("backend_id:default").contains("default"));
    assert!(device("backend_id:a\nreplication_device=backend_id:a").contains("of another one"));
    assert!(device("nonsense").contains("key:value"));
    let odd = found("[ceph]\nrbd_user=u\nreplication_device=backend_id:a,usr:x\n", Severity::Suspect);
    assert!(odd[0].contains("did you mean `user`?"), "{odd:?}");
    let unset = found("[ceph]\nreplication_device=backend_id:a\n", Severity::Warning);
    assert!(unset[0].contains("rbd_user"), "{unset:?}");
}

#[test]
fn a_backend_of_another_driver_is_left_out_and_the_others_are_served() {
    let text = "[DEFAULT]\nenabled_backends=lvm,ceph\n[lvm]\n\
                volume_driver=cinder.volume.drivers.lvm.LVMVolumeDriver\nvolume_group=vg\n";
    let report = report(text);
    let told: Vec<_> = report.at_least(Severity::Suspect).map(|p| (p.severity, p.to_string())).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let (severity, text) = &told[0];
    assert_eq!(*severity, Severity::LeftOut);
    assert!(
        text.starts_with("/etc/f1.conf:4: [lvm] volume_driver: ") && text.contains("only Ceph RBD"),
        "{text}"
    );
    assert!(!report.is_clean(), "--check-config says so too");
    let hosts: Vec<String> = report.config.unwrap().backends.into_iter().map(|b| b.host).collect();
    assert_eq!(hosts, ["h1@ceph"]);
}

#[test]
fn backends_that_cannot_be_served_are_errors_that_name_them() {
    let none = found("[DEFAULT]\nenabled_backends=\n", Severity::Suspect);
    assert!(none.iter().any(|p| p.contains("names no backend")), "{none:?}");
    let e = error("[DEFAULT]\nenabled_backends=ceph,cehp2\n[ceph2]\n");
    assert!(e.contains("no section [cehp2]; did you mean `ceph2`?"), "{e}");
    assert!(error("[DEFAULT]\nenabled_backends=ceph,ceph\n").contains("twice"));
    assert!(
        error("[ceph]\nvolume_driver=cinder.volume.drivers.lvm.LVMVolumeDriver\n").contains("can serve"),
        "none is left"
    );
    assert!(error("[ceph]\nrbd_pool=\n").contains("must not be empty"));
    assert!(error("[ceph]\nmax_over_subscription_ratio=0.5\n").contains("at least 1"));
    assert!(error("[ceph]\nmax_over_subscription_ratio=1e3\n").contains("at least 1"));
    assert!(error("[ceph]\nrbd_store_chunk_size=0\n").contains("at least 1"));
    assert!(error("[ceph]\nrbd_replication_mode=async\n").contains("journal, snapshot"));
    assert!(error("[ceph]\nreserved_percentage=101\n").contains("at most 100"));
    assert_eq!(
        config("[ceph]\nmax_over_subscription_ratio=auto\n").backends[0].max_over_subscription_ratio,
        "auto"
    );
    let c = config("[ceph]\nextra_capabilities={\"a\": [1]}\n");
    assert_eq!(c.backends[0].extra_capabilities["a"], serde_json::json!([1]));
    assert!(found("[ceph]\nextra_capabilities=[1]\n", Severity::Warning)[0].contains("JSON object"));
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let all = found(
        "[DEFAULT]\nreport_interval=x\ndebug=perhaps\n[ceph]\nrbd_max_clone_depth=1.5\n",
        Severity::Error,
    );
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(
        all.iter().any(|p| p == "/etc/f1.conf:2: [DEFAULT] report_interval: must be a whole number, not `x`")
    );
    assert!(all.iter().any(|p| p.starts_with("/etc/f1.conf:3: [DEFAULT] debug: ")), "{all:?}");
    assert!(all.iter().any(|p| p.starts_with("/etc/f1.conf:5: [ceph] rbd_max_clone_depth: ")), "{all:?}");
}

#[test]
fn an_unknown_scoria_option_is_an_error_with_the_nearest_name() {
    let e = error("[ceph]\nscoria_verdict_timeot=3\n");
    assert!(e.starts_with("/etc/f1.conf:2: [ceph] scoria_verdict_timeot: "), "{e}");
    assert!(e.contains("`scoria_verdict_timeout`"), "{e}");
    assert!(error("[DEFAULT]\nscoria_workers_per_site=3\n").contains("belongs in [scoria]"));
    assert!(error("[scoria]\nscoria_demote_timeout=3\n").contains("backend"));
    assert!(error("[not_enabled]\nscoria_x=3\n").contains("no option of Scoria"));
    let env = report_env(&[BASE], &[("OS_SCORIA__SCORIA_WORKER_PAHT", "/x")]);
    let all: Vec<_> = env.at_least(Severity::Error).map(ToString::to_string).collect();
    assert!(
        all[0].contains("OS_SCORIA__SCORIA_WORKER_PAHT") && all[0].contains("scoria_worker_path"),
        "{all:?}"
    );
}

#[test]
fn only_real_misspellings_are_suspect() {
    let suspect = found(
        "[ceph]\nrbd_usr=x\n[database]\nconection=y\n[DEFAULT]\nenable_backends=z\n",
        Severity::Suspect,
    );
    assert_eq!(suspect.len(), 3, "{suspect:?}");
    assert!(suspect[0].contains("did you mean `rbd_user`?"), "{suspect:?}");

    // Genuine names of Cinder and its libraries, some of them close to ours, and other people's.
    let none = found(
        "[DEFAULT]\nlog_color=1\nbackup_host=b\nhosts=x\nmy_ip=1.1.1.1\nuse_syslog=0\nosapi_volume_workers=4\n\
         [database]\nslave_connection=x\nsynchronous_reader=1\n[keystone_authtoken]\nhost=x\nuser=y\n\
         [ceph]\nimage_volume_cache_enabled=1\nvolume_dd_blocksize=1M\nnfs_mount_options=x\n\
         [oslo_messaging_rabbit]\nrpc_conn_pool_size=3\nssl_version=x\n[unrelated]\nfoo=bar\n",
        Severity::Suspect,
    );
    // Of these only `hosts` is nobody's.
    assert!(none.len() == 1 && none[0].contains("hosts"), "{none:?}");
}

#[test]
fn the_list_of_upstream_names_never_looks_like_a_misspelling() {
    let mut text = String::new();
    for line in include_str!("upstream_options.txt").lines().filter(|l| !l.starts_with('#')) {
        let (group, name) = line.split_once(' ').unwrap();
        let group = if group == "backend_defaults" { "ceph" } else { group };
        text.push_str(&format!("[{group}]\n{name}x = \n"));
    }
    // With a letter too many everything near ours is suspect: the check itself works …
    let texts = |report: &Report| {
        report.at_least(Severity::Suspect).filter(|p| p.text.contains("did you mean")).count()
    };
    assert!(texts(&report_env(&[BASE, &text], &[])) > 50);
    // … and without it nothing is.
    assert_eq!(texts(&report_env(&[BASE, &text.replace("x = ", " = ")], &[])), 0);
}

#[test]
fn an_option_in_the_wrong_place_is_told() {
    let all = found("[DEFAULT]\nrbd_secret_uuid=x\n", Severity::Warning);
    assert!(all[0].contains("no effect in [DEFAULT]"), "{all:?}");
    assert!(report("[DEFAULT]\nrbd_secret_uuid=x\n").is_clean());
}

#[test]
fn a_heartbeat_slower_than_the_down_time_is_corrected_as_upstream_does() {
    let r = report("[DEFAULT]\nreport_interval=60\nservice_down_time=60\n");
    assert!(r.at_least(Severity::Warning).next().unwrap().to_string().contains("150 s"));
    assert_eq!(r.config.unwrap().service_down_time, Duration::from_secs(150));
}

#[test]
fn secrets_are_never_shown() {
    let secret = "s3cr3t";
    let shown =
        |r: &Report| format!("{r:?} {}", r.problems.iter().map(|p| p.to_string()).collect::<String>());
    for text in [
        "[DEFAULT]\ntransport_url=rabbit://u:s3cr3t@h1,u:s3cr3t@h2/v\n",
        "[database]\nconnection=mysql+pymysql://u:s3cr3t@h/c\n",
        "[database]\nconnection=mysql+pymysql://u:s3cr3t@s3cr3t@h/c\n",
        "[database]\nconnection=mysql+pymysql:/u:s3cr3t@h/c\n",
        "[database]\nconnection=mysql+pymysql://u:pa$s3cr3t@h/c\n",
        "[DEFAULT]\ntransport_url=rabbit://u:x/s3cr3t@h/v\n",
        "[DEFAULT]\ntransport_url=rabbit://u:x?s3cr3t=1@h/v\n",
        "[DEFAULT]\ntransport_url=rabbit://u:p@h:s3cr3t/v\n",
        "[DEFAULT]\ntransport_url=s3cr3t\n",
        "[DEFAULT]\ntransport_url=rabbit://u:p$s3cr3t@h/v\n",
        "[oslo_messaging_notifications]\ntransport_url=rabbit://u:s3cr3t/@h\n",
        "[ceph]\nreplication_device=keyring=s3cr3t\n",
        "[keystone_authtoken]\npassword=s3cr3t\n",
    ] {
        let r = report(text);
        assert!(!shown(&r).contains(secret), "{text}: {}", shown(&r));
    }
    let files = vec![ini::parse(Path::new("f"), b"[a]\nk=s3cr3t\n").unwrap()];
    assert!(!format!("{files:?}").contains(secret));
}

#[test]
fn loading_files_gives_one_error_with_a_line_per_problem() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cinder.conf");
    std::fs::write(&path, format!("{BASE}rbd_usr=x\n")).unwrap();
    let (config, warnings) = Config::load(std::slice::from_ref(&path), &[], std::iter::empty()).unwrap();
    assert_eq!(config.backends.len(), 1);
    assert!(warnings.iter().any(|w| w.severity == Severity::Suspect));
    let report = Config::check(std::slice::from_ref(&path), &[], std::iter::empty());
    assert!(report.config.is_some() && !report.is_clean());

    std::fs::write(&path, format!("{BASE}scoria_x=1\nrbd_pool=\n")).unwrap();
    let error = Config::load(std::slice::from_ref(&path), &[], std::iter::empty()).unwrap_err();
    assert_eq!((error.code(), error.user().lines().count()), (Code::Config, 2), "{error}");
    let (log, _) = LogConfig::load(&[path], &[], std::iter::empty()).unwrap();
    assert!(log.stderr);
}

const SAMPLE: &str = include_str!("../../etc/scoria.conf.sample");

/// `#name = value` becomes `name = value`; prose begins with `# `.
fn uncommented() -> String {
    SAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_sample_loads_as_it_is_and_with_every_option_set() {
    for text in [SAMPLE, &uncommented()] {
        let report = report_env(&[text], &[]);
        let all: Vec<_> = report.at_least(Severity::Warning).map(ToString::to_string).collect();
        assert!(all.is_empty() && report.config.is_some(), "{all:?}");
    }
}

#[test]
fn an_option_that_changes_nothing_is_told_where_it_is_set() {
    let text = "[ceph]\nrados_connection_retries = 5\n";
    let told = found(text, Severity::Warning);
    assert!(told.len() == 1 && told[0].contains("rados_connection_retries: has no effect"), "{told:?}");
    assert!(report(text).is_clean(), "it is no mistake");
}

#[test]
fn the_sample_mentions_every_option_with_its_default() {
    let file = ini::parse(Path::new("sample"), uncommented().as_bytes()).unwrap();
    let active = ini::parse(Path::new("sample"), SAMPLE.as_bytes()).unwrap();
    for spec in OPTIONS {
        let here = |section: &str| {
            section == spec.group.section() || (spec.group == Group::Backend && section == "ceph")
        };
        let entry = file.entries.iter().find(|e| e.key == spec.name && here(&e.section));
        // What changes nothing is no choice to offer.
        let offered = spec.no_effect.is_none();
        assert_eq!(entry.is_some(), offered, "[{}] {} in the sample", spec.group.section(), spec.name);
        if !offered {
            continue;
        }
        let set = active.entries.iter().any(|e| e.key == spec.name && here(&e.section));
        // The default of default_log_levels is about Python libraries; the sample shows a useful one.
        if let Some(default) = spec.default.filter(|_| !set && spec.name != "default_log_levels") {
            assert_eq!(entry.unwrap().value, default, "{}", spec.name);
        }
    }
    for entry in &file.entries {
        let known = OPTIONS.iter().any(|spec| spec.name == entry.key);
        assert!(known, "the sample has {} of line {}, which Scoria does not read", entry.key, entry.line);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever stands in any option, building ends with a configuration or with errors.
    #[test]
    fn hostile_values_never_panic(
        picks in proptest::collection::vec((0..OPTIONS.len(), "\\PC{0,40}"), 1..12),
    ) {
        let mut text = String::from(BASE);
        for (index, value) in &picks {
            let spec = &OPTIONS[*index];
            let section = if spec.group == Group::Backend { "ceph" } else { spec.group.section() };
            text.push_str(&format!("[{section}]\n{} = {value}\n", spec.name));
        }
        if let Ok(file) = ini::parse(Path::new("f"), text.as_bytes()) {
            let report = Config::from_source(&Source::new(vec![file], std::iter::empty()));
            prop_assert!(report.config.is_some() || report.at_least(Severity::Error).next().is_some());
        }
    }

    #[test]
    fn hostile_numbers_never_panic(index in 0..OPTIONS.len(), number in any::<i128>()) {
        let spec = &OPTIONS[index];
        let section = if spec.group == Group::Backend { "ceph" } else { spec.group.section() };
        let _ = report(&format!("[{section}]\n{} = {number}\n", spec.name));
    }
}
