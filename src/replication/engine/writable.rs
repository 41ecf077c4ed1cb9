//! A forced promotion has succeeded when a writer is accepted, not when the command returned.
//!
//! The site's own rbd-mirror may hold the image's lock while it waits for the dead peer, and keep everybody else
//! out. Its lock is broken then; that of a VM never is.

use tracing::{debug, info};

use super::{Action, Engine, Job};
use crate::rbd::protocol::{CheckWritable, LockBreak, LockOwners, MirrorDaemons};

impl Engine {
    /// One attempt to prove that the target accepts a writer. When it does not, and what holds the
    /// image's exclusive lock is the target's own rbd-mirror (it keeps waiting for the dead peer), the
    /// daemon's lock is broken: on one image that fences the daemon for all. A lock whose owner is not
    /// known to be a daemon is never touched: it may be a running VM.
    pub(super) async fn ensure_writable(&self, job: &Job) -> bool {
        let within = self.limits.verdict * 2;
        let (pool, image) = (self.pool.clone(), job.image.clone());
        let check =
            || self.target.call_within(within, CheckWritable { pool: pool.clone(), image: image.clone() });
        let refused = match check().await {
            Ok(()) => return true,
            Err(error) => error,
        };
        self.target_judge.doubt(&refused).await;
        let owners = LockOwners { pool: pool.clone(), image: image.clone() };
        let daemons = MirrorDaemons { pool: pool.clone() };
        let (owners, daemons) =
            tokio::join!(self.target.call_within(within, owners), self.target.call_within(within, daemons));
        let (owners, daemons) = match (owners, daemons) {
            (Ok(owners), Ok(daemons)) => (owners, daemons),
            (Err(error), _) | (_, Err(error)) => {
                self.trouble(job, Action::EnsureWritable, &error);
                return false;
            }
        };
        let Some(owner) = owners.iter().find(|o| daemons.contains(o)) else {
            debug!(volume.id = job.volume_id, ?owners, ?daemons, %refused, "not writable yet");
            return false;
        };
        let (broke, again) = {
            let mut broken = self.broken.lock().await;
            let again = broken.contains(owner);
            if !again && self.break_lock(job, owner).await {
                broken.insert(owner.clone());
            }
            (broken.contains(owner), again)
        };
        if !broke {
            return false;
        }
        if check().await.is_ok() {
            return true;
        }
        // Fenced by way of another image, and yet it holds this one.
        again && self.break_lock(job, owner).await && check().await.is_ok()
    }

    async fn break_lock(&self, job: &Job, owner: &str) -> bool {
        let lock_break =
            LockBreak { pool: self.pool.clone(), image: job.image.clone(), owner: owner.to_owned() };
        match self.target.call_within(self.limits.verdict * 2, lock_break).await {
            Ok(()) => {
                info!(
                    volume.id = job.volume_id,
                    site = self.target.name(),
                    owner,
                    "broke the lock of the site's own rbd-mirror, which waits for the dead peer"
                );
                true
            }
            // Nobody holds it any more.
            Err(error) if error.is_not_found() => true,
            Err(error) => {
                self.trouble(job, Action::EnsureWritable, &error);
                false
            }
        }
    }
}
