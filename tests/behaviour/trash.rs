//! The trash.

use super::*;

fn bin(env: &Env, image: &str, delay: u64) -> TrashMove {
    TrashMove { pool: env.pool.clone(), image: image.into(), delay }
}

fn purge(env: &Env, id: &str) -> TrashRemove {
    TrashRemove { pool: env.pool.clone(), id: id.into() }
}

pub async fn move_list_remove(env: &Env) -> Case {
    let image = env.image("i").await?;
    let id = env.a.call(env.stat(&image)).await?.id;
    env.a.call(bin(env, &image, 0)).await?;
    ensure!(env.names(&env.a).await?.is_empty(), "not listed any more");
    refused(Kind::NotFound, env.a.call(env.stat(&image)).await)?;
    refused(Kind::NotFound, env.a.call(bin(env, &image, 0)).await)?;
    let trash = env.trash(&env.a).await?;
    ensure!(trash.len() == 1 && trash[0].id == id && trash[0].name == image, "{trash:?}");
    env.a.call(purge(env, &id)).await?;
    refused(Kind::NotFound, env.a.call(purge(env, &id)).await)
}

pub async fn deferment(env: &Env) -> Case {
    // Short, so that the case can clean up after itself.
    let image = env.image("i").await?;
    env.a.call(bin(env, &image, 5)).await?;
    let entry = env.trash(&env.a).await?.pop().context("an entry")?;
    refused_as_one_of(&[Kind::Busy, Kind::Permission], env.a.call(purge(env, &entry.id)).await)?;
    env.eventually("removal after the deferment", async || env.a.call(purge(env, &entry.id)).await.map(Some))
        .await
}

pub async fn keeps_parent_of_clone(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"kept").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    env.a.call(bin(env, &image, 0)).await.context("an image with children may go to the trash")?;
    let entry = env.trash(&env.a).await?.pop().context("an entry")?;
    refused(Kind::HasSnapshots, env.a.call(purge(env, &entry.id)).await)?;
    ensure!(env.read(&env.a, &clone, None, 4).await? == b"kept", "read through");
    let parent = env.a.call(env.stat(&clone)).await?.parent.context("a parent")?;
    ensure!(parent.image == image, "{parent:?}");
    Ok(())
}

pub async fn child_counts_as_child(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"x").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    env.a.call(bin(env, &clone, 0)).await?;
    let (pool, snap) = (env.pool.clone(), "s".to_owned());
    let children = ImageChildren { pool: pool.clone(), image: image.clone(), snap: None };
    let children = env.a.call(children).await?;
    ensure!(children == [ImageName { pool: pool.clone(), image: clone, trash: true }], "{children:?}");
    let unprotect = || SnapUnprotect { pool: pool.clone(), image: image.clone(), snap: snap.clone() };
    refused(Kind::Busy, env.a.call(unprotect()).await)?;
    let entry = env.trash(&env.a).await?.pop().context("an entry")?;
    env.a.call(purge(env, &entry.id)).await?;
    env.a.call(unprotect()).await?;
    Ok(())
}

pub async fn name_is_free_again(env: &Env) -> Case {
    let image = env.image("i").await?;
    env.a.call(bin(env, &image, 0)).await?;
    env.a.call(env.create(&image)).await?;
    env.a.call(bin(env, &image, 0)).await?;
    let trash = env.trash(&env.a).await?;
    ensure!(trash.len() == 2 && trash[0].id != trash[1].id, "{trash:?}");
    Ok(())
}

/// What lies in the trash has no name, and goes by its id.
pub async fn image_goes_by_its_id(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"kept").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    let id = env.a.call(env.stat(&image)).await?.id;
    env.a.call(bin(env, &image, 0)).await?;
    let (pool, name) = (env.pool.clone(), in_trash(&id));
    let found = env.a.call(ImageInspect { pool: pool.clone(), image: name.clone() }).await?;
    ensure!(found.info.id == id && found.info.size == SIZE && found.snaps.len() == 1, "{found:?}");
    let images = vec![name.clone(), in_trash("0123456789ab")];
    let seen = env.a.call(ImageSurvey { pool: pool.clone(), images }).await?;
    ensure!(seen[0].as_ref().is_some_and(|s| s.size == SIZE) && seen[1].is_none(), "{seen:?}");
    let children = ImageChildren { pool: pool.clone(), image: name.clone(), snap: None };
    ensure!(env.a.call(children).await?.len() == 1, "the clone");
    ensure!(env.a.call(SyncPointsRemove { pool: pool.clone(), image: name }).await? == 0, "no sync points");
    let nobody = ImageInspect { pool, image: in_trash("0123456789ab") };
    refused(Kind::NotFound, env.a.call(nobody).await)
}

/// A clone that waits in the trash does not hold its parent's snapshot for ever.
pub async fn clone_is_flattened_there(env: &Env) -> Case {
    let (image, clone) = (env.parent("i", b"kept").await?, env.name("clone"));
    env.a.call(env.clone_of(&image, &clone)).await?;
    let id = env.a.call(env.stat(&clone)).await?.id;
    env.a.call(bin(env, &clone, 0)).await?;
    env.a.call(ImageFlatten { pool: env.pool.clone(), image: in_trash(&id) }).await?;
    let (pool, snap) = (env.pool.clone(), "s".to_owned());
    env.a.call(SnapUnprotect { pool, image, snap }).await?;
    ensure!(env.read(&env.a, &in_trash(&id), None, 4).await? == b"kept", "its own data");
    env.a.call(purge(env, &id)).await?;
    Ok(())
}

pub async fn restore(env: &Env) -> Case {
    let image = env.image("i").await?;
    env.write(&env.a, &image, 0, b"kept").await?;
    let id = env.a.call(env.stat(&image)).await?.id;
    env.a.call(bin(env, &image, 600)).await?;
    let back = |id: &str| TrashRestore { pool: env.pool.clone(), id: id.into(), name: image.clone() };
    env.a.call(env.create(&image)).await?;
    refused(Kind::Exists, env.a.call(back(&id)).await)?;
    env.a.call(env.remove(&image)).await?;
    env.a.call(back(&id)).await?;
    ensure!(env.a.call(env.stat(&image)).await?.id == id, "the same image");
    ensure!(env.read(&env.a, &image, None, 4).await? == b"kept", "with its data");
    ensure!(env.trash(&env.a).await?.is_empty(), "and no longer in the trash");
    refused(Kind::NotFound, env.a.call(back(&id)).await)
}
