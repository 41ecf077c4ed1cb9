//! Orders for backends: from arguments to the journal, and what came of them.

use std::path::Path;

use serde_json::{Value, json};

use super::super::confirm;
use super::super::follow::{follow, look};
use super::super::{Context, Exit, Report};
use super::{Action, At, Create, Delete, Disable, Given, Named, Rename, Stop, Update, Validate};
use crate::backends::{self, Options, Order};
use crate::config::{check_name, check_options, ini};
use crate::db::backend as rows;
use crate::error::{Code, Error, Result};

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    match action {
        Action::Create(Create { name, given, volume_type, disabled, dry_run, at }) => {
            check_name(&name)?;
            let options = options(given, &name).await?;
            let order = backends::Create { name, options, volume_type, enabled: !disabled, dry_run };
            send(context, Order::Create(order), at).await
        }
        Action::Update(Update { name, given, unset, dry_run, at }) => {
            let mut options = options(given, &name).await?;
            check_options(unset.iter().map(String::as_str))?;
            options.extend(unset.into_iter().map(|key| (key, Vec::new())));
            if options.is_empty() {
                return Err(Error::new(
                    Code::InvalidInput,
                    "Name options to change: --option, --from-file or --unset",
                ));
            }
            send(context, Order::Update(backends::Update { name, options, dry_run }), at).await
        }
        Action::Validate(Validate { name, given, host }) => {
            let options = options(given, &name).await?;
            let of = host.as_deref().unwrap_or(&context.config.host).to_owned();
            let known = context.db.read("a backend", async |conn| rows::find(conn, &of, &name).await).await?;
            let order = match known {
                Some(_) => Order::Update(backends::Update { name, options, dry_run: true }),
                None => {
                    check_name(&name)?;
                    let create =
                        backends::Create { name, options, volume_type: None, enabled: true, dry_run: true };
                    Order::Create(create)
                }
            };
            send(context, order, At { host, no_wait: false }).await
        }
        Action::Enable(Named { name, at }) => {
            send(context, Order::Enable(backends::Named { name }), at).await
        }
        Action::Start(Named { name, at }) => send(context, Order::Start(backends::Named { name }), at).await,
        Action::Disable(Disable { name, reason, at }) => {
            send(context, Order::Disable(backends::Disable { name, reason }), at).await
        }
        Action::Stop(Stop { name, drain, at }) => {
            send(context, Order::Stop(backends::Stop { name, drain }), at).await
        }
        Action::Delete(Delete { name, force, drain, yes, dry_run, at }) => {
            if !dry_run {
                let what = if force { ", whatever it has; rows of its volumes stay" } else { "" };
                eprintln!("Backend {name} is removed from host {}{what}.", host(context, &at));
                let question = format!("Type the name of the backend ({name}) to go on:");
                confirm::ask(question, &name, yes).await?;
            }
            send(context, Order::Delete(backends::Delete { name, force, drain, dry_run }), at).await
        }
        Action::Rename(Rename { name, new_name, from, yes, dry_run, at }) => {
            if !dry_run {
                match (&new_name, &from) {
                    (Some(new), _) => eprintln!(
                        "Backend {name} becomes {new}: it is stopped, all rows follow, and it serves under its new name. Its \
                         volume_backend_name stays, so volume types still lead there."
                    ),
                    (None, from) => eprintln!(
                        "Volumes and groups of {} become those of backend {name}.",
                        from.as_deref().unwrap_or_default()
                    ),
                }
                let question = format!("Type the name of the backend ({name}) to go on:");
                confirm::ask(question, &name, yes).await?;
            }
            let new_name = new_name.unwrap_or_else(|| name.clone());
            send(context, Order::Rename(backends::Rename { name, new_name, from, dry_run }), at).await
        }
        Action::List | Action::Show { .. } => Err(Error::internal("This is no order")),
    }
}

fn host(context: &Context, at: &At) -> String {
    at.host.as_deref().unwrap_or(&context.config.host).to_owned()
}

/// What the arguments and the file say; an argument counts more.
async fn options(given: Given, name: &str) -> Result<Options> {
    let mut options = match given.from_file {
        Some(path) => of_file(&path, name).await?,
        None => Options::new(),
    };
    let mut named = Options::new();
    for pair in given.options {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::new(Code::InvalidInput, format!("`{pair}` is not KEY=VALUE")));
        };
        named.entry(key.trim().to_owned()).or_default().push(value.trim().to_owned());
    }
    options.extend(named);
    check_options(options.keys().map(String::as_str))?;
    Ok(options)
}

async fn of_file(path: &Path, name: &str) -> Result<Options> {
    let of = path.to_owned();
    let read = move || match of == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()).map(String::into_bytes),
        false => std::fs::read(&of),
    };
    // A terminal is read for as long as its owner types.
    let content = tokio::task::spawn_blocking(read)
        .await
        .map_err(|e| Error::internal("Reading ended early").caused_by(e))?
        .map_err(|e| {
            Error::new(Code::InvalidInput, format!("Cannot read {}", path.display())).caused_by(e)
        })?;
    let file = ini::parse(path, &content).map_err(|e| Error::new(Code::InvalidInput, e.to_string()))?;
    let section = match file.sections.as_slice() {
        [only] => only.clone(),
        all => all.iter().find(|section| ***section == *name).cloned().ok_or_else(|| {
            Error::new(
                Code::InvalidInput,
                format!("{} has several sections, and none is [{name}]", path.display()),
            )
        })?,
    };
    let mut options = Options::new();
    for entry in file.entries.into_iter().filter(|entry| entry.section == section) {
        options.entry(entry.key).or_default().push(entry.value);
    }
    Ok(options)
}

/// Writes an order down and watches it to its end, unless told not to.
async fn send(context: &Context, order: Order, at: At) -> Result<Report> {
    let host = host(context, &at);
    let verb = order.verb();
    let (id, new) = backends::submit(&context.journal, &host, order, None).await?;
    let said = match new {
        true => format!("Operation {id} is written down; the service of {host} takes it from here."),
        false => format!("The same order is open already as operation {id}; nothing was added."),
    };
    if at.no_wait {
        let text = format!("{said}\nTo watch it: {}", look(id));
        return Report::new(text, &json!({"operation": id, "new": new}));
    }
    eprintln!("{said} Ctrl-C stops watching, not the operation.");
    let report = follow(context, id).await?;
    match context.journal.answer_of(id).await? {
        Some(document) if report.exit == Exit::Done => {
            Report::new(told(verb, &document), &json!({"operation": id, "result": document}))
        }
        _ => Ok(report),
    }
}

/// What came of an order, in words.
fn told(verb: &str, document: &Value) -> String {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let name = text("backend").unwrap_or_default();
    let list = |value: Option<&Value>| {
        let items = value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        items.collect::<Vec<_>>().join(", ")
    };
    let dry = document.get("dry_run") == Some(&Value::Bool(true));
    let mut lines = vec![match (verb, dry) {
        ("create", false) => format!("Backend {name} serves as {}.", text("service").unwrap_or_default()),
        ("create", true) => format!("Backend {name} would work as {}.", text("service").unwrap_or_default()),
        ("update", _) => {
            let keys = list(document.get("options"));
            let keys = if keys.is_empty() { "nothing".to_owned() } else { keys };
            let would = if dry { "would change" } else { "changed" };
            format!("Backend {name}: {would}: {keys}; effect: {}.", text("effect").unwrap_or_default())
        }
        ("delete", false) => format!("Backend {name} is gone."),
        ("delete", true) => format!("Backend {name} would be removed."),
        ("rename", _) => format!(
            "Backend {name} ({}) has what was {}.",
            text("service").unwrap_or_default(),
            text("former").unwrap_or_default()
        ),
        ("disable", _) => format!("Backend {name} gets no new volumes."),
        (_, _) => format!("Backend {name}: {}.", text("state").unwrap_or("done")),
    }];
    for (key, word) in
        [("pool", "volumes are at"), ("path", "file"), ("archived", "its file is now"), ("down", "down")]
    {
        if let Some(value) = text(key) {
            lines.push(format!("{word}: {value}"));
        }
    }
    if document.get("work_left") == Some(&Value::Bool(true)) {
        lines.push("operations are still running, and end by themselves".to_owned());
    }
    if let Some(changed) = document.get("changed").and_then(Value::as_object) {
        let all: Vec<String> = changed.iter().map(|(table, count)| format!("{table} {count}")).collect();
        lines.push(format!("rows: {}", all.join(", ")));
    }
    for other in document.get("differing_hosts").and_then(Value::as_array).into_iter().flatten() {
        let host = other.get("host").and_then(Value::as_str).unwrap_or_default();
        lines.push(format!("host {host} has other values of: {}", list(other.get("options"))));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_an_order_is_told_in_words() {
        let created =
            json!({"backend": "fast", "service": "h@fast", "pool": "h@fast#fast", "dry_run": false});
        assert_eq!(told("create", &created), "Backend fast serves as h@fast.\nvolumes are at: h@fast#fast");
        let update =
            json!({"backend": "fast", "effect": "live", "options": ["filter_function"], "dry_run": true});
        assert!(told("update", &update).contains("would change: filter_function; effect: live"));
        let stopped = json!({"backend": "fast", "state": "stopped", "work_left": true});
        assert!(told("stop", &stopped).contains("still running"));
    }
}
