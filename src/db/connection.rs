//! Connections to Cinder's database: how one is opened, pooled, and waited for.
//!
//! diesel-async would take a URL; here the options are built by hand, because TLS files, the socket
//! and a password with any character in it do not survive a URL. `client_found_rows` makes an UPDATE
//! report the rows it *matched*, which is what a conditional status change must know.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::AsyncMysqlConnection;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use futures::FutureExt;
use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, OptsBuilder, SslOpts};
use secrecy::ExposeSecret;
use tokio::time::sleep;

use super::tls::client_key;
use crate::config::DatabaseConfig;
use crate::error::{Code, Error, Result};

/// A connection as every function of `db` takes it.
pub type Conn = AsyncMysqlConnection;

/// How long one attempt to open a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a session, sent in one round trip: English texts (`db::error` reads them), the strict
/// mode that oslo.db sets, and READ COMMITTED, which spares the gap locks of the server's default
/// (every read-then-write here takes its row `FOR UPDATE` or is a conditional UPDATE).
const SESSION: &str = "SET SESSION lc_messages = 'en_US', SESSION sql_mode = 'TRADITIONAL', \
     SESSION innodb_lock_wait_timeout = 15; \
     SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// The pool, and what is known of the server.
pub(super) struct Connections {
    pool: Pool<Conn>,
    address: String,
    health: Mutex<Health>,
}

/// What was logged last about the server: one line per change, not per attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    Unknown,
    Up,
    Down(String),
}

impl Connections {
    pub(super) fn new(config: &DatabaseConfig) -> Self {
        let setup = Arc::new(config.clone());
        let mut manager = ManagerConfig::<Conn>::default();
        // A dead connection is noticed by its first statement and replaced (`Db` retries), so no
        // ping is paid for each use.
        manager.recycling_method = RecyclingMethod::Fast;
        manager.custom_setup = Box::new(move |_url| open(setup.clone()).boxed());
        let manager = AsyncDieselConnectionManager::new_with_config("", manager);
        let size = (config.max_pool_size + config.max_overflow).max(2);
        let pool = match Pool::builder(manager).max_size(size).build() {
            Ok(pool) => pool,
            // Only timeouts without a runtime are refused by deadpool, and none are set above.
            Err(e) => unreachable!("deadpool refused a pool without timeouts: {e}"),
        };
        Connections { pool, address: address(config), health: Mutex::new(Health::Unknown) }
    }

    /// One connection, waiting as long as the server is away.
    pub(super) async fn get(&self, label: &'static str) -> Lease {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.pool.get().await {
                Ok(object) => {
                    self.set_health(Health::Up, label);
                    return Lease { object: Some(object), clean: false };
                }
                Err(error) => {
                    self.set_health(Health::Down(error.to_string()), label);
                    sleep(jittered(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(3));
                }
            }
        }
    }

    /// One connection or the reason why there is none: for start-up checks and tools.
    pub(super) async fn try_get(&self) -> Result<Lease> {
        let object = self.pool.get().await.map_err(|e| {
            Error::new(Code::Database, format!("The database at {} cannot be reached", self.address))
                .detail(e.to_string())
        })?;
        self.set_health(Health::Up, "check");
        Ok(Lease { object: Some(object), clean: false })
    }

    /// Forgets idle connections: after one was lost, its siblings are most likely dead too.
    pub(super) fn discard_idle(&self) {
        self.pool.retain(|_, _| false);
    }

    fn set_health(&self, new: Health, label: &'static str) {
        let mut health = match self.health.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        };
        if *health == new {
            return;
        }
        match (&*health, &new) {
            (_, Health::Down(reason)) => {
                tracing::error!(
                    database.address = %self.address,
                    database.waiting_for = label,
                    error = %reason,
                    "the database is away; waiting for it"
                );
            }
            (Health::Down(_), Health::Up) => {
                tracing::info!(database.address = %self.address, "the database is back");
            }
            _ => tracing::debug!(database.address = %self.address, "connected to the database"),
        }
        *health = new;
    }
}

/// Doubles as the proof that a connection went back whole: one that is dropped half-way (the caller
/// was cancelled, or the connection broke) may hold an open transaction and leaves the pool for good.
pub(super) struct Lease {
    object: Option<Object<Conn>>,
    clean: bool,
}

impl Lease {
    /// The connection.
    pub(super) fn conn(&mut self) -> &mut Conn {
        match self.object.as_mut() {
            Some(object) => object,
            None => unreachable!("a lease keeps its connection until it is dropped"),
        }
    }

    /// Gives the connection back for the next user.
    pub(super) fn give_back(mut self) {
        self.clean = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take()
            && !self.clean
        {
            drop(Object::take(object));
        }
    }
}

async fn open(config: Arc<DatabaseConfig>) -> Result<Conn, ConnectionError> {
    let bad = |e: mysql_async::Error| ConnectionError::BadConnection(e.to_string());
    let connect = async {
        // Read at each connect: certificates are renewed while the service runs.
        let opts = options(&config).await.map_err(ConnectionError::BadConnection)?;
        let mut conn = mysql_async::Conn::new(opts).await.map_err(bad)?;
        conn.query_drop(SESSION).await.map_err(bad)?;
        // diesel-async adds the time zone (+00:00) and utf8mb4.
        AsyncMysqlConnection::try_from(conn).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(result) => result,
        Err(_) => {
            Err(ConnectionError::BadConnection(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))
        }
    }
}

async fn options(config: &DatabaseConfig) -> Result<mysql_async::Opts, String> {
    let mut builder = OptsBuilder::default()
        .ip_or_hostname(config.host.clone())
        .tcp_port(config.port)
        .user(Some(config.user.clone()))
        .pass(config.password.as_ref().map(|p| p.expose_secret().to_owned()))
        .db_name(Some(config.name.clone()))
        .client_found_rows(true)
        // diesel-async caches prepared statements itself.
        .stmt_cache_size(0)
        .tcp_keepalive(Some(30_000_u32))
        .prefer_socket(false);
    if let Some(socket) = &config.socket {
        builder = builder.socket(Some(socket.display().to_string())).prefer_socket(true);
    }
    if config.ssl_ca.is_some() || config.ssl_client.is_some() {
        let mut ssl = SslOpts::default();
        ssl = match &config.ssl_ca {
            Some(ca) => ssl.with_root_certs(vec![ca.clone().into()]).with_disable_built_in_roots(true),
            // As upstream's driver: without a CA the connection is encrypted, not authenticated.
            None => ssl.with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true),
        };
        if let Some((cert, key)) = &config.ssl_client {
            let key = client_key(key).await?;
            ssl = ssl.with_client_identity(Some(ClientIdentity::new(cert.clone().into(), key.into())));
        }
        builder = builder.ssl_opts(Some(ssl));
    }
    Ok(builder.into())
}

/// How the server is named in messages (no user, no password).
fn address(config: &DatabaseConfig) -> String {
    match &config.socket {
        Some(socket) => format!("{}/{}", socket.display(), config.name),
        None => format!("{}:{}/{}", config.host, config.port, config.name),
    }
}

/// Between half and the whole of `pause`, so that many waiters do not come at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// Shared handle.
pub(super) type Shared = Arc<Connections>;
