//! Calls of other services: a question that has an answer, or none in time.
//!
//! Scoria asks others for hardly anything: a host's backends are known best by its own service, and whether a volume
//! can be placed on a new one by the scheduler. Answers come into one
//! queue of this process, made when the first question is asked; each question has an id, by which its answer is found.
//! Nobody is waited for longer than the caller says, and an answer that comes too late finds nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio_util::sync::CancellationToken;

use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::rpc::connection::{Link, answered, broker_error};
use crate::rpc::publisher::{Destination, Publisher};
use crate::rpc::topology::{SCHEDULER_TOPIC, Target};
use crate::rpc::{envelope, namespace};

/// How long the queue of answers outlives a process that has died.
const EXPIRES_MS: i32 = 60_000;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<Map<String, Value>>>>>;

/// Asks other services.
pub struct Caller {
    link: Arc<Link>,
    publisher: Publisher,
    queue: String,
    waiting: Waiting,
    /// Cancelled when the answers of the present channel come no more.
    alive: AsyncMutex<Option<CancellationToken>>,
}

impl Caller {
    pub(super) fn new(link: Arc<Link>, publisher: Publisher) -> Caller {
        Caller {
            link,
            publisher,
            queue: format!("reply_{}", envelope::new_id()),
            waiting: Waiting::default(),
            alive: AsyncMutex::default(),
        }
    }

    /// Asks a method of one of Scoria's namespaces of the server `host`.
    ///
    /// # Errors
    /// `DeadlineExceeded` without an answer within `limit`; `Broker`; what was answered, as `Invalid`.
    pub async fn call(
        &self,
        host: &str,
        (namespace, version): (&str, &str),
        method: &str,
        args: Value,
        limit: Duration,
    ) -> Result<Value> {
        let target = Target { topic: namespace::TOPIC.to_owned(), server: host.to_owned() };
        let mut message = envelope::cast(&RequestContext::admin(), method, version, args);
        message.insert("namespace".to_owned(), json!(namespace));
        self.ask(&format!("The service of host {host}"), Destination::Server(target), message, limit).await
    }

    /// Whether a scheduler may place volumes in this pool (`host@backend#pool`): `get_pools` of
    /// `cinder/scheduler/rpcapi.py`, which names the pools of enabled services whose report it has.
    ///
    /// # Errors
    /// As of [`Caller::call`].
    pub async fn scheduler_knows(&self, pool: &str, limit: Duration) -> Result<bool> {
        let args = json!({"filters": {"name": pool}});
        let message = envelope::cast(&RequestContext::admin(), "get_pools", "3.0", args);
        let to = Destination::Topic(SCHEDULER_TOPIC.to_owned());
        let pools = self.ask("cinder-scheduler", to, message, limit).await?;
        Ok(pools.as_array().is_some_and(|all| all.iter().any(|found| found["name"] == pool)))
    }

    async fn ask(
        &self,
        whom: &str,
        to: Destination,
        mut message: Map<String, Value>,
        limit: Duration,
    ) -> Result<Value> {
        let late = || {
            Error::new(Code::DeadlineExceeded, format!("{whom} has not answered in {} s", limit.as_secs()))
        };
        let asked = async {
            self.listen().await?;
            let id = envelope::new_id();
            let (sender, receiver) = oneshot::channel();
            self.waiting().insert(id.clone(), sender);
            let _forget = Forget { id: &id, waiting: &self.waiting };
            message.insert("_msg_id".to_owned(), json!(id));
            message.insert("_reply_q".to_owned(), json!(self.queue));
            self.publisher.cast(&to, &message).await?;
            receiver.await.map_err(|_| Error::new(Code::Broker, "The queue of answers was lost"))
        };
        let answer = tokio::time::timeout(limit, asked).await.map_err(|_| late())??;
        match answer.get("failure").and_then(Value::as_str) {
            None => Ok(answer.get("result").cloned().unwrap_or(Value::Null)),
            Some(document) => {
                let document: Value = serde_json::from_str(document).unwrap_or_default();
                let text =
                    document.get("message").and_then(Value::as_str).unwrap_or("an error without words");
                Err(Error::new(Code::Invalid, format!("{whom}: {text}")))
            }
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Map<String, Value>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that answers are received.
    async fn listen(&self) -> Result<()> {
        let mut alive = self.alive.lock().await;
        if alive.as_ref().is_some_and(|token| !token.is_cancelled()) {
            return Ok(());
        }
        let failed = |e| broker_error("a queue for answers", e);
        let live = self.link.connection().await;
        let channel = answered(&*live.connection, live.connection.create_channel()).await.map_err(failed)?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
        let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
        answered(&channel, channel.queue_declare(self.queue.as_str().into(), options, arguments))
            .await
            .map_err(failed)?;
        let consume = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(self.queue.as_str().into(), "".into(), consume, FieldTable::default());
        let mut messages = answered(&channel, consumer).await.map_err(failed)?;
        let token = CancellationToken::new();
        *alive = Some(token.clone());
        let waiting = self.waiting.clone();
        tokio::spawn(async move {
            let _ended = token.drop_guard();
            while let Some(Ok(delivery)) = messages.next().await {
                let _ = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await;
                let Ok(message) = envelope::open(&delivery.data) else { continue };
                // A keep-alive says that the answer is still to come.
                if message.get("ending") == Some(&Value::Bool(false)) {
                    continue;
                }
                let id = message.get("_msg_id").and_then(Value::as_str).unwrap_or_default().to_owned();
                let whose = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(whose) = whose {
                    let _ = whose.send(message);
                }
            }
        });
        Ok(())
    }
}

/// Nobody waits for this answer any more.
struct Forget<'a> {
    id: &'a str,
    waiting: &'a Waiting,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(self.id);
    }
}
