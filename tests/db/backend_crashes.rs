//! Orders for backends whose service dies at each of their steps, one after the other, and is started again.

use scoria::backends::{Order, Runner};

use crate::backend_scene::{Scene, create, delete, rename, update};

/// Killed at every step, and run again by the next instance: made, in every respect.
#[tokio::test]
async fn a_creation_that_dies_anywhere_ends_with_a_backend() {
    let mut scene = Scene::new().await;
    for k in 1.. {
        let (ended, outcome) = scene.dies(k, Order::Create(create("fast"))).await;
        assert!(outcome.is_ok(), "killed at step {k}: {outcome:?}");
        scene.is_there("fast", &format!("killed at step {k}")).await;
        assert_eq!(scene.test.rows("SELECT id FROM volume_types WHERE name='type-fast'").await.len(), 1);
        scene.restart(0).await;
        scene.is_there("fast", &format!("killed at step {k}, and started once more")).await;
        scene.run(Order::Delete(delete("fast"))).await.unwrap();
        scene.is_gone("fast", &format!("removed after step {k}")).await;
        if ended {
            assert!(k > 5, "it was killed at {k} steps only");
            return;
        }
    }
}

/// The same of one that does not come up: nothing of it is left.
#[tokio::test]
async fn a_creation_that_fails_leaves_nothing_wherever_it_dies() {
    let mut scene = Scene::new().await;
    scene.broken = Some("volumes2".into());
    for k in 1.. {
        let (ended, outcome) = scene.dies(k, Order::Create(create("fast"))).await;
        assert!(outcome.clone().unwrap_err().contains("did not come up"), "killed at step {k}: {outcome:?}");
        scene.is_gone("fast", &format!("killed at step {k}")).await;
        assert!(scene.test.rows("SELECT id FROM volume_types WHERE name='type-fast'").await.is_empty());
        if ended {
            assert!(k > 8, "it was killed at {k} steps only");
            return;
        }
    }
}

/// Killed at every step of its removal: gone.
#[tokio::test]
async fn a_removal_that_dies_anywhere_ends_without_a_backend() {
    let mut scene = Scene::new().await;
    for k in 1.. {
        scene.run(Order::Create(create("fast"))).await.unwrap();
        let (ended, outcome) = scene.dies(k, Order::Delete(delete("fast"))).await;
        assert!(outcome.is_ok(), "killed at step {k}: {outcome:?}");
        scene.is_gone("fast", &format!("killed at step {k}")).await;
        if ended {
            assert!(k > 7, "it was killed at {k} steps only");
            return;
        }
    }
}

/// Killed at every step of a change: the new options are in force, and in the file.
#[tokio::test]
async fn a_change_that_dies_anywhere_is_made() {
    let mut scene = Scene::new().await;
    scene.run(Order::Create(create("fast"))).await.unwrap();
    for k in 1.. {
        let depth = (k + 10).to_string();
        let order = Order::Update(update("fast", &[("rbd_max_clone_depth", &depth)]));
        let (ended, outcome) = scene.dies(k, order).await;
        assert!(outcome.is_ok(), "killed at step {k}: {outcome:?}");
        scene.is_there("fast", &format!("killed at step {k}")).await;
        assert_eq!(scene.played.running("fast").unwrap().max_clone_depth.to_string(), depth);
        let text = std::fs::read_to_string(scene.path("fast")).unwrap();
        assert_eq!(text.matches("rbd_max_clone_depth").count(), 1, "{text}");
        if ended {
            assert!(k > 4, "it was killed at {k} steps only");
            return;
        }
    }
}

/// Killed at every step of a renaming: everything has the new name, and nothing the old one.
#[tokio::test]
async fn a_renaming_that_dies_anywhere_moves_everything() {
    let mut scene = Scene::new().await;
    scene.run(Order::Create(create("fast"))).await.unwrap();
    scene
        .test
        .sql(
            "INSERT INTO volumes (id, status, host, deleted, size, use_quota, volume_type_id, service_uuid)
               SELECT 'v1', 'available', 'node1@fast#fast', 0, 1, 1, 't', uuid FROM services WHERE host='node1@fast';
             INSERT INTO volumes (id, status, host, deleted, size, use_quota, volume_type_id)
               VALUES ('v2', 'available', 'node1@faster#x', 0, 1, 1, 't');
             INSERT INTO `groups` (id, status, host, deleted) VALUES ('g1', 'available', 'node1@fast#fast', 0);
             INSERT INTO scoria_backend_sites (backend, site, fsid, conf, recorded_at) VALUES ('node1@fast', 'default', 'f', '', UTC_TIMESTAMP())",
        )
        .await;
    let mut now = "fast".to_owned();
    for k in 1.. {
        let new = format!("fast-{k}");
        let (ended, outcome) = scene.dies(k, Order::Rename(rename(&now, &new))).await;
        assert!(outcome.is_ok(), "killed at step {k}: {outcome:?}");
        scene.is_there(&new, &format!("killed at step {k}")).await;
        scene.is_gone(&now, &format!("killed at step {k}")).await;
        let volume = scene
            .test
            .row("SELECT v.host, s.host FROM volumes v JOIN services s ON s.uuid=v.service_uuid AND s.deleted=0 WHERE v.id='v1'")
            .await;
        assert_eq!(volume, [format!("node1@{new}#fast"), format!("node1@{new}")], "killed at step {k}");
        for (table, id) in [("volumes", "v2"), ("`groups`", "g1")] {
            let host = scene.test.row(&format!("SELECT host FROM {table} WHERE id='{id}'")).await;
            let expected = if id == "v2" { "node1@faster#x".to_owned() } else { format!("node1@{new}#fast") };
            assert_eq!(host, [expected], "killed at step {k}");
        }
        assert_eq!(
            scene.test.row("SELECT backend FROM scoria_backend_sites").await,
            [format!("node1@{new}")]
        );
        now = new;
        if ended {
            assert!(k > 6, "it was killed at {k} steps only");
            return;
        }
    }
}
