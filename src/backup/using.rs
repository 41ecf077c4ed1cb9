//! Where the backups of this service go by its configuration, written down for those who cannot read that: a site to
//! which they go is not forgotten, and not parted from the others while a backup is on its way there.

use std::time::Duration;

use super::Backups;
use crate::db::site_use::{self, BACKUP, BY_CONF, BY_SITE, UseRow};
use crate::error::Result;
use crate::rbd::protocol::Fsid;

/// How long the cluster may take to say which one it is.
const ANSWER: Duration = Duration::from_secs(5);

/// What there is to write down.
///
/// # Errors
/// As [`Backups::registered`] for `backup_site`; what Ceph answers for the cluster of `backup_ceph_conf`.
pub async fn find(b: &Backups) -> Result<UseRow> {
    let place = b.usual_place().await?;
    let expected = place.site.identity().expected().filter(|_| b.config.site.is_some());
    let (site, fsid) = match expected {
        Some(fsid) => (BY_SITE, fsid),
        None => (BY_CONF, place.site.call_within(ANSWER, Fsid {}).await?),
    };
    Ok(UseRow {
        backend: format!("{}{BACKUP}", b.host),
        site: site.to_owned(),
        fsid,
        pool: place.pool,
        client: place.site.connection().user.clone(),
    })
}

/// Writes it down, in place of what was there before.
///
/// # Errors
/// `Database`.
pub async fn write(b: &Backups, row: &UseRow) -> Result<()> {
    b.db.write("where backups go", async |conn| {
        site_use::only(conn, &row.backend, std::slice::from_ref(&row.site)).await?;
        site_use::put(conn, row).await
    })
    .await
}
