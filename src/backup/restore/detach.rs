//! A volume that was restored by a clone becomes independent of its backup, in the background.
//!
//! Until it is flattened it reads from the backup, which cannot be deleted meanwhile, and it cannot be mirrored. So this is an
//! order of its own in the journal, left in the transaction that ends the restoration, one volume after the other for a
//! host. It is not given up: what fails, because the site is away for instance, is tried again until the volume stands
//! alone, or is gone. It also ends an exchange of images that its restoration could not tidy up.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use super::exchange::{Exchange, Stands};
use crate::backup::orders::{self, Order};
use crate::backup::{Backups, is_unsettled};
use crate::db;
use crate::db::Conn;
use crate::error::Result;
use crate::journal::Journal;
use crate::model::Backup;
use crate::rbd::protocol::{Fsid, ImageChildren};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::volume::crash;
use crate::volume::image::{PIN, Place};

/// First and longest pause before what has failed is tried again; doubles.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Between two looks at a volume that is being deleted.
const LOOK: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detached {
    /// The volume stands alone.
    Flattened,
    /// It did before, or is gone.
    Independent,
}

/// Leaves the order for this host's own service, in the transaction in which the restoration ends.
///
/// # Errors
/// `Database`.
pub(super) async fn order_in(
    conn: &mut Conn,
    host: &str,
    backup_id: &str,
    volume_id: &str,
    exchange: &Exchange,
) -> Result<()> {
    let order = Order::Detach {
        backup: backup_id.to_owned(),
        volume: volume_id.to_owned(),
        exchange: Box::new(exchange.clone()),
    };
    Journal::submit_in(conn, &orders::entry(host, order)?).await?;
    Ok(())
}

/// Carries the order out, however long that takes.
///
/// # Errors
/// `Database`, `Cancelled`: the order stays in the journal.
pub(in crate::backup) async fn run(
    b: &Backups,
    backup_id: &str,
    volume_id: &str,
    exchange: &Exchange,
) -> Result<Detached> {
    let mut pause = PAUSE.0;
    loop {
        match once(b, backup_id, volume_id, exchange).await {
            Ok(detached) => return Ok(detached),
            Err(error) if is_unsettled(&error) => return Err(error),
            Err(error) => {
                warn!(backup.id = backup_id, volume.id = volume_id, %error, "a restored volume still hangs on its backup: it is tried again");
                b.pause(pause).await?;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

async fn once(b: &Backups, backup_id: &str, volume_id: &str, exchange: &Exchange) -> Result<Detached> {
    let place = exchange.place(b);
    let content = format!("content of {volume_id}");
    let held = b.locks.local(&content).await;
    if settle(b, volume_id, exchange, &place).await? != Stands::New {
        return Ok(Detached::Independent);
    }
    crash::point("detach_volume:settled");
    // Not while it waits for others.
    drop(held);
    let _one = b.locks.local("flattening of restored volumes").await;
    // The next restoration into it waits, or it would find the image in use.
    let _held = b.locks.local(&content).await;
    // Whoever deletes the backup waits for this.
    let _turn = b.running.enter(backup_id);
    let image = exchange.image();
    if !hangs(&place, exchange).await? {
        return Ok(Detached::Independent);
    }
    let began = Instant::now();
    match place.flatten(image).await {
        Ok(()) => {}
        Err(error) if error.is_not_found() => return Ok(Detached::Independent),
        Err(error) => return Err(error.into()),
    }
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    info!(
        backup.id = backup_id,
        volume.id = volume_id,
        elapsed_ms,
        "a restored volume is independent of its backup"
    );
    crash::point("detach_volume:flattened");
    Ok(Detached::Flattened)
}

/// Whether the volume has the clone, and that still has its parent.
async fn hangs(place: &Place, exchange: &Exchange) -> Result<bool, RbdError> {
    if !exchange.has_happened(place).await? {
        return Ok(false);
    }
    match place.stat(exchange.image()).await {
        Ok(info) => Ok(info.parent.is_some()),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends the exchange. Of a volume that is gone, or is going, nothing is put back: its service has found no image.
async fn settle(b: &Backups, volume_id: &str, exchange: &Exchange, place: &Place) -> Result<Stands> {
    if !exchange.has_happened(place).await? && !stays(b, volume_id).await? {
        exchange.clear_away(place).await?;
        return Ok(Stands::Neither);
    }
    let stands = exchange.put_right(place).await?;
    if stands == Stands::Old && !stays(b, volume_id).await? {
        exchange.take_back(place).await?;
    }
    Ok(stands)
}

/// Whether there is a volume; one that is being deleted is waited for.
async fn stays(b: &Backups, volume_id: &str) -> Result<bool> {
    loop {
        let row = b.db.read("restored volume", async |conn| db::volume::find(conn, volume_id).await).await?;
        match row {
            None => return Ok(false),
            Some(row) if row.status == "deleting" => b.pause(LOOK).await?,
            Some(_) => return Ok(true),
        }
    }
}

/// Flattens all that still reads from a backup, which is to be deleted. Repeatable.
///
/// # Errors
/// What Ceph answers, for instance of a clone that somebody has mirrored.
pub(in crate::backup) async fn free_all(
    b: &Backups,
    backup: &Backup,
    store: &Place,
    base: &str,
) -> Result<()> {
    if !base.starts_with(PIN) {
        return Ok(());
    }
    let ask = ImageChildren { pool: store.pool.clone(), image: base.to_owned(), snap: None };
    let children = match store.site.insist(ask).await {
        Ok(children) => children,
        Err(error) if error.is_not_found() || error.kind == RbdErrorKind::NoPool => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for child in children {
        let place = client_of(b, store, &child.pool, &child.image).await;
        info!(backup.id = backup.id, image = child.image, "an image that reads from a backup is flattened");
        place.flatten_child(&child).await?;
        crash::point("delete_backup:freed");
    }
    Ok(())
}

/// By whom an image can be flattened: a volume's by the client of its backend, any other by that of the backups.
async fn client_of(b: &Backups, store: &Place, pool: &str, image: &str) -> Place {
    let own = Place { site: store.site.clone(), pool: pool.to_owned() };
    let template = &b.globals.volume_name_template;
    let (before, after) = template.split_once("%s").unwrap_or((template, ""));
    let Some(id) = image.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) else { return own };
    let found = b.db.read("volume of a clone", async |conn| db::volume::find(conn, id).await).await;
    let Ok(Some(volume)) = found else { return own };
    match b.locate(&volume).await {
        Ok(at) if at.place.pool == pool && at.image == image && is_same(&at.place, store).await => at.place,
        _ => own,
    }
}

/// Whether two places are in one cluster, as far as both answer.
async fn is_same(a: &Place, b: &Place) -> bool {
    let (a, b) = tokio::join!(a.site.insist(Fsid {}), b.site.insist(Fsid {}));
    matches!((a, b), (Ok(a), Ok(b)) if a == b)
}
