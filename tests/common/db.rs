//! A scratch database per test: Cinder's schema and Scoria's tables in a schema of their own on the
//! lab's real MariaDB, dropped when the test ends, also when it fails.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use scoria::config::DatabaseConfig;
use scoria::db::{Conn, Db, migration};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// Where the lab's server is, in SQLAlchemy's form.
const VARIABLE: &str = "SCORIA_DATABASE_URL";

/// Cinder 29's tables, as `cinder-manage db sync` makes them.
const SCHEMA: &str = include_str!("../fixtures/cinder-29-schema.sql");

/// A schema that lives as long as this value.
pub struct TestDb {
    /// How Scoria would be configured for it.
    pub config: DatabaseConfig,
    /// Connected to it, migrated.
    pub db: Db,
}

impl TestDb {
    /// Cinder's tables and Scoria's.
    pub async fn new() -> TestDb {
        let test = TestDb::without_migrations().await;
        migration::run(&test.db).await.expect("Scoria's migrations");
        test
    }

    /// Cinder's tables only.
    pub async fn without_migrations() -> TestDb {
        let mut config = server();
        config.name = format!("scoria_test_{}", uuid::Uuid::new_v4().simple());
        let mut conn = admin(&config).await;
        conn.query_drop(format!("CREATE DATABASE {0}; USE {0}", config.name)).await.expect("create a schema");
        conn.query_drop(SCHEMA).await.expect("load Cinder's schema");
        conn.disconnect().await.ok();
        let db = Db::connect(&config);
        TestDb { config, db }
    }

    /// Runs statements as they are.
    pub async fn sql(&self, statements: &str) {
        use diesel_async::SimpleAsyncConnection;
        self.db
            .read("test", async |conn: &mut Conn| Ok(conn.batch_execute(statements).await?))
            .await
            .unwrap_or_else(|e| panic!("{statements}: {e}"));
    }

    /// One row of texts; NULL reads as `NULL`.
    pub async fn row(&self, query: &str) -> Vec<String> {
        self.rows(query).await.into_iter().next().unwrap_or_default()
    }

    /// Rows of texts; NULL reads as `NULL`.
    pub async fn rows(&self, query: &str) -> Vec<Vec<String>> {
        let mut conn = self.raw().await;
        let rows: Vec<mysql_async::Row> = conn.query(query).await.unwrap_or_else(|e| panic!("{query}: {e}"));
        conn.disconnect().await.ok();
        rows.into_iter()
            .map(|row| {
                (0..row.len())
                    .map(|i| row.get::<Option<String>, _>(i).flatten().unwrap_or_else(|| "NULL".to_owned()))
                    .collect()
            })
            .collect()
    }

    /// A connection of the driver's own, for what `Db` would prevent.
    pub async fn raw(&self) -> mysql_async::Conn {
        let mut conn = admin(&self.config).await;
        conn.query_drop(format!("USE {}", self.config.name)).await.expect("use the schema");
        conn
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        let config = self.config.clone();
        let cleaner = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                let mut conn = admin(&config).await;
                // A test that failed half-way may have left transactions open, and the DROP would wait.
                let others = format!(
                    "SELECT id FROM information_schema.processlist WHERE db = '{}' AND id <> CONNECTION_ID()",
                    config.name
                );
                for id in conn.query::<u64, _>(others).await.unwrap_or_default() {
                    conn.query_drop(format!("KILL {id}")).await.ok();
                }
                if let Err(e) = conn.query_drop(format!("DROP DATABASE IF EXISTS {}", config.name)).await {
                    eprintln!("{} is left behind: {e}", config.name);
                }
                conn.disconnect().await.ok();
            });
        });
        if cleaner.join().is_err() {
            eprintln!("{} is left behind", self.config.name);
        }
    }
}

/// The lab's server, as configuration.
fn server() -> DatabaseConfig {
    let text = super::env::var(VARIABLE);
    let url = Url::parse(&text).unwrap_or_else(|e| panic!("{VARIABLE} is no URL: {e}"));
    let decode = |text: &str| percent_decode(text);
    DatabaseConfig {
        host: url.host_str().unwrap_or("127.0.0.1").to_owned(),
        port: url.port().unwrap_or(3306),
        socket: url.query_pairs().find(|(k, _)| k == "unix_socket").map(|(_, v)| v.into_owned().into()),
        user: decode(url.username()),
        password: url.password().map(|p| SecretString::from(decode(p))),
        name: url.path().trim_start_matches('/').to_owned(),
        ssl_ca: None,
        ssl_client: None,
        max_pool_size: 5,
        max_overflow: 50,
        max_retries: 10,
        retry_interval: Duration::from_secs(10),
    }
}

/// A connection to the server, in no schema.
async fn admin(config: &DatabaseConfig) -> mysql_async::Conn {
    let mut options = mysql_async::OptsBuilder::default()
        .ip_or_hostname(config.host.clone())
        .tcp_port(config.port)
        .user(Some(config.user.clone()))
        .pass(config.password.as_ref().map(|p| p.expose_secret().to_owned()))
        .prefer_socket(false);
    if let Some(socket) = &config.socket {
        options = options.socket(Some(socket.display().to_string())).prefer_socket(true);
    }
    mysql_async::Conn::new(options).await.unwrap_or_else(|e| panic!("the lab's MariaDB: {e}"))
}

fn percent_decode(text: &str) -> String {
    url::form_urlencoded::parse(format!("v={}", text.replace('+', "%2B")).as_bytes())
        .next()
        .map(|(_, v)| v.into_owned())
        .unwrap_or_default()
}
