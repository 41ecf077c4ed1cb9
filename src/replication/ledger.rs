//! Steps of many volumes in the journal, written together.
//!
//! A failover of a hundred volumes records a few hundred steps, and each must be on disk before its
//! action begins. Written one by one they would cost more than the actions; so whatever is waiting is
//! written by one statement while the next ones gather.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::engine::Ledger;
use super::fence::SECONDS;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;

/// Most steps in one statement.
const BATCH: usize = 256;

struct Entry {
    volume_id: String,
    name: String,
    data: Value,
    written: oneshot::Sender<Result<()>>,
}

/// What is to be remembered of volumes that are forced away, besides their step.
#[derive(Debug, Clone)]
pub(super) struct FenceNote {
    /// `host@backend` or `cluster@backend`.
    pub(super) backend: String,
    /// The site that they leave.
    pub(super) site: String,
}

/// The journal of one operation as a [`Ledger`].
pub(super) struct JournalLedger {
    entries: mpsc::UnboundedSender<Entry>,
}

impl JournalLedger {
    /// Starts its writer, which ends when the ledger is dropped.
    pub(super) fn new(operation: Operation) -> JournalLedger {
        JournalLedger::noting(operation, None)
    }

    /// The same, that notes with each forced step whose clients are to be fenced (`scoria_fence_on_failover`).
    pub(super) fn noting(operation: Operation, note: Option<FenceNote>) -> JournalLedger {
        let (entries, queue) = mpsc::unbounded_channel();
        tokio::spawn(write(operation, note, queue));
        JournalLedger { entries }
    }
}

async fn write(operation: Operation, note: Option<FenceNote>, mut queue: mpsc::UnboundedReceiver<Entry>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let mut by_name: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for entry in batch.drain(..) {
            by_name.entry(entry.name.clone()).or_default().push(entry);
        }
        for (name, entries) in by_name {
            let items: Vec<(String, Value)> =
                entries.iter().map(|e| (e.volume_id.clone(), e.data.clone())).collect();
            let mut written = operation.item_steps(&name, &items).await;
            if let Some(note) = note.as_ref().filter(|_| matches!(name.as_str(), "forcing" | "overriding")) {
                let ids: Vec<String> = items.iter().map(|(id, _)| id.clone()).collect();
                let noted = operation.write("clients to fence", async |conn| {
                    let FenceNote { backend, site } = note;
                    db::fence::want(conn, backend, site, &ids, SECONDS, true).await
                });
                written = written.and(noted.await);
            }
            for entry in entries {
                let told = match &written {
                    Ok(()) => Ok(()),
                    Err(e) => Err(Error::new(e.code(), e.operator())),
                };
                // A volume that no longer waits has been cancelled.
                let _ = entry.written.send(told);
            }
        }
    }
}

#[async_trait]
impl<S: Serialize + Sync> Ledger<S> for JournalLedger {
    async fn record(&self, volume_id: &str, step: &S) -> Result<()> {
        let data = serde_json::to_value(step)
            .map_err(|e| Error::internal("A step cannot be written as JSON").caused_by(e))?;
        let name = data.get("step").and_then(Value::as_str).unwrap_or("step").to_owned();
        let (written, answer) = oneshot::channel();
        let gone = || Error::new(Code::Cancelled, "The journal's writer has ended");
        self.entries
            .send(Entry { volume_id: volume_id.to_owned(), name: name.clone(), data, written })
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??;
        crate::volume::crash::point(&format!("failover:{name}"));
        Ok(())
    }
}
