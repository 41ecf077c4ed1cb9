//! Who else a backend talks to: listeners of notifications, the scheduler, the other members of its
//! Cinder cluster.
//!
//! Operations state what they have to say through these traits and know nothing of AMQP; `rpc` implements
//! them over the broker, `testing::Recorder` in tests.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::context::RequestContext;
use crate::error::Result;
use crate::model::{Attachment, Backup, Group, GroupSnapshot, Snapshot, Volume};

/// How urgent a notification is: the second half of its routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Priority {
    Info,
    Error,
}

impl Priority {
    /// As in the message: upper case.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Info => "INFO",
            Priority::Error => "ERROR",
        }
    }
}

/// What a `volume.*` notification tells (`_usage_from_volume`).
#[derive(Debug, Clone, Copy)]
pub struct VolumeUsage<'a> {
    /// The row.
    pub volume: &'a Volume,
    /// Its metadata.
    pub metadata: &'a BTreeMap<String, String>,
    /// Its attachments, from the database.
    pub attachments: &'a [Attachment],
    /// Its image metadata; left out of the payload when empty.
    pub glance_metadata: &'a BTreeMap<String, String>,
}

/// What a `snapshot.*` notification tells (`_usage_from_snapshot`).
#[derive(Debug, Clone, Copy)]
pub struct SnapshotUsage<'a> {
    /// The row with its metadata.
    pub snapshot: &'a Snapshot,
    /// That of its volume, even of a deleted one.
    pub availability_zone: Option<&'a str>,
}

/// Notifications: a report of what happened, for billing and auditing. Losing one never fails the
/// operation that it reports, so nothing here returns an error.
#[async_trait]
pub trait Notify: Send + Sync {
    /// False when notifications are switched off: then nothing needs to be read for a payload.
    fn enabled(&self) -> bool;

    /// `volume.<suffix>`. `host` completes the publisher id: the service host, but the volume's own host
    /// (with `#pool`) for `create.*` and `manage_existing.*`.
    async fn volume(&self, context: &RequestContext, suffix: &str, host: &str, usage: VolumeUsage<'_>);

    /// `snapshot.<suffix>`.
    async fn snapshot(&self, context: &RequestContext, suffix: &str, host: &str, usage: SnapshotUsage<'_>);

    /// `group.<suffix>`.
    async fn group(&self, context: &RequestContext, suffix: &str, host: &str, group: &Group);

    /// `group_snapshot.<suffix>`.
    async fn group_snapshot(&self, context: &RequestContext, suffix: &str, host: &str, group: &GroupSnapshot);

    /// Anything else.
    async fn publish(
        &self,
        context: &RequestContext,
        event_type: &str,
        priority: Priority,
        publisher_id: &str,
        payload: Value,
    );
}

/// What the scheduler is asked or told.
#[async_trait]
pub trait Scheduler: Send + Sync {
    /// Asks it to place a volume elsewhere (`create_volume`). `request_spec` and `filter_properties` are
    /// those that came with the volume, the latter with `retry.exc` added.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn create_volume(&self, context: &RequestContext, request: Reschedule) -> Result<()>;

    /// Tells all schedulers what this backend can do (`update_service_capabilities`), and one of them
    /// that it should look (`notify_service_capabilities`).
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn report_capabilities(&self, context: &RequestContext, report: Capabilities) -> Result<()>;
}

/// The arguments of the scheduler's `create_volume`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reschedule {
    /// The Volume object, with `host` null.
    pub volume: Value,
    /// Source snapshot.
    pub snapshot_id: Option<String>,
    /// Source image.
    pub image_id: Option<String>,
    /// Source backup.
    pub backup_id: Option<String>,
    /// The RequestSpec as it came.
    pub request_spec: Value,
    /// As it came, with what failed.
    pub filter_properties: Value,
}

/// A backend's capability report, or a backup service's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Capabilities {
    /// Of whom it is.
    pub service: Reporter,
    /// `host@backend`.
    pub host: String,
    /// `cluster@backend`, in a Cinder cluster.
    pub cluster: Option<String>,
    /// The stats, as `get_capabilities` answers them.
    pub capabilities: Map<String, Value>,
}

/// Who reports: `service_name` of the scheduler's RPC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reporter {
    #[default]
    Volume,
    Backup,
}

impl Reporter {
    /// The word in the message.
    pub fn as_str(self) -> &'static str {
        match self {
            Reporter::Volume => "volume",
            Reporter::Backup => "backup",
        }
    }
}

/// The other volume services.
#[async_trait]
pub trait VolumePeers: Send + Sync {
    /// Tells every member of the Cinder cluster that a failover is over (`failover_completed`).
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn failover_completed(
        &self,
        context: &RequestContext,
        cluster: &str,
        updates: Map<String, Value>,
    ) -> Result<()>;

    /// Casts `delete_volume` to the backend or Cinder cluster `destination`.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn delete_volume(
        &self,
        context: &RequestContext,
        destination: &str,
        volume: &Volume,
        cascade: bool,
    ) -> Result<()>;

    /// Casts `create_volume` of an empty volume that nobody else may make, to the backend or Cinder cluster
    /// `destination`. Casting it again, after a crash, is the same message to the receiver.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn create_volume(&self, context: &RequestContext, destination: &str, volume: &Volume)
    -> Result<()>;
}

/// Id of the message that a request makes us send on: the same one whenever it is sent, and another than the request's.
/// Services of Scoria share a journal, and whoever finds his message's id in it takes that for a duplicate.
pub fn sent_on(unique_id: &str, method: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(format!("{method} for {unique_id}"));
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// cinder-backup's `continue_backup`.
#[derive(Debug, Clone, PartialEq)]
pub struct ContinueBackup {
    /// Tells the receiver a message that a crash has made us send again from another one.
    pub unique_id: String,
    /// Where cinder-backup runs.
    pub host: String,
    /// The Backup object, as it came.
    pub backup: Value,
    /// The device, when it is a copy that cinder-backup is to have deleted.
    pub temp_volume_id: Option<String>,
    /// What to read.
    pub device: Volume,
}

/// cinder-backup's `restore_backup` into a volume that has just been made.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreBackup {
    /// As in [`ContinueBackup`].
    pub unique_id: String,
    /// Where cinder-backup runs.
    pub host: String,
    /// The backup, `restoring`.
    pub backup: Backup,
    /// The volume to fill.
    pub volume_id: String,
}

/// What the backup service asks of itself, as if the API had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BackupRequest {
    Create,
    Delete,
}

/// cinder-backup's `import_record`, handed to another service.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportRecord {
    /// As in [`ContinueBackup`].
    pub unique_id: String,
    /// Who is asked.
    pub host: String,
    /// The Backup object, as it came.
    pub backup: Value,
    /// Driver of the record.
    pub service: String,
    /// The record.
    pub url: String,
    /// Who may be asked after him.
    pub hosts: Vec<String>,
}

/// cinder-backup's `delete_backup`.
#[derive(Debug, Clone, PartialEq)]
pub struct DeleteBackup {
    /// As in [`ContinueBackup`].
    pub unique_id: String,
    /// Who is asked.
    pub host: String,
    /// The backup, `deleting`.
    pub backup: Backup,
}

/// The backup services.
#[async_trait]
pub trait BackupPeers: Send + Sync {
    /// Hands out what a backup is made from.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn continue_backup(&self, context: &RequestContext, order: ContinueBackup) -> Result<()>;

    /// Has a new volume filled from a backup.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn restore_backup(&self, context: &RequestContext, order: RestoreBackup) -> Result<()>;

    /// Has a record taken in.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn import_record(&self, context: &RequestContext, order: ImportRecord) -> Result<()>;

    /// The journal's text of a request about `backup` that nobody has sent: under `unique_id`, without a token.
    ///
    /// # Errors
    /// [`crate::error::Code::Internal`] when the backup cannot be written as an object.
    fn request(
        &self,
        context: &RequestContext,
        unique_id: &str,
        asked: BackupRequest,
        backup: &Backup,
    ) -> Result<String>;

    /// Has a backup deleted.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when the broker did not confirm it.
    async fn delete_backup(&self, context: &RequestContext, order: DeleteBackup) -> Result<()>;
}

#[cfg(test)]
pub mod testing {
    //! Peers that only remember what they were told.

    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// One thing said.
    #[derive(Debug, Clone, PartialEq)]
    #[allow(missing_docs)]
    pub enum Said {
        /// Event type, publisher id, and id of the resource.
        Notification {
            event: String,
            publisher: String,
            resource: String,
        },
        Rescheduled(Reschedule),
        Capabilities(Capabilities),
        FailoverCompleted {
            cluster: String,
            updates: Map<String, Value>,
        },
        DeleteVolume {
            destination: String,
            volume: String,
            cascade: bool,
        },
        CreateVolume {
            destination: String,
            volume: String,
        },
        ContinueBackup(ContinueBackup),
        RestoreBackup(RestoreBackup),
        ImportRecord(ImportRecord),
        DeleteBackup(DeleteBackup),
    }

    /// Implements every trait of this module.
    #[derive(Debug, Default)]
    pub struct Recorder {
        said: Mutex<Vec<Said>>,
    }

    impl Recorder {
        /// Everything said so far, in order.
        pub fn said(&self) -> Vec<Said> {
            self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }

        /// The event types so far, in order.
        pub fn events(&self) -> Vec<String> {
            self.said()
                .into_iter()
                .filter_map(|s| match s {
                    Said::Notification { event, .. } => Some(event),
                    _ => None,
                })
                .collect()
        }

        fn say(&self, what: Said) {
            self.said.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        }

        fn note(&self, kind: &str, suffix: &str, host: &str, resource: &str) {
            self.say(Said::Notification {
                event: format!("{kind}.{suffix}"),
                publisher: format!("{kind}.{host}"),
                resource: resource.to_owned(),
            });
        }
    }

    #[async_trait]
    impl Notify for Recorder {
        fn enabled(&self) -> bool {
            true
        }

        async fn volume(&self, _: &RequestContext, suffix: &str, host: &str, usage: VolumeUsage<'_>) {
            self.note("volume", suffix, host, &usage.volume.id);
        }

        async fn snapshot(&self, _: &RequestContext, suffix: &str, host: &str, usage: SnapshotUsage<'_>) {
            self.note("snapshot", suffix, host, &usage.snapshot.id);
        }

        async fn group(&self, _: &RequestContext, suffix: &str, host: &str, group: &Group) {
            self.note("group", suffix, host, &group.id);
        }

        async fn group_snapshot(&self, _: &RequestContext, suffix: &str, host: &str, group: &GroupSnapshot) {
            self.note("group_snapshot", suffix, host, &group.id);
        }

        async fn publish(
            &self,
            _: &RequestContext,
            event_type: &str,
            _: Priority,
            publisher_id: &str,
            _: Value,
        ) {
            self.say(Said::Notification {
                event: event_type.to_owned(),
                publisher: publisher_id.to_owned(),
                resource: String::new(),
            });
        }
    }

    #[async_trait]
    impl Scheduler for Recorder {
        async fn create_volume(&self, _: &RequestContext, request: Reschedule) -> Result<()> {
            self.say(Said::Rescheduled(request));
            Ok(())
        }

        async fn report_capabilities(&self, _: &RequestContext, report: Capabilities) -> Result<()> {
            self.say(Said::Capabilities(report));
            Ok(())
        }
    }

    #[async_trait]
    impl VolumePeers for Recorder {
        async fn failover_completed(
            &self,
            _: &RequestContext,
            cluster: &str,
            updates: Map<String, Value>,
        ) -> Result<()> {
            self.say(Said::FailoverCompleted { cluster: cluster.to_owned(), updates });
            Ok(())
        }

        async fn delete_volume(
            &self,
            _: &RequestContext,
            destination: &str,
            volume: &Volume,
            cascade: bool,
        ) -> Result<()> {
            let (destination, volume) = (destination.to_owned(), volume.id.clone());
            self.say(Said::DeleteVolume { destination, volume, cascade });
            Ok(())
        }

        async fn create_volume(&self, _: &RequestContext, destination: &str, volume: &Volume) -> Result<()> {
            let (destination, volume) = (destination.to_owned(), volume.id.clone());
            self.say(Said::CreateVolume { destination, volume });
            Ok(())
        }
    }
    #[async_trait]
    impl BackupPeers for Recorder {
        async fn continue_backup(&self, _: &RequestContext, order: ContinueBackup) -> Result<()> {
            self.say(Said::ContinueBackup(order));
            Ok(())
        }

        async fn restore_backup(&self, _: &RequestContext, order: RestoreBackup) -> Result<()> {
            self.say(Said::RestoreBackup(order));
            Ok(())
        }

        async fn import_record(&self, _: &RequestContext, order: ImportRecord) -> Result<()> {
            self.say(Said::ImportRecord(order));
            Ok(())
        }

        fn request(&self, _: &RequestContext, _: &str, asked: BackupRequest, _: &Backup) -> Result<String> {
            Ok(format!("{asked:?}"))
        }

        async fn delete_backup(&self, _: &RequestContext, order: DeleteBackup) -> Result<()> {
            self.say(Said::DeleteBackup(order));
            Ok(())
        }
    }
}
