//! A connection to the broker that is there again after it was lost.
//!
//! Brokers restart, hosts fail over, networks drop. A [`Link`] keeps at most one connection: whoever
//! needs it asks, and waits as long as it takes. What was declared on a lost connection is declared anew
//! by its users (`consumer`, [`super::publisher`]), which know what they need; a library's own
//! recovery would replay what it once saw, on the one host that just failed. Reference: rpc.md 1.10.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use rand::seq::SliceRandom;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;

use crate::config::{BrokerHost, RabbitConfig};
use crate::error::{Code, Error, Result};
use crate::rpc::tls;
use crate::rpc::topology::{Argument, Arguments, Exchange, ExchangeKind, Queue};

/// One attempt, TLS and handshake included. A host that drops packets must not hold up the others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// `kombu_reconnect_delay`, upstream's pause against all clients coming back at once.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// Longest wait for an answer of the broker on an open connection; heartbeats find a dead one later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often an open answer is checked for whether it can still come. Not earlier than other periodic looks:
/// a timer that is the next to fire wakes a thread when it is set, which every message would pay for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest frame in bytes, asked of the broker. The library keeps room for 32 frames each way and connection:
/// with the broker's 128 KiB that is 8 MiB, of which all is used sooner or later. Most requests fit into one
/// frame of this size, larger ones are cut into several. RabbitMQ 4 accepts no less than 8 KiB.
const FRAME_MAX: u32 = 16 << 10;
/// Longest goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection for one purpose, made again whenever it is lost.
pub struct Link {
    config: Arc<RabbitConfig>,
    /// Shuffled once, so that the clients of a cluster of brokers spread.
    hosts: Vec<BrokerHost>,
    next: AtomicUsize,
    tls: Option<RustlsConnector>,
    name: String,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// How many connections there have been.
    generation: u64,
    connection: Option<Arc<Connection>>,
}

/// A connection, and which one it is: what was declared on an earlier one has to be declared again.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) connection: Arc<Connection>,
    pub(crate) generation: u64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Link {
    /// Prepares a link; it connects when first asked for. `purpose` is seen in the broker's list of
    /// connections.
    ///
    /// # Errors
    /// [`Code::Config`] when no host, or unusable TLS files, are configured.
    pub fn new(config: Arc<RabbitConfig>, purpose: &str) -> Result<Link> {
        if config.hosts.is_empty() {
            return Err(Error::new(Code::Config, "[DEFAULT] transport_url names no host"));
        }
        let tls = match &config.tls {
            None => None,
            Some(options) => {
                if options.ca.is_none() {
                    tracing::warn!("ssl_ca_file is not set: the broker's certificate is not verified");
                }
                Some(tls::client_config(options, config.hosts.len())?.into())
            }
        };
        let mut hosts = config.hosts.clone();
        hosts.shuffle(&mut rand::rng());
        // As upstream names its connections: program, process, and something unique.
        let name =
            format!("{}:{}:{purpose}:{}", config.processname, std::process::id(), uuid::Uuid::new_v4());
        Ok(Link { config, hosts, next: AtomicUsize::new(0), tls, name, current: Mutex::default() })
    }

    /// The options that this link was made with.
    pub fn config(&self) -> &RabbitConfig {
        &self.config
    }

    /// The connection, once there is one. Waits for ever; drop the future to stop waiting.
    pub(crate) async fn connection(&self) -> Live {
        let mut current = self.current.lock().await;
        if let Some(connection) = current.connection.as_ref().filter(|c| c.status().connected()) {
            return Live { connection: connection.clone(), generation: current.generation };
        }
        if current.connection.take().is_some() {
            tracing::warn!(amqp.connection = %self.name, "lost the connection to the broker");
            // Spread the returning clients over the pause that upstream makes.
            tokio::time::sleep(RECONNECT_DELAY.mul_f64(rand::random::<f64>())).await;
        }
        let connection = Arc::new(self.connect().await);
        current.connection = Some(connection.clone());
        current.generation += 1;
        Live { connection, generation: current.generation }
    }

    /// True when the broker could be reached a moment ago. False while somebody is connecting.
    pub fn is_connected(&self) -> bool {
        self.current
            .try_lock()
            .is_ok_and(|current| current.connection.as_ref().is_some_and(|c| c.status().connected()))
    }

    /// Says goodbye to the broker.
    pub async fn close(&self) {
        if let Some(connection) = self.current.lock().await.connection.take() {
            let goodbye = connection.close(200, "OK".into());
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
        }
    }

    /// Goes round the hosts until one answers: at once within a round, with growing pauses between.
    async fn connect(&self) -> Connection {
        let mut pause = self.config.retry_interval;
        loop {
            for _ in 0..self.hosts.len() {
                let index = self.next.fetch_add(1, Ordering::Relaxed) % self.hosts.len();
                let Some(host) = self.hosts.get(index) else { continue };
                match tokio::time::timeout(CONNECT_TIMEOUT, self.attempt(host)).await {
                    Ok(Ok(connection)) => {
                        tracing::info!(
                            amqp.host = %host.host, amqp.port = host.port, amqp.connection = %self.name,
                            "connected to the broker"
                        );
                        return connection;
                    }
                    Ok(Err(error)) => tracing::warn!(
                        amqp.host = %host.host, amqp.port = host.port, error = %error,
                        "cannot connect to the broker"
                    ),
                    Err(_) => tracing::warn!(
                        amqp.host = %host.host, amqp.port = host.port,
                        "cannot connect to the broker: no answer in {CONNECT_TIMEOUT:?}"
                    ),
                }
            }
            tokio::time::sleep(pause + RECONNECT_DELAY).await;
            pause = (pause + self.config.retry_backoff).min(self.config.interval_max);
        }
    }

    async fn attempt(&self, host: &BrokerHost) -> lapin::Result<Connection> {
        let uri = AMQPUri {
            scheme: if self.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: host.user.clone(),
                    password: host.password.expose_secret().to_owned(),
                },
                host: host.host.clone(),
                port: host.port,
            },
            vhost: self.config.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(u16::try_from(self.config.heartbeat.as_secs()).unwrap_or(u16::MAX)),
                frame_max: Some(FRAME_MAX),
                auth_mechanism: Some(mechanism(&self.config.login_method)),
                ..AMQPQueryString::default()
            },
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(self.name.as_str().into())
            .with_client_property("product".into(), "Scoria".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let tls = self.tls.clone();
        Connection::connector(
            uri,
            lapin::runtime::default_runtime()?,
            async move |uri, runtime| {
                let address = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
                let stream = AsyncTcpStream::connect(&runtime, address).await?;
                match &tls {
                    None => Ok(stream),
                    Some(connector) => Ok(stream.into_rustls(connector, &uri.authority.host).await?),
                }
            },
            properties,
        )
        .await
    }
}

/// `rabbit_login_method`; anything unknown is upstream's default.
fn mechanism(login_method: &str) -> SASLMechanism {
    match login_method.to_ascii_uppercase().as_str() {
        "PLAIN" => SASLMechanism::Plain,
        "EXTERNAL" => SASLMechanism::External,
        "RABBIT-CR-DEMO" => SASLMechanism::RabbitCrDemo,
        _ => SASLMechanism::AMQPlain,
    }
}

/// What an answer of the broker is awaited on.
pub(crate) trait Alive {
    /// False once no answer can come any more.
    fn is_alive(&self) -> bool;
}

impl Alive for Connection {
    fn is_alive(&self) -> bool {
        self.status().connected()
    }
}

impl Alive for Channel {
    fn is_alive(&self) -> bool {
        self.status().connected()
    }
}

/// Bounds an answer of the broker. The library's futures do not all end when their connection does, so
/// somebody has to look whether it is still there.
pub(crate) async fn answered<T>(
    on: &impl Alive,
    future: impl Future<Output = lapin::Result<T>>,
) -> lapin::Result<T> {
    tokio::pin!(future);
    let until = tokio::time::Instant::now() + ANSWER_TIMEOUT;
    loop {
        let alive = on.is_alive();
        match tokio::time::timeout(LOOK_EVERY, &mut future).await {
            Ok(result) => return result,
            Err(_) if alive && tokio::time::Instant::now() < until => {}
            Err(_) => return Err(ErrorKind::MissingHeartbeatError.into()),
        }
    }
}

/// Closes a channel politely, without waiting for long.
pub(crate) async fn close(channel: &Channel) {
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, channel.close(200, "OK".into())).await;
}

/// The error of everything here, for those who do not wait for ever.
pub(crate) fn broker_error(what: &str, error: lapin::Error) -> Error {
    Error::new(Code::Broker, format!("The message broker did not take {what}")).caused_by(error)
}

/// True when the broker closed the channel with this reply code.
pub(crate) fn has_code(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(e) if e.get_id() == code)
}

const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// The one conflict that upstream resolves: somebody declared it non-durable before.
fn is_durability_conflict(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(e) if e.get_id() == PRECONDITION_FAILED
        && e.get_message().as_str().contains("inequivalent arg 'durable'"))
}

pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    has_code(error, NOT_FOUND)
}

/// The answer for a queue whose node is down.
fn is_missing_queue(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(e) if e.get_id() == NOT_FOUND
        && e.get_message().as_str().contains(" queue "))
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => lapin::types::AMQPValue::LongString(text.as_str().into()),
            // The narrowest type, as py-amqp encodes numbers; the broker compares values, not types.
            Argument::Number(number) => match i32::try_from(*number) {
                Ok(number) => lapin::types::AMQPValue::LongInt(number),
                Err(_) => lapin::types::AMQPValue::LongLongInt(*number),
            },
            Argument::Flag(flag) => lapin::types::AMQPValue::Boolean(*flag),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// Arguments of `basic.consume`.
pub(crate) fn consumer_table(queue: &Queue) -> FieldTable {
    table(&queue.consumer_arguments)
}

/// Declares an exchange, durable or not as it exists already. A refusal costs the channel, so this uses
/// one of its own.
pub(crate) async fn declare_exchange(connection: &Connection, exchange: &Exchange) -> lapin::Result<()> {
    match try_exchange(connection, exchange).await {
        Err(error) if exchange.durable && is_durability_conflict(&error) => {
            tracing::warn!(
                amqp.exchange = %exchange.name,
                "the exchange exists and is not durable, against our options: using it as it is"
            );
            try_exchange(connection, &Exchange { durable: false, ..exchange.clone() }).await
        }
        other => other,
    }
}

async fn try_exchange(connection: &Connection, exchange: &Exchange) -> lapin::Result<()> {
    let channel = answered(connection, connection.create_channel()).await?;
    exchange_on(&channel, exchange).await?;
    close(&channel).await;
    Ok(())
}

async fn exchange_on(channel: &Channel, exchange: &Exchange) -> lapin::Result<()> {
    let kind = match exchange.kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
    };
    let options = lapin::options::ExchangeDeclareOptions {
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        ..Default::default()
    };
    answered(
        channel,
        channel.exchange_declare(exchange.name.as_str().into(), kind, options, FieldTable::default()),
    )
    .await
}

/// Declares a queue with its exchange, and binds it. As upstream: a conflict about durability makes both
/// non-durable; a queue that is not durable and whose node is down is deleted and declared again.
pub(crate) async fn declare_queue(connection: &Connection, queue: &Queue) -> lapin::Result<()> {
    match try_queue(connection, queue).await {
        Err(error) if queue.durable && is_durability_conflict(&error) => {
            tracing::warn!(
                amqp.queue = %queue.name,
                "the queue or its exchange exists and is not durable, against our options: \
                 using it as it is"
            );
            let mut fallback = queue.clone();
            fallback.exchange.durable = false;
            fallback.durable = false;
            match try_queue(connection, &fallback).await {
                // Upstream stops here; but a quorum queue cannot be non-durable, only its exchange.
                Err(error) if has_code(&error, PRECONDITION_FAILED) => {
                    fallback.durable = true;
                    try_queue(connection, &fallback).await
                }
                other => other,
            }
        }
        // A durable queue comes back with its node, and holds requests: it is waited for, not deleted.
        Err(error) if !queue.durable && is_missing_queue(&error) => {
            tracing::warn!(
                amqp.queue = %queue.name, error = %error,
                "the queue is on a node that is down: deleting it and declaring it again"
            );
            let channel = answered(connection, connection.create_channel()).await?;
            let _ = answered(&channel, channel.queue_delete(queue.name.as_str().into(), Default::default()))
                .await;
            try_queue(connection, queue).await
        }
        other => other,
    }
}

async fn try_queue(connection: &Connection, queue: &Queue) -> lapin::Result<()> {
    let channel = answered(connection, connection.create_channel()).await?;
    exchange_on(&channel, &queue.exchange).await?;
    let options = lapin::options::QueueDeclareOptions {
        durable: queue.durable,
        auto_delete: queue.auto_delete,
        ..Default::default()
    };
    let name: lapin::types::ShortString = queue.name.as_str().into();
    answered(&channel, channel.queue_declare(name.clone(), options, table(&queue.arguments))).await?;
    answered(
        &channel,
        channel.queue_bind(
            name,
            queue.exchange.name.as_str().into(),
            queue.routing_key.as_str().into(),
            Default::default(),
            FieldTable::default(),
        ),
    )
    .await?;
    close(&channel).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::rpc::testing::rabbit;

    #[test]
    fn a_transport_without_a_host_is_an_error_of_configuration() {
        let error = Link::new(Arc::new(rabbit()), "test").unwrap_err();
        assert_eq!(error.code(), Code::Config);
    }

    #[test]
    fn login_methods_are_known_by_name() {
        assert_eq!(mechanism("PLAIN"), SASLMechanism::Plain);
        assert_eq!(mechanism("AMQPLAIN"), SASLMechanism::AMQPlain);
        assert_eq!(mechanism("EXTERNAL"), SASLMechanism::External);
    }
}
