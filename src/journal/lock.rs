//! Locks that the members of a Cinder cluster share.
//!
//! A member that clones a volume while another deletes it would lose either of them. Stock's members agree by
//! `[coordination] backend_url`, a service of its own. Here a lock is a row, and needs neither that service nor
//! a lease: who holds it has an operation in the journal, whose lease tells whether he lives. What a dead
//! member held is free as soon as its operations have been taken over.

use diesel::OptionalExtension;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::Journal;
use crate::error::Result;

#[derive(diesel::QueryableByName)]
struct Holder {
    #[diesel(sql_type = Text)]
    owner: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    alive: bool,
}

impl Journal {
    /// Takes the lock `name` of a cluster for this instance, unless another one has it. `Ok` with the instance
    /// that it was taken for, which [`Journal::unlock`] must name; `None` while another holds it.
    ///
    /// # Errors
    /// `Database`.
    pub async fn try_lock(&self, cluster: &str, name: &str) -> Result<Option<String>> {
        let instance = self.owner().instance;
        let taken = self
            .shared
            .db
            .read("take a lock", async |conn| {
                let inserted = diesel::sql_query(
                    "INSERT IGNORE INTO scoria_locks (cluster, name, owner, acquired_at) \
                     VALUES (?, ?, ?, UTC_TIMESTAMP(6))",
                )
                .bind::<Text, _>(cluster)
                .bind::<Text, _>(name)
                .bind::<Text, _>(&instance)
                .execute(conn)
                .await?;
                if inserted > 0 {
                    return Ok(true);
                }
                let holder: Option<Holder> = diesel::sql_query(
                    "SELECT l.owner AS owner, EXISTS (SELECT 1 FROM scoria_operations o \
                     WHERE o.owner = l.owner AND o.state = 'open' AND o.cluster = l.cluster) AS alive \
                     FROM scoria_locks l WHERE l.cluster = ? AND l.name = ?",
                )
                .bind::<Text, _>(cluster)
                .bind::<Text, _>(name)
                .get_result(conn)
                .await
                .optional()?;
                // Nobody's again: asked once more, later.
                let Some(holder) = holder else { return Ok(false) };
                // Our own is left over from a release that failed: whoever asks has the lock of this process.
                if holder.owner != instance && holder.alive {
                    return Ok(false);
                }
                let swapped = diesel::sql_query(
                    "UPDATE scoria_locks SET owner = ?, acquired_at = UTC_TIMESTAMP(6) \
                     WHERE cluster = ? AND name = ? AND owner = ?",
                )
                .bind::<Text, _>(&instance)
                .bind::<Text, _>(cluster)
                .bind::<Text, _>(name)
                .bind::<Text, _>(&holder.owner)
                .execute(conn)
                .await?;
                Ok(swapped > 0)
            })
            .await?;
        Ok(taken.then_some(instance))
    }

    /// Gives a lock back that was taken for `instance`. One that another has taken meanwhile is left alone.
    ///
    /// # Errors
    /// `Database`; it is free anyway when the instance has no open operation any more.
    pub async fn unlock(&self, cluster: &str, name: &str, instance: &str) -> Result<()> {
        self.shared
            .db
            .read("give a lock back", async |conn| {
                diesel::sql_query("DELETE FROM scoria_locks WHERE cluster = ? AND name = ? AND owner = ?")
                    .bind::<Text, _>(cluster)
                    .bind::<Text, _>(name)
                    .bind::<Text, _>(instance)
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
    }
}
