//! The backends of all hosts, as each of them says itself.
//!
//! The table has a row for every backend; whether a host serves what its rows say, only the host knows. So it is asked,
//! each host with the same deadline, and the answer names those that did not say anything.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use super::{Backends, View, view};
use crate::error::Result;

impl Backends {
    /// The backends of this host as it knows them itself.
    ///
    /// # Errors
    /// `Database`.
    pub async fn own(&self) -> Result<Vec<View>> {
        let host = self.host.as_str();
        let mut views = self.db.read("backends", async |conn| view::all(conn, Some(host)).await).await?;
        for view in &mut views {
            let runs = self.runner.running(&view.name).is_some();
            if view.state == "running" && !runs {
                view.problem.get_or_insert_with(|| "its row says that it runs, and it does not".to_owned());
            }
        }
        Ok(views)
    }
}

/// The backends of all hosts: each host's own word, where it has one within `limit`, and the names of those that had not.
///
/// # Errors
/// `Database`.
pub async fn all_hosts(b: &Backends, limit: Duration) -> Result<Value> {
    let known = b.db.read("backends", async |conn| view::all(conn, None).await).await?;
    let hosts: BTreeSet<String> = known.iter().map(|v| v.host.clone()).filter(|h| *h != b.host).collect();
    let asked = join_all(hosts.into_iter().map(|host| async move {
        let answer = b.runner.ask(&host, "list", json!({}), limit).await;
        let views = answer.ok().and_then(|v| serde_json::from_value::<Vec<View>>(v).ok());
        (host, views)
    }));
    let (mut backends, answers) = (b.own().await?, asked.await);
    let mut silent = Vec::new();
    for (host, answer) in answers {
        match answer {
            Some(views) => backends.extend(views),
            None => {
                // What the table says of it is worth something, too.
                backends.extend(known.iter().filter(|view| view.host == host).cloned().map(|view| View {
                    problem: Some("its host did not answer: this is what the table says".to_owned()),
                    ..view
                }));
                silent.push(host);
            }
        }
    }
    Ok(json!({"backends": backends, "silent_hosts": silent}))
}
