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
