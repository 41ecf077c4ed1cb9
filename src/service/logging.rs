//! One line per event, in the form that OpenStack operators and their tools expect.
//!
//! `2026-11-21 09:00:00.123 4711 INFO scoria::volume::create [req-…] message key=value`, to a file,
//! to standard error, or both (oslo.log's options). Levels can be changed while the service runs, by
//! the `set_log_levels` RPC in terms of Python logger names and by SIGHUP. Writing happens on a
//! thread of its own: a full disk or a stuck pipe loses lines (and says how many), never time.
//!
//! Every event goes through one layer; `levels` knows logger names, `sink` owns the destinations.

mod format;
mod levels;
mod sink;

use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogConfig;
use crate::error::{Code, Error, Result};

use levels::Levels;
pub use levels::parse_level;
use sink::Sink;

/// Changes levels and reopens the file while the service runs. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    levels: Arc<Mutex<Levels>>,
    filter: reload::Handle<Targets, Registry>,
    sink: Sink,
}

/// Writes out what is queued when it is dropped; keep it until the process ends.
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard(Sink);

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Sets the log of the whole process up. [`Code::Config`] when the file cannot be opened.
pub fn init(config: &LogConfig) -> Result<(LogHandle, LogGuard)> {
    let (subscriber, handle, guard) = build(config)?;
    subscriber
        .try_init()
        .map_err(|e| Error::internal("the log was set up twice in one process").caused_by(e))?;
    Ok((handle, guard))
}

/// The same without making it the process's own, for tests.
fn build(config: &LogConfig) -> Result<(impl Subscriber + Send + Sync, LogHandle, LogGuard)> {
    let sink = Sink::open(config.file.as_deref(), config.stderr)?;
    let levels = Levels::from_config(config);
    let (filter, reload) = reload::Layer::new(levels.targets());
    let layer = format::OutputLayer::new(config, sink.clone());
    let subscriber = Registry::default().with(filter).with(layer);
    let handle = LogHandle { levels: Arc::new(Mutex::new(levels)), filter: reload, sink: sink.clone() };
    Ok((subscriber, handle, LogGuard(sink)))
}

impl LogHandle {
    /// The `set_log_levels` RPC: sets every logger whose name begins with `prefix` (all for an
    /// empty one). Names are Cinder's (`cinder.volume`) or Scoria's targets (`scoria.rbd`,
    /// `scoria::rbd::pool`); an unknown prefix changes nothing, as upstream. `level` is one of
    /// `DEBUG`, `INFO`, `WARNING`, `ERROR` in any case, else [`Code::InvalidInput`].
    pub fn set(&self, prefix: &str, level: &str) -> Result<()> {
        let filter = match level.to_uppercase().as_str() {
            "DEBUG" => LevelFilter::DEBUG,
            "INFO" => LevelFilter::INFO,
            "WARNING" => LevelFilter::WARN,
            "ERROR" => LevelFilter::ERROR,
            _ => {
                let shown: String = level.chars().take(60).flat_map(char::escape_debug).collect();
                return Err(Error::new(Code::InvalidInput, format!("{shown} is not a valid log level.")));
            }
        };
        self.change(|levels| levels.set(prefix, filter))
    }

    /// The `get_log_levels` RPC: name and level of every logger whose name begins with `prefix`.
    pub fn levels(&self, prefix: &str) -> Vec<(String, String)> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner).list(prefix)
    }

    /// Takes the levels of a configuration that was read again (SIGHUP). Levels set by
    /// [`LogHandle::set`] are forgotten; file and form stay those of the start.
    pub fn apply(&self, config: &LogConfig) -> Result<()> {
        self.change(|levels| *levels = Levels::from_config(config))
    }

    /// Opens the log file again, after logrotate has moved it (SIGHUP). Moving it is also noticed
    /// without a signal, as Python's `WatchedFileHandler` does.
    pub fn reopen(&self) {
        self.sink.reopen();
    }

    /// Waits (5 s at most) until everything that was logged so far is written. Blocks.
    pub fn flush(&self) {
        self.sink.flush();
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) -> Result<()> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut levels);
        self.filter
            .reload(levels.targets())
            .map_err(|e| Error::internal("the log filter is gone").caused_by(e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::path::Path;

    fn file_config(path: &Path) -> LogConfig {
        LogConfig { file: Some(path.to_owned()), ..LogConfig::default() }
    }

    fn logged(config: &LogConfig, work: impl FnOnce(&LogHandle)) -> String {
        let (subscriber, handle, guard) = build(config).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&handle));
        drop(guard);
        std::fs::read_to_string(config.file.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn a_line_has_oslos_form_with_the_request_of_the_span() {
        let dir = tempfile::tempdir().unwrap();
        let text = logged(&file_config(&dir.path().join("a.log")), |_| {
            let span = tracing::info_span!("call", request_id = "req-1", volume_id = "v1");
            span.in_scope(
                || tracing::warn!(target: "scoria::volume::create", size_gib = 2, note = "a b", "made it"),
            );
            tracing::info!(target: "scoria::service", "line one\nline two\u{1b}[31m");
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let pid = std::process::id();
        let (time, rest) = lines[0].split_at("2026-11-21 09:00:00.123".len());
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00 00:00:00.000");
        assert_eq!(
            rest,
            format!(
                " {pid} WARNING scoria::volume::create [req-1] made it size_gib=2 note=\"a b\" volume_id=v1"
            )
        );
        assert!(lines[1].ends_with("scoria::service [-] line one\\nline two\\u{1b}[31m"), "{}", lines[1]);
    }

    #[test]
    fn a_field_recorded_later_and_the_innermost_request_count() {
        let dir = tempfile::tempdir().unwrap();
        let text = logged(&file_config(&dir.path().join("a.log")), |_| {
            let outer = tracing::info_span!("outer", request_id = "req-outer");
            let _outer = outer.enter();
            let inner = tracing::info_span!("inner", request_id = tracing::field::Empty);
            let _inner = inner.enter();
            tracing::info!(target: "scoria::rpc", "first");
            inner.record("request_id", "req-inner");
            tracing::info!(target: "scoria::rpc", "second");
        });
        assert!(text.contains("[req-outer] first") && text.contains("[req-inner] second"), "{text}");
    }

    #[test]
    fn json_lines_hold_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { json: true, ..file_config(&dir.path().join("a.log")) };
        let text = logged(&config, |_| {
            let span = tracing::info_span!("call", request_id = "req-1");
            span.in_scope(|| tracing::error!(target: "scoria::db", attempts = 3, "went \"away\""));
        });
        let value: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(value["message"], "went \"away\"");
        assert_eq!(value["levelname"], "ERROR");
        assert_eq!(value["name"], "scoria::db");
        assert_eq!(value["process"], std::process::id());
        assert_eq!(value["context"]["request_id"], "req-1");
        assert_eq!(value["extra"]["attempts"], 3);
    }

    #[test]
    fn levels_change_at_run_time() {
        let dir = tempfile::tempdir().unwrap();
        let text = logged(&file_config(&dir.path().join("a.log")), |handle| {
            let each = |tag: &str| {
                tracing::debug!(target: "scoria::volume::create", "volume {tag}");
                tracing::debug!(target: "scoria::rbd::pool", "rbd {tag}");
            };
            each("one");
            handle.set("cinder.volume.manager", "debug").unwrap();
            each("two");
            handle.apply(&LogConfig::default()).unwrap();
            each("three");
            handle.set("scoria::rbd::pool", "DEBUG").unwrap();
            each("four");
            assert_eq!(handle.set("", "LOUD").unwrap_err().code(), Code::InvalidInput);
        });
        let seen: Vec<_> = text.lines().filter_map(|l| l.split_once("[-] ")).map(|(_, m)| m).collect();
        assert_eq!(seen, ["volume two", "rbd four"]);
    }

    #[test]
    fn a_moved_file_is_made_again_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        let text = logged(&file_config(&path), |handle| {
            tracing::info!("before");
            handle.flush();
            std::fs::rename(&path, &old).unwrap();
            tracing::info!("after");
            handle.flush();
            handle.reopen();
            tracing::info!("at the end");
        });
        assert!(std::fs::read_to_string(&old).unwrap().contains("before"));
        assert!(text.contains("after") && text.contains("at the end") && !text.contains("before"), "{text}");
    }

    #[test]
    fn an_existing_file_is_appended_to_and_a_bad_path_is_a_configuration_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, "old\n").unwrap();
        let text = logged(&file_config(&path), |_| tracing::info!("new"));
        assert!(text.starts_with("old\n") && text.contains("new"), "{text}");

        let error = build(&file_config(&dir.path().join("no/such/a.log"))).err().unwrap();
        assert_eq!(error.code(), Code::Config);
        assert!(error.user().contains("no/such/a.log"), "{error}");
    }
}
