//! Python logger names and the targets that stand for them here.
//!
//! Operators know `cinder.volume` and `oslo.messaging`; `default_log_levels` and the log-level RPCs
//! are written in those names. Scoria's own names (`scoria.rbd` or `scoria::rbd`) work as well.

use std::collections::BTreeMap;

use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::config::LogConfig;

/// Logger names that are listed and set by prefix, each with the targets behind it.
const LOGGERS: &[(&str, &[&str])] = &[
    ("amqp", &["amq_protocol", "tcp_stream"]),
    ("cinder.backup", &["scoria::backup"]),
    ("cinder.db", &["scoria::db"]),
    ("cinder.rpc", &["scoria::rpc"]),
    ("cinder.service", &["scoria::service", "scoria_volume"]),
    ("cinder.volume.configuration", &["scoria::config"]),
    ("cinder.volume.drivers.rbd", &["scoria::rbd"]),
    (
        "cinder.volume.manager",
        &["scoria::volume", "scoria::backend", "scoria::journal", "scoria::replication", "scoria::site"],
    ),
    ("oslo.messaging", &["lapin"]),
    ("oslo_messaging", &["lapin"]),
    ("scoria.backend", &["scoria::backend"]),
    ("scoria.backup", &["scoria::backup"]),
    ("scoria.config", &["scoria::config"]),
    ("scoria.db", &["scoria::db"]),
    ("scoria.http", &["scoria::http"]),
    ("scoria.journal", &["scoria::journal"]),
    ("scoria.rbd", &["scoria::rbd"]),
    ("scoria.replication", &["scoria::replication"]),
    ("scoria.rpc", &["scoria::rpc"]),
    ("scoria.service", &["scoria::service", "scoria_volume"]),
    ("scoria.site", &["scoria::site"]),
    ("scoria.volume", &["scoria::volume"]),
    ("sqlalchemy", &["mysql_async", "diesel", "diesel_async"]),
];

/// Libraries that have no Python counterpart and talk too much at INFO or DEBUG.
const QUIET: &[(&str, LevelFilter)] = &[
    ("amq_protocol", LevelFilter::WARN),
    ("diesel", LevelFilter::WARN),
    ("diesel_async", LevelFilter::WARN),
    ("executor_trait", LevelFilter::WARN),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    // At WARN it logs the bodies of messages that came back.
    ("lapin", LevelFilter::ERROR),
    ("mio", LevelFilter::WARN),
    ("mysql_async", LevelFilter::WARN),
    ("reactor_trait", LevelFilter::WARN),
    ("rustls", LevelFilter::WARN),
    ("tcp_stream", LevelFilter::WARN),
    ("tokio", LevelFilter::WARN),
    ("want", LevelFilter::WARN),
];

/// A level by oslo.log's names or Python's numbers.
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i64>() {
        return Some(match number {
            ..=9 => LevelFilter::TRACE,
            10..=19 => LevelFilter::DEBUG,
            20..=29 => LevelFilter::INFO,
            30..=39 => LevelFilter::WARN,
            40.. => LevelFilter::ERROR,
        });
    }
    match text.to_uppercase().as_str() {
        "TRACE" | "NOTSET" => Some(LevelFilter::TRACE),
        "DEBUG" => Some(LevelFilter::DEBUG),
        "INFO" | "AUDIT" => Some(LevelFilter::INFO),
        "WARN" | "WARNING" => Some(LevelFilter::WARN),
        // There is nothing above ERROR here.
        "ERROR" | "CRITICAL" | "FATAL" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

/// Python's name of a level.
fn level_name(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::TRACE => "TRACE",
        LevelFilter::DEBUG => "DEBUG",
        LevelFilter::INFO => "INFO",
        LevelFilter::WARN => "WARNING",
        LevelFilter::ERROR => "ERROR",
        LevelFilter::OFF => "CRITICAL",
    }
}

/// The level of every target.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    default: LevelFilter,
    targets: BTreeMap<String, LevelFilter>,
}

impl Levels {
    /// `debug`, then `default_log_levels` in order.
    pub(super) fn from_config(config: &LogConfig) -> Levels {
        let default = if config.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
        let quiet = QUIET.iter().map(|(target, level)| ((*target).to_owned(), *level));
        let mut levels = Levels { default, targets: quiet.collect() };
        for (logger, level) in &config.levels {
            let Some(level) = parse_level(level) else { continue };
            // A Python logger's level is inherited by the loggers below it.
            let below = format!("{logger}.");
            let mut mapped = false;
            for (name, targets) in LOGGERS {
                if name == logger || name.starts_with(&below) {
                    mapped = true;
                    levels.put(targets, level);
                }
            }
            match logger.as_str() {
                "" | "root" => levels.default = level,
                "cinder" | "scoria" => levels.put(&["scoria"], level),
                other if !mapped => levels.put(&[&other.replace('.', "::")], level),
                _ => {}
            }
        }
        levels
    }

    fn put(&mut self, targets: &[&str], level: LevelFilter) {
        for target in targets {
            self.targets.insert((*target).to_owned(), level);
        }
    }

    /// Sets every logger whose name begins with `prefix`, and forgets finer settings below it.
    pub(super) fn set(&mut self, prefix: &str, level: LevelFilter) {
        let dotted = prefix.replace("::", ".");
        let mut changed: Vec<&str> = Vec::new();
        for (name, targets) in LOGGERS {
            if name.starts_with(&dotted) {
                changed.extend(targets.iter());
            }
        }
        if "scoria".starts_with(&dotted) || "cinder".starts_with(&dotted) {
            changed.push("scoria");
        }
        for target in &changed {
            let below = format!("{target}::");
            self.targets.retain(|known, _| !known.starts_with(&below));
        }
        self.put(&changed, level);
        if changed.is_empty() && dotted.starts_with("scoria.") {
            let target = dotted.replace('.', "::");
            self.put(&[&target], level);
        }
    }

    /// Effective level: that of the longest known target that `target` begins with.
    fn of(&self, target: &str) -> LevelFilter {
        let known = self.targets.iter().filter(|(known, _)| target.starts_with(known.as_str()));
        known.max_by_key(|(known, _)| known.len()).map_or(self.default, |(_, level)| *level)
    }

    /// Name and effective level of every logger whose name begins with `prefix`.
    pub(super) fn list(&self, prefix: &str) -> Vec<(String, String)> {
        let dotted = prefix.replace("::", ".");
        let mut listed: BTreeMap<String, LevelFilter> = BTreeMap::new();
        for (name, targets) in LOGGERS {
            if let Some(target) = targets.first().filter(|_| name.starts_with(&dotted)) {
                listed.insert((*name).to_owned(), self.of(target));
            }
        }
        for (target, level) in self.targets.iter().filter(|(target, _)| target.starts_with("scoria::")) {
            let name = target.replace("::", ".");
            if name.starts_with(&dotted) {
                listed.insert(name, *level);
            }
        }
        listed.into_iter().map(|(name, level)| (name, level_name(level).to_owned())).collect()
    }

    /// The filter that does it.
    pub(super) fn targets(&self) -> Targets {
        Targets::new().with_default(self.default).with_targets(self.targets.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn levels(debug: bool, pairs: &[(&str, &str)]) -> Levels {
        let levels = pairs.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect();
        Levels::from_config(&LogConfig { debug, levels, ..LogConfig::default() })
    }

    #[test]
    fn python_names_reach_our_targets_and_are_inherited() {
        let l = levels(true, &[("cinder.volume", "WARN"), ("sqlalchemy", "INFO"), ("boto", "ERROR")]);
        assert_eq!(l.of("scoria::volume::create"), LevelFilter::WARN);
        assert_eq!(l.of("scoria::rbd"), LevelFilter::WARN);
        assert_eq!(l.of("scoria::db"), LevelFilter::DEBUG);
        assert_eq!(l.of("mysql_async::conn"), LevelFilter::INFO);
        assert_eq!(l.of("rustls"), LevelFilter::WARN);
        assert_eq!(levels(false, &[("", "ERROR")]).of("scoria::db"), LevelFilter::ERROR);
        assert_eq!(levels(false, &[("cinder", "DEBUG")]).of("scoria::model"), LevelFilter::DEBUG);
    }

    #[test]
    fn set_and_list_work_by_prefix_as_the_rpc_does() {
        let mut l = levels(false, &[]);
        l.set("cinder.volume", LevelFilter::DEBUG);
        let listed = l.list("cinder.");
        let get = |name: &str| listed.iter().find(|(n, _)| n == name).map(|(_, level)| level.as_str());
        assert_eq!(get("cinder.volume.manager"), Some("DEBUG"));
        assert_eq!(get("cinder.volume.drivers.rbd"), Some("DEBUG"));
        assert_eq!(get("cinder.db"), Some("INFO"));
        assert!(listed.iter().all(|(name, _)| name.starts_with("cinder.")));

        l.set("scoria::rbd::pool", LevelFilter::TRACE);
        assert!(l.list("scoria.rbd").contains(&("scoria.rbd.pool".into(), "TRACE".into())));
        l.set("", LevelFilter::ERROR);
        assert!(l.list("").iter().all(|(_, level)| level == "ERROR"), "{:?}", l.list(""));
        l.set("nova", LevelFilter::DEBUG);
        assert!(l.list("").iter().all(|(_, level)| level == "ERROR"));
    }

    #[test]
    fn level_names_and_numbers() {
        assert_eq!(parse_level("warn"), Some(LevelFilter::WARN));
        assert_eq!(parse_level("CRITICAL"), Some(LevelFilter::ERROR));
        assert_eq!(parse_level("5"), Some(LevelFilter::TRACE));
        assert_eq!(parse_level("25"), Some(LevelFilter::INFO));
        assert_eq!(parse_level(""), None);
        assert_eq!(parse_level("LOUD"), None);
    }

    proptest! {
        /// What `list` tells is what the filter does.
        #[test]
        fn the_list_agrees_with_the_filter(
            steps in proptest::collection::vec(
                ("(cinder|scoria|oslo|sqlalchemy)?(\\.volume|::rbd|\\.rbd\\.x|\\.m)?", 0usize..4), 0..6),
        ) {
            let all = [LevelFilter::DEBUG, LevelFilter::INFO, LevelFilter::WARN, LevelFilter::ERROR];
            let mut l = levels(false, &[]);
            for (prefix, level) in steps {
                l.set(&prefix, all[level]);
            }
            let filter = l.targets();
            for (name, level) in l.list("scoria.") {
                let target = name.replace('.', "::");
                for each in [tracing::Level::DEBUG, tracing::Level::INFO, tracing::Level::WARN] {
                    let expected = each <= parse_level(&level).unwrap();
                    prop_assert_eq!(filter.would_enable(&target, &each), expected, "{} {}", name, level);
                }
            }
        }
    }
}
