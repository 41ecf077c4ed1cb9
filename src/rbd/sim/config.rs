//! What a simulated world looks like and how fast its parts react.
//!
//! The defaults are the figures measured on two Ceph 16.2 clusters; a test changes only what it is about.

use std::time::Duration;

use crate::rbd::link::OsdPlace;

/// How long the parts of a mirrored pair take, in virtual time.
#[derive(Debug, Clone)]
pub struct Timing {
    /// A command that touches a few objects.
    pub call: Duration,
    /// A mirror enable, promote, demote, snapshot.
    pub mirror_call: Duration,
    /// From enabling (journal) or the first mirror snapshot until the image exists on the peer.
    pub appear: Duration,
    /// From there until `up+replaying`: journal. Meanwhile rbd-mirror's own snapshot keeps the primary from
    /// being removed.
    pub start_journal: Duration,
    /// The same in snapshot mode.
    pub start_snapshot: Duration,
    /// From a write to its replay: journal mode.
    pub replay: Duration,
    /// From a mirror snapshot to its copy: snapshot mode.
    pub sync: Duration,
    /// From a demotion until the peer knows it: journal mode.
    pub demotion_journal: Duration,
    /// The same in snapshot mode.
    pub demotion_snapshot: Duration,
    /// From a promotion in good order until the daemon that has replayed lets go of the image's lock: journal mode.
    /// A second and more on a busy machine; zero unless a test is about it.
    pub let_go: Duration,
    /// From the peer's promotion until the old primary replays it: journal mode.
    pub turn_journal: Duration,
    /// The same in snapshot mode.
    pub turn_snapshot: Duration,
    /// From the appearance of a replica until the daemon of the primary's side is registered in its
    /// journal: journal mode.
    pub register: Duration,
    /// From a resync order until the local copy is deleted.
    pub resync: Duration,
    /// From the primary's removal (or disabling) to the replica's.
    pub remove: Duration,
    /// How old a mirror status may be.
    pub status_stale: Duration,
    /// A rbd-mirror daemon after its site was killed and restarted.
    pub daemon_restart: Duration,
    /// The same after a pause.
    pub daemon_resume: Duration,
    /// From the peer's return until a fenced daemon is well again.
    pub daemon_recover: Duration,
    /// How long the watch of a killed client stays (`osd_client_watch_timeout`).
    pub watch: Duration,
    /// What a site that is silent leaves unanswered takes at most; its deadline, if that is shorter. For tests in real
    /// time, which learn nothing while they wait.
    pub silence: Duration,
    /// Each delay above (but not `watch`, `silence` and `status_stale`) is drawn between 100 % and this.
    pub jitter_percent: u32,
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Timing {
            call: ms(6),
            mirror_call: ms(30),
            appear: ms(2100),
            start_journal: ms(100),
            start_snapshot: ms(3300),
            replay: ms(400),
            sync: ms(900),
            demotion_journal: ms(1100),
            demotion_snapshot: ms(70),
            let_go: Duration::ZERO,
            turn_journal: ms(3500),
            register: ms(2600),
            turn_snapshot: ms(1400),
            resync: ms(16_000),
            remove: ms(300),
            status_stale: ms(30_000),
            daemon_restart: ms(60_000),
            daemon_resume: ms(50),
            daemon_recover: ms(25_000),
            watch: ms(30_000),
            silence: Duration::MAX,
            jitter_percent: 180,
        }
    }
}

/// One simulated Ceph cluster.
#[derive(Debug, Clone)]
pub struct SiteSpec {
    /// Its name in the simulator; also the stem of its conf (`/sim/<name>.conf`).
    pub name: String,
    /// Further conf paths and connection names that lead to it.
    pub aliases: Vec<String>,
    /// Pools; `mirrored` ones have a two-way peer on every other site that has the pool mirrored.
    pub pools: Vec<PoolSpec>,
}

/// One pool of a site.
#[derive(Debug, Clone)]
pub struct PoolSpec {
    /// Name.
    pub name: String,
    /// Mirroring in image mode is on.
    pub mirrored: bool,
    /// Whether there are peers. A pool may be mirrored and have none.
    pub peers: bool,
}

impl PoolSpec {
    /// A pool with mirroring in image mode and a peer.
    pub fn mirrored(name: &str) -> Self {
        PoolSpec { name: name.to_owned(), mirrored: true, peers: true }
    }

    /// A pool without mirroring.
    pub fn plain(name: &str) -> Self {
        PoolSpec { name: name.to_owned(), mirrored: false, peers: false }
    }
}

/// Everything that a world is built from.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Same seed, same calls: same world.
    pub seed: u64,
    /// The clusters; the first one also answers to the connection name `default`.
    pub sites: Vec<SiteSpec>,
    /// Delays.
    pub timing: Timing,
    /// Clone format 2 (`rbd_default_clone_format`); false is what a new Ceph 16 cluster does.
    pub clone_v2: bool,
    /// Percentage of promotions that answer `ReadOnly` once where they could have answered otherwise
    /// (snapshot mode; about 1.5 % were seen, and nearly each one sent right after a demotion).
    pub promote_read_only_percent: u32,
    /// Journal mode: an unforced promote of a secondary is accepted although the peer is primary, in this
    /// percentage of cases (seen once on real Ceph). 0 leaves only the window that the model has by
    /// itself: between the peer's promotion and its first replay here.
    pub promote_races_percent: u32,
    /// A forced promotion with the peer away leaves the exclusive lock with the local rbd-mirror (journal mode).
    pub daemon_keeps_lock: bool,
    /// A daemon's last word on a copy that is thrown away is that it replays, and it stands until the first
    /// word on the new copy: reports are kept under the id that both copies share.
    pub stale_reports: bool,
    /// A daemon whose peer was removed is registered with the pool still, for as long as that is mirrored: as one is
    /// that waits for a site which does not answer.
    pub daemon_lingers: bool,
    /// A lost worker leaves its watch on the image that it had open for writing, for `timing.watch`.
    pub lost_worker_leaves_watch: bool,
    /// Client may remove blocklist entries. False with the `profile rbd` capability (EACCES, measured).
    pub may_unblock: bool,
    /// Client may add them, as that capability lets it.
    pub may_fence: bool,
    /// Client may read everybody's keys and capabilities, as `client.admin` may.
    pub reads_keys: bool,
    /// The clusters have an orchestrator, which the client may use.
    pub orchestrated: bool,
    /// Client may read the manager's service map. False with `profile rbd`.
    pub reads_services: bool,
    /// Pools that the client may neither read nor write.
    pub closed_pools: Vec<String>,
    /// The OSDs of every site ([`osds_on`](super::osds_on)).
    pub osds: Vec<OsdPlace>,
}

impl Default for SimConfig {
    /// Two sites `a` and `b`, pool `volumes` mirrored both ways, pools `backups` and `volumes2` plain.
    fn default() -> Self {
        let pools =
            || vec![PoolSpec::mirrored("volumes"), PoolSpec::plain("volumes2"), PoolSpec::plain("backups")];
        let site = |name: &str| SiteSpec { name: name.to_owned(), aliases: vec![], pools: pools() };
        SimConfig {
            seed: 1,
            sites: vec![site("a"), site("b")],
            timing: Timing::default(),
            clone_v2: false,
            promote_read_only_percent: 10,
            promote_races_percent: 0,
            daemon_keeps_lock: true,
            daemon_lingers: false,
            stale_reports: true,
            lost_worker_leaves_watch: true,
            may_unblock: false,
            may_fence: true,
            reads_keys: false,
            orchestrated: false,
            reads_services: true,
            closed_pools: vec![],
            osds: super::osds_on(&["h1", "h2", "h3"]),
        }
    }
}

impl SimConfig {
    /// Two sites `a` and `b` that have nothing in common, not even pools; a daemon runs on each.
    pub fn bare() -> Self {
        let site = |name: &str| SiteSpec { name: name.to_owned(), aliases: vec![], pools: vec![] };
        SimConfig { sites: vec![site("a"), site("b")], ..SimConfig::default() }
    }

    /// The default world with another seed.
    pub fn seeded(seed: u64) -> Self {
        SimConfig { seed, ..SimConfig::default() }
    }
}
