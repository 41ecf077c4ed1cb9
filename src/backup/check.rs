//! Whether the data of a backup is what was written: its pieces are read and compared with their checksums.

use serde::{Deserialize, Serialize};

use super::{Backups, mirror, names, restore};
use crate::error::Result;
use crate::model::Backup;
use crate::rbd::protocol::{ObjectRead, SumsCheck};
use crate::rbd::sums;
use crate::rbd::types::Checked;

/// Bytes that are read at once.
const PART: u64 = 1 << 30;

/// What a comparison has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `good`, `wrong`, `partly` where some of it has no checksum, `unknown` where nothing has one, or `unverified`
    /// where they are still being computed.
    pub verdict: String,
    /// Bytes that are as they were.
    pub compared_bytes: u64,
    /// Bytes whose checksums nobody knows.
    pub unknown_bytes: u64,
    /// Offsets of pieces that are not what they were, the first of each part.
    pub wrong_offsets: Vec<u64>,
}

/// Reads a backup and compares it with its checksums.
///
/// # Errors
/// `InvalidBackup` when its data is not there; what Ceph answers.
pub async fn verify(b: &Backups, backup: &Backup) -> Result<Verdict> {
    if mirror::settle::is_unverified(backup) {
        return Ok(Verdict { verdict: "unverified".to_owned(), ..Verdict::default() });
    }
    let store = b.store(backup).await?;
    let (base, point, _) = restore::find_point(b, backup, &store).await?;
    let table = names::sums_object(&backup.id);
    let mut verdict = Verdict::default();
    let mut offset = 0;
    loop {
        let check = SumsCheck {
            pool: store.pool.clone(),
            image: base.clone(),
            snap: point.clone(),
            table: table.clone(),
            offset,
            budget: PART,
        };
        let Checked { reached, complete, compared, unknown, wrong } = store.site.insist(check).await?;
        verdict.compared_bytes += compared;
        verdict.unknown_bytes += unknown;
        verdict.wrong_offsets.extend(wrong);
        if complete {
            break;
        }
        offset = reached;
    }
    let Verdict { compared_bytes, unknown_bytes, .. } = verdict;
    // Nothing but zeros: that this is right is known when there is a table.
    let is_known = compared_bytes > 0 || (unknown_bytes == 0 && has_table(b, backup).await?);
    let word = match (verdict.wrong_offsets.is_empty(), is_known, unknown_bytes) {
        (false, _, _) => "wrong",
        (true, false, _) => "unknown",
        (true, true, 0) => "good",
        (true, true, _) => "partly",
    };
    verdict.verdict = word.to_owned();
    Ok(verdict)
}

/// Whether there are checksums of a backup at all.
///
/// # Errors
/// What Ceph answers.
pub async fn has_table(b: &Backups, backup: &Backup) -> Result<bool> {
    let store = b.store(backup).await?;
    // A table may be larger than one answer: its beginning says enough.
    let ask = ObjectRead { pool: store.pool.clone(), object: names::sums_object(&backup.id) };
    Ok(store.site.insist(ask).await?.is_some_and(|head| sums::is_table(&head)))
}
