//! What backups by mirroring rest on: a journal that says which copies are whole, pins in another pool, and checksums that
//! are computed where the data is.

use scoria::rbd::sums::PIECE;

use super::*;

/// The daemon of a copy notes in the journal of the primary when its first copy has come through.
pub async fn a_journal_tells_which_copies_are_whole(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Journal, b"before").await?;
    let ask = |image: &str| JournalPeers { pool: env.pool.clone(), image: image.into() };
    let whole = async || -> Result<Option<String>, RbdError> {
        let copy = env.b.call(env.stat(&image)).await?.id;
        let peers = env.a.call(ask(&image)).await?;
        let of_it = peers.into_iter().find(|p| p.image_id == copy && p.synced);
        Ok(of_it.map(|p| p.image_id))
    };
    env.eventually("the copy is whole", whole).await?;
    let plain = env.image("plain").await?;
    ensure!(env.a.call(ask(&plain)).await?.is_empty());
    let by_snapshots = env.mirrored("s", MirrorMode::Snapshot, b"x").await?;
    ensure!(env.a.call(ask(&by_snapshots)).await?.is_empty());
    refused(Kind::NotFound, env.a.call(ask(&env.name("none"))).await)
}

/// Checksums of a pin in another pool, computed in parts, are those of what it holds.
pub async fn checksums_of_a_pin(env: &Env) -> Case {
    let image = env.mirrored("i", MirrorMode::Snapshot, b"before").await?;
    env.write(&env.a, &image, 2 * PIECE + 5, b"more").await?;
    env.a.call(env.snap_create(&image, "s")).await?;
    let covering = env.a.call(env.mirror_snapshot(&image)).await?;
    env.eventually("a complete copy of the mirror snapshot", async || {
        let copies = env.b.call(MirrorSnaps { pool: env.pool.clone(), image: image.clone() }).await?;
        Ok::<_, RbdError>(copies.iter().any(|s| !s.primary && s.complete && s.of >= covering).then_some(()))
    })
    .await?;
    let (pool, pin, snap) = (env.plain_pool.clone(), env.name("pin"), Some("p".to_owned()));
    let clone = ReplicaClone {
        pool: env.pool.clone(),
        image: image.clone(),
        snap: "s".into(),
        dest_pool: pool.clone(),
        dest: pin.clone(),
        features: FEATURES,
        order: 22,
    };
    env.b.call(clone).await?;
    env.b.call(SnapCreate { pool: pool.clone(), image: pin.clone(), snap: "p".into() }).await?;
    let table = env.name("sums");
    let size = env.b.call(ImageStat { pool: pool.clone(), image: pin.clone() }).await?.size;
    let begin = SumsBegin { pool: pool.clone(), table: table.clone(), parent: None, size, blank: false };
    env.b.call(begin).await?;
    let check = async |offset: u64| {
        let check = SumsCheck {
            pool: pool.clone(),
            image: pin.clone(),
            snap: snap.clone(),
            table: table.clone(),
            offset,
            budget: 1 << 30,
        };
        env.b.call(check).await
    };
    let before = check(0).await?;
    ensure!(before.compared == 0 && before.unknown > 0, "nothing is known yet: {before:?}");
    let (mut offset, mut parts) = (0, 0);
    loop {
        let fill = SumsFill {
            pool: pool.clone(),
            image: pin.clone(),
            snap: snap.clone(),
            table: table.clone(),
            offset,
            budget: PIECE,
        };
        let part = env.b.call(fill).await?;
        parts += 1;
        ensure!(part.reached > offset && part.written == 0, "{part:?}");
        if part.complete {
            break;
        }
        offset = part.reached;
    }
    ensure!(parts >= 2, "in {parts} parts");
    let after = check(0).await?;
    ensure!(after.unknown == 0 && after.compared >= 2 * PIECE && after.wrong.is_empty(), "{after:?}");
    // What is changed beneath them is found.
    env.b.call(SnapRemove { pool: pool.clone(), image: pin.clone(), snap: "p".into() }).await?;
    let write =
        ImageWrite { pool: pool.clone(), image: pin.clone(), offset: 2 * PIECE, data: b"other".to_vec() };
    env.b.call(write).await?;
    env.b.call(SnapCreate { pool: pool.clone(), image: pin.clone(), snap: "p".into() }).await?;
    ensure!(check(0).await?.wrong == [2 * PIECE]);
    env.b.call(SnapRemove { pool: pool.clone(), image: pin.clone(), snap: "p".into() }).await?;
    env.b.call(ImageRemove { pool: pool.clone(), image: pin.clone() }).await?;
    env.b.call(ObjectRemove { pool: pool.clone(), object: table.clone() }).await?;
    Ok(())
}

/// Between two images that have a point in common, what has changed since on either side is copied, and nothing else
/// looked at, whatever checksums there are.
pub async fn a_common_point_is_restored_by_what_has_changed_since(env: &Env) -> Case {
    let (here, there) = (env.image("here").await?, env.image("there").await?);
    for image in [&here, &there] {
        env.write(&env.a, image, 0, b"first").await?;
        env.write(&env.a, image, 3 * PIECE, b"second").await?;
        env.a.call(env.snap_create(image, "p")).await?;
    }
    env.write(&env.a, &there, 3 * PIECE, b"change").await?;
    let copy = DeltaCopy {
        pool: env.pool.clone(),
        image: here.clone(),
        snap: Some("p".into()),
        since: Some("p".into()),
        dest_site: env.a.connection().clone(),
        dest_pool: env.pool.clone(),
        dest: there.clone(),
        dest_since: Some("p".into()),
        offset: 0,
        budget: 1 << 30,
        at_least_s: 0,
        sums: scoria::rbd::types::Sums { write: None, expect: Some(env.name("none")) },
    };
    let copied = env.a.call(copy.clone()).await?;
    ensure!(copied.complete && copied.read == PIECE, "one piece: {copied:?}");
    let read = async |offset| {
        let (pool, image) = (env.pool.clone(), there.clone());
        env.a.call(ImageRead { pool, image, snap: None, offset, length: 6 }).await
    };
    ensure!(read(3 * PIECE).await? == b"second");
    // A part ends with its budget, and the next one begins where it ended.
    for piece in 0..4 {
        env.write(&env.a, &here, piece * PIECE, b"newest").await?;
    }
    env.a.call(env.snap_create(&here, "q")).await?;
    let mut part = DeltaCopy { snap: Some("q".into()), budget: PIECE, ..copy.clone() };
    for piece in 1..5 {
        let copied = env.a.call(part.clone()).await?;
        let ended = (copied.read, copied.reached >= piece * PIECE, copied.complete);
        ensure!(ended == (PIECE, true, piece == 4), "part {piece}: {copied:?}");
        ensure!(piece == 4 || copied.reached <= piece * PIECE, "part {piece} went too far: {copied:?}");
        part.offset = copied.reached;
        ensure!(read((piece - 1) * PIECE).await? == b"newest");
    }
    // One that is to last goes on meanwhile; in the simulator no time passes.
    let mut lasting = DeltaCopy { at_least_s: 60, budget: PIECE, ..copy };
    let mut complete = false;
    for _ in 0..4 {
        let copied = env.a.call(lasting.clone()).await?;
        (lasting.offset, complete) = (copied.reached, copied.complete);
        if complete {
            break;
        }
    }
    ensure!(complete, "it ends when there is nothing left, not when the time is over");
    ensure!(read(3 * PIECE).await? == b"second" && read(0).await? == b"first\0");
    Ok(())
}
