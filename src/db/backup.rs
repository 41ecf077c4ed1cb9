//! The `backups` table, as far as the volume service writes it: a backup whose device it cannot provide.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::backups;
use super::{Conn, now};
use crate::error::Result;
use crate::model::transition::{self, BackupEvent};

/// Characters that `fail_reason` holds.
const REASON: usize = 255;

/// Lets `event` happen to the backup and says why. Returns false when it is gone or in a status that the
/// event does not expect.
///
/// # Errors
/// `Database`.
pub async fn fail(conn: &mut Conn, id: &str, event: BackupEvent, reason: &str) -> Result<bool> {
    let arrow = transition::backup(event);
    let reason: String = reason.chars().take(REASON).collect();
    let matched = diesel::update(backups::table)
        .filter(backups::id.eq(id))
        .filter(backups::deleted.eq(false))
        .filter(backups::status.eq_any(arrow.from.to_vec()))
        .set((
            arrow.to.map(|s| backups::status.eq(s)),
            backups::fail_reason.eq(reason),
            backups::updated_at.eq(now()),
        ))
        .execute(conn)
        .await?;
    Ok(matched > 0)
}
