//! Sending, with the broker's word that it has the message.
//!
//! A cast that got lost on the way out is an operation that never happens; a reply that got lost is a
//! caller who waits a minute for nothing. So every message is confirmed, and sent again on a new
//! connection if the confirmation does not come: `_unique_id` lets the receiver drop the second copy.
//! One channel carries one message at a time, so that a returned message belongs to whom it was returned.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::Result;
use crate::rpc::connection::{self, Link, Live, answered, broker_error};
use crate::rpc::envelope::{self, Reply, ReplyTo};
use crate::rpc::topology::{self, Target};

/// Messages on their way at once.
const CHANNELS: usize = 16;
/// Pause before a message is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long a reply queue that stayed away is not waited for again (`ObsoleteReplyQueuesCache`).
const GONE_FOR: Duration = Duration::from_secs(60);
/// How many such queues are remembered.
const GONE_QUEUES: usize = 200;

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Whoever consumes the topic.
    Topic(String),
    /// One server of a topic.
    Server(Target),
    /// Every server of a topic.
    Fanout(String),
    /// A notification queue, created if nobody listens yet.
    Notifications(String),
    /// A caller's queue, which must exist.
    Reply(String),
}

/// What became of a message that the broker confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Routed,
    /// Mandatory, and there was no queue.
    Returned,
}

/// Sends messages. Cheap to clone; all clones share one connection.
#[derive(Debug, Clone)]
pub struct Publisher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Link,
    control_exchange: String,
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The connection that the rest of this belongs to.
    generation: u64,
    idle: Vec<Channel>,
    declared: HashSet<String>,
    /// Reply queues that were waited for in vain, oldest first.
    gone: VecDeque<(String, Instant)>,
}

impl State {
    /// Forgets what belonged to an earlier connection.
    fn belongs_to(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.idle.clear();
            self.declared.clear();
        }
    }
}

impl Publisher {
    /// A publisher over its own connection, made when first needed.
    pub fn new(link: Link, control_exchange: &str) -> Publisher {
        Publisher {
            inner: Arc::new(Inner {
                link,
                control_exchange: control_exchange.to_owned(),
                permits: Semaphore::new(CHANNELS),
                state: Mutex::default(),
            }),
        }
    }

    /// Casts a request: returns once the broker has it.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`] when it could not be delivered within `rpc_response_timeout`. It
    /// may have arrived all the same.
    pub async fn cast(&self, destination: &Destination, message: &Map<String, Value>) -> Result<()> {
        let limit = self.inner.link.config().response_timeout;
        let what = message.get("method").and_then(Value::as_str).unwrap_or("the message");
        self.send(what, destination, &envelope::seal(message), limit).await.map(|_| ())
    }

    /// Sends a body that is framed already.
    pub(crate) async fn raw(&self, destination: &Destination, body: &[u8], limit: Duration) -> Result<()> {
        self.send("the message", destination, body, limit).await.map(|_| ())
    }

    /// Answers a call. Returns when the answer is in the caller's queue, or when there is nobody to
    /// answer any more, which is logged.
    pub async fn reply(&self, to: &ReplyTo, reply: Reply) {
        self.deliver(to, &reply.into_message(&to.msg_id)).await;
    }

    /// Tells a caller that work goes on. Tried once.
    pub(crate) async fn keep_alive(&self, to: &ReplyTo) {
        let body = envelope::seal(&envelope::keep_alive(&to.msg_id));
        let destination = Destination::Reply(to.queue.clone());
        if let Err(error) = self.send("a keep-alive", &destination, &body, RETRY_PAUSE).await {
            tracing::debug!(error = %error, "could not send a keep-alive");
        }
    }

    async fn deliver(&self, to: &ReplyTo, message: &Map<String, Value>) {
        if self.is_gone(&to.queue) {
            tracing::warn!(amqp.queue = %to.queue, rpc.msg_id = %to.msg_id, "the caller is gone: reply dropped");
            return;
        }
        let limit = self.inner.link.config().missing_consumer_retry;
        let until = Instant::now() + limit;
        let destination = Destination::Reply(to.queue.clone());
        let body = envelope::seal(message);
        loop {
            // A broker that restarts may take its time: nobody else can tell the caller.
            match self.send("a reply", &destination, &body, limit.max(RETRY_PAUSE)).await {
                Ok(Sent::Routed) => return,
                Ok(Sent::Returned) if Instant::now() < until => tokio::time::sleep(RETRY_PAUSE).await,
                Ok(Sent::Returned) => {
                    tracing::error!(
                        amqp.queue = %to.queue, rpc.msg_id = %to.msg_id,
                        "the caller's queue stayed away for {limit:?}: reply dropped"
                    );
                    self.mark_gone(&to.queue);
                    return;
                }
                Err(error) => {
                    tracing::error!(
                        amqp.queue = %to.queue, rpc.msg_id = %to.msg_id, error = %error,
                        "could not send a reply"
                    );
                    return;
                }
            }
        }
    }

    /// Sends until the broker confirms, at most for `limit`.
    async fn send(&self, what: &str, to: &Destination, body: &[u8], limit: Duration) -> Result<Sent> {
        let mut last = None;
        let attempts = async {
            loop {
                match self.attempt(to, body).await {
                    Ok(sent) => return sent,
                    Err(error) => {
                        tracing::warn!(error = %error, "the broker did not take {what}, sending it again");
                        last = Some(error);
                    }
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        let outcome = tokio::time::timeout(limit, attempts).await;
        outcome.map_err(|_| {
            let error = last.unwrap_or_else(|| lapin::ErrorKind::MissingHeartbeatError.into());
            broker_error(what, error).detail(format!("no confirmation in {limit:?}"))
        })
    }

    async fn attempt(&self, to: &Destination, body: &[u8]) -> lapin::Result<Sent> {
        let inner = &*self.inner;
        // Never closed, so an error cannot be; without a permit there are merely more channels.
        let _permit = inner.permits.acquire().await.ok();
        let live = inner.link.connection().await;
        let (exchange, routing_key) = self.prepare(&live, to).await?;
        let channel = self.channel(&live).await?;
        let options = BasicPublishOptions {
            mandatory: matches!(to, Destination::Reply(_)),
            ..BasicPublishOptions::default()
        };
        let confirmation = answered(&channel, async {
            channel
                .basic_publish(
                    exchange.as_str().into(),
                    routing_key.as_str().into(),
                    options,
                    body,
                    properties(),
                )
                .await?
                .await
        })
        .await;
        match confirmation {
            Ok(Confirmation::Ack(returned)) => {
                let mut state = self.state();
                state.belongs_to(live.generation);
                state.idle.push(channel);
                Ok(if returned.is_some() { Sent::Returned } else { Sent::Routed })
            }
            Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => {
                // A quorum queue without a majority, or a full one: the broker asks to try again.
                Err(lapin::ErrorKind::FutureCompleted.into())
            }
            Err(error) => {
                if connection::is_not_found(&error) {
                    // An automatically deleted exchange went away with its last consumer.
                    self.state().declared.remove(&exchange);
                }
                Err(error)
            }
        }
    }

    /// Declares what the destination needs, once per connection; gives exchange and routing key.
    async fn prepare(&self, live: &Live, to: &Destination) -> lapin::Result<(String, String)> {
        let inner = &*self.inner;
        let config = inner.link.config();
        let control = || topology::control_exchange(config, &inner.control_exchange);
        let (exchange, routing_key) = match to {
            Destination::Reply(queue) => return Ok((String::new(), queue.clone())),
            Destination::Topic(topic) => (control(), topic.clone()),
            Destination::Server(target) => (control(), target.routing_key()),
            Destination::Fanout(topic) => (topology::fanout_exchange(config, topic), String::new()),
            Destination::Notifications(name) => {
                let key = format!("queue {name}");
                if !self.is_declared(live, &key) {
                    let queue = topology::topic_queue(config, &inner.control_exchange, name);
                    connection::declare_queue(&live.connection, &queue).await?;
                    self.state().declared.insert(key);
                }
                return Ok((inner.control_exchange.clone(), name.clone()));
            }
        };
        if !self.is_declared(live, &exchange.name) {
            connection::declare_exchange(&live.connection, &exchange).await?;
            self.state().declared.insert(exchange.name.clone());
        }
        Ok((exchange.name, routing_key))
    }

    fn is_declared(&self, live: &Live, name: &str) -> bool {
        let mut state = self.state();
        state.belongs_to(live.generation);
        state.declared.contains(name)
    }

    /// A channel that nobody else uses.
    async fn channel(&self, live: &Live) -> lapin::Result<Channel> {
        loop {
            let idle = {
                let mut state = self.state();
                state.belongs_to(live.generation);
                state.idle.pop()
            };
            match idle {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        let channel = answered(&*live.connection, live.connection.create_channel()).await?;
        answered(&channel, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    fn is_gone(&self, queue: &str) -> bool {
        let mut state = self.state();
        while state.gone.front().is_some_and(|(_, since)| since.elapsed() > GONE_FOR) {
            state.gone.pop_front();
        }
        state.gone.iter().any(|(name, _)| name == queue)
    }

    fn mark_gone(&self, queue: &str) {
        let mut state = self.state();
        state.gone.retain(|(name, _)| name != queue);
        if state.gone.len() >= GONE_QUEUES {
            state.gone.pop_front();
        }
        state.gone.push_back((queue.to_owned(), Instant::now()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the broker could be reached a moment ago.
    pub fn is_connected(&self) -> bool {
        self.inner.link.is_connected()
    }

    /// Says goodbye to the broker.
    pub async fn close(&self) {
        self.inner.link.close().await;
    }
}

/// What kombu sets on every message. No expiration: only calls have one, and Scoria makes none.
fn properties() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(2)
        .with_priority(0)
        .with_headers(FieldTable::default())
}
