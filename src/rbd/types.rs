//! What Ceph tells, in the service's own terms: the answers of [`super::protocol`]'s commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Feature bits of an image (`librbd/Features.h`, Ceph).
pub mod features {
    /// Clones.
    pub const LAYERING: u64 = 1;
    /// Exclusive lock.
    pub const EXCLUSIVE_LOCK: u64 = 4;
    /// Object map.
    pub const OBJECT_MAP: u64 = 8;
    /// Fast diff.
    pub const FAST_DIFF: u64 = 16;
    /// Deep flatten.
    pub const DEEP_FLATTEN: u64 = 32;
    /// Journaling.
    pub const JOURNALING: u64 = 64;
    /// Data pool.
    pub const DATA_POOL: u64 = 128;
    /// Set by Ceph on an image that has operation features, such as being a clone in format 2.
    pub const OPERATIONS: u64 = 256;
    /// Set by Ceph on a secondary that is mirrored by snapshots, and on nothing else.
    pub const NON_PRIMARY: u64 = 1024;
}

/// What a copy does with checksums of what it reads ([`super::sums`]): names of tables, which are objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// In the destination's pool: the checksums of what is read are written there.
    pub write: Option<String>,
    /// In the source's pool: what is read must have these checksums.
    pub expect: Option<String>,
}

/// How far a copy from image to image has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Everything before this offset is done.
    pub reached: u64,
    /// Nothing lies behind it.
    pub complete: bool,
    /// Bytes that were read from the source.
    pub read: u64,
    /// Bytes that were written.
    pub written: u64,
}

/// How far a comparison with checksums has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Everything before this offset was looked at.
    pub reached: u64,
    /// Nothing lies behind it.
    pub complete: bool,
    /// Bytes that were compared.
    pub compared: u64,
    /// Bytes whose checksum nobody knows.
    pub unknown: u64,
    /// Offsets of pieces that are not what they were, the first of them.
    pub wrong: Vec<u64>,
}

/// Capacity of a pool in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolCapacity {
    /// Bytes stored by clients (`stored`, or `bytes_used` where the monitor is older).
    pub stored: u64,
    /// What may still be written.
    pub max_avail: u64,
    /// Of the whole cluster.
    pub cluster_total: u64,
    /// `quota_max_bytes`, 0 when there is none.
    pub quota: u64,
}

/// What a cluster says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Its fsid.
    pub fsid: String,
    /// Oldest release among its daemons, e.g. `16.2.15`.
    pub version: String,
    /// `HEALTH_OK`, `HEALTH_WARN` or `HEALTH_ERR`.
    pub health: String,
    /// What is not well, as (code, sentence).
    pub checks: Vec<(String, String)>,
    /// Each monitor as `mon_host` of a ceph.conf names it: `[v2:ip:3300,v1:ip:6789]`.
    pub monitors: Vec<String>,
    /// All pools.
    pub pools: Vec<PoolInfo>,
}

/// A pool, as its cluster lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Name.
    pub name: String,
    /// Erasure-coded, not replicated.
    pub erasure: bool,
    /// Replicas, or chunks.
    pub size: u32,
    /// How many of them must be there for I/O.
    pub min_size: u32,
    /// What it is for: `rbd`, `cephfs` …
    pub applications: Vec<String>,
}

/// What a client may do beside reading and writing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Its capabilities by daemon (`mon`, `osd`, `mgr`), where it may read them.
    pub caps: Option<BTreeMap<String, String>>,
    /// It may read the keys of other clients.
    pub reads_keys: bool,
}

/// What a client may do with the objects of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Read them.
    pub read: bool,
    /// Write and remove them.
    pub write: bool,
}

/// An image, maybe in another pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageName {
    /// Pool.
    pub pool: String,
    /// Image.
    pub image: String,
    /// True when it lies in the trash.
    pub trash: bool,
}

/// Parent of a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Pool of the parent.
    pub pool: String,
    /// Parent image.
    pub image: String,
    /// Parent snapshot.
    pub snap: String,
}

/// What `rbd info` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Internal id.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// log2 of the object size.
    pub order: u8,
    /// Feature bits.
    pub features: u64,
    /// Operation feature bits (`rbd_get_op_features`).
    pub op_features: u64,
    /// Stripe unit in bytes.
    pub stripe_unit: u64,
    /// Parent, for a clone.
    pub parent: Option<Parent>,
}

/// A user snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snap {
    /// Internal id.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Bytes of the image at that time.
    pub size: u64,
    /// Protected against removal.
    pub protected: bool,
}

/// A snapshot of an image, by their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapOf {
    /// Image.
    pub image: String,
    /// Snapshot.
    pub snap: String,
}

/// All that is known of an image before it is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The image.
    pub info: ImageInfo,
    /// Its user snapshots.
    pub snaps: Vec<Snap>,
}

/// What a list of images needs to know of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surveyed {
    /// Bytes.
    pub size: u64,
    /// How many clients watch its header.
    pub watchers: usize,
    /// Its user snapshots.
    pub snaps: Vec<Snap>,
}

/// A client watching an image header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// `ip:port/nonce`.
    pub address: String,
    /// RADOS client number.
    pub client: i64,
    /// Watch cookie.
    pub cookie: u64,
}

/// A fenced client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocklistEntry {
    /// `ip:port/nonce`, or a range.
    pub address: String,
    /// When it ends, by the clock of the cluster and in its words; empty when it does not say.
    pub until: String,
}

/// A trashed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    /// Image id.
    pub id: String,
    /// Name it had.
    pub name: String,
    /// When it may be removed, seconds since the epoch.
    pub deferment_end: i64,
    /// rbd-mirror has put it there, and removes it when nothing needs it any more.
    pub mirroring: bool,
}

/// Before the id of an image, where a command takes an image's name: RBD keeps the slash for the pool's.
const BY_ID: &str = "trash/";

/// What stands for an image in the trash where a command takes the name of an image: there it has none, and several
/// may have had the same.
pub fn in_trash(id: &str) -> String {
    format!("{BY_ID}{id}")
}

/// The id in what [`in_trash`] made; `None` for a name.
pub fn id_in_trash(image: &str) -> Option<&str> {
    image.strip_prefix(BY_ID)
}

/// `rbd mirror pool info`'s mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolMirrorMode {
    /// Not mirrored.
    Disabled,
    /// Image by image: the only one that Scoria (and stock Cinder) works with.
    Image,
    /// Every journaled image.
    Pool,
}

/// How an image is mirrored (`rbd_replication_mode`, `replication:mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorMode {
    /// By replaying its journal; upstream's only mode.
    Journal,
    /// By mirror snapshots.
    Snapshot,
}

/// Mirroring state of an image on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirroring {
    /// Enabled, disabling or disabled.
    pub state: MirrorState,
    /// Meaningful while enabled.
    pub mode: MirrorMode,
    /// True when this side is primary.
    pub primary: bool,
    /// Id shared by both sides.
    pub global_id: String,
}

/// `rbd_mirror_image_state_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MirrorState {
    /// On its way out.
    Disabling,
    /// Mirrored.
    Enabled,
    /// Not mirrored.
    Disabled,
}

/// What the daemon of one side last reported (`rbd_mirror_image_site_status_t`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSiteStatus {
    /// Empty for the side that was asked.
    pub mirror_uuid: String,
    /// `unknown`, `error`, `syncing`, `starting_replay`, `replaying`, `stopping_replay`, `stopped`.
    pub state: String,
    /// Whether a daemon is alive.
    pub up: bool,
    /// Free text with figures, e.g. `replaying, {"entries_behind_primary":0,…}`.
    pub description: String,
    /// Seconds since the epoch.
    pub last_update: i64,
}

/// Some of a pool's mirrored images, with what the daemons last said of them, in the order of their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorPage {
    /// How this pool's daemon signs what it reports to its peers; empty where none has run.
    pub mirror_uuid: String,
    /// The images. None: there are no more.
    pub images: Vec<MirrorListed>,
}

/// A mirrored image in a list. Which side is primary is not told: only the image itself knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorListed {
    /// Internal id: where the next page begins.
    pub id: String,
    /// Name; the id of an image without one.
    pub name: String,
    /// Id shared by both sides.
    pub global_id: String,
    /// Local daemon's report.
    pub local: Option<MirrorSiteStatus>,
    /// What the peers' daemons wrote here.
    pub peers: Vec<MirrorSiteStatus>,
}

/// Status of an image as seen from one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorReport {
    /// Its mirroring state.
    pub info: Mirroring,
    /// Local daemon's report.
    pub local: Option<MirrorSiteStatus>,
    /// What the peers' daemons wrote here.
    pub peers: Vec<MirrorSiteStatus>,
    /// Journal mode: mirror uuids of the peers whose daemons are registered in this image's journal.
    /// One that registers only after this side was promoted, and after the journal's tags of before have
    /// expired, cannot connect its history to this side's any more: it reports a split-brain, and its copy
    /// must be made anew (Ceph, `PrepareReplayRequest.cc`, `cls_journal.cc`: `expire_tags`). Always empty
    /// in snapshot mode.
    pub registered: Vec<String>,
}

impl MirrorReport {
    /// Of an image that no daemon has to do with.
    pub fn without_reports(info: Mirroring) -> MirrorReport {
        MirrorReport { info, local: None, peers: Vec::new(), registered: Vec::new() }
    }
}

/// A copy that follows the journal of its primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalPeer {
    /// Mirror uuid of the copy's side.
    pub mirror_uuid: String,
    /// Internal id of the copy there; empty while it has none.
    pub image_id: String,
    /// The first copy has come through: what comes now are the journal's entries, in their order.
    pub synced: bool,
}

/// A mirror snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSnap {
    /// Internal id on this side.
    pub id: u64,
    /// Made by this side as the primary, and not by rbd-mirror as a copy.
    pub primary: bool,
    /// A copy: all data of it is here.
    pub complete: bool,
    /// A copy: id of the primary's snapshot that it is a copy of; 0 otherwise.
    pub of: u64,
}

/// When mirror snapshots are made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Schedule {
    /// A number with `m`, `h` or `d`, as the module writes it: `90m`, but `2h` and not `120m`.
    pub interval: String,
    /// Time of day of the first one, `HH:MM:SS` and perhaps an offset from UTC; `None`: midnight UTC.
    pub start: Option<String>,
}

/// What a schedule is for: all pools, a pool, or an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// The pool; `None`: all of them.
    pub pool: Option<String>,
    /// An image of it; `None`: all of them.
    pub image: Option<String>,
}

impl Level {
    /// `global`, `pool` or `image`.
    pub fn kind(&self) -> &'static str {
        match (&self.pool, &self.image) {
            (None, _) => "global",
            (Some(_), None) => "pool",
            (Some(_), Some(_)) => "image",
        }
    }

    /// As ceph-mgr names it (`level_spec`).
    pub fn spec(&self) -> String {
        match (&self.pool, &self.image) {
            (None, _) => String::new(),
            (Some(pool), None) => format!("{pool}/"),
            (Some(pool), Some(image)) => format!("{pool}/{image}"),
        }
    }
}

/// The schedules of one level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelScheduled {
    /// The level.
    pub level: Level,
    /// Its own schedules.
    pub schedules: Vec<Schedule>,
}

/// A mirror snapshot that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// When, by the manager's clock and in its words (`YYYY-MM-DD HH:MM:00`, UTC).
    pub at: String,
    /// `pool/image`.
    pub image: String,
}

/// An rbd-mirror daemon, as it reports to its site's manager (`ceph service dump`, `ceph service status`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorService {
    /// The name of its cephx client without `client.rbd-mirror.`, as it reports itself.
    pub id: String,
    /// The machine that it runs on.
    pub host: String,
    /// Its release, e.g. `16.2.15`.
    pub version: String,
    /// RADOS number of its client: what leads pools is named by it.
    pub instance: String,
    /// What it does in each pool; none before its first report, up to half a minute after its start.
    pub pools: Vec<MirrorServicePool>,
}

/// What an rbd-mirror daemon does in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorServicePool {
    /// The pool.
    pub name: String,
    /// It leads the others that serve the pool.
    pub leader: bool,
    /// Images that it copies.
    pub images: u64,
    /// Of them, those with an error.
    pub errors: u64,
    /// Of them, those with a warning.
    pub warnings: u64,
    /// What it complains about, as (level, text).
    pub callouts: Vec<(String, String)>,
}

/// What an orchestrator is told to do with a service that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrchestratorVerb {
    /// Start its daemons.
    Start,
    /// Stop them; they stay deployed.
    Stop,
    /// Restart them.
    Restart,
    /// Remove the service and its daemons.
    Rm,
}

impl OrchestratorVerb {
    /// The word in `ceph orch`.
    pub fn as_str(self) -> &'static str {
        match self {
            OrchestratorVerb::Start => "start",
            OrchestratorVerb::Stop => "stop",
            OrchestratorVerb::Restart => "restart",
            OrchestratorVerb::Rm => "rm",
        }
    }
}

/// Schedules of an image, or of what stands above it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// The image; `None`: the pool, or all pools.
    pub image: Option<String>,
    /// Its schedules.
    pub schedules: Vec<Schedule>,
}

/// How far the move of an image to another pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The part that it is in.
    pub state: MoveState,
    /// Of its data, while that is moved.
    pub percent: Option<u8>,
}

/// The parts of a move (`rbd_image_migration_state_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveState {
    /// Being begun.
    Preparing,
    /// The image goes by its new place, its data is in the old one.
    Prepared,
    /// Data is being moved.
    Executing,
    /// All data is in the new place.
    Executed,
    /// Being brought back.
    Aborting,
    /// librbd does not know how to go on.
    Failed,
}
