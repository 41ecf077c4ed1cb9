//! A backup service with all that it does by itself: what is in the journal is taken up and carried out.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use scoria::backup::Backups;
use scoria::backup::ordered::Create;
use scoria::backup::orders::{self, Order};
use scoria::db::backup_retention::{self, RetentionRow};
use scoria::error::Result;
use scoria::journal::Submitted;
use scoria::rbd::sim::When;
use scoria::service::backup::{BackupHandler, finish};
use serde_json::Value;

use crate::backup_scene::{MIB, Scene};
use crate::defects::log;
use crate::seed::PROJECT;

/// A service that works.
pub struct Serving {
    pub backups: Arc<Backups>,
    handler: BackupHandler,
}

impl Serving {
    /// Of these backups; dropping what [`Serving::serve`] answers kills it.
    pub fn new(backups: Backups) -> Serving {
        let backups = Arc::new(backups);
        Serving { handler: BackupHandler::new(backups.clone(), log(), 8), backups }
    }

    /// A service of the scene's host.
    pub fn of(scene: &Scene) -> Serving {
        Serving::new(scene.on("node1"))
    }

    /// Takes up what there is, for ever.
    async fn serve(&self) {
        let (found, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let looking = async {
            loop {
                for operation in self.backups.journal.adopt(&self.backups.scope()).await.unwrap() {
                    found.send(operation).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // Who looks waits for the rows of what is under way, which must go on meanwhile.
        let working = async {
            let mut work = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some(operation) = taken.recv() => {
                        work.push(finish(&self.backups, &self.handler, operation));
                    }
                    Some(()) = work.next() => {}
                }
            }
        };
        let ((), ()) = tokio::join!(looking, working);
    }

    /// Serves until `done`; what is under way then is dropped, as if the service were killed.
    pub async fn until<T>(&self, done: impl Future<Output = T>) -> T {
        tokio::select! {
            () = self.serve() => unreachable!("it serves for ever"),
            done = done => done,
        }
    }

    /// Leaves an order in the journal; its number.
    pub async fn submit(&self, order: Order) -> i64 {
        let new = orders::entry(&self.backups.host, order).unwrap();
        match self.backups.journal.submit(&new).await.unwrap() {
            Submitted::New(number) | Submitted::Open(number) => number,
        }
    }

    /// Outcome and detail of an operation, once it has ended.
    pub async fn ended(&self, number: i64) -> (String, String) {
        for _ in 0..2400 {
            let row = self.backups.journal.find(number).await.unwrap().expect("the operation");
            if row.is_closed() {
                return (row.outcome.unwrap_or_default(), row.outcome_detail.unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("operation {number} does not end");
    }

    /// Carries an order out; the answer, or what failed.
    pub async fn carry_out(&self, order: Order) -> Result<Value, String> {
        self.until(self.answered(order)).await
    }

    /// The same of a service that serves meanwhile.
    pub async fn answered(&self, order: Order) -> Result<Value, String> {
        let number = self.submit(order).await;
        let (outcome, detail) = self.ended(number).await;
        match outcome.as_str() {
            "succeeded" => Ok(self.backups.journal.answer_of(number).await.unwrap().unwrap_or_default()),
            _ => Err(detail),
        }
    }

    /// A backup of a volume that is ordered, and made.
    pub async fn made(&self, volume: &str, incremental: bool) -> String {
        let answer = self.carry_out(of_volume(volume, incremental)).await.unwrap();
        answer["backups"][0]["backup"].as_str().expect("a backup").to_owned()
    }
}

/// The order of a backup of a volume.
pub fn of_volume(volume: &str, incremental: bool) -> Order {
    Order::Create(Box::new(Create { volume: Some(volume.to_owned()), incremental, ..Create::default() }))
}

/// The order of backups of a group.
pub fn of_group(group: &str, incremental: bool) -> Order {
    Order::Create(Box::new(Create { group: Some(group.to_owned()), incremental, ..Create::default() }))
}

/// An order is carried out, by a service that is killed at its `k`-th call to Ceph, and by the next one. Answers
/// whether there was such a call, and how it ended.
pub async fn dies(scene: &Scene, k: usize, when: When, order: Order) -> (bool, String) {
    let serving = Serving::of(scene);
    let number = serving.submit(order).await;
    scene.sim.kill_at(k, when);
    let ended = serving
        .until(async {
            tokio::select! {
                biased;
                () = scene.sim.crashed() => None,
                ended = serving.ended(number) => Some(ended.0),
            }
        })
        .await;
    scene.sim.restart();
    if let Some(ended) = ended {
        return (false, ended);
    }
    let next = Serving::of(scene);
    (true, next.until(next.ended(number)).await.0)
}

/// What the project uses: backups, and gigabytes of them.
pub async fn used(scene: &Scene) -> Vec<Vec<String>> {
    let mut rows = scene
        .test
        .rows(&format!(
            "SELECT resource, in_use, reserved FROM quota_usages WHERE project_id='{PROJECT}' \
             AND resource LIKE 'backup%'"
        ))
        .await;
    rows.sort();
    rows
}

/// The data of a backup was so at this time.
pub async fn dated(scene: &Scene, backup: &str, time: &str) {
    scene.test.sql(&format!("UPDATE backups SET data_timestamp='{time}' WHERE id='{backup}'")).await;
}

/// How many backups of a volume stay.
pub async fn keep(scene: &Scene, volume: &str, last: Option<i32>, daily: Option<i32>) {
    let row = RetentionRow {
        volume_id: volume.to_owned(),
        keep_last: last,
        keep_daily: daily,
        keep_weekly: None,
        keep_monthly: None,
        time_zone: "UTC".to_owned(),
    };
    scene.test.db.write("t", async |conn| backup_retention::set(conn, &row).await).await.unwrap();
}

/// The order that its retention be applied.
pub fn apply(volume: &str) -> Order {
    Order::ApplyRetention { volume: volume.to_owned(), failed: false, deleted_volumes: false }
}

/// A chain of a full backup and incremental ones, each of a day of its own with something new, and what the volume held.
pub async fn chain(scene: &Scene, serving: &Serving, volume: &str, count: u8) -> Vec<(String, u64)> {
    let mut made = Vec::new();
    for number in 0..count {
        scene.write(volume, u64::from(number) * 300 * MIB, 7 + number, MIB).await;
        let content = scene.content(volume);
        let backup = serving.made(volume, number > 0).await;
        dated(scene, &backup, &format!("2026-01-{:02} 12:00", number + 1)).await;
        made.push((backup, content));
    }
    made
}
