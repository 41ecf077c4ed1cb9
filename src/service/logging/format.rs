//! An event and its spans made into one line, plain or JSON.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use chrono::{DateTime, Local};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::sink::Sink;
use crate::config::LogConfig;

/// oslo.log's `log_date_format`.
const DATE_FORMAT: &str = "%Y-%m-%d %H:%M:%S";
/// Fields by which a span says whose request it works for.
const REQUEST_ID: &str = "request_id";

/// Writes every event that passes the filter.
pub(super) struct OutputLayer {
    sink: Sink,
    json: bool,
    date_format: String,
}

impl OutputLayer {
    pub(super) fn new(config: &LogConfig, sink: Sink) -> Self {
        let date_format = config.date_format.clone().unwrap_or_else(|| DATE_FORMAT.to_owned());
        OutputLayer { sink, json: config.json, date_format }
    }

    fn time(&self, now: &DateTime<Local>) -> String {
        let mut text = String::new();
        if write!(text, "{}", now.format(&self.date_format)).is_err() {
            text = now.format(DATE_FORMAT).to_string();
        }
        text
    }
}

/// Fields in the order in which they were recorded.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn put(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(plain(&self.0.remove(at).1))
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field.name(), value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}").into());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for OutputLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.take("message").unwrap_or_default();
        // Events of the `log` crate carry their place in fields.
        let bridged = fields.take("log.target");
        for name in ["log.module_path", "log.file", "log.line"] {
            fields.take(name);
        }
        let mut request = fields.take(REQUEST_ID);
        for span in ctx.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            let Some(of_span) = extensions.get::<Fields>() else { continue };
            for (name, value) in &of_span.0 {
                if *name == REQUEST_ID {
                    request.get_or_insert_with(|| plain(value));
                } else if !fields.0.iter().any(|(known, _)| known == name) {
                    fields.0.push((*name, value.clone()));
                }
            }
        }
        let now = Local::now();
        let metadata = event.metadata();
        let target = bridged.as_deref().unwrap_or(metadata.target());
        let line = if self.json {
            self.json(&now, metadata, target, request, message, fields)
        } else {
            let mut line = format!(
                "{}.{:03} {} {} {target} [{}] ",
                self.time(&now),
                now.timestamp_subsec_millis().min(999),
                std::process::id(),
                level_name(*metadata.level()),
                escaped(request.as_deref().unwrap_or("-")),
            );
            line.push_str(&escaped(&message));
            for (name, value) in &fields.0 {
                let _ = write!(line, " {name}={}", quoted(&plain(value)));
            }
            line
        };
        self.sink.line(line);
    }
}

impl OutputLayer {
    /// The keys that oslo.log's `JSONFormatter` writes, as far as they mean something here.
    fn json(
        &self,
        now: &DateTime<Local>,
        metadata: &Metadata<'_>,
        target: &str,
        request: Option<String>,
        message: String,
        fields: Fields,
    ) -> String {
        let level = *metadata.level();
        let mut context = Map::new();
        if let Some(request) = request {
            context.insert(REQUEST_ID.to_owned(), request.into());
        }
        json!({
            "asctime": self.time(now),
            "msecs": now.timestamp_subsec_millis().min(999),
            "created": now.timestamp_micros() as f64 / 1e6,
            "process": std::process::id(),
            "levelname": level_name(level),
            "levelno": level_number(level),
            "name": target,
            "pathname": metadata.file(),
            "lineno": metadata.line(),
            "message": message,
            "context": context,
            "extra": fields.0.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>(),
        })
        .to_string()
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::TRACE => "TRACE",
        Level::DEBUG => "DEBUG",
        Level::INFO => "INFO",
        Level::WARN => "WARNING",
        Level::ERROR => "ERROR",
    }
}

fn level_number(level: Level) -> u8 {
    match level {
        Level::TRACE => 5,
        Level::DEBUG => 10,
        Level::INFO => 20,
        Level::WARN => 30,
        Level::ERROR => 40,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One event is one line: control characters (a newline in a hostile name) are escaped.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { safe.extend(c.escape_debug()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// A value that can be told from its neighbours.
fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
    {
        format!("{text:?}")
    } else {
        text.to_owned()
    }
}
