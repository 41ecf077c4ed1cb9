//! A promotion has succeeded when a writer is accepted, not when the command returned.
//!
//! In good order the site's own rbd-mirror lets go of the image soon, which is waited for. When the promotion was forced, it may
//! hold the image's lock while it waits for the dead peer, and keep everybody else out. Its lock is broken then; that of a
//! VM never is.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Action, Engine, Job, Pause};
use crate::rbd::RbdError;
use crate::rbd::protocol::{CheckWritable, LockBreak, LockOwners, MirrorDaemons};

/// How long a lock is waited for that nobody may break.
const RELEASE: Duration = Duration::from_secs(10);

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
        let owner = match self.daemon_lock(job).await {
            Ok(Some(owner)) => owner,
            Ok(None) => {
                debug!(volume.id = job.volume_id, %refused, "not writable yet");
                return false;
            }
            Err(error) => {
                self.trouble(job, Action::EnsureWritable, &error);
                return false;
            }
        };
        let owner = owner.as_str();
        let (broke, again) = {
            let mut broken = self.broken.lock().await;
            let again = broken.contains(owner);
            if !again && self.break_lock(job, owner).await {
                broken.insert(owner.to_owned());
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

    /// Waits until the target's own rbd-mirror has let go of an image that was promoted in good order. It does by itself,
    /// when it notices; a writer that comes before is refused (EROFS), and a guest that is one sees its disk fail.
    pub(super) async fn released(&self, job: &Job) {
        let (began, mut pause) = (Instant::now(), Pause::default());
        loop {
            let owner = match self.daemon_lock(job).await {
                Ok(None) => return,
                Ok(Some(owner)) => owner,
                // It has moved, whatever becomes of the site.
                Err(error) => {
                    self.target_judge.doubt(&error).await;
                    self.trouble(job, Action::Finish, &error);
                    return;
                }
            };
            if began.elapsed() >= RELEASE {
                warn!(
                    volume.id = job.volume_id,
                    site = self.target.name(),
                    owner,
                    "the site's own rbd-mirror still holds the lock of a promoted image: writers are refused until it \
                     lets go, or is restarted"
                );
                return;
            }
            pause.rest().await;
        }
    }

    /// Which of the target's own daemons holds the image's exclusive lock.
    async fn daemon_lock(&self, job: &Job) -> Result<Option<String>, RbdError> {
        let within = self.limits.verdict * 2;
        let (pool, image) = (self.pool.clone(), job.image.clone());
        let owners = self.target.call_within(within, LockOwners { pool: pool.clone(), image }).await?;
        if owners.is_empty() {
            return Ok(None);
        }
        let daemons = self.target.call_within(within, MirrorDaemons { pool }).await?;
        debug!(volume.id = job.volume_id, ?owners, ?daemons, "who holds the lock");
        Ok(owners.into_iter().find(|owner| daemons.contains(owner)))
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
