//! Each command once, with the answers of a repetition: that is what callers decide by.

use std::io::{BufRead, BufReader};
use std::process::{Command as Process, Stdio};

use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::*;
use scoria::rbd::types::{ImageName, Parent, PoolMirrorMode, features};

use crate::common::{FEATURES, MIB, conf, eventually, kind, lab, name};

fn v() -> String {
    "volumes".to_owned()
}

#[tokio::test]
async fn the_cluster() {
    let lab = lab();
    let fsid = lab.a.call(ProbeMon {}).await.unwrap();
    assert_eq!(lab.a.call(Fsid {}).await.unwrap(), fsid);
    assert_ne!(lab.b.call(Fsid {}).await.unwrap(), fsid);
    lab.a.call(ProbeOsd { pool: v() }).await.unwrap();
    let monitors = lab.a.call(MonDump {}).await.unwrap();
    assert!(monitors.iter().all(|m| m.contains(":6789/0")), "{monitors:?}");
    let capacity = lab.a.call(PoolStats { pool: v() }).await.unwrap();
    assert!(capacity.max_avail > 0 && capacity.cluster_total >= capacity.max_avail && capacity.quota == 0);
    assert_eq!(
        lab.a.call(ConfGet { option: "rbd_default_features".to_owned() }).await.unwrap(),
        Some(FEATURES.to_string())
    );
    assert_eq!(lab.a.call(ConfGet { option: "no_such_option".to_owned() }).await.unwrap(), None);
    let address = lab.a.call(ClientAddress {}).await.unwrap();
    assert!(lab.clients.0.lock().unwrap().iter().any(|(_, known)| *known == address));

    let fenced = "192.0.2.77:0/4242".to_owned();
    lab.a.call(BlocklistAdd { address: fenced.clone(), seconds: 5 }).await.unwrap();
    assert!(lab.a.call(BlocklistList {}).await.unwrap().contains(&fenced));
    // The capabilities `profile rbd` let a client fence, but not unfence.
    assert_eq!(kind(lab.a.call(BlocklistRemove { address: fenced.clone() }).await), RbdErrorKind::Permission);
}

#[tokio::test]
async fn images() {
    let lab = lab();
    let a = &lab.a;
    let (pool, image) = (v(), name("image"));
    let create =
        ImageCreate { pool: v(), image: image.clone(), size: 16 * MIB, order: 22, features: FEATURES };
    a.call(create.clone()).await.unwrap();
    assert_eq!(kind(a.call(create).await), RbdErrorKind::Exists);
    let stat = ImageStat { pool: v(), image: image.clone() };
    let info = a.call(stat.clone()).await.unwrap();
    assert_eq!((info.size, info.order, info.features, info.stripe_unit), (16 * MIB, 22, FEATURES, 4 * MIB));
    assert_eq!((info.op_features, info.parent), (0, None));
    assert!(a.call(ImageList { pool: v() }).await.unwrap().contains(&image));

    let write =
        |offset, data: &[u8]| ImageWrite { pool: v(), image: image.clone(), offset, data: data.to_vec() };
    let read = |offset, length| ImageRead { pool: v(), image: image.clone(), snap: None, offset, length };
    a.call(write(MIB, b"scoria")).await.unwrap();
    assert_eq!(a.call(read(MIB, 6)).await.unwrap(), b"scoria");
    assert_eq!(kind(a.call(write(16 * MIB - 2, b"scoria")).await), RbdErrorKind::Invalid);
    assert_eq!(a.call(read(16 * MIB - 2, 6)).await.unwrap().len(), 2);

    a.call(ImageResize { pool: v(), image: image.clone(), size: 32 * MIB }).await.unwrap();
    let smaller = ImageResize { pool: v(), image: image.clone(), size: 8 * MIB };
    assert_eq!(kind(a.call(smaller).await), RbdErrorKind::Invalid);

    let lock_family = features::EXCLUSIVE_LOCK | features::OBJECT_MAP | features::FAST_DIFF;
    for enable in [false, false, true, true] {
        let change = ImageFeatures { pool: v(), image: image.clone(), features: lock_family, enable };
        a.call(change).await.unwrap();
        let now = a.call(stat.clone()).await.unwrap().features & lock_family;
        assert_eq!(now, if enable { lock_family } else { 0 });
        a.call(CheckWritable { pool: v(), image: image.clone() }).await.unwrap();
        let owners = LockOwners { pool: v(), image: image.clone() };
        assert_eq!(a.call(owners).await.unwrap(), Vec::<String>::new());
    }

    let set = |key: &str, value: &str| MetadataSet {
        pool: v(),
        image: image.clone(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    a.call(set("scoria_b", "2")).await.unwrap();
    a.call(set("scoria_a", "")).await.unwrap();
    // More than the first buffer holds.
    a.call(set("scoria_c", &"x".repeat(6000))).await.unwrap();
    let listed = a.call(MetadataList { pool: v(), image: image.clone() }).await.unwrap();
    let pairs: Vec<_> = listed.iter().map(|(k, v)| (k.as_str(), v.len())).collect();
    assert_eq!(pairs, [("scoria_a", 0), ("scoria_b", 1), ("scoria_c", 6000)]);
    let remove = MetadataRemove { pool: v(), image: image.clone(), key: "scoria_a".to_owned() };
    a.call(remove.clone()).await.unwrap();
    assert_eq!(kind(a.call(remove).await), RbdErrorKind::NotFound);

    let copy = ImageCopy {
        pool: v(),
        image: image.clone(),
        snap: None,
        dest_pool: "images".to_owned(),
        dest: image.clone(),
        features: FEATURES,
        order: 22,
    };
    a.call(copy.clone()).await.unwrap();
    assert_eq!(kind(a.call(copy.clone()).await), RbdErrorKind::Exists);
    // Another order brings no striping with it.
    let other = name("other-order");
    a.call(ImageCopy { dest: other.clone(), features: features::LAYERING, order: 23, ..copy }).await.unwrap();
    let info = a.call(ImageStat { pool: "images".to_owned(), image: other.clone() }).await.unwrap();
    assert_eq!((info.features, info.order, info.stripe_unit), (features::LAYERING, 23, 8 * MIB));
    a.call(ImageRemove { pool: "images".to_owned(), image: other }).await.unwrap();
    let copied =
        ImageRead { pool: "images".to_owned(), image: image.clone(), snap: None, offset: MIB, length: 6 };
    assert_eq!(a.call(copied).await.unwrap(), b"scoria");

    let renamed = name("renamed");
    let rename = ImageRename { pool: v(), from: image.clone(), to: renamed.clone() };
    a.call(rename.clone()).await.unwrap();
    assert_eq!(kind(a.call(rename).await), RbdErrorKind::NotFound);
    for (pool, image) in [(pool, renamed), ("images".to_owned(), image)] {
        a.call(ImageRemove { pool: pool.clone(), image: image.clone() }).await.unwrap();
        assert_eq!(kind(a.call(ImageRemove { pool, image }).await), RbdErrorKind::NotFound);
    }
}

#[tokio::test]
async fn snapshots_and_clones() {
    let lab = lab();
    let a = &lab.a;
    let (image, clone) = (name("parent"), name("clone"));
    let (s1, s2) = ("s1".to_owned(), "s2".to_owned());
    a.call(ImageCreate { pool: v(), image: image.clone(), size: 8 * MIB, order: 22, features: FEATURES })
        .await
        .unwrap();
    a.call(ImageWrite { pool: v(), image: image.clone(), offset: 0, data: b"first".to_vec() }).await.unwrap();
    let create = SnapCreate { pool: v(), image: image.clone(), snap: s1.clone() };
    a.call(create.clone()).await.unwrap();
    assert_eq!(kind(a.call(create).await), RbdErrorKind::Exists);
    a.call(ImageWrite { pool: v(), image: image.clone(), offset: 0, data: b"later".to_vec() }).await.unwrap();
    let read = ImageRead { pool: v(), image: image.clone(), snap: Some(s1.clone()), offset: 0, length: 5 };
    assert_eq!(a.call(read).await.unwrap(), b"first");
    let protect = SnapProtect { pool: v(), image: image.clone(), snap: s1.clone() };
    a.call(protect.clone()).await.unwrap();
    assert_eq!(kind(a.call(protect).await), RbdErrorKind::Busy);
    let snaps = a.call(SnapList { pool: v(), image: image.clone() }).await.unwrap();
    assert_eq!(
        (snaps.len(), snaps[0].name.as_str(), snaps[0].size, snaps[0].protected),
        (1, "s1", 8 * MIB, true)
    );

    let make = ImageClone {
        pool: v(),
        image: image.clone(),
        snap: s1.clone(),
        dest_pool: "images".to_owned(),
        dest: clone.clone(),
        features: FEATURES,
        order: 23,
    };
    a.call(make.clone()).await.unwrap();
    assert_eq!(kind(a.call(make).await), RbdErrorKind::Exists);
    let of_clone = ImageStat { pool: "images".to_owned(), image: clone.clone() };
    let info = a.call(of_clone.clone()).await.unwrap();
    let parent = Parent { pool: v(), image: image.clone(), snap: s1.clone() };
    assert_eq!((info.parent, info.order, info.features), (Some(parent), 23, FEATURES));
    let child = ImageName { pool: "images".to_owned(), image: clone.clone(), trash: false };
    for snap in [None, Some(s1.clone())] {
        let children = ImageChildren { pool: v(), image: image.clone(), snap };
        assert_eq!(a.call(children).await.unwrap(), std::slice::from_ref(&child));
    }
    let unprotect = SnapUnprotect { pool: v(), image: image.clone(), snap: s1.clone() };
    assert_eq!(kind(a.call(unprotect.clone()).await), RbdErrorKind::Busy);
    let remove = |snap: &str| SnapRemove { pool: v(), image: image.clone(), snap: snap.to_owned() };
    assert_eq!(kind(a.call(remove("s1")).await), RbdErrorKind::Busy);
    let whole = ImageRemove { pool: v(), image: image.clone() };
    assert_eq!(kind(a.call(whole.clone()).await), RbdErrorKind::HasSnapshots);

    let flatten = ImageFlatten { pool: "images".to_owned(), image: clone.clone() };
    a.call(flatten.clone()).await.unwrap();
    assert_eq!(kind(a.call(flatten).await), RbdErrorKind::Invalid);
    assert_eq!(a.call(of_clone).await.unwrap().parent, None);
    a.call(unprotect.clone()).await.unwrap();
    assert_eq!(kind(a.call(unprotect).await), RbdErrorKind::Invalid);
    let rename = SnapRename { pool: v(), image: image.clone(), from: s1, to: s2 };
    a.call(rename.clone()).await.unwrap();
    assert_eq!(kind(a.call(rename).await), RbdErrorKind::NotFound);
    a.call(remove("s2")).await.unwrap();
    assert_eq!(kind(a.call(remove("s2")).await), RbdErrorKind::NotFound);
    a.call(whole).await.unwrap();
    a.call(ImageRemove { pool: "images".to_owned(), image: clone }).await.unwrap();
}

#[tokio::test]
async fn trash() {
    let lab = lab();
    let a = &lab.a;
    let image = name("trashed");
    for delay in [0, 3] {
        a.call(ImageCreate { pool: v(), image: image.clone(), size: MIB, order: 22, features: FEATURES })
            .await
            .unwrap();
        let to_trash = TrashMove { pool: v(), image: image.clone(), delay };
        a.call(to_trash.clone()).await.unwrap();
        assert_eq!(kind(a.call(to_trash).await), RbdErrorKind::NotFound);
        let entries = a.call(TrashList { pool: v() }).await.unwrap();
        let entry = entries.into_iter().find(|e| e.name == image).unwrap();
        assert!(entry.deferment_end > 1_700_000_000);
        let remove = TrashRemove { pool: v(), id: entry.id };
        if delay > 0 {
            // Its time has not come: passes by itself.
            assert_eq!(kind(a.call(remove.clone()).await), RbdErrorKind::Busy);
        }
        eventually("removal from the trash", async || a.call(remove.clone()).await).await;
        assert_eq!(kind(a.call(remove).await), RbdErrorKind::NotFound);
    }
}

/// What a client leaves that dies in the midst of making or removing an image.
#[tokio::test]
async fn half_an_image_is_a_name_that_is_taken_cannot_be_opened_and_can_be_removed() {
    const CUT: &str = "
import rados, sys
cluster = rados.Rados(conffile=sys.argv[1], rados_id='cinder'); cluster.connect()
cluster.open_ioctx('volumes').remove_object('rbd_header.' + sys.argv[2])
";
    let a = &lab().a;
    let image = name("half");
    let create = ImageCreate { pool: v(), image: image.clone(), size: MIB, order: 22, features: FEATURES };
    let stat = ImageStat { pool: v(), image: image.clone() };
    let remove = ImageRemove { pool: v(), image: image.clone() };
    a.call(create.clone()).await.unwrap();
    let id = a.call(stat.clone()).await.unwrap().id;
    let cut =
        Process::new("/usr/bin/python3").args(["-c", CUT]).arg(conf("SITE_A_CONF")).arg(id).status().unwrap();
    assert!(cut.success(), "python3-rados must be installed");
    assert!(a.call(ImageList { pool: v() }).await.unwrap().contains(&image));
    assert_eq!(kind(a.call(stat.clone()).await), RbdErrorKind::NotFound);
    assert_eq!(kind(a.call(create.clone()).await), RbdErrorKind::Exists);
    a.call(remove.clone()).await.unwrap();
    assert!(!a.call(ImageList { pool: v() }).await.unwrap().contains(&image));
    a.call(create).await.unwrap();
    assert_eq!(a.call(stat).await.unwrap().size, MIB);
    a.call(remove).await.unwrap();
}

#[tokio::test]
async fn a_lock_that_is_not_given_up_is_seen_and_can_be_broken() {
    const HOLDER: &str = "
import rados, rbd, sys
cluster = rados.Rados(conffile=sys.argv[1], rados_id='cinder'); cluster.connect()
image = rbd.Image(cluster.open_ioctx('volumes'), sys.argv[2])
image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
print('locked', flush=True); sys.stdin.read()
";
    let lab = lab();
    let a = &lab.a;
    let image = name("locked");
    a.call(ImageCreate { pool: v(), image: image.clone(), size: MIB, order: 22, features: FEATURES })
        .await
        .unwrap();
    let mut holder = Process::new("/usr/bin/python3")
        .args(["-c", HOLDER])
        .arg(conf("SITE_A_CONF"))
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n", "python3-rbd must be installed");

    let watchers = a.call(ImageWatchers { pool: v(), image: image.clone() }).await.unwrap();
    let owners = a.call(LockOwners { pool: v(), image: image.clone() }).await.unwrap();
    assert_eq!(owners, [watchers[0].address.as_str()]);
    let writable = CheckWritable { pool: v(), image: image.clone() };
    assert_eq!(kind(a.call(writable.clone()).await), RbdErrorKind::ReadOnly);
    assert_eq!(kind(a.call(ImageRemove { pool: v(), image: image.clone() }).await), RbdErrorKind::Busy);
    let lock_break = LockBreak { pool: v(), image: image.clone(), owner: owners[0].clone() };
    a.call(lock_break).await.unwrap();
    a.call(writable).await.unwrap();
    assert!(a.call(BlocklistList {}).await.unwrap().contains(&owners[0]));
    drop(holder.stdin.take());
    holder.kill().unwrap();
    holder.wait().unwrap();
    eventually("the watch of a killed client ends", async || {
        a.call(ImageRemove { pool: v(), image: image.clone() }).await
    })
    .await;
}

#[tokio::test]
async fn mirroring_of_a_pool() {
    let lab = lab();
    assert_eq!(lab.a.call(MirrorPoolMode { pool: v() }).await.unwrap(), PoolMirrorMode::Image);
    let backups = MirrorPoolMode { pool: "backups".to_owned() };
    assert_eq!(lab.a.call(backups).await.unwrap(), PoolMirrorMode::Disabled);
}
