//! What listeners are told of a backend's volumes and snapshots, as cinder-volume tells it.

use std::collections::BTreeMap;

use tracing::warn;

use super::Backend;
use super::peers::{SnapshotUsage, VolumeUsage};
use crate::context::RequestContext;
use crate::db;
use crate::model::{Attachment, Snapshot, Volume};

impl Backend {
    /// Sends `volume.<suffix>`, reading what the payload needs.
    pub async fn notify_volume(&self, context: &RequestContext, suffix: &str, volume: &Volume) {
        if !self.peers.notify.enabled() || !volume.use_quota {
            return;
        }
        let read = self
            .db
            .read("usage of a volume", async |conn| {
                Ok((
                    db::volume::metadata(conn, &volume.id).await?,
                    db::attachment::list_for_volume(conn, &volume.id).await?,
                    db::volume::glance_metadata(conn, &volume.id).await?,
                ))
            })
            .await;
        let (metadata, attachments, glance_metadata) = match read {
            Ok(read) => read,
            Err(error) => {
                warn!(volume.id = volume.id, %error, "could not read what a notification tells");
                return;
            }
        };
        self.notify_volume_with(context, suffix, volume, &metadata, &attachments, &glance_metadata).await;
    }

    /// Sends `volume.<suffix>` with what the caller has read before.
    pub async fn notify_volume_with(
        &self,
        context: &RequestContext,
        suffix: &str,
        volume: &Volume,
        metadata: &BTreeMap<String, String>,
        attachments: &[Attachment],
        glance_metadata: &BTreeMap<String, String>,
    ) {
        if !self.peers.notify.enabled() || !volume.use_quota {
            return;
        }
        // `create.*` names the volume's own host, `#pool` included (reference rpc.md 1.9).
        let publisher = match suffix.split('.').next() {
            Some("create" | "manage_existing") => volume.host.as_deref().unwrap_or(self.host()),
            _ => self.host(),
        };
        let usage = VolumeUsage { volume, metadata, attachments, glance_metadata };
        self.peers.notify.volume(context, suffix, publisher, usage).await;
    }

    /// Sends `snapshot.<suffix>`.
    pub async fn notify_snapshot(
        &self,
        context: &RequestContext,
        suffix: &str,
        snapshot: &Snapshot,
        volume: &Volume,
    ) {
        if !self.peers.notify.enabled() || !snapshot.use_quota {
            return;
        }
        let usage = SnapshotUsage { snapshot, availability_zone: volume.availability_zone.as_deref() };
        self.peers.notify.snapshot(context, suffix, self.host(), usage).await;
    }
}
