//! Images of which only half is there: named in the pool's directory, and without a header.
//!
//! A client that dies while it makes or removes an image leaves one: the name is taken, the image cannot be opened,
//! and its data stays. librbd's removal finishes such a removal. What is being made or removed this moment looks the
//! same for a moment, so that an image counts only when it still does some seconds later.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::{Sites, owner};
use super::HalfOrder;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::model::Volume;
use crate::rbd::mirror_survey::Looked;
use crate::rbd::protocol::{ImageDirectory, ImageRemove, MirrorSurvey};
use crate::rbd::{RbdErrorKind, Site};
use crate::volume::crash;

/// Images that one request looks at.
const CHUNK: usize = 128;

/// Carries an order out.
pub(in crate::site) async fn run(sites: &Sites, operation: &Operation, order: &HalfOrder) -> Result<Value> {
    let reached = sites.reach(&order.name).await?;
    let ended = carry_out(sites, operation, order, &reached.site).await;
    sites.part(&reached.site);
    ended
}

async fn carry_out(sites: &Sites, operation: &Operation, order: &HalfOrder, site: &Site) -> Result<Value> {
    let mut halves = halves(site, &order.pool).await?;
    if !halves.is_empty() {
        sleep(sites.patience.settled).await;
        let again = self::halves(site, &order.pool).await?;
        halves.retain(|half| again.contains(half));
    }
    let names: Vec<String> = halves.iter().map(|(_, name)| name.clone()).collect();
    let owners = owner::volumes(sites, &names).await?;
    let ids: Vec<String> = owners.values().cloned().collect();
    let volumes: HashMap<String, Volume> = sites
        .db
        .read("volumes of images", async |conn| db::volume::get_many(conn, &ids).await)
        .await?
        .into_iter()
        .map(|volume| (volume.id.clone(), volume))
        .collect();
    let mut images = Vec::new();
    for (id, name) in &halves {
        let volume = owners.get(name).and_then(|id| volumes.get(id));
        let keeps = volume.map(advice);
        let mut fate = if keeps.is_some() { "kept" } else { "found" };
        if order.finish && keeps.is_none() {
            remove(site, &order.pool, name).await?;
            crash::point("half:removed");
            operation.step("removed", name).await?;
            fate = "removed";
        }
        images.push(
            json!({"image": name, "id": id, "volume": volume.map(|v| &v.id), "fate": fate, "advice": keeps}),
        );
    }
    Ok(json!({"halves_of": order.pool, "site": order.name, "finish": order.finish, "images": images}))
}

/// What is to be done about the volume whose image it is.
fn advice(volume: &Volume) -> String {
    let id = &volume.id;
    match volume.status.as_str() {
        "deleting" => format!("volume {id} is being deleted: its service goes on with that"),
        "error_deleting" => {
            format!("volume {id} was not deleted: delete it again (cinder force-delete {id})")
        }
        status => format!(
            "volume {id} ({status}) has lost its image: restore it from a backup or from its copy on another site, or \
             delete it (cinder delete {id})"
        ),
    }
}

/// (id, name) of what the directory has and nobody can open.
async fn halves(site: &Site, pool: &str) -> Result<Vec<(String, String)>> {
    let directory =
        site.insist(ImageDirectory { pool: pool.to_owned() }).await.map_err(|e| match e.kind {
            RbdErrorKind::NoPool => {
                Error::new(Code::InvalidInput, format!("There is no pool {pool}")).caused_by(e)
            }
            _ => e.into(),
        })?;
    let mut found = Vec::new();
    for chunk in directory.chunks(CHUNK) {
        let images = chunk.iter().map(|(_, name)| name.clone()).collect();
        let looked = site.insist(MirrorSurvey { pool: pool.to_owned(), images }).await?;
        for (entry, looked) in chunk.iter().zip(looked) {
            if looked == Looked::Absent {
                found.push(entry.clone());
            }
        }
    }
    Ok(found)
}

async fn remove(site: &Site, pool: &str, image: &str) -> Result<()> {
    match site.insist(ImageRemove { pool: pool.to_owned(), image: image.to_owned() }).await {
        Err(e) if !e.is_not_found() => Err(e.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_volume_needs_depends_on_its_status() {
        let volume = |status: &str| Volume { id: "v".into(), status: status.into(), ..Volume::default() };
        assert!(advice(&volume("error_deleting")).contains("force-delete v"));
        assert!(advice(&volume("deleting")).contains("goes on"));
        assert!(advice(&volume("in-use")).contains("backup"));
    }
}
