//! Names, durability and arguments of every exchange and queue, exactly as oslo.messaging declares them.
//!
//! RabbitMQ refuses a declaration that differs in one argument from what exists, and stock services
//! declare the same exchanges and queues. So everything here is a pure function of the options, tested
//! against what a stock deployment declared. Reference: rpc.md 1.1 to 1.3;
//! `oslo_messaging/_drivers/impl_rabbit.py`.

use crate::config::RabbitConfig;
use crate::rpc::namespace::TOPIC;

/// Topic of the volume service.
pub const VOLUME_TOPIC: &str = "cinder-volume";
/// Topic of the scheduler.
pub const SCHEDULER_TOPIC: &str = "cinder-scheduler";

/// Topic of the backup service.
pub const BACKUP_TOPIC: &str = "cinder-backup";

/// The kinds of exchange in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ExchangeKind {
    Topic,
    Fanout,
}

/// An exchange to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Exchange {
    pub name: String,
    pub kind: ExchangeKind,
    pub durable: bool,
    pub auto_delete: bool,
}

/// The value of a queue or consumer argument.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Argument {
    Text(String),
    Number(i64),
    Flag(bool),
}

/// Arguments in the order in which upstream sets them.
pub type Arguments = Vec<(&'static str, Argument)>;

/// A queue to declare and bind. None is exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Queue {
    pub name: String,
    pub durable: bool,
    pub auto_delete: bool,
    pub arguments: Arguments,
    /// The exchange that it is bound to.
    pub exchange: Exchange,
    pub routing_key: String,
    pub consumer_arguments: Arguments,
    /// Deleted when its consumer closes gracefully.
    pub is_temporary: bool,
}

/// Tells the fanout queues of consumers apart.
#[derive(Debug, Clone)]
pub enum FanoutNames {
    /// A random name each time.
    Random,
    /// `<host>:<process>:<n>`: the same names again after a restart (`use_queue_manager`).
    Counted {
        /// `hostname`.
        host: String,
        /// `processname`.
        process: String,
        /// The number given last.
        last: u64,
    },
}

impl FanoutNames {
    /// As the options say. Upstream keeps the counter in shared memory because its workers are processes;
    /// one process serves all backends here, so it begins at 1 with each start, as upstream's does.
    pub fn new(config: &RabbitConfig) -> FanoutNames {
        if config.use_queue_manager {
            FanoutNames::Counted {
                host: config.hostname.clone(),
                process: config.processname.clone(),
                last: 0,
            }
        } else {
            FanoutNames::Random
        }
    }

    /// The next name.
    pub fn next_name(&mut self) -> String {
        match self {
            FanoutNames::Random => uuid::Uuid::new_v4().simple().to_string(),
            FanoutNames::Counted { host, process, last } => {
                *last += 1;
                format!("{host}:{process}:{last}")
            }
        }
    }
}

/// One RPC server: a topic and the server's name under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// For example `cinder-volume.h1@rbd`.
    pub topic: String,
    /// For example `h1`.
    pub server: String,
}

impl Target {
    /// The target of clients that address a backend or Cinder cluster (`host@backend`, pool ignored):
    /// `cinder/volume/rpcapi.py`, `_get_cctxt`.
    pub fn of_backend(host: &str) -> Target {
        let backend = crate::model::backend_of(host);
        let server = backend.split_once('@').map_or(backend, |(server, _)| server);
        Target { topic: format!("{VOLUME_TOPIC}.{backend}"), server: server.to_owned() }
    }

    /// The routing key of casts and calls to this very server.
    pub fn routing_key(&self) -> String {
        format!("{}.{}", self.topic, self.server)
    }
}

/// The servers of one backend (`cinder/service.py`, `Service.start`): the generic one, its own, and that
/// of its Cinder cluster.
pub fn targets(host: &str, cluster: Option<&str>) -> Vec<Target> {
    let mut targets =
        vec![Target { topic: VOLUME_TOPIC.to_owned(), server: host.to_owned() }, Target::of_backend(host)];
    targets.extend(cluster.map(Target::of_backend));
    targets
}

/// The exchange of requests and notifications.
pub fn control_exchange(config: &RabbitConfig, name: &str) -> Exchange {
    Exchange {
        name: name.to_owned(),
        kind: ExchangeKind::Topic,
        durable: is_durable(config),
        auto_delete: config.auto_delete,
    }
}

fn is_durable(config: &RabbitConfig) -> bool {
    config.durable_queues || config.quorum_queue
}

/// Name of a topic's fanout exchange.
pub fn fanout_name(topic: &str) -> String {
    format!("{topic}_fanout")
}

/// A topic's fanout exchange as its senders declare it. With streams consumers make it durable in any
/// case; streams need transient quorum queues too, so both agree.
pub fn fanout_exchange(config: &RabbitConfig, topic: &str) -> Exchange {
    Exchange {
        name: fanout_name(topic),
        kind: ExchangeKind::Fanout,
        durable: config.transient_quorum_queue,
        auto_delete: true,
    }
}

fn quorum_arguments(config: &RabbitConfig, quorum: bool) -> Arguments {
    let mut arguments = Arguments::new();
    if config.ha_queues {
        arguments.push(("x-ha-policy", Argument::Text("all".to_owned())));
    }
    if quorum {
        arguments.push(("x-queue-type", Argument::Text("quorum".to_owned())));
        for (name, value) in [
            ("x-delivery-limit", config.quorum_delivery_limit),
            ("x-max-in-memory-length", config.quorum_max_memory_length),
            ("x-max-in-memory-bytes", config.quorum_max_memory_bytes),
        ] {
            if let (1.., Ok(value)) = (value, i64::try_from(value)) {
                arguments.push((name, Argument::Number(value)));
            }
        }
    }
    arguments
}

fn cancel_arguments(config: &RabbitConfig) -> Arguments {
    if config.cancel_on_failover {
        vec![("x-cancel-on-ha-failover", Argument::Flag(true))]
    } else {
        Arguments::new()
    }
}

/// A queue named as its routing key: those of topics and servers, and those of notifications.
pub fn topic_queue(config: &RabbitConfig, control_exchange_name: &str, name: &str) -> Queue {
    Queue {
        name: name.to_owned(),
        durable: is_durable(config),
        auto_delete: config.auto_delete,
        arguments: quorum_arguments(config, config.quorum_queue),
        exchange: control_exchange(config, control_exchange_name),
        routing_key: name.to_owned(),
        consumer_arguments: cancel_arguments(config),
        is_temporary: false,
    }
}

fn fanout_queue(config: &RabbitConfig, topic: &str, names: &mut FanoutNames) -> Queue {
    let seconds = config.transient_queues_ttl.as_secs();
    let durable = config.transient_quorum_queue || config.stream_fanout;
    let exchange = Exchange { durable, ..fanout_exchange(config, topic) };
    let (name, arguments, consumer_arguments) = if config.stream_fanout {
        let mut arguments = vec![("x-queue-type", Argument::Text("stream".to_owned()))];
        if seconds > 0 {
            arguments.push(("x-max-age", Argument::Text(format!("{seconds}s"))));
        }
        let offset = vec![("x-stream-offset", Argument::Text("last".to_owned()))];
        (fanout_name(topic), arguments, offset)
    } else {
        let mut arguments = quorum_arguments(config, config.transient_quorum_queue);
        if let (1.., Ok(milliseconds)) = (seconds, i64::try_from(seconds.saturating_mul(1000))) {
            arguments.push(("x-expires", Argument::Number(milliseconds)));
        }
        (format!("{topic}_fanout_{}", names.next_name()), arguments, cancel_arguments(config))
    };
    Queue {
        name,
        durable,
        auto_delete: false,
        arguments,
        exchange,
        routing_key: topic.to_owned(),
        consumer_arguments,
        is_temporary: !config.stream_fanout && !config.use_queue_manager,
    }
}

/// The three queues of one RPC server.
pub fn queues(
    config: &RabbitConfig,
    control_exchange_name: &str,
    target: &Target,
    names: &mut FanoutNames,
) -> Vec<Queue> {
    vec![
        topic_queue(config, control_exchange_name, &target.topic),
        topic_queue(config, control_exchange_name, &target.routing_key()),
        fanout_queue(config, &target.topic, names),
    ]
}

/// The queues of Scoria's own namespaces: one for each name that the backend goes by, and none for the topic
/// itself.
pub fn own_queues(
    config: &RabbitConfig,
    control_exchange_name: &str,
    host: &str,
    cluster: Option<&str>,
) -> Vec<Queue> {
    let servers = std::iter::once(host).chain(cluster);
    servers.map(|server| topic_queue(config, control_exchange_name, &format!("{TOPIC}.{server}"))).collect()
}

/// Names of the queues that only one backend has, or only one Cinder cluster: nobody needs them when it is gone. Its
/// fanout queues go with their consumers.
pub fn owned(host: &str) -> Vec<String> {
    let target = Target::of_backend(host);
    let mut names = vec![target.topic.clone(), target.routing_key(), format!("{TOPIC}.{host}")];
    // Streams are one queue for all.
    names.push(fanout_name(&target.topic));
    names
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
