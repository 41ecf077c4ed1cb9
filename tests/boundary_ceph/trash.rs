//! An image that cannot be moved to the trash of its pool, where librbd keeps the reason to itself.

use std::fs;
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;

use scoria::rbd::protocol::*;
use scoria::rbd::{Ceph, RbdErrorKind, Site};

use crate::common::{FEATURES, Lab, MIB, conf, connection, eventually, lab, name};

/// `ceph ARGUMENTS` on site a; what it says.
fn ceph(arguments: &[&str]) -> String {
    let lab = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/lab");
    let said = Process::new(lab).args(["ceph", "a"]).args(arguments).output().unwrap();
    assert!(said.status.success(), "ceph {arguments:?}: {said:?}");
    String::from_utf8(said.stdout).unwrap()
}

/// A pool of the test's own, in which nothing was ever removed.
struct Fresh(String);

impl Fresh {
    fn new() -> Fresh {
        let pool = name("fresh");
        ceph(&["osd", "pool", "create", &pool, "1"]);
        ceph(&["osd", "pool", "application", "enable", &pool, "rbd"]);
        Fresh(pool)
    }

    /// So many objects may be there, or as many as anybody wants (0), and the OSDs know it.
    async fn may_have(&self, objects: u32) {
        ceph(&["osd", "pool", "set-quota", &self.0, "max_objects", &objects.to_string()]);
        let pool = format!("'{}'", self.0);
        eventually("the pool's quota is noticed", async || {
            let pools = ceph(&["osd", "pool", "ls", "detail"]);
            let line = pools.lines().find(|line| line.contains(&pool)).unwrap_or_default();
            if line.contains("full_quota") == (objects > 0) { Ok(()) } else { Err(line.to_owned()) }
        })
        .await;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        ceph(&["osd", "pool", "delete", &self.0, &self.0, "--yes-i-really-really-mean-it"]);
    }
}

fn site_of(lab: &Lab, conf: &Path, user: &str) -> Site {
    Site::new(Arc::clone(&lab.pool) as Arc<dyn Ceph>, connection(user, conf.to_owned(), user))
}

#[tokio::test]
#[ignore = "whole matrix: tools/test --full"]
async fn why_an_image_cannot_go_to_the_trash_is_told() {
    let lab = lab();
    let fresh = Fresh::new();
    let admin = site_of(&lab, &conf("SITE_A_CONF"), "admin");
    let (pool, image) = (fresh.0.clone(), "v".to_owned());
    let create =
        ImageCreate { pool: pool.clone(), image: image.clone(), size: MIB, order: 22, features: FEATURES };
    admin.call(create).await.unwrap();
    let stat = ImageStat { pool: pool.clone(), image: image.clone() };
    let remove = ImageRemove { pool: pool.clone(), image: image.clone() };

    // The pool is full, and has no trash yet.
    fresh.may_have(1).await;
    let full = admin.call(remove.clone()).await.unwrap_err();
    assert_eq!(full.kind, RbdErrorKind::NoSpace, "{full}");
    assert!(full.message.contains("trash"), "{full}");
    admin.call(stat.clone()).await.unwrap();
    fresh.may_have(0).await;

    // A client that may do everything but write there.
    let prefixes = ["directory", "id.", "header.", "object_map.", "data.", "info", "children", "mirroring"];
    let mut rights = vec![format!("allow r pool={pool}")];
    rights.extend(prefixes.iter().map(|p| format!("allow rwx pool={pool} object_prefix rbd_{p}")));
    let client = format!("client.{pool}");
    let keyring = ceph(&["auth", "get-or-create", &client, "mon", "profile rbd", "osd", &rights.join(", ")]);
    let scratch = tempfile::tempdir().unwrap();
    let (file, own) = (scratch.path().join("keyring"), scratch.path().join("own.conf"));
    fs::write(&file, keyring).unwrap();
    let text = fs::read_to_string(conf("SITE_A_CONF")).unwrap();
    fs::write(&own, format!("{text}\n[{client}]\nkeyring = {}\n", file.display())).unwrap();
    let refused = site_of(&lab, &own, &pool).call(remove.clone()).await;
    ceph(&["auth", "rm", &client]);
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind, RbdErrorKind::Permission, "{refused}");
    admin.call(stat.clone()).await.unwrap();

    // With room and rights it goes; once more, it is gone; and a trash that is there takes the next from a full pool.
    admin.call(remove.clone()).await.unwrap();
    assert_eq!(admin.call(remove.clone()).await.unwrap_err().kind, RbdErrorKind::NotFound);
    let create =
        ImageCreate { pool: pool.clone(), image: image.clone(), size: MIB, order: 22, features: FEATURES };
    admin.call(create).await.unwrap();
    fresh.may_have(1).await;
    admin.call(remove).await.unwrap();
    assert_eq!(admin.call(stat).await.unwrap_err().kind, RbdErrorKind::NotFound);
}
