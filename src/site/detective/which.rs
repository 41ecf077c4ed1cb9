//! Which image, and which volume, something belongs to.

use serde_json::{Value, json};
use tracing::debug;

use super::super::reach::Reached;
use super::super::{Sites, owner};
use super::WhichOrder;
use super::clue::Clue;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::{
    ClusterStatus, ImageChildren, ImageDirectory, ImageInspect, ImageWatchers, TrashList,
};
use crate::rbd::types::{ImageName, in_trash};
use crate::rbd::{RbdErrorKind, Site};

/// Part of a name that cinder-backup gives its images: `volume-<id>.backup.<id>`.
const BACKUP: &str = ".backup.";

/// An image that is meant.
struct Match {
    site: String,
    pool: String,
    id: String,
    /// Its name; in the trash that which it had.
    name: String,
    trash: bool,
}

/// Carries an order out.
pub(in crate::site) async fn run(sites: &Sites, order: &WhichOrder) -> Result<Value> {
    let clue = Clue::read(&order.what)?;
    let names = match &order.site {
        Some(name) => vec![name.clone()],
        None => {
            let host = sites.host.as_str();
            let rows = sites.db.read("sites of a host", async |c| db::site::files_on(c, host).await).await?;
            rows.into_iter().filter(|row| row.state == "present").map(|row| row.fsid).collect()
        }
    };
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for name in &names {
        let reached = sites.reach(name).await?;
        match search(sites, &reached, &clue, order.pool.as_deref()).await {
            Ok(matches) => found.extend(matches),
            // One that was named has to answer; of all, those that do.
            Err(e) if order.site.is_none() => silent.push(format!("{}: {}", reached.row.name, e.user())),
            Err(e) => return Err(e),
        }
        sites.part(&reached.site);
    }
    if found.is_empty() {
        let seen = match silent.is_empty() {
            true => String::new(),
            false => format!("; not all sites answer: {}", silent.join("; ")),
        };
        return Err(Error::new(
            Code::InvalidInput,
            format!(
                "No image has to do with '{}' on the sites that this host reaches, in pools that its client may read{seen}",
                order.what
            ),
        ));
    }
    Ok(json!({"which": order.what, "clue": clue, "found": found, "silent": silent}))
}

async fn search(sites: &Sites, reached: &Reached, clue: &Clue, pool: Option<&str>) -> Result<Vec<Value>> {
    let site = &reached.site;
    let pools = match (pool, clue) {
        (Some(pool), _) => vec![pool.to_owned()],
        (None, Clue::Name { pool: Some(pool), .. }) => vec![pool.clone()],
        (None, _) => {
            let all = site.call(ClusterStatus {}).await?.pools;
            let rbd = |uses: &[String]| uses.is_empty() || uses.iter().any(|u| u == "rbd");
            all.into_iter().filter(|p| !p.erasure && rbd(&p.applications)).map(|p| p.name).collect()
        }
    };
    let template = sites.volume_name.as_str();
    let mut found = Vec::new();
    for pool in pools {
        let directory = match site.call(ImageDirectory { pool: pool.clone() }).await {
            Ok(directory) => directory,
            Err(e) if matches!(e.kind, RbdErrorKind::Permission | RbdErrorKind::NoPool) => {
                debug!(pool, error = %e, "a pool is not searched");
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let trashed = site.call(TrashList { pool: pool.clone() }).await?;
        let all = directory
            .into_iter()
            .map(|(id, name)| (id, name, false))
            .chain(trashed.into_iter().map(|entry| (entry.id, entry.name, true)));
        for (id, name, trash) in all.filter(|(id, name, _)| clue.means(&pool, id, name, template)) {
            let at = Match { site: reached.row.name.clone(), pool: pool.clone(), id, name, trash };
            found.push(describe(sites, site, clue, &at).await?);
        }
    }
    Ok(found)
}

/// All that is known of an image.
async fn describe(sites: &Sites, site: &Site, clue: &Clue, at: &Match) -> Result<Value> {
    let image = if at.trash { in_trash(&at.id) } else { at.name.clone() };
    let (pool, whole) = (at.pool.clone(), image.clone());
    let inspection = site.call(ImageInspect { pool: pool.clone(), image: whole }).await;
    let (about, problem) = match inspection {
        Ok(seen) => {
            let bytes = clue.bytes(seen.info.order).map(|(from, to)| json!([from, to]));
            let snap = match clue {
                Clue::Id { snap: Some(id), .. } => {
                    seen.snaps.iter().find(|s| s.id == *id).map(|s| s.name.clone())
                }
                _ => None,
            };
            let about = json!({"size": seen.info.size, "order": seen.info.order, "bytes": bytes, "snapshot": snap,
                "snapshots": seen.snaps.iter().map(|s| &s.name).collect::<Vec<_>>()});
            (about, None)
        }
        Err(e) if e.is_not_found() => (
            Value::Null,
            Some("it cannot be opened: half of it is gone (scoria-manage rbd half-deleted)".to_owned()),
        ),
        Err(e) => (Value::Null, Some(format!("it cannot be opened: {}", e.message))),
    };
    let (mut watchers, mut children) = (Vec::new(), Vec::new());
    if problem.is_none() {
        // What only rounds the answer off must not keep it back.
        let ask = ImageWatchers { pool: pool.clone(), image: image.clone() };
        watchers = site.call(ask).await.unwrap_or_default().into_iter().map(|w| w.address).collect();
        let ask = ImageChildren { pool: pool.clone(), image, snap: None };
        children = site.call(ask).await.unwrap_or_default();
    }
    let volume = volume(sites, &at.name).await?;
    let dependents = dependents(sites, children).await?;
    Ok(json!({
        "site": at.site, "pool": at.pool, "image": at.name, "id": at.id, "trash": at.trash, "about": about,
        "problem": problem, "open_at": watchers, "volume": volume, "clones": dependents,
    }))
}

/// The volume of an image of this name, with where it is attached; what a name says where there is none.
async fn volume(sites: &Sites, name: &str) -> Result<Value> {
    if let Some((of, backup)) = name.split_once(BACKUP) {
        let volume = owner::volume_id(of, &sites.volume_name);
        return Ok(json!({"kind": "backup", "backup": backup, "of": volume}));
    }
    let Some(id) = owner::volume_id(name, &sites.volume_name) else { return Ok(Value::Null) };
    let ids = [id.to_owned()];
    let found = sites
        .db
        .read("the volume of an image", async |conn| {
            let owners = db::manageable::volumes_by_name(conn, &ids).await?;
            let Some(owner) = owners.get(id).filter(|_| !name.ends_with(".deleted")) else { return Ok(None) };
            let Some(volume) = db::volume::find(conn, owner).await? else { return Ok(None) };
            let attachments = db::attachment::list_for_volume(conn, owner).await?;
            Ok(Some((volume, attachments)))
        })
        .await?;
    let Some((volume, attachments)) = found else {
        return Ok(json!({"kind": "deleted", "id": id}));
    };
    let attachments: Vec<Value> = attachments
        .iter()
        .map(|a| json!({"id": a.id, "server": a.instance_uuid, "host": a.attached_host, "device": a.mountpoint}))
        .collect();
    Ok(json!({
        "kind": "volume", "id": volume.id, "name": volume.display_name, "project": volume.project_id,
        "user": volume.user_id, "status": volume.status, "host": volume.host, "size": volume.size,
        "replication_status": volume.replication_status, "attachments": attachments,
    }))
}

/// Clones that read what is damaged in their parent, and whose they are.
async fn dependents(sites: &Sites, children: Vec<ImageName>) -> Result<Vec<Value>> {
    let mut names: Vec<String> = children.iter().map(|c| c.image.clone()).collect();
    names.sort();
    names.dedup();
    let volumes = owner::volumes(sites, &names).await?;
    let one = |c: &ImageName| json!({"pool": c.pool, "image": c.image, "trash": c.trash, "volume": volumes.get(&c.image)});
    Ok(children.iter().map(one).collect())
}
