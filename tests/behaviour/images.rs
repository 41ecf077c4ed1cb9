//! Images that are not mirrored.

use super::*;
use scoria::rbd::stream::{PART, Part};

pub async fn create_list_stat_remove(env: &Env) -> Case {
    let image = env.image("i").await?;
    ensure!(env.names(&env.a).await? == [image.clone()], "listed on A");
    ensure!(env.names(&env.b).await?.is_empty(), "not on B");
    let info = env.a.call(env.stat(&image)).await?;
    ensure!(info.size == SIZE && info.order == 22 && info.features == FEATURES, "{info:?}");
    ensure!(info.parent.is_none() && info.stripe_unit == 4 << 20 && info.op_features == 0, "{info:?}");
    ensure!(!info.id.is_empty(), "{info:?}");
    env.a.call(env.remove(&image)).await?;
    ensure!(env.names(&env.a).await?.is_empty(), "gone");
    refused(Kind::NotFound, env.a.call(env.remove(&image)).await)
}

pub async fn create_twice(env: &Env) -> Case {
    let image = env.image("i").await?;
    env.write(&env.a, &image, 0, b"first").await?;
    refused(Kind::Exists, env.a.call(env.create(&image)).await)?;
    let id = env.a.call(ImageId { pool: env.pool.clone(), image: image.clone() }).await?;
    ensure!(id == env.a.call(env.stat(&image)).await?.id, "{id}");
    ensure!(env.read(&env.a, &image, None, 5).await? == b"first", "the first one is left alone");
    Ok(())
}

pub async fn create_refusals(env: &Env) -> Case {
    let with = |what: &str, features: u64| ImageCreate { features, ..env.create(&env.name(what)) };
    refused(Kind::Invalid, env.a.call(with("map", 1 | features::OBJECT_MAP)).await)?;
    refused(Kind::Invalid, env.a.call(with("journal", 1 | features::JOURNALING)).await)?;
    refused(Kind::Invalid, env.a.call(env.create("")).await)?;
    // Fast-diff without object-map is dropped, not refused.
    env.a.call(with("diff", 1 | features::EXCLUSIVE_LOCK | features::FAST_DIFF)).await?;
    let features = env.a.call(env.stat(&env.name("diff"))).await?.features;
    ensure!(features == 1 | features::EXCLUSIVE_LOCK, "features {features}");
    env.a.call(ImageCreate { size: 0, ..env.create(&env.name("empty")) }).await?;
    Ok(())
}

pub async fn missing(env: &Env) -> Case {
    let image = env.name("nothing");
    let (p, i) = (|| env.pool.clone(), || image.clone());
    refused(Kind::NotFound, env.a.call(env.stat(&image)).await)?;
    refused(Kind::NotFound, env.a.call(env.inspect(&image)).await)?;
    refused(Kind::NotFound, env.a.call(ImageId { pool: p(), image: i() }).await)?;
    refused(Kind::NotFound, env.a.call(ImageResize { pool: p(), image: i(), size: SIZE }).await)?;
    refused(Kind::NotFound, env.a.call(ImageRename { pool: p(), from: i(), to: env.name("other") }).await)?;
    refused(Kind::NotFound, env.a.call(ImageFlatten { pool: p(), image: i() }).await)?;
    refused(Kind::NotFound, env.a.call(ImageChildren { pool: p(), image: i(), snap: None }).await)?;
    refused(Kind::NotFound, env.a.call(ImageWatchers { pool: p(), image: i() }).await)?;
    refused(Kind::NotFound, env.a.call(MetadataList { pool: p(), image: i() }).await)?;
    refused(Kind::NotFound, env.snaps(&env.a, &image).await)?;
    refused(Kind::NotFound, env.a.call(env.snap_create(&image, "s")).await)?;
    refused(Kind::NotFound, env.a.call(env.clone_of(&image, &env.name("clone"))).await)?;
    refused(Kind::NotFound, env.a.call(TrashMove { pool: p(), image: i(), delay: 0 }).await)?;
    refused(Kind::NotFound, env.a.call(env.check_writable(&image)).await)?;
    refused(Kind::NotFound, env.read(&env.a, &image, None, 1).await)?;
    refused(Kind::NotFound, env.a.call(env.info(&image)).await)?;
    refused(Kind::NotFound, env.a.call(env.enable(&image, MirrorMode::Journal)).await)?;
    refused(Kind::NotFound, env.a.call(env.promote(&image, true)).await)?;
    refused(Kind::NotFound, env.a.call(env.demote(&image)).await)
}

pub async fn resize(env: &Env) -> Case {
    let image = env.image("i").await?;
    let to = |size: u64| ImageResize { pool: env.pool.clone(), image: image.clone(), size };
    env.a.call(to(2 * SIZE)).await?;
    env.a.call(to(2 * SIZE)).await.context("to the size that it has")?;
    ensure!(env.a.call(env.stat(&image)).await?.size == 2 * SIZE, "size");
    refused(Kind::Invalid, env.a.call(to(SIZE)).await)?;
    ensure!(env.a.call(env.stat(&image)).await?.size == 2 * SIZE, "not shrunk");
    Ok(())
}

pub async fn rename(env: &Env) -> Case {
    let (one, two) = (env.image("one").await?, env.image("two").await?);
    env.write(&env.a, &one, 0, b"one").await?;
    let rename =
        |from: &str, to: &str| ImageRename { pool: env.pool.clone(), from: from.into(), to: to.into() };
    refused(Kind::Exists, env.a.call(rename(&one, &two)).await)?;
    refused(Kind::Exists, env.a.call(rename(&one, &one)).await)?;
    let three = env.name("three");
    env.a.call(rename(&one, &three)).await?;
    refused(Kind::NotFound, env.a.call(rename(&one, &three)).await)?;
    ensure!(env.read(&env.a, &three, None, 3).await? == b"one", "data goes along");
    Ok(())
}

pub async fn read_write(env: &Env) -> Case {
    let image = env.image("i").await?;
    let read = |offset: u64, length: u64| ImageRead {
        pool: env.pool.clone(),
        image: image.clone(),
        snap: None,
        offset,
        length,
    };
    ensure!(env.a.call(read(0, 16)).await? == [0; 16], "new images read as zeros");
    env.write(&env.a, &image, 4_194_300, b"across objects").await?;
    ensure!(env.a.call(read(4_194_298, 18)).await? == b"\0\0across objects\0\0", "read back");
    ensure!(env.a.call(read(SIZE - 2, 10)).await?.len() == 2, "a read ends with the image");
    refused(Kind::Invalid, env.write(&env.a, &image, SIZE + 1, b"x").await)?;
    refused(Kind::Invalid, env.a.call(read(SIZE + 1, 1)).await)
}

pub async fn copy(env: &Env) -> Case {
    let image = env.parent("i", b"old").await?;
    env.write(&env.a, &image, 0, b"new").await?;
    let copy = |snap: Option<&str>, dest: &str| ImageCopy {
        pool: env.pool.clone(),
        image: image.clone(),
        snap: snap.map(str::to_owned),
        dest_pool: env.pool.clone(),
        dest: dest.to_owned(),
        features: 1,
        order: 23,
    };
    let (head, snap) = (env.name("head"), env.name("snap"));
    env.a.call(copy(None, &head)).await?;
    env.a.call(copy(Some("s"), &snap)).await?;
    ensure!(env.read(&env.a, &head, None, 3).await? == b"new", "of the head");
    ensure!(env.read(&env.a, &snap, None, 3).await? == b"old", "of the snapshot");
    let info = env.a.call(env.stat(&snap)).await?;
    // The copy keeps the source's stripe unit: with larger objects that needs the striping feature (2).
    let features = info.features & !2;
    ensure!(info.parent.is_none() && features == 1 && info.order == 23 && info.size == SIZE, "{info:?}");
    ensure!(env.snaps(&env.a, &head).await?.is_empty(), "snapshots are not copied");
    refused(Kind::Exists, env.a.call(copy(None, &head)).await)
}

pub async fn switch_features(env: &Env) -> Case {
    use features::*;
    let image = env.image("i").await?;
    let switch = |features: u64, enable: bool| ImageFeatures {
        pool: env.pool.clone(),
        image: image.clone(),
        features,
        enable,
    };
    for on in [true, false] {
        env.a.call(switch(JOURNALING, on)).await?;
        env.a.call(switch(JOURNALING, on)).await.context("what is so already is left alone")?;
    }
    refused(Kind::Invalid, env.a.call(switch(EXCLUSIVE_LOCK, false)).await)?;
    refused(Kind::Invalid, env.a.call(switch(LAYERING, false)).await)?;
    env.a.call(switch(EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF, false)).await?;
    let now = env.a.call(env.stat(&image)).await?.features;
    ensure!(now == LAYERING | DEEP_FLATTEN, "features {now}");
    refused(Kind::Invalid, env.a.call(switch(JOURNALING, true)).await)?;
    refused(Kind::Invalid, env.a.call(switch(OBJECT_MAP, true)).await)?;
    env.a.call(switch(EXCLUSIVE_LOCK | JOURNALING, true)).await?;
    Ok(())
}

pub async fn metadata(env: &Env) -> Case {
    let image = env.image("i").await?;
    let list = || MetadataList { pool: env.pool.clone(), image: image.clone() };
    let set = |key: &str, value: &str| MetadataSet {
        pool: env.pool.clone(),
        image: image.clone(),
        key: key.into(),
        value: value.into(),
    };
    let remove = |key: &str| MetadataRemove { pool: env.pool.clone(), image: image.clone(), key: key.into() };
    ensure!(env.a.call(list()).await?.is_empty(), "none at first");
    env.a.call(set("scoria", "1")).await?;
    env.a.call(set("scoria", "2")).await.context("overwritten")?;
    env.a.call(set("conf_rbd_qos_iops_limit", "100")).await?;
    let mut all = env.a.call(list()).await?;
    all.sort();
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    ensure!(all == [pair("conf_rbd_qos_iops_limit", "100"), pair("scoria", "2")], "{all:?}");
    refused(Kind::Invalid, env.a.call(set("conf_rbd_nonsense", "1")).await)?;
    env.a.call(remove("scoria")).await?;
    refused(Kind::NotFound, env.a.call(remove("scoria")).await)
}

pub async fn idle(env: &Env) -> Case {
    let image = env.image("i").await?;
    let (p, i) = (|| env.pool.clone(), || image.clone());
    ensure!(env.a.call(ImageWatchers { pool: p(), image: i() }).await?.is_empty(), "nobody watches");
    env.a.call(env.check_writable(&image)).await?;
    env.a.call(env.check_writable(&image)).await.context("again: the lock was given back")?;
    let owners = env.a.call(LockOwners { pool: p(), image: i() }).await?;
    ensure!(owners.is_empty(), "nobody holds the lock: {owners:?}");
    let owner = "192.0.2.1:0/1".to_owned();
    refused(Kind::NotFound, env.a.call(LockBreak { pool: p(), image: i(), owner }).await)
}

pub async fn survey(env: &Env) -> Case {
    let (plain, parent) = (env.image("plain").await?, env.parent("parent", b"x").await?);
    let images = vec![parent.clone(), env.name("missing"), plain.clone()];
    let all = env.a.call(ImageSurvey { pool: env.pool.clone(), images }).await?;
    let [Some(first), None, Some(last)] = all.as_slice() else { bail!("{all:?}") };
    ensure!(first.snaps == env.snaps(&env.a, &parent).await? && first.snaps.len() == 1, "{first:?}");
    ensure!((last.size, last.watchers, last.snaps.len()) == (SIZE, 0, 0), "{last:?}");
    let none = env.a.call(ImageSurvey { pool: env.pool.clone(), images: vec![] }).await?;
    ensure!(none.is_empty(), "{none:?}");
    let images = vec![plain];
    refused(Kind::NoPool, env.a.call(ImageSurvey { pool: env.name("no-pool"), images }).await)
}

pub async fn copy_keeps_metadata(env: &Env) -> Case {
    let (image, dest) = (env.image("i").await?, env.name("copy"));
    let (pool, key) = (env.pool.clone(), "conf_rbd_qos_iops_limit".to_owned());
    let set = MetadataSet { pool: pool.clone(), image: image.clone(), key: key.clone(), value: "500".into() };
    env.a.call(set).await?;
    let copy = ImageCopy {
        pool: pool.clone(),
        image,
        snap: None,
        dest_pool: env.plain_pool.clone(),
        dest: dest.clone(),
        features: FEATURES,
        order: 22,
    };
    env.a.call(copy).await?;
    let list = MetadataList { pool: env.plain_pool.clone(), image: dest };
    let metadata = env.a.call(list).await?;
    ensure!(metadata.contains(&(key, "500".to_owned())), "{metadata:?}");
    Ok(())
}

/// From a clone on one cluster into an image on another, in two parts, twice.
pub async fn transfer(env: &Env) -> Case {
    let parent = env.parent("parent", b"of the parent").await?;
    let (image, dest) = (env.name("child"), env.name("dest"));
    env.a.call(env.clone_of(&parent, &image)).await?;
    env.write(&env.a, &image, SIZE - 8, b"the end.").await?;
    let create = ImageCreate { pool: env.plain_pool.clone(), ..env.create(&dest) };
    env.b.call(create).await?;
    let part = |offset: u64, length: u64| ImageTransfer {
        pool: env.pool.clone(),
        image: image.clone(),
        dest_site: env.b.connection().clone(),
        dest_pool: env.plain_pool.clone(),
        dest: dest.clone(),
        offset,
        length,
    };
    let half = SIZE / 2;
    for _time in 0..2 {
        let written = env.a.call(part(0, half)).await? + env.a.call(part(half, SIZE)).await?;
        ensure!(written >= 21 && written < half, "{written} bytes written of {SIZE}");
    }
    let read = |offset: u64, length: u64| ImageRead {
        pool: env.plain_pool.clone(),
        image: dest.clone(),
        snap: None,
        offset,
        length,
    };
    ensure!(env.b.call(read(0, 13)).await? == b"of the parent", "data of the parent");
    ensure!(env.b.call(read(SIZE - 8, 8)).await? == b"the end.", "its own");
    let middle = env.b.call(read(half, 4096)).await?;
    ensure!(middle.iter().all(|b| *b == 0), "zeros stay zeros");
    refused(Kind::NotFound, env.a.call(ImageTransfer { dest: env.name("nothing"), ..part(0, half) }).await)?;
    refused(Kind::NotFound, env.a.call(ImageTransfer { image: env.name("nothing"), ..part(0, half) }).await)
}

fn import_of(env: &Env, image: &str, blank: bool) -> ImageImport {
    ImageImport { pool: env.pool.clone(), image: image.to_owned(), blank }
}

/// All parts of an export, each checked against the one before it.
async fn exported(env: &Env, command: ImageExport) -> anyhow::Result<Vec<Part>> {
    let mut export = env.a.export(command);
    let mut parts: Vec<Part> = Vec::new();
    while let Some(part) = export.next().await? {
        let before = parts.last().map_or(0, |p| p.offset + p.data.len() as u64);
        ensure!(part.offset >= before && !part.data.is_empty(), "{} after {before}", part.offset);
        ensure!(part.data.len() <= PART, "a part of {} bytes", part.data.len());
        parts.push(part);
    }
    ensure!(export.next().await?.is_none(), "it stays at its end");
    Ok(parts)
}

pub async fn import(env: &Env) -> Case {
    let image = env.image("i").await?;
    let mut data = vec![0; 5 << 20];
    data[..4].copy_from_slice(b"head");
    data[(5 << 20) - 4..].copy_from_slice(b"tail");
    let mut import = env.a.import(import_of(env, &image, true));
    import.write(0, data.into()).await?;
    import.write(SIZE - 3, b"end".to_vec().into()).await?;
    let written = import.finish().await?;
    ensure!((11..5 << 20).contains(&written), "{written} bytes written");
    let read = |offset: u64, length: u64| ImageRead {
        pool: env.pool.clone(),
        image: image.clone(),
        snap: None,
        offset,
        length,
    };
    ensure!(env.a.call(read(0, 5)).await? == b"head\0", "the first part");
    ensure!(env.a.call(read((5 << 20) - 5, 6)).await? == b"\0tail\0", "the third part");
    ensure!(env.a.call(read(SIZE - 4, 8)).await? == b"\0end", "the last bytes");
    ensure!(
        env.a.call(ImageWatchers { pool: env.pool.clone(), image: image.clone() }).await?.is_empty(),
        "the image is closed"
    );
    env.a.import(import_of(env, &image, true)).finish().await.context("of nothing")?;

    let mut over = env.a.import(import_of(env, &image, true));
    over.write(SIZE - 1, b"xy".to_vec().into()).await?;
    refused(Kind::Invalid, over.finish().await)?;
    refused(Kind::NotFound, env.a.import(import_of(env, &env.name("nothing"), true)).finish().await)?;
    let mut endless = env.a.import(import_of(env, &env.name("nothing"), true));
    let told = async {
        loop {
            endless.write(0, vec![1; PART].into()).await?;
        }
    };
    refused::<()>(Kind::NotFound, told.await)?;

    let mut given_up = env.a.import(import_of(env, &image, true));
    given_up.write(0, b"HEAD".to_vec().into()).await?;
    given_up.abandon().await;
    ensure!(
        env.a.call(ImageWatchers { pool: env.pool.clone(), image: image.clone() }).await?.is_empty(),
        "an abandoned session closes the image"
    );
    env.a.call(env.remove(&image)).await?;
    Ok(())
}

pub async fn import_over(env: &Env) -> Case {
    let parent = env.parent("parent", b"of the parent").await?;
    let image = env.name("i");
    env.a.call(env.clone_of(&parent, &image)).await?;
    env.write(&env.a, &image, 1 << 20, &[7; 4096]).await?;
    env.write(&env.a, &image, 4 << 20, b"between").await?;
    env.write(&env.a, &image, SIZE - 4, b"end.").await?;
    let mut whole = vec![0; usize::try_from(SIZE)?];
    whole[2 << 20] = 9;
    whole[(5 << 20) + 1] = 8;
    let mut import = env.a.import(import_of(env, &image, false));
    // Zeros that are sent, and some that are not.
    import.write(1 << 20, whole[1 << 20..3 << 20].to_vec().into()).await?;
    import.write(5 << 20, whole[5 << 20..(5 << 20) + 2].to_vec().into()).await?;
    import.finish().await?;
    let read =
        ImageRead { pool: env.pool.clone(), image: image.clone(), snap: None, offset: 0, length: SIZE };
    ensure!(env.a.call(read).await? == whole, "nothing is left of what was there");
    Ok(())
}

pub async fn export(env: &Env) -> Case {
    let parent = env.parent("parent", b"of the parent").await?;
    let image = env.name("i");
    env.a.call(env.clone_of(&parent, &image)).await?;
    env.write(&env.a, &image, SIZE - 4, b"end.").await?;
    env.a.call(env.snap_create(&image, "then")).await?;
    env.write(&env.a, &image, 5 << 20, b"later").await?;
    let all = |snap: Option<&str>| ImageExport {
        pool: env.pool.clone(),
        image: image.clone(),
        snap: snap.map(str::to_owned),
        offset: 0,
        length: u64::MAX,
    };
    let assemble = |parts: &[Part]| {
        let mut whole = vec![0; usize::try_from(SIZE).unwrap_or(0)];
        for part in parts {
            let at = usize::try_from(part.offset).unwrap_or(0);
            whole[at..at + part.data.len()].copy_from_slice(&part.data);
        }
        whole
    };
    let parts = exported(env, all(None)).await?;
    let whole = assemble(&parts);
    ensure!(whole.starts_with(b"of the parent\0") && whole.ends_with(b"\0end."), "both ends");
    ensure!(whole[5 << 20..].starts_with(b"later\0"), "the middle");
    ensure!(parts.iter().map(|p| p.data.len()).sum::<usize>() < whole.len(), "zeros are left out");
    let then = assemble(&exported(env, all(Some("then"))).await?);
    ensure!(then[5 << 20..].starts_with(b"\0\0\0\0\0") && then.ends_with(b"end."), "of the snapshot");
    let some = exported(env, ImageExport { offset: 3, length: 4, ..all(None) }).await?;
    ensure!(some == [Part { offset: 3, data: b"the "[..].into() }], "{some:?}");
    ensure!(exported(env, ImageExport { offset: SIZE, ..all(None) }).await?.is_empty(), "nothing behind it");
    refused(Kind::NotFound, env.a.export(ImageExport { image: env.name("none"), ..all(None) }).next().await)?;
    refused(Kind::NotFound, env.a.export(all(Some("never"))).next().await)?;
    drop(env.a.export(all(None)));
    Ok(())
}
