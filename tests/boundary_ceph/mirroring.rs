//! The mirroring commands, in both modes, on both sides.

use scoria::rbd::protocol::*;
use scoria::rbd::types::{MirrorMode, MirrorState, features};
use scoria::rbd::{RbdError, RbdErrorKind, Site};

use crate::common::{FEATURES, MIB, eventually, kind, lab, lab_alone, name, pause, stop, tools_lab};

fn v() -> String {
    "volumes".to_owned()
}

async fn mirrored(site: &Site, image: &str, mode: MirrorMode) {
    let journaling = if mode == MirrorMode::Journal { features::JOURNALING } else { 0 };
    let features = FEATURES | journaling;
    let image = image.to_owned();
    let create = ImageCreate { pool: v(), image: image.clone(), size: 8 * MIB, order: 22, features };
    site.call(create).await.unwrap();
    let before = site.call(MirrorInfo { pool: v(), image: image.clone() }).await.unwrap();
    assert_eq!((before.state, before.primary), (MirrorState::Disabled, false));
    let enable = MirrorEnable { pool: v(), image: image.clone(), mode };
    site.call(enable.clone()).await.unwrap();
    // Enabled already, in that mode: success.
    site.call(enable).await.unwrap();
    site.call(ImageWrite { pool: v(), image: image.clone(), offset: 0, data: b"scoria".to_vec() })
        .await
        .unwrap();
    let snapshot = site.call(MirrorSnapshot { pool: v(), image }).await;
    match mode {
        MirrorMode::Journal => assert_eq!(kind(snapshot), RbdErrorKind::Invalid),
        MirrorMode::Snapshot => assert!(snapshot.unwrap() > 0),
    }
}

/// Waits until the daemon of `site` replays the image there.
async fn replaying(site: &Site, image: &str) {
    eventually("replaying", async || {
        let status = MirrorStatus { pool: v(), image: image.to_owned() };
        let report = site.call(status).await.map_err(|e| e.to_string())?;
        match report.local {
            Some(local) if local.up && local.state == "replaying" => Ok(()),
            local => Err(format!("{local:?}")),
        }
    })
    .await;
}

async fn there_and_back(mode: MirrorMode) {
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let image = name("mirrored");
    mirrored(a, &image, mode).await;
    replaying(b, &image).await;

    let info = MirrorInfo { pool: v(), image: image.clone() };
    let (here, there) = (a.call(info.clone()).await.unwrap(), b.call(info.clone()).await.unwrap());
    assert_eq!((here.state, here.mode, here.primary), (MirrorState::Enabled, mode, true));
    assert_eq!((there.state, there.mode, there.primary), (MirrorState::Enabled, mode, false));
    assert_eq!(here.global_id, there.global_id);
    let many = MirrorInfoMany { pool: v(), images: vec![name("absent"), image.clone()] };
    assert_eq!(b.call(many).await.unwrap(), [None, Some(there)]);
    let report = a.call(MirrorStatus { pool: v(), image: image.clone() }).await.unwrap();
    assert!(report.info.primary);
    let many = MirrorStatusMany { pool: v(), images: vec![name("absent"), image.clone()] };
    let reports = b.call(many).await.unwrap();
    let [None, Some(there)] = reports.as_slice() else { panic!("{reports:?}") };
    assert_eq!(there.local.as_ref().map(|report| report.state.as_str()), Some("replaying"));

    // The secondary refuses everything that would change it.
    let writable = CheckWritable { pool: v(), image: image.clone() };
    let promote = |force| MirrorPromote { pool: v(), image: image.clone(), force };
    let demote = MirrorDemote { pool: v(), image: image.clone() };
    let disable = |force| MirrorDisable { pool: v(), image: image.clone(), force };
    a.call(writable.clone()).await.unwrap();
    assert_eq!(kind(b.call(writable.clone()).await), RbdErrorKind::ReadOnly);
    let snap = SnapCreate { pool: v(), image: image.clone(), snap: "s".to_owned() };
    assert_eq!(kind(b.call(snap).await), RbdErrorKind::ReadOnly);
    assert_eq!(kind(b.call(demote.clone()).await), RbdErrorKind::Invalid);
    assert_eq!(kind(b.call(disable(false)).await), RbdErrorKind::Invalid);
    assert_eq!(kind(b.call(promote(false)).await), RbdErrorKind::Busy);
    assert_eq!(kind(a.call(promote(false)).await), RbdErrorKind::Invalid);
    assert_eq!(kind(a.call(MirrorResync { pool: v(), image: image.clone() }).await), RbdErrorKind::Invalid);
    // Looking for a lock works there, whoever has it.
    b.call(LockOwners { pool: v(), image: image.clone() }).await.unwrap();
    assert_eq!(b.call(SnapList { pool: v(), image: image.clone() }).await.unwrap(), []);

    a.call(demote.clone()).await.unwrap();
    assert_eq!(kind(a.call(demote.clone()).await), RbdErrorKind::Invalid);
    eventually("promotion", async || b.call(promote(false)).await).await;
    b.call(writable).await.unwrap();
    let read = ImageRead { pool: v(), image: image.clone(), snap: None, offset: 0, length: 6 };
    assert_eq!(b.call(read).await.unwrap(), b"scoria");
    // That it replays now is a case of the behaviour suite; here only that the commands say what they did.
    let back = a.call(info.clone()).await.unwrap();
    assert_eq!((back.state, back.primary), (MirrorState::Enabled, false));
    a.call(MirrorResync { pool: v(), image: image.clone() }).await.unwrap();

    b.call(disable(false)).await.unwrap();
    assert_eq!(b.call(info).await.unwrap().state, MirrorState::Disabled);
    b.call(ImageRemove { pool: v(), image }).await.unwrap();
}

#[tokio::test]
async fn there_and_back_by_journal() {
    there_and_back(MirrorMode::Journal).await;
}

#[tokio::test]
async fn there_and_back_by_snapshot() {
    there_and_back(MirrorMode::Snapshot).await;
}

/// The trap of a planned failover: what the daemon of the old side does not know when its copy is promoted, it
/// can never follow.
#[tokio::test]
async fn a_copy_promoted_before_the_old_sides_daemon_is_registered_cannot_be_followed() {
    let lab = lab_alone();
    let (a, b) = (&lab.a, &lab.b);
    let image = name("unlinked");
    let daemon = pause("rbd-mirror-a");
    mirrored(a, &image, MirrorMode::Journal).await;
    replaying(b, &image).await;
    let status = MirrorStatus { pool: v(), image: image.clone() };
    assert_eq!(b.call(status.clone()).await.unwrap().registered, Vec::<String>::new());
    a.call(MirrorDemote { pool: v(), image: image.clone() }).await.unwrap();
    let promote = MirrorPromote { pool: v(), image: image.clone(), force: false };
    eventually("promotion", async || b.call(promote.clone()).await).await;
    // Each opening for writing begins a new tag of the journal, and the old ones expire.
    for _ in 0..4 {
        let write = ImageWrite { pool: v(), image: image.clone(), offset: 0, data: b"there".to_vec() };
        b.call(write).await.unwrap();
    }
    drop(daemon);
    eventually("the split-brain", async || {
        let report = a.call(status.clone()).await.map_err(|e| e.to_string())?;
        let split = report.local.as_ref().is_some_and(|l| l.description == "split-brain detected");
        if split { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
    assert_eq!(b.call(status.clone()).await.unwrap().registered.len(), 1, "now it is");
    a.call(MirrorResync { pool: v(), image: image.clone() }).await.unwrap();
    replaying(a, &image).await;
    b.call(MirrorDisable { pool: v(), image: image.clone(), force: false }).await.unwrap();
    let remove = ImageRemove { pool: v(), image };
    eventually("removed", async || b.call(remove.clone()).await).await;
}

/// The trap of an unplanned failover: primary, and yet every write fails.
#[tokio::test]
async fn forced_promotion_is_not_writable_until_the_mirror_daemons_lock_is_broken() {
    let lab = lab_alone();
    let (a, b) = (&lab.a, &lab.b);
    let image = name("trap");
    mirrored(a, &image, MirrorMode::Journal).await;
    replaying(b, &image).await;
    let peer = stop("a");
    b.call(MirrorPromote { pool: v(), image: image.clone(), force: true }).await.unwrap();
    let info = b.call(MirrorInfo { pool: v(), image: image.clone() }).await.unwrap();
    assert!(info.primary);
    let writable = CheckWritable { pool: v(), image: image.clone() };
    if let Err(error) = b.call(writable.clone()).await {
        assert_eq!(error.kind, RbdErrorKind::ReadOnly);
        for owner in b.call(LockOwners { pool: v(), image: image.clone() }).await.unwrap() {
            b.call(LockBreak { pool: v(), image: image.clone(), owner }).await.unwrap();
        }
    }
    b.call(writable).await.unwrap();
    b.call(ImageWrite { pool: v(), image: image.clone(), offset: 0, data: b"B".to_vec() }).await.unwrap();
    drop(peer);
    eventually("site a is back", async || a.call(ProbeOsd { pool: v() }).await).await;
    // A daemon that was fenced while its peer hung may never come back by itself (16.2.15).
    tools_lab(&["kill", "rbd-mirror-b"]);
    tools_lab(&["start", "rbd-mirror-b"]);
    // On both at once: as long as one side mirrors it, the other's daemon makes it anew. A copy that this
    // interrupts keeps the daemon's snapshot, which no list shows.
    let disable = MirrorDisable { pool: v(), image: image.clone(), force: true };
    let remove = ImageRemove { pool: v(), image };
    eventually("gone from both sides", async || {
        let disabled = tokio::join!(a.call(disable.clone()), b.call(disable.clone()));
        for site in [a, b] {
            let _ = site.call(SyncPointsRemove { pool: v(), image: remove.image.clone() }).await;
        }
        let removed = tokio::join!(a.call(remove.clone()), b.call(remove.clone()));
        let absent = |r: &Result<(), RbdError>| r.as_ref().is_err_and(RbdError::is_not_found);
        if absent(&removed.0) && absent(&removed.1) { Ok(()) } else { Err((disabled, removed)) }
    })
    .await;
}
