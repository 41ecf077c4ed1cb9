//! Other options for a backend, by order or because somebody has edited its file.
//!
//! A few options are only read when capabilities are reported: those change under a running backend. Any other change
//! restarts that backend, and no other: it takes no more requests, work in flight ends under the old options, and it
//! starts again with the new ones; requests wait in its queues meanwhile. What would leave volumes behind, such as another
//! pool, is refused while there are any. A site that would become another Ceph cluster is refused, too: rows speak of sites
//! by their names, and `replication adopt` is what changes their meaning.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::files::Files;
use super::orders::Update;
use super::{Backends, LOOK, blocking, delete, scope_of, text};
use crate::backend::connections;
use crate::config::{BackendConfig, check_options};
use crate::db::backend::{BackendRow, State};
use crate::db::{backend as rows, backend_site};
use crate::error::{Code, Error, Result};
use crate::journal::{Operation, Outcome};
use crate::model::Scope;
use crate::rbd::Site;
use crate::rbd::protocol::Fsid;

/// Options that a running backend takes over: the capability report reads them anew each time.
pub const LIVE: [&str; 6] = [
    "reserved_percentage",
    "max_over_subscription_ratio",
    "filter_function",
    "goodness_function",
    "extra_capabilities",
    "report_dynamic_total_capacity",
];

/// Options that say where volumes are: with volumes there they stay as they are.
const PLACE: [&str; 2] = ["rbd_pool", "volume_backend_name"];

/// What another reading of a backend means for the one that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// It takes these options over.
    Live(Vec<&'static str>),
    /// It is restarted, because of these.
    Restart(Vec<&'static str>),
}

impl Change {
    /// In a word, and which options.
    pub fn told(&self) -> (&'static str, &[&'static str]) {
        match self {
            Change::None => ("none", &[]),
            Change::Live(keys) => ("live", keys),
            Change::Restart(keys) => ("restart", keys),
        }
    }
}

/// How two readings of a backend differ.
pub fn difference(old: &BackendConfig, new: &BackendConfig) -> Change {
    let mut keys = old.values.differing(&new.values);
    // These may come from [DEFAULT], which is not among a backend's options.
    if old.availability_zone != new.availability_zone && !keys.contains(&"backend_availability_zone") {
        keys.push("storage_availability_zone");
    }
    if old.cluster != new.cluster {
        keys.push("cluster");
    }
    match keys.iter().all(|key| LIVE.contains(key)) {
        true if keys.is_empty() => Change::None,
        true => Change::Live(keys),
        false => Change::Restart(keys),
    }
}

impl Backends {
    /// Fails when a backend must not be changed like this.
    async fn may_become(&self, row: &BackendRow, old: &BackendConfig, new: &BackendConfig) -> Result<()> {
        if old.host != new.host {
            return Err(Error::new(
                Code::Invalid,
                format!(
                    "The service of backend {} would become {} instead of {}, and its volumes would be nobody's; \
                     `scoria-manage backend rename` moves them",
                    row.name, new.host, old.host
                ),
            ));
        }
        let moved: Vec<&str> =
            old.values.differing(&new.values).into_iter().filter(|k| PLACE.contains(k)).collect();
        if !moved.is_empty() {
            let contents = delete::contents_of(self, row).await?;
            if !contents.is_empty() {
                return Err(Error::new(
                    Code::Invalid,
                    format!(
                        "{} of backend {} cannot change while it has {contents}; make another backend and migrate them",
                        moved.join(" and "),
                        row.name
                    ),
                ));
            }
        }
        self.marked(new).await?;
        self.same_clusters(old, new).await
    }

    /// Fails when a name of a site would stand for another Ceph cluster than rows mean by it.
    async fn same_clusters(&self, old: &BackendConfig, new: &BackendConfig) -> Result<()> {
        let (Scope::Host(name) | Scope::Cluster(name)) = scope_of(&old.host, old.cluster.as_deref());
        let known = self.db.read("known sites", async |conn| backend_site::known(conn, &name).await).await?;
        let before = connections(old);
        for connection in connections(new) {
            let Some(expected) = known.expected(&connection.site) else { continue };
            if before.contains(&connection) {
                continue;
            }
            let site = Site::new(self.ceph.clone(), connection);
            let found = site.call_within(LOOK, Fsid {}).await.map_err(|e| {
                Error::new(
                    Code::Invalid,
                    format!(
                        "Site {} of backend {} does not answer by its new options, so nobody knows which cluster it is",
                        site.name(),
                        new.section
                    ),
                )
                .caused_by(e)
            })?;
            if found != expected {
                return Err(Error::new(
                    Code::Invalid,
                    format!(
                        "Site {} of backend {} would lead to Ceph cluster {found} instead of {expected}. If that is meant, \
                         scoria-manage replication adopt --backend {} makes the rows follow",
                        site.name(),
                        new.section,
                        new.section
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Gives a running backend other options, after every check. Answers what it took.
    ///
    /// # Errors
    /// Why it must not, and nothing has changed; or why it did not start again, and it runs by its old options.
    pub(super) async fn change(
        &self,
        row: &BackendRow,
        old: &BackendConfig,
        new: &BackendConfig,
    ) -> Result<Change> {
        let change = difference(old, new);
        let mut allowed = self.may_become(row, old, new).await;
        if matches!(change, Change::Restart(_)) && allowed.is_ok() {
            allowed = self.probe(new).await.map(drop);
        }
        if allowed.is_err() {
            self.runner.release(new);
        }
        allowed?;
        match &change {
            Change::None => {}
            Change::Live(keys) => {
                self.runner.apply(new);
                info!(
                    backend = new.host,
                    options = keys.join(","),
                    "options of a running backend have changed"
                );
            }
            Change::Restart(keys) => {
                info!(
                    backend = new.host,
                    options = keys.join(","),
                    "restarting a backend: its options have changed"
                );
                let began = std::time::Instant::now();
                if !self.runner.stop(&row.name, self.patience).await {
                    warn!(backend = new.host, "work in flight goes on under the old options");
                }
                self.runner.point("backend:change:stopped").await;
                let started = self.runner.start(new).await;
                let reason = match started {
                    Ok(started) => started.down,
                    Err(error) => Some(error.operator()),
                };
                if let Some(reason) = reason {
                    self.runner.stop(&row.name, self.patience).await;
                    self.runner.start(old).await?;
                    return Err(Error::new(
                        Code::VolumeBackend,
                        format!(
                            "Backend {} did not come up with its new options; it runs by the old ones",
                            row.name
                        ),
                    )
                    .detail(reason));
                }
                info!(
                    backend = new.host,
                    restart_ms = began.elapsed().as_millis() as u64,
                    "a backend runs by its new options"
                );
            }
        }
        Ok(change)
    }
}

/// The file as it was, and as it is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Texts {
    old: String,
    new: String,
}

fn edit(row: &BackendRow, order: &Update) -> Error {
    let lines: Vec<String> = order
        .options
        .iter()
        .flat_map(|(option, values)| match values.as_slice() {
            [] => vec![format!("take out {option}")],
            values => values.iter().map(|value| format!("{option} = {value}")).collect(),
        })
        .collect();
    Error::new(
        Code::Invalid,
        format!(
            "Backend {} is in {}, which is never written. In its section [{}] write: {}; then send SIGHUP to scoria-volume",
            row.name,
            row.path,
            row.name,
            lines.join("; ")
        ),
    )
}

pub(super) async fn update(b: &Backends, operation: &Operation, order: &Update) -> Result<Option<Value>> {
    check_options(order.options.keys().map(String::as_str))?;
    let _one = b.locks.local(&order.name).await;
    let row = b.known(&order.name).await?;
    Backends::free(&row)?;
    if !row.has_file() {
        return Err(edit(&row, order));
    }
    let file = Files::new(&row.path);
    let texts = match operation.reached::<Texts>("checked").await? {
        Some(texts) => texts,
        None => {
            let of = file.clone();
            let missing = || {
                Error::new(
                    Code::InvalidInput,
                    format!("The file of backend {} is gone: {}", row.name, row.path),
                )
            };
            let old = blocking(move || of.content()).await??.ok_or_else(missing)?;
            let new = text::changed(&old, &order.options)?;
            Texts { old, new }
        }
    };
    let fragment = b.sources.fragment(row.path.clone().into(), texts.new.clone().into_bytes()).await?;
    let new = fragment.accepted(true)?.clone();
    let running = b.runner.running(&order.name);
    let before = match &running {
        Some(config) => config.clone(),
        None => b.read(&row).await.unwrap_or_else(|_| new.clone()),
    };
    let allowed = b.may_become(&row, &before, &new).await;
    if allowed.is_err() || order.dry_run {
        b.runner.release(&new);
    }
    allowed?;
    let change = difference(&before, &new);
    let others: Vec<Value> = b
        .strangers(&new)
        .await?
        .into_iter()
        .map(|(host, options)| json!({"host": host, "options": options}))
        .collect();
    let (effect, options) = change.told();
    let answer = json!({
        "backend": row.name,
        "service": row.service,
        "host": row.host,
        "effect": if running.is_some() { effect } else { "not running" },
        "options": options,
        "differing_hosts": others,
        "dry_run": order.dry_run,
    });
    if order.dry_run {
        return Ok(Some(answer));
    }
    operation.step("checked", &texts).await?;
    let (of, text) = (file.clone(), texts.new.clone());
    blocking(move || of.write(&text)).await??;
    b.runner.point("backend:update:written").await;
    if let Some(old) = &running
        && let Err(error) = b.change(&row, old, &new).await
    {
        if !matches!(error.code(), Code::Cancelled | Code::Database | Code::Broker) {
            blocking(move || file.write(&texts.old)).await??;
        }
        return Err(error);
    }
    b.runner.point("backend:update:applied").await;
    let state = if running.is_some() { State::Running.as_str().to_owned() } else { row.state.clone() };
    let row = BackendRow { wanted: row.wanted.clone(), state, ..b.described(&new, &fragment.checksum)? };
    let outcome = Outcome::succeeded().with_reply(answer);
    b.journal.complete(operation, &outcome, async |conn| rows::put(conn, &row).await).await?;
    Ok(None)
}
