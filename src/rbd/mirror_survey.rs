//! What Ceph tells of the mirroring of a whole pool, and of many of its images at once.
//!
//! Whoever wants to know whether a failover would succeed needs a dozen facts of each of a thousand images on both
//! sites, in seconds. Opening an image is the dear part, so everything is read while it is open, and one that
//! cannot be opened does not hide the others.

use serde::{Deserialize, Serialize};

use super::types::{MirrorReport, Parent, PoolMirrorMode, Snap, Watcher};

/// Which way a peer link goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerDirection {
    /// This side takes copies from the peer.
    Receives,
    /// The peer takes copies from this side: what rbd-mirror of the peer registers by itself.
    Sends,
    /// Both.
    Both,
}

/// A peer of a pool (`rbd mirror pool info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorPeer {
    /// Id of the link on this side.
    pub uuid: String,
    /// Which way it goes.
    pub direction: PeerDirection,
    /// Name of the peer's cluster.
    pub site_name: String,
    /// Mirror uuid of the peer's pool; empty until its daemon has been seen.
    pub mirror_uuid: String,
    /// User by which the peer is reached; empty for a link that the peer's daemon made.
    pub client_name: String,
    /// When the peer's daemon last pinged, seconds since the epoch by this side's clock; 0 for never.
    pub last_seen: i64,
}

/// Mirroring of one pool on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorPool {
    /// Mode of the pool.
    pub mode: PoolMirrorMode,
    /// Its peers.
    pub peers: Vec<MirrorPeer>,
    /// Addresses of the rbd-mirror daemons that serve it.
    pub daemons: Vec<String>,
    /// Address of the one that leads them; `None` while none does: then nothing is distributed to any.
    pub leader: Option<String>,
    /// The pool itself has a schedule of mirror snapshots. (That of the whole cluster is an option of the mgr,
    /// which this client cannot read.)
    pub scheduled: bool,
    /// Internal ids of the images that have one of their own.
    pub scheduled_images: Vec<String>,
}

/// One image, as far as its mirroring goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSurveyed {
    /// Internal id.
    pub id: String,
    /// Feature bits.
    pub features: u64,
    /// Parent, for a clone.
    pub parent: Option<Parent>,
    /// User snapshots.
    pub snaps: Vec<Snap>,
    /// Who has it open.
    pub watchers: Vec<Watcher>,
    /// What the daemons last said of it; of an image that is not mirrored only its state.
    pub report: MirrorReport,
}

/// What came of looking at one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Looked {
    /// There is none of that name.
    Absent,
    /// It is there and cannot be read.
    Unreadable {
        /// What Ceph says.
        reason: String,
    },
    /// As it is.
    Seen(Box<MirrorSurveyed>),
}

impl Looked {
    /// The image, when it could be read.
    pub fn seen(&self) -> Option<&MirrorSurveyed> {
        match self {
            Looked::Seen(seen) => Some(seen),
            Looked::Absent | Looked::Unreadable { .. } => None,
        }
    }
}
