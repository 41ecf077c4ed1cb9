//! `site switch --independent`: the survivor of a disaster becomes a data centre of its own.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::super::rbd::{How, image_rows};
use super::super::{Context, Report, confirm};
use super::{host, read, remote, watch};
use crate::error::Result;
use crate::site::independent::IndependentOrder;
use crate::site::{self, Order, Store, read_key, user_name};

/// By whose key.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Admin {
    /// Administrator's keyring or key of the site, for this order only ('-': standard input)
    #[arg(long, value_name = "FILE", requires = "independent")]
    pub admin_keyring: Option<PathBuf>,
    /// The administrator's cephx client, with or without 'client.'
    #[arg(long, default_value = "admin", requires = "admin_keyring")]
    pub admin_user: String,
}

pub(super) async fn run(context: &Context, name: String, admin: Admin, how: How) -> Result<Report> {
    let user = user_name(&admin.admin_user)?;
    let key = match &admin.admin_keyring {
        Some(path) => Some(read_key(&read(path).await?, &user)?),
        None => None,
    };
    if !how.dry_run {
        eprintln!(
            "All mirrored images become primary on site {name}{}, and then stop being mirrored. The sites that are dead are \
             given up: peers, users, daemons and the files of those sites go, and volumes become \
             replication_status=disabled. There is no way back but to connect anew, which copies everything.",
            if how.unplanned { ", by force where the other side is dead" } else { "" }
        );
        let question = format!("Type the name of the site ({name}) to go on:");
        confirm::ask(question, &name, how.yes).await?;
    }
    let host = host(context, how.host.as_deref());
    let mut order = IndependentOrder { name, unplanned: how.unplanned, admin: None, dry_run: how.dry_run };
    let operation = match key {
        Some(key) if host != context.config.host => {
            let args = json!({
                "name": order.name, "unplanned": order.unplanned, "dry_run": order.dry_run, "admin_user": user,
                "admin_key_a": key.expose(),
            });
            remote::deliver(context, &host, ("independent", "1.3"), args).await?
        }
        key => {
            if let Some(key) = key {
                let store = Store::new(context.config.scoria.site_dir.clone());
                let files = site::admin_files(&context.db, &store, &host, &order.name, &user, &key).await?;
                order.admin = Some(files);
            }
            site::submit(&context.journal, &host, Order::Independent(order), None).await?.operation
        }
    };
    watch(context, &host, operation, true, !how.no_wait).await
}

/// What came of it.
pub(super) fn report(operation: i64, document: &Value) -> Result<Report> {
    let lines = |key: &str| {
        let all = document.get(key).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let dry = document.get("dry_run") == Some(&Value::Bool(true));
    let name = document.get("independent").and_then(Value::as_str).unwrap_or_default();
    let mut said = format!(
        "Site {name} {} independent.\n{}\n",
        if dry { "would be" } else { "is" },
        image_rows(document)
    );
    for (key, title) in [
        ("given_up", "Given up: site"),
        ("stopped", "Stopped:"),
        ("forgotten", "Forgotten, with its files: site"),
        ("left", "Left:"),
    ] {
        for line in lines(key) {
            said.push_str(&format!("{title} {line}\n"));
        }
    }
    Report::new(said, &json!({"operation": operation, "result": document}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_told() {
        let document = json!({"independent": "rome", "dry_run": false, "given_up": ["paris"], "stopped": [],
            "forgotten": [], "left": ["Site paris is in use by: h@b"],
            "images": [{"pool": "p", "image": "disk", "fate": {"step": "moved", "forced": true}}]});
        let text = report(7, &document).unwrap().text;
        assert!(text.contains("Site rome is independent") && text.contains("Given up: site paris"), "{text}");
        assert!(text.contains("promoted by force") && text.contains("Left: Site paris is in use"), "{text}");
    }
}
