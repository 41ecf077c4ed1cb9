//! Commands that are about the cluster.

use super::*;

pub async fn probes_answer(env: &Env) -> Case {
    let fsid = env.a.call(ProbeMon {}).await?;
    ensure!(fsid == env.a.call(Fsid {}).await?, "the probe answers the fsid");
    ensure!(fsid != env.b.call(ProbeMon {}).await?, "the sites are different clusters");
    for pool in [&env.pool, &env.plain_pool] {
        env.a.call(ProbeOsd { pool: pool.clone() }).await?;
    }
    let images = env.a.call(ImageList { pool: env.pool.clone() }).await?;
    ensure!(!images.iter().any(|i| i.contains("probe")), "the probe leaves no image behind");
    Ok(())
}

pub async fn fsid_monitors_and_capacity(env: &Env) -> Case {
    ensure!(env.a.call(Fsid {}).await?.len() == 36, "an fsid is a UUID");
    let monitors = env.a.call(MonDump {}).await?;
    ensure!(!monitors.is_empty(), "no monitors");
    for address in monitors {
        let (socket, nonce) = address.rsplit_once('/').context("addr is ip:port/nonce")?;
        let port = socket.rsplit_once(':').context("addr has a port")?.1;
        ensure!(port.parse::<u16>().is_ok() && nonce.parse::<u64>().is_ok(), "{address}");
    }
    let stats = env.a.call(PoolStats { pool: env.pool.clone() }).await?;
    ensure!(stats.cluster_total > 0 && stats.max_avail > 0 && stats.quota == 0, "{stats:?}");
    ensure!(stats.max_avail <= stats.cluster_total, "{stats:?}");
    Ok(())
}

pub async fn blocklist(env: &Env) -> Case {
    let mine = env.a.call(ClientAddress {}).await?;
    ensure!(mine.contains(':') && mine.contains('/'), "{mine} is not ip:port/nonce");
    let address = "192.0.2.1:0/4711".to_owned();
    env.a.call(BlocklistAdd { address: address.clone(), seconds: 60 }).await?;
    env.a.call(BlocklistAdd { address: address.clone(), seconds: 60 }).await.context("repeated")?;
    let all = env.a.call(BlocklistList {}).await?;
    ensure!(all.contains(&address) && !all.contains(&mine), "{all:?}");
    let entries = env.a.call(BlocklistEntries {}).await?;
    let entry = entries.iter().find(|e| e.address == address).context("listed with its end")?;
    ensure!(!entry.until.is_empty() && entries.len() == all.len(), "{entries:?}");
    // `profile rbd` allows the adding of entries, not their removal.
    match env.a.call(BlocklistRemove { address: address.clone() }).await {
        Ok(()) => ensure!(!env.a.call(BlocklistList {}).await?.contains(&address), "still listed"),
        removal => refused(Kind::Permission, removal)?,
    }
    Ok(())
}

pub async fn status(env: &Env) -> Case {
    let status = env.a.call(ClusterStatus {}).await?;
    ensure!(status.fsid == env.a.call(Fsid {}).await?, "{status:?}");
    ensure!(
        status.version.starts_with(|c: char| c.is_ascii_digit()) && status.version.contains('.'),
        "{status:?}"
    );
    ensure!(status.health.starts_with("HEALTH_") && !status.monitors.is_empty(), "{status:?}");
    for monitor in &status.monitors {
        ensure!(
            monitor.starts_with("[v2:") && monitor.contains(",v1:") && monitor.ends_with(']'),
            "{monitor}"
        );
    }
    let pool = status.pools.iter().find(|p| p.name == env.pool).context("the pool is listed")?;
    ensure!(!pool.erasure && pool.size >= 1 && pool.min_size >= 1, "{pool:?}");
    ensure!(pool.applications == ["rbd"], "{pool:?}");
    Ok(())
}

/// Of the client that backends use, as `profile rbd` makes it.
pub async fn rights(env: &Env) -> Case {
    let rights = env.a.call(ClientRights { user: "cinder".into() }).await?;
    ensure!(!rights.reads_keys && rights.caps.is_none(), "{rights:?}");
    for pool in [&env.pool, &env.plain_pool] {
        let access = env.a.call(PoolAccess { pool: pool.clone() }).await?;
        ensure!(access.read && access.write, "{pool}: {access:?}");
    }
    refused(Kind::NoPool, env.a.call(PoolAccess { pool: "bt-no-such-pool".into() }).await)?;
    let images = env.a.call(ImageList { pool: env.pool.clone() }).await?;
    ensure!(!images.iter().any(|i| i.contains("no-such")), "nothing was made");
    Ok(())
}

pub async fn conf_get(env: &Env) -> Case {
    let option = |option: &str| ConfGet { option: option.to_owned() };
    let features = env.a.call(option("rbd_default_features")).await?.context("unset")?;
    ensure!(features == "61", "{features}");
    ensure!(env.a.call(option("rbd_no_such_option")).await?.is_none(), "an unknown option is None");
    Ok(())
}

pub async fn missing_pool(env: &Env) -> Case {
    let pool = || "bt-no-such-pool".to_owned();
    // "No such pool" is told apart from "no such image" by kind where that exists; both are ENOENT.
    let check = |errno: Option<i32>| -> Case {
        ensure!(errno == Some(2), "ENOENT was due, came {errno:?}");
        Ok(())
    };
    check(env.a.call(ImageList { pool: pool() }).await.err().map(|e| e.errno))?;
    check(env.a.call(ImageStat { pool: pool(), image: "x".into() }).await.err().map(|e| e.errno))?;
    check(env.a.call(ProbeOsd { pool: pool() }).await.err().map(|e| e.errno))?;
    check(env.a.call(MirrorInfoMany { pool: pool(), images: vec![] }).await.err().map(|e| e.errno))
}
