//! Options as upstream defaults them, for tests.

use std::time::Duration;

use crate::config::RabbitConfig;

/// `[oslo_messaging_rabbit]` with nothing set, and no host.
pub(crate) fn rabbit() -> RabbitConfig {
    RabbitConfig {
        hosts: Vec::new(),
        vhost: "/".to_owned(),
        durable_queues: false,
        auto_delete: false,
        quorum_queue: false,
        transient_quorum_queue: false,
        quorum_delivery_limit: 0,
        quorum_max_memory_length: 0,
        quorum_max_memory_bytes: 0,
        ha_queues: false,
        transient_queues_ttl: Duration::from_secs(1800),
        stream_fanout: false,
        prefetch: 100,
        cancel_on_failover: false,
        use_queue_manager: false,
        hostname: "qhost".to_owned(),
        processname: "cinder-volume".to_owned(),
        retry_interval: Duration::from_secs(1),
        retry_backoff: Duration::from_secs(2),
        interval_max: Duration::from_secs(30),
        heartbeat: Duration::from_secs(60),
        response_timeout: Duration::from_secs(60),
        missing_consumer_retry: Duration::from_secs(60),
        login_method: "AMQPLAIN".to_owned(),
        tls: None,
    }
}
