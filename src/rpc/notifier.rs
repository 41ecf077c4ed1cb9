//! Notifications, sent beside the work and never in its way.
//!
//! A notification reports what happened; the operation that it reports must not wait for a broker that is
//! away. So they go through a bounded queue to one task that sends them in order and keeps trying. When
//! the queue is full new ones are dropped, and the log says how many. Reference: rpc.md 1.9.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::backend::peers::{Notify, Priority, SnapshotUsage, VolumeUsage};
use crate::config::{NotificationConfig, NotificationDriver};
use crate::context::RequestContext;
use crate::error::Result;
use crate::model::{Group, GroupSnapshot};
use crate::rpc::connection::Link;
use crate::rpc::envelope;
use crate::rpc::publisher::{Destination, Publisher};
use crate::rpc::usage;

/// Notifications waiting for the broker: about 20 MB at worst.
const QUEUE: usize = 10_000;
/// One of them is tried for so long before it is tried again, which only bounds what the log says.
const ATTEMPT: Duration = Duration::from_secs(60);

/// Sends notifications; does nothing when they are switched off.
#[derive(Debug)]
pub struct Notifier {
    sender: Option<mpsc::Sender<Queued>>,
    drivers: Vec<NotificationDriver>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Queued {
    Event(Event),
    /// Answered when all before it have been sent.
    Mark(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Event {
    priority: Priority,
    message: Map<String, Value>,
}

impl Notifier {
    /// Starts the sending task. `rpc` is used unless `[oslo_messaging_notifications]` has a transport of
    /// its own.
    ///
    /// # Errors
    /// [`crate::error::Code::Config`] when that transport cannot be used.
    pub fn start(config: &NotificationConfig, rpc: &Publisher, control_exchange: &str) -> Result<Notifier> {
        let dropped = Arc::new(AtomicU64::new(0));
        let mut sender = None;
        if !config.drivers.is_empty() {
            let publisher = match &config.transport {
                Some(transport) => {
                    Publisher::new(Link::new(Arc::new(transport.clone()), "notify")?, control_exchange)
                }
                None => rpc.clone(),
            };
            let (tx, rx) = mpsc::channel(QUEUE);
            tokio::spawn(send(rx, publisher, config.drivers.clone(), config.topics.clone()));
            sender = Some(tx);
        }
        Ok(Notifier { sender, drivers: config.drivers.clone(), dropped })
    }

    /// Waits until what was published before is sent, at most for `limit`.
    pub async fn flush(&self, limit: Duration) {
        let Some(sender) = &self.sender else { return };
        let (mark, passed) = oneshot::channel();
        let sent = async {
            // Either fails only when the task is gone: then there is nothing to wait for.
            let _ = sender.send(Queued::Mark(mark)).await;
            let _ = passed.await;
        };
        if tokio::time::timeout(limit, sent).await.is_err() {
            let waiting = sender.max_capacity() - sender.capacity();
            tracing::warn!(waiting, "some notifications were not sent before the end");
        }
    }

    fn queue(&self, event: Event) {
        let Some(sender) = &self.sender else { return };
        if sender.try_send(Queued::Event(event)).is_err() {
            let count = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_power_of_two() {
                tracing::error!(
                    notifications.dropped = count,
                    "the broker is away too long: notification dropped"
                );
            }
        }
    }
}

async fn send(
    mut queued: mpsc::Receiver<Queued>,
    publisher: Publisher,
    drivers: Vec<NotificationDriver>,
    topics: Vec<String>,
) {
    while let Some(next) = queued.recv().await {
        let event = match next {
            Queued::Event(event) => event,
            Queued::Mark(passed) => {
                // Nobody waits any more.
                let _ = passed.send(());
                continue;
            }
        };
        for driver in &drivers {
            let body = match driver {
                NotificationDriver::MessagingV2 => envelope::seal(&event.message),
                NotificationDriver::Messaging => {
                    Value::Object(event.message.clone()).to_string().into_bytes()
                }
            };
            for topic in &topics {
                let queue = format!("{topic}.{}", event.priority.as_str().to_ascii_lowercase());
                let destination = Destination::Notifications(queue);
                while let Err(error) = publisher.raw(&destination, &body, ATTEMPT).await {
                    tracing::warn!(error = %error, waiting = queued.len(), "cannot send a notification");
                }
            }
        }
    }
}

/// A notification, ready to be framed.
pub fn message(
    context: &RequestContext,
    event_type: &str,
    priority: Priority,
    publisher_id: &str,
    payload: Value,
) -> Map<String, Value> {
    let mut map = envelope::notification_context(context);
    map.insert("message_id".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    map.insert("publisher_id".to_owned(), json!(publisher_id));
    map.insert("event_type".to_owned(), json!(event_type));
    map.insert("priority".to_owned(), json!(priority.as_str()));
    map.insert("payload".to_owned(), payload);
    map.insert(
        "timestamp".to_owned(),
        json!(Utc::now().naive_utc().format("%Y-%m-%d %H:%M:%S%.6f").to_string()),
    );
    map.insert("_unique_id".to_owned(), json!(envelope::new_id()));
    map
}

#[async_trait]
impl Notify for Notifier {
    fn enabled(&self) -> bool {
        !self.drivers.is_empty()
    }

    async fn volume(&self, context: &RequestContext, suffix: &str, host: &str, usage: VolumeUsage<'_>) {
        self.info(context, "volume", suffix, host, usage::volume(&usage));
    }

    async fn snapshot(&self, context: &RequestContext, suffix: &str, host: &str, usage: SnapshotUsage<'_>) {
        self.info(context, "snapshot", suffix, host, usage::snapshot(&usage));
    }

    async fn group(&self, context: &RequestContext, suffix: &str, host: &str, group: &Group) {
        self.info(context, "group", suffix, host, usage::group(group));
    }

    async fn group_snapshot(
        &self,
        context: &RequestContext,
        suffix: &str,
        host: &str,
        group: &GroupSnapshot,
    ) {
        self.info(context, "group_snapshot", suffix, host, usage::group_snapshot(group));
    }

    async fn publish(
        &self,
        context: &RequestContext,
        event_type: &str,
        priority: Priority,
        publisher_id: &str,
        payload: Value,
    ) {
        if self.enabled() {
            let message = message(context, event_type, priority, publisher_id, payload);
            self.queue(Event { priority, message });
        }
    }
}

impl Notifier {
    fn info(&self, context: &RequestContext, kind: &str, suffix: &str, host: &str, payload: Value) {
        if self.enabled() {
            let (event, publisher) = (format!("{kind}.{suffix}"), format!("{kind}.{host}"));
            let message = message(context, &event, Priority::Info, &publisher, payload);
            self.queue(Event { priority: Priority::Info, message });
        }
    }
}
