//! The behaviour suite on the simulator and on real Ceph.
//!
//! The environment of the real run: `SITE_A_CONF` and `SITE_B_CONF` (ceph.conf of each site, else the lab's),
//! `SITE_USER` (default `cinder`), `SITE_POOL` (mirrored both ways, default `volumes`), `SITE_PLAIN_POOL`
//! (not mirrored, default `backups`). A real case mostly waits for rbd-mirror, so several run at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod behaviour;
#[path = "common/env.rs"]
mod env;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use behaviour::{Case, Env};
use scoria::rbd::pool::{Settings, WorkerPool};
use scoria::rbd::sim::{Sim, SimConfig};
use scoria::rbd::{Ceph, Connection, Site};

/// Runs a case with the simulator behind it, once for each of a few seeds.
fn on_simulator(case: impl AsyncFn(&Env) -> Case) {
    for seed in 1..=5 {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let sim = Sim::new(SimConfig::seeded(seed));
            let env = Env {
                a: sim.site("a"),
                b: sim.site("b"),
                pool: "volumes".into(),
                plain_pool: "backups".into(),
                run: "sim".into(),
                patience: Duration::from_secs(300),
            };
            if let Err(e) = case(&env).await {
                panic!("seed {seed}: {e:?}\n{}", sim.log_text());
            }
            env.clean_up().await;
            for site in ["a", "b"] {
                for pool in ["volumes", "backups"] {
                    assert!(
                        sim.images(site, pool).is_empty(),
                        "left behind on {site}/{pool}\n{}",
                        sim.log_text()
                    );
                }
            }
        });
    }
}

/// Runs a case with real Ceph behind it.
fn on_ceph(name: &str, case: impl AsyncFn(&Env) -> Case) {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (conf_a, conf_b) = (env::var("SITE_A_CONF"), env::var("SITE_B_CONF"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let ceph = real_ceph();
        let site = |site: &str, conf: String| {
            let connection = Connection {
                site: site.to_owned(),
                conf: PathBuf::from(conf),
                cluster_name: "ceph".to_owned(),
                user: Some(var("SITE_USER", "cinder")),
                connect_timeout: Some(10),
            };
            Site::new(Arc::clone(&ceph), connection)
        };
        let env = Env {
            a: site("site-a", conf_a),
            b: site("site-b", conf_b),
            pool: var("SITE_POOL", "volumes"),
            plain_pool: var("SITE_PLAIN_POOL", "backups"),
            run: format!("{}-{name}", std::process::id()),
            patience: Duration::from_secs(120),
        };
        let result = case(&env).await;
        env.clean_up().await;
        if let Err(e) = result {
            panic!("{e:?}");
        }
    });
}

/// The pool of worker processes.
fn real_ceph() -> Arc<dyn Ceph> {
    let settings = Settings::new(env!("CARGO_BIN_EXE_scoria-rbd-worker"));
    Arc::new(WorkerPool::new(settings, None))
}

mod simulator {
    use super::behaviour::*;
    use scoria::rbd::types::MirrorMode;

    macro_rules! tests {
        ($($name:ident: $case:expr,)*) => { $(
            #[test]
            fn $name() {
                super::on_simulator(async |env: &Env| { let case = $case; case(env).await });
            }
        )* };
    }
    all_cases!(tests);
}

mod ceph {
    use super::behaviour::*;
    use scoria::rbd::types::MirrorMode;

    macro_rules! tests {
        ($($name:ident: $case:expr,)*) => { $(
            #[test]
            fn $name() {
                super::on_ceph(stringify!($name), async |env: &Env| { let case = $case; case(env).await });
            }
        )* };
    }
    all_cases!(tests);
}
