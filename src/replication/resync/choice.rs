//! Which volumes a resync may touch at all: never one that is served from the site to discard, unless the operator
//! names that very volume and the backend is active elsewhere.

use std::collections::HashMap;

use crate::error::{Code, Error, Result};
use crate::model::{ReplicationStatus, Volume};
use crate::replication::orders::keeper;

/// A volume that may lose its copy.
#[derive(Debug, Clone, PartialEq)]
pub struct Touched<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Site whose content survives.
    pub keep: String,
    /// It is served from the copy to discard at this moment.
    pub served_from_discarded: bool,
}

/// What an order is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice<'a> {
    /// Those that it may touch.
    pub touched: Vec<Touched<'a>>,
    /// Left out because they are served from the site to discard.
    pub left_out: Vec<String>,
}

impl Choice<'_> {
    /// The volumes to name in the order; `None`: all.
    pub fn named(&self, named: &[String]) -> Option<Vec<String>> {
        let all = named.is_empty() && self.left_out.is_empty();
        (!all).then(|| self.touched.iter().map(|t| t.volume.id.clone()).collect())
    }
}

/// Chooses among `found`, the replicated volumes of `backend`, which is active on `active`.
///
/// # Errors
/// `InvalidVolume` for a name that fits nothing; `InvalidReplicationTarget` when the data to discard is what is
/// served.
pub fn choose<'a>(
    found: &'a [Volume],
    strays: &HashMap<String, String>,
    backend: &str,
    discard: &str,
    active: &str,
    named: &[String],
) -> Result<Choice<'a>> {
    let mirrored = |v: &&Volume| {
        let status = v.replication_status.as_deref().and_then(ReplicationStatus::parse);
        status.is_some_and(ReplicationStatus::means_mirrored)
    };
    let mut choice = Choice::default();
    let candidates: Vec<&Volume> = found.iter().filter(mirrored).collect();
    for id in named {
        if !candidates.iter().any(|v| v.id == *id) {
            return Err(Error::new(
                Code::InvalidVolume,
                format!("Volume {id} is not a replicated volume of backend {backend}"),
            ));
        }
    }
    for volume in candidates {
        let is_named = named.contains(&volume.id);
        if !named.is_empty() && !is_named {
            continue;
        }
        let stray = strays.get(&volume.id).map(String::as_str);
        let served_from_discarded = stray.unwrap_or(active) == discard;
        match keeper(discard, active, stray) {
            Some(keep) if !served_from_discarded || is_named => {
                choice.touched.push(Touched { volume, keep: keep.to_owned(), served_from_discarded });
            }
            None if is_named => {
                return Err(Error::new(
                    Code::InvalidReplicationTarget,
                    format!("Volume {} is served from {discard}, the active site: its data stays", volume.id),
                ));
            }
            Some(_) | None => choice.left_out.push(volume.id.clone()),
        }
    }
    if discard == active && choice.touched.is_empty() {
        return Err(Error::new(
            Code::InvalidReplicationTarget,
            format!(
                "{discard} is the active site of backend {backend}: its volumes are served from there and \
                 nothing of it is discarded; name the other site, or fail over first"
            ),
        ));
    }
    Ok(choice)
}
