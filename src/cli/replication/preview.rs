//! What an order would touch, shown to the operator before he agrees to it.

use serde::Serialize;

use super::super::confirm::{self, Confirmed};
use super::super::output::table;
use super::super::target::Target;
use super::super::{Context, Report};
use super::{Given, order};
use crate::error::Result;
use crate::model::Volume;
use crate::replication::orders::Order;

/// Rows of a preview; more are counted.
const SHOWN: usize = 20;

/// A volume of a preview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Shown {
    pub(super) volume: String,
    name: Option<String>,
    pub(super) gigabytes: i32,
    status: String,
    pub(super) replication_status: String,
}

impl From<&Volume> for Shown {
    fn from(volume: &Volume) -> Shown {
        Shown {
            volume: volume.id.clone(),
            name: volume.display_name.clone(),
            gigabytes: volume.size,
            status: volume.status.clone(),
            replication_status: volume.replication_status.clone().unwrap_or_default(),
        }
    }
}

/// The first of them as a table, each with a site under the head `site`; the rest is counted.
pub(super) fn rows<'a>(site: &str, all: impl ExactSizeIterator<Item = (&'a Shown, &'a str)>) -> String {
    let more = all.len().saturating_sub(SHOWN);
    let shown = all.take(SHOWN).map(|(v, site)| {
        [
            v.volume.clone(),
            v.name.clone().unwrap_or_default(),
            v.gigabytes.to_string(),
            v.status.clone(),
            v.replication_status.clone(),
            site.to_owned(),
        ]
    });
    let mut text = table(["Volume", "Name", "GiB", "Status", "Replication", site], shown);
    text.push('\n');
    if more > 0 {
        text.push_str(&format!("and {more} more\n"));
    }
    text
}

/// Shows a preview, asks the question, which `word` answers, and gives the order: the only way to one that destroys.
pub(super) async fn propose(
    context: &Context,
    target: &Target,
    given: &Given,
    (text, preview): (String, &impl Serialize),
    (question, word): (String, &str),
    order: Order,
) -> Result<Report> {
    if given.dry_run {
        return Report::new(text, preview);
    }
    eprintln!("{text}");
    let confirmed = confirm::ask(question, word, given.yes).await?;
    go(context, target, order, confirmed, !given.no_wait).await
}

async fn go(
    context: &Context,
    target: &Target,
    agreed: Order,
    _confirmed: Confirmed,
    wait: bool,
) -> Result<Report> {
    order(context, target, agreed, wait).await
}
