//! `migrate_volume`, and the moving half of `retype`: a volume goes to another backend and keeps its id.
//!
//! At every instant the volume's row must say where its data is, and nothing that was made on the way may
//! be left to nobody. So the journal knows how far it came, and whatever happens it ends in one of two
//! ways: the volume is at its destination, or it is where it was, `migration_status` says `error`, and what
//! was begun at the destination is deleted (reference volume_rpc.md 2.2; `cinder/volume/manager.py`,
//! `migrate_volume`).
//!
//! Three ways lead there. What is in the same Ceph cluster is moved by Ceph (`pool_move.rs`); for
//! anything else the destination's service makes a volume, into which the content is copied: by us
//! (`host_copy.rs`), or by the server that has the volume (`nova_copy.rs`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{debug, error, info, warn};

use super::pool_move::{self, Way};
use super::retype::Retype;
use super::{crash, host_copy, migrated, nova_copy, project_of};
use crate::backend::Backend;
use crate::context::RequestContext;
use crate::db;
use crate::db::message::{Action, Detail, Message};
use crate::db::moving::Placement;
use crate::db::volume::VolumeChanges;
use crate::db::{Conn, quota};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome, Step};
use crate::model::{Service, Volume, VolumeEvent, backend_of};

/// Journal step with the pool to which the image is being copied.
pub(super) const TO_POOL: &str = "copying to a pool";
/// The row says where the copy is; the original is still to be deleted.
pub(super) const MOVED: &str = "moved";
/// The destination has a row.
pub(super) const TARGET: &str = "target";
/// So much has been copied into the destination's image.
pub(super) const COPYING: &str = "copying";
/// All has.
pub(super) const COPIED: &str = "copied";
/// Nova is being asked to copy.
pub(super) const ASKED: &str = "asked";
/// Volume and destination have changed places; the original is still to be deleted.
pub(super) const SWAPPED: &str = "swapped";
/// It has failed; what was made at the destination is still to be deleted.
pub(super) const ABANDONED: &str = "abandoned";

/// A backend that the scheduler chose.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Destination {
    /// `host@backend#pool`.
    pub host: String,
    /// `cluster@backend#pool`, in a Cinder cluster.
    pub cluster_name: Option<String>,
    /// What that backend last reported.
    pub capabilities: Map<String, Value>,
}

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Migrate {
    /// The volume.
    pub volume_id: String,
    /// Where it is to go.
    pub destination: Destination,
    /// Not by way of the backend.
    pub force_host_copy: bool,
}

/// What a retype wants besides.
#[derive(Debug, Clone)]
pub(super) struct Retyping {
    pub(super) new_type_id: String,
    pub(super) reservations: Vec<String>,
    pub(super) old_reservations: Vec<String>,
}

impl Retyping {
    pub(super) fn of(request: &Retype) -> Retyping {
        Retyping {
            new_type_id: request.new_type_id.clone(),
            reservations: request.reservations.clone(),
            old_reservations: request.old_reservations.clone(),
        }
    }
}

/// Where and how a volume is to be moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) destination: &'a Destination,
    /// Whether Ceph may move it.
    pub(super) assisted: bool,
    pub(super) retyping: Option<&'a Retyping>,
}

/// One migration in the hands of whoever runs it.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) backend: &'a Backend,
    pub(super) context: &'a RequestContext,
    pub(super) operation: &'a Operation,
    pub(super) volume_id: &'a str,
    pub(super) destination: &'a Destination,
    pub(super) retyping: Option<&'a Retyping>,
}

/// Where a host copy is: data of the steps [`TARGET`] to [`ABANDONED`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Copy {
    /// The destination's row.
    pub(super) new_id: String,
    /// Bytes of the image that need not be copied again.
    pub(super) offset: u64,
    /// Why it was abandoned.
    pub(super) why: Option<String>,
}

/// True when the operation has come to a step of a migration.
pub(super) async fn has_begun(operation: &Operation) -> Result<bool> {
    let steps = [TO_POOL, MOVED, TARGET, COPYING, COPIED, ASKED, SWAPPED, ABANDONED];
    Ok(operation.last_step().await?.is_some_and(|step| steps.contains(&step.name.as_str())))
}

/// Moves the volume.
///
/// # Errors
/// Only when nothing could be recorded; a migration that failed is recorded in the row.
pub async fn migrate(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    request: Migrate,
) -> Result<()> {
    let id = &request.volume_id;
    let _passage = backend.gate.pass().await;
    let _lock = backend.locks.lock(id).await;
    let job =
        Job { backend, context, operation, volume_id: id, destination: &request.destination, retyping: None };
    if operation.is_adopted()
        && let Some(step) = operation.last_step().await?
    {
        return job.resume(step).await;
    }
    let found = backend.db.read("volume to migrate", async |conn| db::volume::find(conn, id).await).await?;
    let begun = found.filter(|v| matches!(v.migration_status.as_deref(), Some("starting" | "migrating")));
    let Some(volume) = begun else {
        let refusal = Error::new(Code::InvalidVolume, format!("Volume {id} is not to be migrated"));
        warn!(volume.id = id, error = %refusal, "it is gone, or its migration was ended by somebody else");
        return backend.journal.finish(operation, &Outcome::failed(&refusal)).await;
    };
    crash::point("migrate_volume:accepted");
    let order =
        Order { destination: &request.destination, assisted: !request.force_host_copy, retyping: None };
    begin(backend, context, operation, &volume, order).await
}

/// Moves a volume whose migration has been decided on. Ends the operation, however it comes out.
///
/// # Errors
/// Only when nothing could be recorded.
pub(super) async fn begin(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume: &Volume,
    order: Order<'_>,
) -> Result<()> {
    let Order { destination, retyping, .. } = order;
    let job = Job { backend, context, operation, volume_id: &volume.id, destination, retyping };
    let done = Box::pin(job.run(order.assisted)).await;
    job.end(done).await
}

/// Goes on with the migration that a retype had come to.
///
/// # Errors
/// As [`begin`].
pub(super) async fn go_on(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
    destination: &Destination,
    retyping: &Retyping,
) -> Result<()> {
    let job = Job { backend, context, operation, volume_id, destination, retyping: Some(retyping) };
    match operation.last_step().await? {
        Some(step) => job.resume(step).await,
        None => Err(Error::internal("A migration without a step cannot go on")),
    }
}

/// Ends the request as failed without another try, wherever it was interrupted by a defect.
///
/// # Errors
/// Only when nothing could be recorded.
pub async fn give_up_migration(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
    failure: Error,
) -> Result<()> {
    give_up(backend, context, operation, volume_id, None, failure).await
}

/// The same for a retype that has come to its migration.
///
/// # Errors
/// As [`give_up_migration`].
pub(super) async fn give_up(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    volume_id: &str,
    retyping: Option<&Retyping>,
    failure: Error,
) -> Result<()> {
    let destination = &Destination::default();
    let job = Job { backend, context, operation, volume_id, destination, retyping };
    match operation.last_step().await? {
        // The volume is there: only the rest is left to do, and does not depend on where.
        // Nova may be at it.
        Some(step) if [MOVED, ASKED, SWAPPED, ABANDONED].contains(&step.name.as_str()) => {
            job.resume(step).await
        }
        _ => job.fail(failure).await,
    }
}

/// The volume was deleted meanwhile; what was reserved for it would be missing until it expires.
///
/// # Errors
/// `Database`.
pub(super) async fn gone(
    backend: &Backend,
    operation: &Operation,
    id: &str,
    retyping: &Retyping,
) -> Result<()> {
    let refusal = Error::new(Code::VolumeNotFound, format!("Volume {id} could not be found."));
    error!(volume.id = id, error = %refusal, "volume could not be retyped");
    backend
        .journal
        .complete(operation, &Outcome::failed(&refusal), async |conn| {
            quota::roll_back_of_anybody(conn, &retyping.old_reservations).await?;
            quota::roll_back_of_anybody(conn, &retyping.reservations).await
        })
        .await
}

impl Job<'_> {
    async fn run(&self, assisted: bool) -> Result<()> {
        let id = self.volume_id;
        let (volume, attachments) = self
            .operation
            .write("migration begins", async |conn| {
                let changes = VolumeChanges {
                    migration_status: Some(Some("migrating".to_owned())),
                    ..VolumeChanges::default()
                };
                db::volume::update(conn, id, &changes).await?;
                let attachments = db::attachment::list_for_volume(conn, id).await?;
                Ok((db::volume::get(conn, id).await?, attachments))
            })
            .await?;
        self.backend.require_up()?;
        crash::point("migrate_volume:begun");
        if attachments.is_empty() && assisted {
            match pool_move::way(self, &volume).await? {
                Way::Row => return pool_move::change_row(self).await,
                Way::Pool(pool) => match pool_move::copy(self, &volume, &pool).await {
                    Err(e) if e.code() == Code::NotSupported => {
                        debug!(volume.id = id, error = %e, "not copied by Ceph")
                    }
                    other => return other,
                },
                Way::None(why) => debug!(volume.id = id, why, "not moved by Ceph"),
            }
        }
        host_copy::begin(self, &volume, &attachments).await
    }

    /// Takes up a migration that was interrupted after `step`.
    async fn resume(&self, step: Step) -> Result<()> {
        let done = Box::pin(self.resume_at(step)).await;
        self.end(done).await
    }

    async fn resume_at(&self, step: Step) -> Result<()> {
        match step.name.as_str() {
            MOVED => return pool_move::leave(self, step.parse()?).await,
            SWAPPED => return migrated::leave(self, &step.parse()?).await,
            ABANDONED => return self.abandon(step.parse()?).await,
            ASKED => return nova_copy::go_on(self, step.parse()?).await,
            _ => {}
        }
        let id = self.volume_id;
        let volume =
            self.backend.db.read("volume to migrate", async |conn| db::volume::get(conn, id).await).await?;
        match step.name.as_str() {
            TO_POOL => pool_move::copy_again(self, &volume, &step.parse::<String>()?).await,
            TARGET | COPYING | COPIED => host_copy::go_on(self, &volume, &step.name, step.parse()?).await,
            other => Err(Error::internal(format!("A migration cannot go on after step {other}"))),
        }
    }

    async fn end(&self, done: Result<()>) -> Result<()> {
        match done {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.code(), Code::Cancelled | Code::Database | Code::Broker) => Err(e),
            Err(failure) => Box::pin(self.fail(failure)).await,
        }
    }

    /// The service of the destination.
    pub(super) async fn service(&self) -> Result<Service> {
        let host = backend_of(&self.destination.host);
        let found =
            self.backend.db.read("destination", async |conn| db::service::find(conn, host).await).await?;
        found.ok_or_else(|| Error::new(Code::ServiceNotFound, format!("Service {host} could not be found.")))
    }

    /// Where that service is to have the volume.
    pub(super) fn placement<'s>(&'s self, service: &'s Service) -> Placement<'s> {
        Placement {
            host: &self.destination.host,
            cluster_name: self.destination.cluster_name.as_deref(),
            availability_zone: service
                .availability_zone
                .as_deref()
                .unwrap_or(&self.backend.globals.availability_zone),
        }
    }

    /// The volume with its row locked, if its migration is still on.
    pub(super) async fn lock(&self, conn: &mut Conn) -> Result<Volume> {
        let volume = db::volume::lock(conn, self.volume_id).await?;
        if matches!(volume.migration_status.as_deref(), Some("migrating" | "completing")) {
            return Ok(volume);
        }
        Err(Error::new(
            Code::VolumeMigration,
            format!("The migration of volume {} was ended by somebody else", volume.id),
        ))
    }

    /// Makes what a retype has reserved count.
    pub(super) async fn commit(&self, conn: &mut Conn, volume: &Volume) -> Result<()> {
        let Some(retyping) = self.retyping else { return Ok(()) };
        let project = project_of(volume, self.context);
        quota::commit(conn, &project, &retyping.old_reservations).await?;
        quota::commit(conn, &project, &retyping.reservations).await
    }

    /// Returns what a retype has reserved.
    pub(super) async fn roll_back(&self, conn: &mut Conn, volume: Option<&Volume>) -> Result<()> {
        for reservations in self.retyping.iter().flat_map(|r| [&r.old_reservations, &r.reservations]) {
            match volume {
                Some(volume) => {
                    quota::roll_back(conn, &project_of(volume, self.context), reservations).await?
                }
                None => quota::roll_back_of_anybody(conn, reservations).await?,
            }
        }
        Ok(())
    }

    /// Says that the volume is where it was to be moved, and ends the operation.
    pub(super) async fn finish(&self) -> Result<()> {
        let backend = self.backend;
        if backend.journal.holds(self.operation) {
            backend.journal.finish(self.operation, &backend.done()).await?;
        }
        info!(
            volume.id = self.volume_id,
            from = backend.host(),
            to = self.destination.host,
            "volume migrated"
        );
        backend.want_report();
        self.tell_of_retype().await;
        Ok(())
    }

    /// Says that the volume has been retyped, if it was that.
    pub(super) async fn tell_of_retype(&self) {
        let backend = self.backend;
        if self.retyping.is_some() {
            let id = self.volume_id;
            match backend.db.read("retyped volume", async |conn| db::volume::find(conn, id).await).await {
                Ok(Some(volume)) => backend.notify_volume(self.context, "retype", &volume).await,
                Ok(None) => {}
                Err(error) => warn!(volume.id = id, %error, "could not read what a notification tells"),
            }
        }
    }

    /// The volume stays where it is: its row gets its status back, reserved quota is returned, and what was made
    /// at the destination is deleted.
    async fn fail(&self, failure: Error) -> Result<()> {
        let (id, operation) = (self.volume_id, self.operation);
        error!(volume.id = id, to = self.destination.host, error = %failure, "volume could not be migrated");
        let made = match operation.last_step().await? {
            Some(step) if [TARGET, COPYING, COPIED, ASKED].contains(&step.name.as_str()) => {
                step.parse::<Copy>()?.new_id
            }
            _ => String::new(),
        };
        let message = Message::volume(id, Action::Unnamed, Detail::of(failure.code(), Detail::UnknownError));
        let ttl = self.backend.globals.message_ttl;
        let left = Copy { new_id: made, offset: 0, why: Some(failure.operator()) };
        operation
            .write("migration failed", async |conn| {
                if self.give_back(conn).await? {
                    db::message::create(conn, self.context, &message, ttl).await?;
                }
                forsake(conn, &left.new_id).await?;
                operation.step_in(conn, ABANDONED, &left).await
            })
            .await?;
        crash::point("migrate_volume:abandoned");
        self.abandon(left).await
    }

    /// True when the volume was found being migrated.
    async fn give_back(&self, conn: &mut Conn) -> Result<bool> {
        let volume = match db::volume::lock(conn, self.volume_id).await {
            Err(e) if e.code() == Code::VolumeNotFound => None,
            found => Some(found?),
        };
        self.roll_back(conn, volume.as_ref()).await?;
        let begun = volume.filter(|v| {
            matches!(v.migration_status.as_deref(), Some("starting" | "migrating" | "completing"))
        });
        let Some(volume) = begun else { return Ok(false) };
        end_in_error(conn, &volume).await?;
        Ok(true)
    }

    /// Has the destination's service delete what it has made, and ends the operation as failed.
    async fn abandon(&self, left: Copy) -> Result<()> {
        delete_leftover(self.backend, self.context, &left.new_id).await?;
        let why = left.why.unwrap_or_else(|| "the migration was abandoned".to_owned());
        let outcome = Outcome::failed(&Error::new(Code::VolumeMigration, why));
        self.backend.journal.finish(self.operation, &outcome).await
    }
}

/// `migration_status` becomes `error`, and a volume that was locked for the migration gets its status back.
///
/// # Errors
/// `Database`.
pub(super) async fn end_in_error(conn: &mut Conn, volume: &Volume) -> Result<()> {
    let changes =
        VolumeChanges { migration_status: Some(Some("error".to_owned())), ..VolumeChanges::default() };
    let before = db::moving::status_before(conn, volume).await?;
    match db::volume::transition_to(conn, &volume.id, VolumeEvent::MigrationFailed, &before, &changes).await {
        Err(e) if e.code() == Code::Conflict => db::volume::update(conn, &volume.id, &changes).await,
        other => other,
    }
}

/// A destination that nobody wants: its row is to be deleted with its image, or, if there is no image yet, is
/// gone at once. A service that is still making it then finds no row, and removes what it has made.
///
/// # Errors
/// `Database`.
pub(super) async fn forsake(conn: &mut Conn, new_id: &str) -> Result<()> {
    if new_id.is_empty() {
        return Ok(());
    }
    let Some(target) = db::volume::find(conn, new_id).await? else { return Ok(()) };
    if matches!(target.status.as_str(), "creating" | "error") {
        db::volume::destroy(conn, new_id).await?;
        return Ok(());
    }
    let none = VolumeChanges::default();
    db::volume::transition(conn, new_id, VolumeEvent::MigrationLeftover, &none).await
}

/// Has the service of a leftover delete it. Asking twice does no harm: the second time there is nothing.
///
/// # Errors
/// `Database`; `Broker`.
pub(super) async fn delete_leftover(backend: &Backend, context: &RequestContext, id: &str) -> Result<()> {
    if id.is_empty() {
        return Ok(());
    }
    let found = backend.db.read("leftover", async |conn| db::volume::find(conn, id).await).await?;
    let Some(left) = found.filter(|v| v.status == "deleting") else { return Ok(()) };
    let owner = left.cluster_name.as_deref().or(left.host.as_deref()).unwrap_or_default();
    backend.peers.volumes.delete_volume(context, owner, &left, false).await
}
