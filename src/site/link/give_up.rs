//! Giving a dead site up: the survivor forgets it for good, and nothing is left to be finished.
//!
//! It is what parting does on the living side. What the dead one has of the survivor stays there, and leads nowhere: the
//! user by which its daemon would come is gone.

use serde_json::{Value, json};

use super::connect::is_pair;
use super::disconnect::{part, unseen};
use super::orders::Disconnect;
use super::pair::{End, require_key};
use crate::db::peer_link::{self, LinkRow};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::site::{Files, Sites};
use crate::volume::crash;

/// The step of a site that is given up.
pub(in crate::site) const GIVEN_UP: &str = "given up";

/// How far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::site) enum How {
    /// Only fail if the other answers.
    Check,
    /// Say what would be done.
    DryRun,
    /// Do it.
    Do,
}

/// Makes site `name` forget `other`, which is dead, for good: no link stays to be finished. What was parted; `None` when
/// the two were strangers. Repeatable.
///
/// # Errors
/// `Conflict` when the other answers; otherwise as [`disconnect`].
pub(in crate::site) async fn give_up(
    sites: &Sites,
    operation: &Operation,
    (name, other): (&str, &str),
    admin: Option<&Files>,
    how: How,
) -> Result<Option<Value>> {
    require_key(sites, operation, &admin.into_iter().collect::<Vec<_>>())?;
    let a = End::open(sites, name, admin).await?;
    let b = End::open(sites, other, None).await?;
    let done = Box::pin(given_up(sites, operation, &a, &b, how)).await;
    a.leave();
    b.leave();
    done
}

async fn given_up(sites: &Sites, operation: &Operation, a: &End, b: &End, how: How) -> Result<Option<Value>> {
    let rows = sites
        .db
        .read("links of two sites", async |conn| peer_link::list(conn, Some(&a.row.fsid)).await)
        .await?;
    let rows: Vec<LinkRow> = rows.into_iter().filter(|row| is_pair(row, &a.row.fsid, &b.row.fsid)).collect();
    let seen = a.look().await?;
    let there = unseen(b, &rows, &seen);
    let known = seen.mirroring.values().any(|view| view.peers.iter().any(|peer| there.is_peer(peer)));
    if rows.is_empty() && !known {
        return Ok(None);
    }
    if b.is_alive().await {
        return Err(Error::new(
            Code::Conflict,
            format!(
                "Site {} answers: what both have of one another is parted by scoria-manage site disconnect {} {} --force",
                b.row.name, a.row.name, b.row.name
            ),
        ));
    }
    if how == How::Check {
        return Ok(Some(Value::Null));
    }
    let dry_run = how == How::DryRun;
    let order = Disconnect {
        a: a.row.name.clone(),
        b: b.row.name.clone(),
        pools: vec![],
        force: true,
        purge: None,
        // There is nobody to ask what becomes of them: their rows say where they are.
        flatten_backups: true,
        delete_backups: None,
        admin_a: None,
        admin_b: None,
        dry_run,
    };
    if !dry_run {
        // Whoever goes on after a crash finds two strangers, and has to know that they were not.
        operation.item_step(&b.row.name, GIVEN_UP, &json!({})).await?;
    }
    let (mut answer, parted) = part(sites, operation, &order, a, b).await?;
    if let Some(parted) = parted {
        operation.write("links that are given up", async |conn| parted.write(conn, a, b, true).await).await?;
        crash::point("link:given-up");
        // What parting says last is how it would be finished.
        if let Some(left) = answer.get_mut("left").and_then(Value::as_array_mut) {
            left.pop();
            left.push(json!(format!(
                "site {} did not answer: what it has of {} is still there, and leads nowhere; should it come back, register \
                 it and take that away (scoria-manage site disconnect {} {} --force)",
                b.row.name, a.row.name, a.row.name, b.row.name
            )));
        }
    }
    Ok(Some(answer))
}
