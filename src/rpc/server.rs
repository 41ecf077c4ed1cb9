//! From a message in a queue to work done and an answer sent.
//!
//! oslo.messaging acknowledges a message before it is processed and forgets it if the process dies. Here
//! a request that changes anything is journalled first, then acknowledged, then run. If the journal is
//! out of reach the message stays with the broker, unacknowledged, and is offered to the journal again
//! and again, while the connection stays alive. What only reads is acknowledged at once, as upstream does.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use lapin::options::QueueDeleteOptions;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::config::RabbitConfig;
use crate::error::{Error, Kind, Result};
use crate::rpc::call::{Call, Refusal};
use crate::rpc::caller::Caller;
use crate::rpc::compression;
use crate::rpc::connection::{self, Link, answered, broker_error};
use crate::rpc::consumer::{Consumer, Received};
use crate::rpc::dispatch::Resource;
use crate::rpc::envelope::{Reply, ReplyTo};
use crate::rpc::namespace::BACKUP_ORDERS;
use crate::rpc::publisher::Publisher;
use crate::rpc::topology::{self, BACKUP_TOPIC, ExchangeKind, FanoutNames, Queue, Target, VOLUME_TOPIC};

/// First and longest pause before a request is offered to the journal again.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How many unjournalled requests are remembered against duplicates. Upstream: 16 per listener.
const REMEMBERED: usize = 1024;

/// What became of a request that was offered to the journal.
#[derive(Debug)]
pub enum Accept<T> {
    /// It is ours now.
    New(T),
    /// The journal has it already: acknowledge and forget.
    Duplicate,
}

/// Executes requests. Implemented by the service's glue over journal and operations.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// What [`Handler::accept`] hands to [`Handler::run`]: the journal's operation.
    type Operation: Send + 'static;

    /// Puts a request into the journal. Called for journalled requests only, and before the message is
    /// acknowledged.
    ///
    /// # Errors
    /// A transient error leaves the message where it is: it is offered again, for as long as it takes.
    /// Any other error is the answer to the request.
    async fn accept(&self, call: &Call) -> Result<Accept<Self::Operation>>;

    /// Does the work. The result is the answer of a call; for casts it is only logged. `operation` is
    /// there exactly for journalled requests.
    ///
    /// # Errors
    /// [`crate::error::Code::Cancelled`] sends no answer: the request stays in the journal, and whoever
    /// finishes it will answer.
    async fn run(&self, call: &Call, operation: Option<Self::Operation>) -> Result<Value>;

    /// The answer of a journalled call was delivered, or given up on: its journal entry may forget it.
    async fn replied(&self, call: &Call);
}

/// The process's access to the broker: one connection to receive, one to send.
#[derive(Debug, Clone)]
pub struct Rpc {
    consuming: Arc<Link>,
    publisher: Publisher,
    control_exchange: String,
    names: Arc<Mutex<FanoutNames>>,
}

impl Rpc {
    /// Prepares both; they connect when first needed. Reads TLS files.
    ///
    /// # Errors
    /// [`crate::error::Code::Config`] when the options cannot be used.
    pub fn new(config: &RabbitConfig, control_exchange: &str) -> Result<Rpc> {
        let config = Arc::new(config.clone());
        let publisher = Publisher::new(Link::new(config.clone(), "publish")?, control_exchange);
        Ok(Rpc {
            names: Arc::new(Mutex::new(FanoutNames::new(&config))),
            consuming: Arc::new(Link::new(config, "consume")?),
            publisher,
            control_exchange: control_exchange.to_owned(),
        })
    }

    /// For everything that is sent.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// True when the broker could be reached a moment ago, both ways.
    pub fn is_connected(&self) -> bool {
        self.consuming.is_connected() && self.publisher.is_connected()
    }

    /// Closes both connections. Stop the servers first.
    pub async fn close(&self) {
        self.consuming.close().await;
        self.publisher.close().await;
    }

    /// Starts to serve a backend: `host@backend`, and its Cinder cluster if it has one. More backends may
    /// be started at any time.
    pub fn serve<H: Handler>(&self, host: &str, cluster: Option<&str>, handler: Arc<H>) -> Server {
        let (config, exchange) = (self.consuming.config(), &self.control_exchange);
        let mut served: Vec<_> = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            let targets = topology::targets(host, cluster);
            targets.iter().map(|target| topology::queues(config, exchange, target, &mut names)).collect()
        };
        served.push(topology::own_queues(config, exchange, host, cluster));
        self.consume(host, served, handler)
    }

    /// Starts to serve what is asked of a host and not of a backend: Scoria's own namespaces alone.
    pub fn serve_own<H: Handler>(&self, host: &str, handler: Arc<H>) -> Server {
        let queues = topology::own_queues(self.consuming.config(), &self.control_exchange, host, None);
        self.consume(host, vec![queues], handler)
    }

    /// Starts to serve the backup service of a host.
    pub fn serve_backups<H: Handler>(&self, host: &str, handler: Arc<H>) -> Server {
        let target = Target { topic: BACKUP_TOPIC.to_owned(), server: host.to_owned() };
        let queues = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            topology::queues(self.consuming.config(), &self.control_exchange, &target, &mut names)
        };
        let (config, own) = (self.consuming.config(), format!("{BACKUP_ORDERS}.{host}"));
        let orders = vec![topology::topic_queue(config, &self.control_exchange, &own)];
        self.consume(host, vec![queues, orders], handler)
    }

    /// Asks other services.
    pub fn caller(&self) -> Caller {
        Caller::new(self.consuming.clone(), self.publisher.clone())
    }

    /// Removes the queues that only a backend (or a Cinder cluster) has, with what is in them, and these. What is not
    /// there is no failure.
    ///
    /// # Errors
    /// [`crate::error::Code::Broker`].
    pub async fn delete_queues(&self, host: &str, more: &[String]) -> Result<()> {
        let failed = |e| broker_error("the removal of a queue", e);
        let live = self.consuming.connection().await;
        let channel = answered(&*live.connection, live.connection.create_channel()).await.map_err(failed)?;
        for name in topology::owned(host).iter().chain(more) {
            let removal = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
            answered(&channel, removal).await.map_err(failed)?;
        }
        connection::close(&channel).await;
        Ok(())
    }

    fn consume<H: Handler>(&self, host: &str, served: Vec<Vec<Queue>>, handler: Arc<H>) -> Server {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let worker = Arc::new(Worker {
            handler,
            publisher: self.publisher.clone(),
            seen: Mutex::default(),
            host: host.to_owned(),
        });
        let mut ready = Vec::new();
        let consumers = TaskTracker::new();
        let fanouts = served
            .iter()
            .flatten()
            .filter(|queue| queue.exchange.kind == ExchangeKind::Fanout && queue.routing_key != VOLUME_TOPIC)
            .map(|queue| queue.name.clone())
            .collect();
        for queues in served {
            let (sender, receiver) = watch::channel(false);
            ready.push(receiver);
            let consumer =
                Consumer { link: self.consuming.clone(), queues, stop: stop.clone(), ready: sender };
            let (worker, tasks) = (worker.clone(), tasks.clone());
            consumers.spawn(async move {
                consumer
                    .run(|received| {
                        let worker = worker.clone();
                        tasks.spawn(async move { worker.process(received).await });
                    })
                    .await;
            });
        }
        consumers.close();
        Server { host: host.to_owned(), stop, consumers, tasks, ready, fanouts }
    }
}

/// The RPC servers of one backend. Dropping it does not stop them.
#[derive(Debug)]
pub struct Server {
    host: String,
    stop: CancellationToken,
    consumers: TaskTracker,
    tasks: TaskTracker,
    ready: Vec<watch::Receiver<bool>>,
    /// Its own fanout queues.
    fanouts: Vec<String>,
}

impl Server {
    /// Names of the fanout queues that nobody else has: with a queue manager they outlive their consumer.
    pub fn fanouts(&self) -> &[String] {
        &self.fanouts
    }

    /// Waits until all queues are consumed. They may be lost again later.
    pub async fn ready(&self) {
        for receiver in &self.ready {
            // An error means that the consumer has been stopped.
            let _ = receiver.clone().wait_for(|ready| *ready).await;
        }
    }

    /// True while all queues are consumed.
    pub fn is_ready(&self) -> bool {
        self.ready.iter().all(|receiver| *receiver.borrow())
    }

    /// Requests being accepted or run.
    pub fn in_flight(&self) -> usize {
        self.tasks.len()
    }

    /// Takes no more requests. Returns when the broker knows, and what was being accepted is accepted or
    /// given back.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.consumers.wait().await;
    }

    /// Stops, and waits for the requests in flight: true when all are done within `limit` (zero: none).
    pub async fn drain(&self, limit: Duration) -> bool {
        self.stop().await;
        self.tasks.close();
        let done = if limit.is_zero() {
            self.tasks.wait().await;
            true
        } else {
            tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
        };
        if !done {
            tracing::warn!(host = %self.host, requests = self.tasks.len(), "requests are still running");
        }
        done
    }
}

/// What offering a request to the journal came to.
enum Offer<T> {
    Accepted(T),
    Duplicate,
    Refused(Error),
    /// The channel is gone: the broker delivers the message again.
    Abandoned,
}

struct Worker<H: Handler> {
    handler: Arc<H>,
    publisher: Publisher,
    seen: Mutex<Seen>,
    host: String,
}

impl<H: Handler> Worker<H> {
    async fn process(&self, received: Received) {
        let expiration = received.delivery.properties.expiration().as_ref().map(|e| e.as_str().to_owned());
        let headers = received.delivery.properties.headers();
        let scheme = headers.as_ref().and_then(compression::scheme);
        let call = compression::plain(&received.delivery.data, scheme.as_deref())
            .map_err(Refusal::unreadable)
            .and_then(|body| Call::from_delivery(&body, expiration.as_deref()))
            .and_then(|call| call.by(received.delivery.routing_key.as_str()));
        match call {
            Err(refusal) => self.refuse(*refusal, received).await,
            Ok(call) => {
                let span = span(&call, &self.host);
                self.serve(call, received).instrument(span).await;
            }
        }
    }

    /// What cannot be understood now never will be: it is acknowledged, and a caller is told.
    async fn refuse(&self, refusal: Refusal, received: Received) {
        tracing::error!(
            op = %refusal.method, request_id = %refusal.request_id, host = %self.host,
            error = %refusal.error, size_bytes = received.delivery.data.len(),
            "request refused"
        );
        received.acknowledge().await;
        if let Some(to) = &refusal.reply {
            self.publisher.reply(to, Reply::new(Err(&refusal.error))).await;
        }
    }

    async fn serve(&self, mut call: Call, received: Received) {
        let operation = if call.journaled {
            match self.offer(&call, &received.channel_lost).await {
                Offer::Accepted(operation) => Some(operation),
                Offer::Duplicate => {
                    tracing::info!("request is journalled already: duplicate dropped");
                    received.acknowledge().await;
                    return;
                }
                Offer::Refused(error) => {
                    tracing::error!(error = %error, "request could not be journalled");
                    received.acknowledge().await;
                    if let Some(to) = &call.reply {
                        self.publisher.reply(to, Reply::new(Err(&error))).await;
                    }
                    return;
                }
                Offer::Abandoned => return,
            }
        } else {
            if !self.remember(&call.unique_id) {
                tracing::info!("request was served already: duplicate dropped");
                received.acknowledge().await;
                return;
            }
            None
        };
        // A journalled request is ours even if the acknowledgement gets lost: the second copy will be a
        // duplicate. Another one comes back, and is served then.
        if !received.acknowledge().await && operation.is_none() {
            self.forget(&call.unique_id);
            return;
        }
        call.text = String::new(); // The journal has it; requests may wait here by the thousand.
        let is_journalled = operation.is_some();
        let outcome = self.run(&call, operation).await;
        match &outcome {
            Err(error) if error.kind() == Kind::Cancelled => {
                tracing::info!("request interrupted: whoever finishes it will answer");
                return;
            }
            Err(error) => tracing::error!(error = %error, "request failed"),
            Ok(_) => tracing::debug!("request done"),
        }
        if let Some(to) = &call.reply {
            let reply = match outcome {
                Ok(result) => Reply::new(Ok(result)),
                Err(error) => Reply::new(Err(&error)),
            };
            self.publisher.reply(to, reply).await;
            if is_journalled {
                self.handler.replied(&call).await;
            }
        }
    }

    async fn offer(&self, call: &Call, channel_lost: &CancellationToken) -> Offer<H::Operation> {
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            // Not dropped half-way: a commit whose answer nobody saw would look like a duplicate later,
            // and the operation would be nobody's until its lease ends.
            match self.handler.accept(call).await {
                Ok(Accept::New(operation)) => return Offer::Accepted(operation),
                Ok(Accept::Duplicate) => return Offer::Duplicate,
                Err(error) if error.is_transient() => tracing::warn!(
                    error = %error, pause_ms = pause.as_millis(),
                    "cannot journal the request now: it stays in its queue"
                ),
                Err(error) => return Offer::Refused(error),
            }
            tokio::select! {
                () = channel_lost.cancelled() => return Offer::Abandoned,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(ACCEPT_PAUSE.1);
        }
    }

    /// Runs the work, with keep-alives for a caller who asked for them. A defect in it answers the call.
    async fn run(&self, call: &Call, operation: Option<H::Operation>) -> Result<Value> {
        let work = AssertUnwindSafe(self.handler.run(call, operation)).catch_unwind();
        let Some((period, to)) = call.keep_alive.zip(call.reply.as_ref()) else {
            return flatten(work.await);
        };
        tokio::pin!(work);
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                outcome = &mut work => return flatten(outcome),
                _ = ticks.tick() => self.keep_alive(to).await,
            }
        }
    }

    async fn keep_alive(&self, to: &ReplyTo) {
        self.publisher.keep_alive(to).await;
    }

    fn remember(&self, unique_id: &str) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(unique_id)
    }

    fn forget(&self, unique_id: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(unique_id);
    }
}

fn flatten(outcome: std::thread::Result<Result<Value>>) -> Result<Value> {
    outcome.unwrap_or_else(|_| Err(Error::internal("The request hit a defect; the log has the details")))
}

/// What every line about the request says; a field without a value is left out.
fn span(call: &Call, host: &str) -> tracing::Span {
    let resource = call.method.resource();
    let volume = resource.filter(|r| matches!(r, Resource::Volume(_)));
    let other = resource.filter(|r| !matches!(r, Resource::Volume(_)));
    tracing::info_span!(
        "rpc",
        op = call.name,
        request_id = %call.context.request_id,
        host,
        volume.id = volume.map(|r| r.id()),
        resource.kind = other.map(|r| r.kind()),
        resource.id = other.map(|r| r.id()),
    )
}

/// The ids of requests served lately, oldest first.
#[derive(Debug, Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// False when it is there already.
    fn insert(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }

    fn remove(&mut self, id: &str) {
        self.ids.remove(id);
        self.order.retain(|other| other != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_known_within_bounds() {
        let mut seen = Seen::default();
        assert!(seen.insert("a") && !seen.insert("a"));
        seen.remove("a");
        assert!(seen.insert("a"));
        for n in 0..REMEMBERED {
            assert!(seen.insert(&n.to_string()));
        }
        assert!(seen.insert("a"), "the oldest is forgotten");
        assert_eq!((seen.ids.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
    }

    /// The line of an event inside the span of a request.
    fn line(method: &str, args: &Value) -> Option<String> {
        let message = serde_json::json!({"method": method, "args": args, "version": "3.0", "_msg_id": "i",
            "_reply_q": "q", "_unique_id": "u", "_context_request_id": "req-1"});
        let call = Call::from_delivery(&crate::rpc::envelope::seal(message.as_object()?), None).ok()?;
        let (file, path) = tempfile::NamedTempFile::new().ok()?.into_parts();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(file)).finish();
        tracing::subscriber::with_default(subscriber, || {
            span(&call, "h@b").in_scope(|| tracing::info!("done"));
        });
        std::fs::read_to_string(path).ok()
    }

    #[test]
    fn a_line_names_the_request_its_method_and_its_volume_if_there_is_one() {
        let about = line("remove_export", &serde_json::json!({"volume_id": "v1"})).unwrap_or_default();
        for field in ["op=\"remove_export\"", "request_id=req-1", "volume.id=\"v1\""] {
            assert!(about.contains(field), "{about}");
        }
        let none = line("get_capabilities", &serde_json::json!({"discover": false})).unwrap_or_default();
        assert!(none.contains("op=\"get_capabilities\"") && !none.contains(".id"), "{none}");
    }

    #[test]
    fn a_panic_is_an_answer() {
        let outcome = std::panic::catch_unwind(|| -> Result<Value> { Ok(Value::Null) });
        assert!(flatten(outcome).is_ok());
        assert!(flatten(Err(Box::new("boom"))).is_err());
    }
}
