//! The typed requests that cross the pipe between the service and a worker process.
//!
//! One list (`commands!`) names every command once, with its arguments and its answer; the request
//! and reply enums, their serialised form and the typed call are derived from it. A command is one
//! short librbd/librados action on one site; it must be *repeatable*: a caller that does not know
//! whether it took effect sends it again, so "already so" answers are reported by kind and judged by the
//! caller (`Exists` after a repeated create, `NotFound` after a repeated remove).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{RbdError, RbdErrorKind};
use super::link::{ErasureProfile, OsdPlace, PoolShape, Way};
use super::mirror_survey::{Looked, MirrorPool};
use super::types::*;

/// How a site is reached. Workers hold one connection per (conf, user, cluster name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// `default`, or the `backend_id` of a `replication_device`: names the site in logs and errors.
    pub site: String,
    /// Path of ceph.conf (`rbd_ceph_conf`, or `conf` of the replication device); empty: librados search.
    pub conf: PathBuf,
    /// librados cluster name (`rbd_cluster_name`).
    pub cluster_name: String,
    /// cephx user without the `client.` prefix; `None`: no cephx.
    pub user: Option<String>,
    /// Upper limit of one attempt to connect, in seconds (`rados_connect_timeout`, or
    /// `replication_connect_timeout` for a target); `None`: the worker's own bound.
    pub connect_timeout: Option<u32>,
}

/// How long a command may take and where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Health probes: they decide a verdict, so they must be quick to give up.
    Probe,
    /// Everything that touches headers and a few objects.
    Short,
    /// Removal: takes as long as there is data. What is removed stays removed, so losing its worker costs
    /// nothing but asking again: removals share workers, and a hundred of them cost threads, not processes.
    Removal,
    /// Data that flows between the service and Ceph (an image that is downloaded, or uploaded), at the pace of the
    /// slower end: sessions share workers, or ten downloads would cost ten processes.
    Stream,
    /// Data that is copied from image to image in parts, each of which may be asked for again: copies share workers, or
    /// ten backups would cost ten processes.
    Copy,
    /// Work that has to be begun anew when its worker is lost (flatten, copy): runs in a worker of its own,
    /// which no other call can bring down.
    Long,
}

impl Class {
    /// Default deadline.
    pub fn deadline(self) -> Duration {
        match self {
            Class::Probe => Duration::from_secs(5),
            Class::Short => Duration::from_secs(30),
            // Each object removed is progress, and a single operation is given up long before.
            Class::Removal => Duration::from_secs(600),
            Class::Long => Duration::from_secs(3600),
            // Of one part: whoever fills or empties the other end may take as long as he likes.
            Class::Stream => Duration::from_secs(300),
            // Of one piece, read on one site and written on another.
            Class::Copy => Duration::from_secs(300),
        }
    }

    /// Whether the deadline bounds the time without progress, and not the whole call: its length depends on
    /// the amount of data.
    pub fn starts_anew_with_progress(self) -> bool {
        match self {
            Class::Probe | Class::Short => false,
            Class::Removal | Class::Stream | Class::Copy | Class::Long => true,
        }
    }
}

/// A typed command: its answer, its class, and its way through the untyped enums.
pub trait Command: Send {
    /// What a success brings.
    type Reply: Send;
    /// Deadline class.
    const CLASS: Class;
    /// Name in logs and errors.
    const NAME: &'static str;
    /// Wraps it for the wire.
    fn into_request(self) -> Request;
    /// Unwraps the answer; another command's answer is a protocol error.
    fn from_reply(reply: Reply) -> Result<Self::Reply, RbdError>;
}

macro_rules! commands {
    ($( $(#[$doc:meta])* $class:ident $name:ident { $( $(#[$fdoc:meta])* $field:ident : $ty:ty ),* $(,)? } -> $reply:ty ; )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[allow(missing_docs)]
            pub struct $name { $( $(#[$fdoc])* pub $field: $ty, )* }

            impl Command for $name {
                type Reply = $reply;
                const CLASS: Class = Class::$class;
                const NAME: &'static str = stringify!($name);
                fn into_request(self) -> Request { Request::$name(self) }
                fn from_reply(reply: Reply) -> Result<$reply, RbdError> {
                    match reply {
                        Reply::$name(value) => Ok(value),
                        other => Err(RbdError {
                            kind: RbdErrorKind::Other,
                            op: stringify!($name).to_owned(),
                            site: String::new(),
                            errno: 0,
                            message: format!("worker answered {} to {}", other.name(), stringify!($name)),
                        }),
                    }
                }
            }
        )*

        /// Any command, as it crosses the pipe.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum Request { $( $name($name), )* }

        impl Request {
            /// Name of the command.
            pub fn name(&self) -> &'static str {
                match self { $( Request::$name(_) => stringify!($name), )* }
            }
            /// Deadline class of the command.
            pub fn class(&self) -> Class {
                match self { $( Request::$name(_) => Class::$class, )* }
            }
        }

        /// Any answer, as it crosses the pipe.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum Reply { $( $name($reply), )* }

        impl Reply {
            /// Name of the command that it answers.
            pub fn name(&self) -> &'static str {
                match self { $( Reply::$name(_) => stringify!($name), )* }
            }
        }
    };
}

commands! {
    // ---- the cluster -------------------------------------------------------------------------

    /// Asks the monitors for the fsid over the network (`rados_cluster_fsid` alone answers from memory,
    /// so this sends a mon command). Half of a verdict.
    Probe ProbeMon {} -> String;
    /// Writes and reads back one small object (`scoria_probe.<nonce>`) of `pool`. Other half of a verdict.
    Probe ProbeOsd { pool: String } -> ();
    /// The fsid of the site.
    Short Fsid {} -> String;
    /// Monitor addresses as `ceph mon dump` prints them in `addr` (`ip:port/nonce`, IPv6 in brackets).
    Short MonDump {} -> Vec<String>;
    /// Capacity of a pool, in bytes (`ceph df` and `osd pool get-quota`).
    Short PoolStats { pool: String } -> PoolCapacity;
    /// The RADOS addresses of this worker's client, as the blocklist names them.
    Short ClientAddress {} -> String;
    /// Fences a client: `osd blocklist add ADDR SECONDS`.
    Short BlocklistAdd { address: String, seconds: u32 } -> ();
    /// Unfences a client.
    Short BlocklistRemove { address: String } -> ();
    /// All fenced addresses.
    Short BlocklistList {} -> Vec<String>;
    /// The same with the end of each entry, as the cluster says it.
    Short BlocklistEntries {} -> Vec<BlocklistEntry>;
    /// Whether this client's capabilities let it fence others, which breaking a lock takes too. Fences nobody.
    Short MayFence {} -> bool;
    /// fsid, release, health, monitors and pools: what a site says of itself. Needs `mon 'allow r'`.
    Short ClusterStatus {} -> ClusterReport;
    /// What this client, which is `user`, may do that not every client should, and its capabilities where it may
    /// read them. Changes nothing.
    Short ClientRights { user: String } -> Rights;
    /// Whether this client may read and write objects of a pool. Writes nothing.
    Short PoolAccess { pool: String } -> Access;
    /// Value of a ceph.conf option of the client (`rados_conf_get`), e.g. `rbd_default_features`.
    Short ConfGet { option: String } -> Option<String>;

    /// The content of a small object (8 MiB at most); `None` when there is none.
    Short ObjectRead { pool: String, object: String } -> Option<Vec<u8>>;
    /// Writes a small object, whatever it was.
    Short ObjectWrite { pool: String, object: String, data: Vec<u8> } -> ();
    /// Removes an object; one that is gone is a success.
    Short ObjectRemove { pool: String, object: String } -> ();
    /// Names of the objects that begin with `prefix`, of one of `parts` parts of the same size that the pool is cut
    /// into (65536 at most; `part` counts from 0). RADOS has no directory: all objects of the part are looked at.
    Copy ObjectList { pool: String, prefix: String, part: u32, parts: u32 } -> Vec<String>;

    // ---- images ------------------------------------------------------------------------------

    /// Names of the images of a pool.
    Short ImageList { pool: String } -> Vec<String>;
    /// Creates an image of `size` bytes with objects of `2^order` bytes and exactly `features`.
    Short ImageCreate { pool: String, image: String, size: u64, order: u8, features: u64 } -> ();
    /// Id of the image that has a name, whole or half made, for the price of one read: nothing is opened.
    Short ImageId { pool: String, image: String } -> String;
    /// Size, features, parent, and so on. Opens read-only, so it works on a secondary.
    Short ImageStat { pool: String, image: String } -> ImageInfo;
    /// What `ImageStat` and `SnapList` answer, for the price of one: to open an image is the dear part.
    Short ImageInspect { pool: String, image: String } -> Inspection;
    /// Sets the size in bytes; shrinking is refused with `Invalid`.
    Short ImageResize { pool: String, image: String, size: u64 } -> ();
    /// Renames within the pool.
    Short ImageRename { pool: String, from: String, to: String } -> ();
    /// Removes an image without snapshots.
    Removal ImageRemove { pool: String, image: String } -> ();
    /// Copies all of the parent's data into the child.
    Long ImageFlatten { pool: String, image: String } -> ();
    /// Full copy of an image's data (no snapshots) into a new image with `features` and `order`.
    Long ImageCopy { pool: String, image: String, snap: Option<String>, dest_pool: String, dest: String, features: u64, order: u8 } -> ();
    /// Copies `length` bytes from `offset` on into an image of another site (or pool) that exists and is as large;
    /// what is zero is not written. Answers the bytes written. By the workers of the source's site.
    Long ImageTransfer { pool: String, image: String, dest_site: Connection, dest_pool: String, dest: String, offset: u64, length: u64 } -> u64;
    /// Makes a part of an image of another site (or pool) read like a point of this one, and looks only at what can
    /// differ: what has changed here after the snapshot `since` and there after its snapshot `dest_since`, which
    /// must have the same content; without the two, all that exists on either side. From `offset` on until
    /// `budget` bytes are read and `at_least_s` seconds are over: the answer says where to go on. Bytes that the point
    /// does not have are zeros. By the workers of the source's site.
    Copy DeltaCopy { pool: String, image: String, snap: Option<String>, since: Option<String>, dest_site: Connection, dest_pool: String, dest: String, dest_since: Option<String>, offset: u64, budget: u64, at_least_s: u64, sums: Sums } -> Copied;
    /// Reads a point from `offset` on, as far as `budget` bytes are read, and compares it with a table of checksums.
    Copy SumsCheck { pool: String, image: String, snap: Option<String>, table: String, offset: u64, budget: u64 } -> Checked;
    /// Makes a table of checksums for `size` bytes in an object of the pool: a copy of the table `parent`, or, without
    /// one, of nothing but zeros when `blank`, else of what is not known. One that is there already is kept.
    Copy SumsBegin { pool: String, table: String, parent: Option<String>, size: u64, blank: bool } -> ();
    /// Reads a point from `offset` on, as far as `budget` bytes are read, and writes its checksums into a table of the
    /// pool that [`SumsBegin`] has made. Nothing is written into an image.
    Copy SumsFill { pool: String, image: String, snap: Option<String>, table: String, offset: u64, budget: u64 } -> Copied;
    /// Copy-on-write clone of `pool/image@snap`.
    Short ImageClone { pool: String, image: String, snap: String, dest_pool: String, dest: String, features: u64, order: u8 } -> ();
    /// The same in clone format 2, which needs no protection and leaves the parent's pool as it is: for clones of
    /// a mirrored secondary, where nothing can be protected. The snapshot may go on the primary later.
    Short ReplicaClone { pool: String, image: String, snap: String, dest_pool: String, dest: String, features: u64, order: u8 } -> ();
    /// Children of the image (all its snapshots, or one), across pools.
    Short ImageChildren { pool: String, image: String, snap: Option<String> } -> Vec<ImageName>;
    /// Turns feature bits on or off; those that are so already are left alone.
    Short ImageFeatures { pool: String, image: String, features: u64, enable: bool } -> ();
    /// Size, watchers and user snapshots of many images, in the order asked; `None` for one that is missing or
    /// cannot be opened.
    Short ImageSurvey { pool: String, images: Vec<String> } -> Vec<Option<Surveyed>>;
    /// Who watches the header, as `rbd status` lists it.
    Short ImageWatchers { pool: String, image: String } -> Vec<Watcher>;
    /// Owners of the exclusive lock (`rbd_lock_get_owners`) as addresses that a blocklist takes. None
    /// without the lock feature, and on a secondary that is mirrored by snapshots.
    Short LockOwners { pool: String, image: String } -> Vec<String>;
    /// Breaks the exclusive lock of `owner` (and blocklists it). The caller has proven whose it is.
    Short LockBreak { pool: String, image: String, owner: String } -> ();
    /// Opens for writing and acquires the exclusive lock, then releases it: success means that this
    /// side accepts a writer now. `ReadOnly` or `Busy` means it does not.
    Short CheckWritable { pool: String, image: String } -> ();
    /// Writes bytes at an offset (tests, and headers).
    Short ImageWrite { pool: String, image: String, offset: u64, data: Vec<u8> } -> ();
    /// Reads bytes at an offset, of the head or of a snapshot.
    Short ImageRead { pool: String, image: String, snap: Option<String>, offset: u64, length: u64 } -> Vec<u8>;
    /// Writes the parts that the caller sends meanwhile ([`Site::import`](super::Site::import)) into an image that
    /// exists, opened once. Answers the bytes written. `blank`: the image reads as zeros, so that zeros need not
    /// be written. Otherwise all that is not sent becomes zero, before a part and behind the last: parts come in
    /// order.
    Stream ImageImport { pool: String, image: String, blank: bool } -> u64;
    /// Reads `length` bytes from `offset` on, or what there is of them, of the head or of a snapshot, and sends what
    /// is not zero in parts, in order ([`Site::export`](super::Site::export)). Answers the bytes sent.
    Stream ImageExport { pool: String, image: String, snap: Option<String>, offset: u64, length: u64 } -> u64;
    /// Sets an image metadata key (`conf_rbd_qos_…` and our own marks).
    Short MetadataSet { pool: String, image: String, key: String, value: String } -> ();
    /// All image metadata.
    Short MetadataList { pool: String, image: String } -> Vec<(String, String)>;
    /// Removes an image metadata key.
    Short MetadataRemove { pool: String, image: String, key: String } -> ();

    // ---- snapshots ---------------------------------------------------------------------------

    /// User snapshots (namespace `user`) of an image, without those that rbd-mirror makes for an initial
    /// sync (`.rbd-mirror.…`): while it runs, `ImageRemove` may answer `HasSnapshots` with none listed.
    Short SnapList { pool: String, image: String } -> Vec<Snap>;
    /// Creates a user snapshot.
    Short SnapCreate { pool: String, image: String, snap: String } -> ();
    /// Creates user snapshots of several images as of one instant: whoever writes to one of them waits until
    /// that one's snapshot is there, and nobody's write fails. All of them are there in the end, or none. `Busy`
    /// or `ReadOnly` when a writer does not let go of an image, `NotSupported` for one without exclusive lock.
    Short SnapCreateTogether { pool: String, members: Vec<SnapOf> } -> ();
    /// Protects a snapshot; already protected is `Busy`.
    Short SnapProtect { pool: String, image: String, snap: String } -> ();
    /// Unprotects; `Invalid` when it was not protected, `Busy` while it has children.
    Short SnapUnprotect { pool: String, image: String, snap: String } -> ();
    /// Removes an unprotected snapshot.
    Short SnapRemove { pool: String, image: String, snap: String } -> ();
    /// Removes rbd-mirror's own snapshots (`.rbd-mirror.…`) that no copy needs any more; answers how many. A copy
    /// that was cut short leaves them, by a forced promotion for instance, and they go with the image wherever
    /// it is copied next. One that a copy works with stays.
    Short SyncPointsRemove { pool: String, image: String } -> u32;
    /// Renames a snapshot.
    Short SnapRename { pool: String, image: String, from: String, to: String } -> ();
    /// Rolls the image back to a snapshot, size included. `ReadOnly` when the lock cannot be had. Not for an
    /// image that is mirrored by snapshots: the object map goes back with the data, and what rbd-mirror then
    /// takes for unchanged stays as it was on the other side.
    Long SnapRollback { pool: String, image: String, snap: String } -> ();
    /// Writes over the image what a snapshot holds, by ordinary writes and only where they differ; the image
    /// keeps its size, and what lies behind the snapshot's end becomes zeros. Slower than `SnapRollback`, and
    /// right whatever follows the image's changes.
    Long SnapRestore { pool: String, image: String, snap: String } -> ();

    // ---- trash -------------------------------------------------------------------------------

    // An image in the trash goes by `in_trash(id)` where a command asks for an image.

    /// Moves an image to the trash with a deferment in seconds. That ends its mirroring, and its copies go.
    Short TrashMove { pool: String, image: String, delay: u64 } -> ();
    /// Contents of the trash.
    Short TrashList { pool: String } -> Vec<TrashEntry>;
    /// Removes a trash entry for good.
    Removal TrashRemove { pool: String, id: String } -> ();
    /// Gives an image in the trash a name again; `Exists` when another has it.
    Short TrashRestore { pool: String, id: String, name: String } -> ();

    // ---- mirroring ---------------------------------------------------------------------------

    /// Mirroring mode of the pool.
    Short MirrorPoolMode { pool: String } -> PoolMirrorMode;
    /// Enables mirroring of an image.
    Short MirrorEnable { pool: String, image: String, mode: MirrorMode } -> ();
    /// Disables it; on a secondary only with `force`.
    Short MirrorDisable { pool: String, image: String, force: bool } -> ();
    /// State, mode, primary flag and global id (`rbd_mirror_image_get_info` and `…_get_mode`).
    Short MirrorInfo { pool: String, image: String } -> Mirroring;
    /// The same for many images at once, in the order asked; an image that is missing is `None`.
    Short MirrorInfoMany { pool: String, images: Vec<String> } -> Vec<Option<Mirroring>>;
    /// What the rbd-mirror daemons last said of the image. May be 30 s old: never a gate for data.
    Short MirrorStatus { pool: String, image: String } -> MirrorReport;
    /// The same for many images at once, in the order asked; an image that is missing is `None`, of one that is not
    /// mirrored there is only its state.
    Short MirrorStatusMany { pool: String, images: Vec<String> } -> Vec<Option<MirrorReport>>;
    /// The mirrored images of a pool with the daemons' reports, `limit` at a time, those after the id `after` (empty:
    /// from the beginning). Opens no image: ten thousand cost a few reads of one object.
    Short MirrorStatusPage { pool: String, after: String, limit: u32 } -> MirrorPage;
    /// Addresses of the rbd-mirror daemons that serve this pool on this site, in the form that
    /// `LockOwners` uses. The proof that a lock owner is the site's own daemon and not a VM.
    Short MirrorDaemons { pool: String } -> Vec<String>;
    /// Mode, peers, daemons and schedules of a pool.
    Short MirrorPoolView { pool: String } -> MirrorPool;
    /// Everything about the mirroring of many images at once, in the order asked. Opens each of them read-only.
    Short MirrorSurvey { pool: String, images: Vec<String> } -> Vec<Looked>;
    /// Makes this side primary.
    Short MirrorPromote { pool: String, image: String, force: bool } -> ();
    /// Makes this side secondary.
    Short MirrorDemote { pool: String, image: String } -> ();
    /// Throws this side's copy away and syncs it anew from the primary.
    Short MirrorResync { pool: String, image: String } -> ();
    /// Snapshot mode: makes a mirror snapshot now, answers its id.
    Short MirrorSnapshot { pool: String, image: String } -> u64;
    /// The copies that follow the journal of an image, and whether the first copy of each has come through: what their
    /// daemons note in the journal itself, not what they report. Empty for an image that is not journaled.
    Short JournalPeers { pool: String, image: String } -> Vec<JournalPeer>;
    /// Mirror snapshots of an image on this side, oldest first: which states of the primary it has, and whether all
    /// data of them. Empty in journal mode.
    Short MirrorSnaps { pool: String, image: String } -> Vec<MirrorSnap>;

    // ---- schedules of mirror snapshots (ceph-mgr, module rbd_support) --------------------------

    /// Schedules of the images of a pool, and those of the pool or of the whole cluster, which an image without
    /// one of its own follows. `Busy` while the module is not ready.
    Short ScheduleList { pool: String } -> Vec<Scheduled>;
    /// Adds one to an image that is mirrored by snapshots (`Invalid` for any other), beside those that it has.
    /// One that is there already is a success.
    Short ScheduleAdd { pool: String, image: String, schedule: Schedule } -> ();
    /// Removes one from an image; one that is not there is a success. `Invalid` for an image that is gone, or is not
    /// mirrored by snapshots: the module forgets its schedules by itself.
    Short ScheduleRemove { pool: String, image: String, schedule: Schedule } -> ();

    // ---- links between clusters ---------------------------------------------------------------

    // They need an administrator's key; `Permission` for any other. What is there already is a success.

    /// All OSDs, and where CRUSH has them.
    Short OsdPlaces {} -> Vec<OsdPlace>;
    /// Makes an erasure-code profile. `Permission` when one of this name is there and is another.
    Short ErasureProfileSet { profile: ErasureProfile } -> ();
    /// Makes a pool for RBD, and gives it its `min_size` and overwrites. One that is there keeps its data and size.
    Short PoolEnsure { pool: String, shape: PoolShape } -> ();
    /// Initialises a pool for RBD (`rbd pool init`), and has the data of new images go to `data_pool`.
    Short PoolInit { pool: String, data_pool: Option<String> } -> ();
    /// Sets the mirroring mode of a pool; `Busy` when it is to be disabled and has peers or mirrored images.
    Short MirrorModeSet { pool: String, mode: PoolMirrorMode } -> ();
    /// What the cluster calls itself towards its peers; `None`: it has no name but its fsid.
    Short SiteName {} -> Option<String>;
    /// Gives it that name.
    Short SiteNameSet { name: String } -> ();
    /// Makes `source` a peer of the pool, by a bootstrap token that never leaves the worker; with `RxTx` this cluster
    /// becomes a peer of it, too. By the workers of the receiving site.
    Short PeerBootstrap { pool: String, source: Connection, way: Way } -> ();
    /// Makes `source` a peer that the pool receives from, by `user`, which it makes there with capabilities on
    /// `pools`, and whose key goes into this cluster's config-key store; it never leaves the worker. `Exists` when the
    /// pool receives from another cluster. By the workers of the receiving site.
    Short PeerAdd { pool: String, source: Connection, source_name: String, user: String, pools: Vec<String> } -> ();
    /// Removes a peer of a pool, and what the config-key store has of it.
    Short PeerRemove { pool: String, uuid: String } -> ();
    /// Whether there is a client of this name, without `client.`.
    Short ClientExists { user: String } -> bool;
    /// Removes it. The bootstrap user goes with the note that says who it is.
    Short ClientRemove { user: String } -> ();
    /// Lets the user of a link read these pools and no others any more; `NotFound` when there is none.
    Short ClientPools { user: String, pools: Vec<String> } -> ();
    /// All schedules that bear on a level: its own, those above it, those below it. `Busy` while the module is not
    /// ready, `Permission` without mgr 'profile rbd'.
    Short LevelSchedules { level: Level } -> Vec<LevelScheduled>;
    /// Adds one to a level. One that is there already is a success; `Invalid` for an image that is not mirrored by
    /// snapshots.
    Short LevelScheduleAdd { level: Level, schedule: Schedule } -> ();
    /// Removes one from a level; `None`: all that the level itself has. What is not there is a success.
    Short LevelScheduleRemove { level: Level, schedule: Option<Schedule> } -> ();
    /// When the next mirror snapshots of the primary images under a level are due. Empty right after a change, until
    /// the module has looked (a minute).
    Short LevelDue { level: Level } -> Vec<Due>;

    /// Writes over the image what a snapshot holds, only where librbd's diff says that something has changed since, and
    /// by ordinary writes, under the lock; the image keeps its size. Answers the bytes written. `Busy` or `ReadOnly`
    /// when somebody has it.
    Long SnapRevertChanges { pool: String, image: String, snap: String } -> u64;

    // ---- moving an image to another pool -----------------------------------------------------------

    /// How far the move of an image is, which goes by its old place or its new one; `None` when nobody moves it.
    Short ImageMoveState { pool: String, image: String } -> Option<Moving>;
    /// Begins to move an image to another pool: from then on it goes by its new place. `Busy` while somebody has it
    /// open, `Exists` when there is one of that name, `NotFound` also when it is on its way already.
    Short ImageMoveBegin { pool: String, image: String, dest_pool: String, dest: String } -> ();
    /// Moves the data, by the new place.
    Long ImageMoveData { pool: String, image: String } -> ();
    /// Gives the old place up, when all data is in the new one.
    Long ImageMoveFinish { pool: String, image: String } -> ();
    /// Brings the image back to its old place; `NotFound` when it is there again.
    Long ImageMoveUndo { pool: String, image: String } -> ();

    // ---- which image it is -----------------------------------------------------------------------

    /// (internal id, name) of all images in a pool's directory, also of one of which only half is there.
    Short ImageDirectory { pool: String } -> Vec<(String, String)>;

    // ---- rbd-mirror daemons and who runs them (ceph-mgr: service map, module orchestrator) ------

    /// The rbd-mirror daemons of the site as they report to the manager; `None` where this client may not ask
    /// (`profile rbd` may not: mgr 'allow r' may).
    Short MirrorServices {} -> Option<Vec<MirrorService>>;
    /// Has the orchestrator run rbd-mirror: `ceph orch apply rbd-mirror [--placement=PLACEMENT]`. Repeatable.
    /// `NotFound` for a cluster without one, `Permission` without mgr 'allow rw'.
    Short OrchestratorApply { placement: Option<String> } -> ();
    /// `ceph orch start|stop|restart|rm rbd-mirror`. Fails in the same ways.
    Short OrchestratorAct { act: OrchestratorVerb } -> ();
}

impl Request {
    /// The other site of a command that works on two.
    pub fn second_site(&self) -> Option<&Connection> {
        match self {
            Request::ImageTransfer(c) => Some(&c.dest_site),
            Request::PeerBootstrap(c) => Some(&c.source),
            Request::PeerAdd(c) => Some(&c.source),
            Request::DeltaCopy(c) => Some(&c.dest_site),
            _ => None,
        }
    }
}
