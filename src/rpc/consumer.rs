//! Receiving: a set of queues, consumed for as long as the service wants them.
//!
//! Whatever goes wrong (connection, channel, a queue deleted under our feet), the answer is the same:
//! declare everything again and go on. Messages that were not acknowledged come again from the broker,
//! so nothing is lost with a channel, and work on them that was not journalled yet is abandoned.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream, SelectAll, select_all};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeleteOptions,
};
use lapin::types::ShortString;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::rpc::connection::{self, Link, answered};
use crate::rpc::topology::Queue;

/// How long a stopping consumer waits for messages that are being accepted, before it gives them back.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// Upstream's 0 means without limit, which would let one member of a cluster take every message.
const DEFAULT_PREFETCH: u16 = 100;
/// How often a channel that says nothing is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A message and what ties it to its channel.
pub(crate) struct Received {
    pub(crate) delivery: Delivery,
    channel: Channel,
    /// Cancelled when the channel is gone: the broker will deliver the message again.
    pub(crate) channel_lost: CancellationToken,
    /// Held until the message is acknowledged.
    pending: TaskTrackerToken,
}

impl Received {
    /// Acknowledges; false when the channel is gone, and the message will come again.
    pub(crate) async fn acknowledge(self) -> bool {
        let Received { delivery, channel, channel_lost, pending } = self;
        // On the channel itself: the delivery's own way leads through two more tasks of the library.
        let acknowledged = tokio::select! {
            biased;
            acknowledged = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()) => {
                acknowledged.map_err(|e| e.to_string())
            }
            // The library's future is not sure to end with its connection.
            () = channel_lost.cancelled() => Err("the channel is gone".to_owned()),
        };
        drop(pending);
        if let Err(error) = &acknowledged {
            tracing::warn!(error = %error, "cannot acknowledge: the broker will deliver the message again");
        }
        acknowledged.is_ok()
    }
}

/// Consumes the queues of one RPC server.
pub(crate) struct Consumer {
    pub(crate) link: Arc<Link>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) stop: CancellationToken,
    /// True while all queues are consumed.
    pub(crate) ready: watch::Sender<bool>,
}

/// A channel that consumes.
struct Consuming {
    channel: Channel,
    tags: Vec<ShortString>,
    messages: SelectAll<BoxStream<'static, Option<lapin::Result<Delivery>>>>,
}

impl Consumer {
    /// Runs until stopped. `receive` must not block: it starts a task per message.
    pub(crate) async fn run(self, receive: impl Fn(Received)) {
        let config = self.link.config();
        let name = self.queues.first().map_or("", |q| q.name.as_str());
        let mut pause = config.retry_interval;
        loop {
            let setup = tokio::select! {
                () = self.stop.cancelled() => return,
                setup = self.start() => setup,
            };
            let error = match setup {
                Err(error) => error,
                Ok(consuming) => {
                    pause = config.retry_interval;
                    self.ready.send_replace(true);
                    let lost = self.receive_all(consuming, &receive).await;
                    self.ready.send_replace(false);
                    match lost {
                        Err(error) => error,
                        Ok(()) => return,
                    }
                }
            };
            tracing::warn!(amqp.queue = %name, error = %error, "not consuming, starting again");
            // A lost connection has pauses of its own; this is for a broker that refuses.
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause + config.retry_backoff).min(config.interval_max);
        }
    }

    async fn start(&self) -> lapin::Result<Consuming> {
        let live = self.link.connection().await;
        for queue in &self.queues {
            connection::declare_queue(&live.connection, queue).await?;
        }
        let channel = answered(&*live.connection, live.connection.create_channel()).await?;
        let prefetch = match self.link.config().prefetch {
            0 => DEFAULT_PREFETCH,
            count => count,
        };
        answered(&channel, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let mut tags = Vec::with_capacity(self.queues.len());
        let mut streams = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let consumer = answered(
                &channel,
                channel.basic_consume(
                    queue.name.as_str().into(),
                    "".into(),
                    BasicConsumeOptions::default(),
                    connection::consumer_table(queue),
                ),
            )
            .await?;
            tags.push(consumer.tag());
            // A consumer that the broker cancels just ends: that must not go unnoticed among others.
            streams.push(consumer.map(Some).chain(stream::once(std::future::ready(None))).boxed());
        }
        Ok(Consuming { channel, tags, messages: select_all(streams) })
    }

    /// Hands messages over until something breaks, which is an error, or it is told to stop.
    async fn receive_all(&self, mut consuming: Consuming, receive: &impl Fn(Received)) -> lapin::Result<()> {
        let channel_lost = CancellationToken::new();
        let _abandon = channel_lost.clone().drop_guard();
        let pending = TaskTracker::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let message = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                message = consuming.messages.next() => message,
                // A stream is not sure to end with its channel.
                _ = look.tick() => match consuming.channel.status().connected() {
                    true => continue,
                    false => return Err(lapin::ErrorKind::MissingHeartbeatError.into()),
                },
            };
            match message.flatten() {
                Some(Ok(delivery)) => receive(Received {
                    delivery,
                    channel: consuming.channel.clone(),
                    channel_lost: channel_lost.clone(),
                    pending: pending.token(),
                }),
                Some(Err(error)) => return Err(error),
                None => return Err(lapin::ErrorKind::FutureCompleted.into()),
            }
        }
        let Consuming { channel, tags, .. } = consuming;
        self.wind_down(&channel, &tags, &pending).await;
        Ok(())
    }

    /// Takes no more messages, lets those being accepted be acknowledged, and gives the rest back.
    async fn wind_down(&self, channel: &Channel, tags: &[ShortString], pending: &TaskTracker) {
        for tag in tags {
            let _ = answered(channel, channel.basic_cancel(tag.clone(), BasicCancelOptions::default())).await;
        }
        pending.close();
        if tokio::time::timeout(ACCEPT_LIMIT, pending.wait()).await.is_err() {
            tracing::warn!("messages that could not be journalled in time go back to their queue");
        }
        for queue in self.queues.iter().filter(|q| q.is_temporary) {
            let _ = answered(
                channel,
                channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()),
            )
            .await;
        }
        connection::close(channel).await;
    }
}
