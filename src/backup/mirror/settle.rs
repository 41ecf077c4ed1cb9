//! What is done for a backup by mirroring once it can be used: it is flattened, where the operator wants it to be
//! independent of the copy, and its checksums are computed.
//!
//! Both read all of it, on the backup's own site, so they are an order of their own in the journal, one after the
//! other for all backups of a host, and at a pace that leaves the cluster to its users. Until its checksums are there a backup
//! is *unverified*, which its row says (`service_metadata`).

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::info;

use super::super::orders::{self, Order};
use super::super::{Backups, images, names, restore};
use crate::backup::method::Method;
use crate::backup::names::ServiceMetadata;
use crate::db;
use crate::db::backup_work::BackupChanges;
use crate::error::Result;
use crate::journal::Operation;
use crate::model::Backup;
use crate::rbd::protocol::{SumsBegin, SumsFill};
use crate::volume::crash;

/// Journal step: how far the checksums are.
const SUMMING: &str = "summing";

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Nobody needs it any more: the backup is gone, or going.
    pub abandoned: bool,
    /// Bytes that were read.
    pub read_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Progress {
    reached: u64,
    read: u64,
    complete: bool,
}

/// Leaves the order for this host's own service.
///
/// # Errors
/// `Database`.
pub(in crate::backup) async fn order(b: &Backups, backup_id: &str, flatten: bool) -> Result<()> {
    let order = Order::Settle { backup: backup_id.to_owned(), flatten };
    b.journal.submit(&orders::entry(&b.host, order)?).await?;
    Ok(())
}

/// Leaves the orders that a death after the end of a backup has left out, and those that have failed.
///
/// # Errors
/// `Database`.
pub(in crate::backup) async fn at_start(b: &Backups) -> Result<()> {
    let host = b.host.as_str();
    let made =
        b.db.read("unverified backups", async |conn| {
            db::backup_work::of_host(conn, host, &["available", "restoring"]).await
        })
        .await?;
    for backup in made.iter().filter(|backup| is_unverified(backup)) {
        order(b, &backup.id, is_to_be_flattened(b, backup)).await?;
    }
    Ok(())
}

/// Whether its checksums are still to be computed.
pub fn is_unverified(backup: &Backup) -> bool {
    Method::of(backup.service.as_deref()) == Method::Mirror
        && ServiceMetadata::read(backup.service_metadata.as_deref()).is_some_and(|noted| noted.unverified)
}

fn is_to_be_flattened(b: &Backups, backup: &Backup) -> bool {
    b.config.flatten_pool.is_some() && b.config.flatten_pool == backup.container
}

/// Carries the order out.
///
/// # Errors
/// `InvalidBackup` when the data of the backup is not there; what Ceph answers; `Database`, `Cancelled`.
pub(in crate::backup) async fn run(
    b: &Backups,
    operation: &Operation,
    backup_id: &str,
    flatten: bool,
) -> Result<Settled> {
    let _one = b.locks.local("settling of backups").await;
    // Whoever deletes the backup waits for this, and is seen by it.
    let turn = b.running.enter(backup_id);
    let row = b.db.read("backup to settle", async |conn| db::backup::find(conn, backup_id).await).await?;
    let abandoned = Settled { abandoned: true, ..Settled::default() };
    let Some(backup) = row.filter(|row| matches!(row.status.as_str(), "available" | "restoring")) else {
        return Ok(abandoned);
    };
    let store = b.store(&backup).await?;
    let (base, point, size) = restore::find_point(b, &backup, &store).await?;
    if flatten && store.stat(&base).await?.parent.is_some() {
        let began = Instant::now();
        store.flatten(&base).await?;
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(backup.id = backup_id, elapsed_ms, "a backup is independent of the volume's copy");
        crash::point("settle_backup:flattened");
    }
    let mut progress = operation.reached::<Progress>(SUMMING).await?.unwrap_or_default();
    if !is_unverified(&backup) {
        return Ok(Settled { read_bytes: progress.read, ..Settled::default() });
    }
    let table = names::sums_object(backup_id);
    let begin =
        SumsBegin { pool: store.pool.clone(), table: table.clone(), parent: None, size, blank: false };
    store.site.insist(begin).await?;
    let limit = b.config.checksum_mib;
    while !progress.complete {
        if turn.is_called_off() {
            return Ok(abandoned);
        }
        let fill = SumsFill {
            pool: store.pool.clone(),
            image: base.clone(),
            snap: point.clone(),
            table: table.clone(),
            offset: progress.reached,
            budget: images::budget(limit),
        };
        let began = Instant::now();
        let part = store.site.insist(fill).await?;
        progress =
            Progress { reached: part.reached, read: progress.read + part.read, complete: part.complete };
        operation.step(SUMMING, &progress).await?;
        crash::point("settle_backup:part");
        images::pace(limit, part.read, began).await;
    }
    note(b, operation, backup_id).await?;
    info!(backup.id = backup_id, read_bytes = progress.read, "the checksums of a backup are computed");
    Ok(Settled { abandoned: false, read_bytes: progress.read })
}

/// The row says so, whatever else has been written into it meanwhile.
async fn note(b: &Backups, operation: &Operation, backup_id: &str) -> Result<()> {
    let row = b.db.read("settled backup", async |conn| db::backup::find(conn, backup_id).await).await?;
    let Some(noted) = row.and_then(|row| ServiceMetadata::read(row.service_metadata.as_deref())) else {
        return Ok(());
    };
    let verified = ServiceMetadata { unverified: false, ..noted };
    let changes =
        BackupChanges { service_metadata: Some(Some(verified.write())), ..BackupChanges::default() };
    operation
        .write("settled backup", async |conn| db::backup_work::update(conn, backup_id, &changes).await)
        .await?;
    Ok(())
}
