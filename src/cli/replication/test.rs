//! `replication test`: a failover tried out on clones.
//!
//! It disturbs nothing, so it asks nothing: what is ordered can be seen with `--dry-run`, and taken back with `stop`.
//! Which states of the volumes are on the other site is for the service to find out; what it has made is in
//! `scoria_tests`, where `list` reads it, also while the service is down.

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::super::output::{table, time, volumes};
use super::super::target::Target;
use super::super::{Context, Report};
use super::{ids, order, require_settled};
use crate::db;
use crate::db::drill::Drill;
use crate::db::volume::{VolumeFilter, list as volumes_of};
use crate::error::{Code, Error, Result};
use crate::model::{GIB, ReplicationStatus, Volume};
use crate::replication::drill::backend_name;
use crate::replication::orders::{self, Order};

/// Actions of `replication test`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Make a writable clone of each volume's copy on the other site
    Start(Start),
    /// Clones that there are
    List {
        /// Only of this backend
        #[arg(long, value_name = "BACKEND")]
        backend: Option<String>,
    },
    /// Remove clones, and the snapshots that were taken for them
    Stop(Stop),
}

/// Arguments of `test start`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Start {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Only this volume; repeatable, and then of one instant. Default: all replicated volumes of the backend
    #[arg(long = "volume", value_name = "ID")]
    pub volumes: Vec<Uuid>,
    /// The volumes of this group, of one instant
    #[arg(long, value_name = "ID", conflicts_with = "volumes")]
    pub group: Option<Uuid>,
    /// Pool of the clones on the other site. Default: that of the volumes
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Only show what would be ordered
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `test stop`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Stop {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Only this test. Default: all of the backend
    #[arg(long, value_name = "TEST")]
    pub id: Option<Uuid>,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    match action {
        Action::Start(arguments) => start(context, arguments).await,
        Action::List { backend } => list(context, backend.as_deref()).await,
        Action::Stop(arguments) => stop(context, arguments).await,
    }
}

#[derive(Debug, Serialize)]
struct Preview {
    backend: String,
    test: String,
    volumes: Vec<String>,
    one_instant: bool,
}

async fn start(context: &Context, arguments: Start) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    if target.sites().is_some_and(|sites| sites.len() < 2) {
        return Err(Error::new(
            Code::UnableToFailOver,
            format!("Backend {} is not replicated: its section has no replication_device", target.name()),
        ));
    }
    target.host()?;
    require_settled(context, &target).await?;
    let mirrored =
        [ReplicationStatus::Enabled, ReplicationStatus::FailedOver, ReplicationStatus::FailoverError];
    let filter = VolumeFilter {
        replication_statuses: mirrored.iter().map(|s| s.as_str().to_owned()).collect(),
        ..VolumeFilter::default()
    };
    let scope = &target.scope;
    let found =
        context.db.read("volumes to test", async |conn| volumes_of(conn, scope, &filter).await).await?;
    let chosen = choose(&found, &ids(&arguments.volumes), arguments.group, target.name())?;
    let named = !arguments.volumes.is_empty() || arguments.group.is_some();
    let preview = Preview {
        backend: target.name().to_owned(),
        test: Uuid::new_v4().to_string(),
        volumes: chosen.iter().map(|v| v.id.clone()).collect(),
        one_instant: named && chosen.len() > 1,
    };
    let count = volumes(chosen.len());
    if chosen.is_empty() {
        let text = format!("Backend {} has no replicated volume; nothing to test.", preview.backend);
        return Report::new(text, &preview);
    }
    if arguments.dry_run {
        let rows = chosen.iter().map(|v| {
            let status = v.replication_status.clone().unwrap_or_default();
            [v.id.clone(), v.display_name.clone().unwrap_or_default(), v.size.to_string(), status]
        });
        let text = format!(
            "Would clone the copies of {count} of backend {}:\n{}",
            preview.backend,
            table(["Volume", "Name", "GiB", "Replication"], rows)
        );
        return Report::new(text, &preview);
    }
    eprintln!("Test {}: cloning the copies of {count} of backend {}.", preview.test, preview.backend);
    let order_ = orders::TestStart {
        id: preview.test,
        volumes: named.then_some(preview.volumes),
        together: preview.one_instant,
        pool: arguments.pool,
    };
    order(context, &target, Order::TestStart(order_), !arguments.no_wait).await
}

/// The volumes that are asked for; all without `named` and `group`.
fn choose<'a>(
    found: &'a [Volume],
    named: &[String],
    group: Option<Uuid>,
    backend: &str,
) -> Result<Vec<&'a Volume>> {
    for id in named {
        if !found.iter().any(|v| v.id == *id) {
            return Err(Error::new(
                Code::InvalidVolume,
                format!("Volume {id} is not a replicated volume of backend {backend}"),
            ));
        }
    }
    let group = group.map(|id| id.to_string());
    let chosen: Vec<&Volume> = found
        .iter()
        .filter(|v| named.is_empty() || named.contains(&v.id))
        .filter(|v| group.is_none() || v.group_id == group)
        .collect();
    match group {
        Some(id) if chosen.is_empty() => Err(Error::new(
            Code::InvalidVolume,
            format!("Group {id} has no replicated volume of backend {backend}"),
        )),
        _ => Ok(chosen),
    }
}

/// One clone for people and scripts.
#[derive(Debug, Serialize)]
struct View {
    test: String,
    backend: String,
    volume: String,
    state: String,
    site: Option<String>,
    /// `pool/image` there.
    clone: String,
    gigabytes: u64,
    snapshot: String,
    point_in_time: Option<String>,
    detail: Option<String>,
    created_at: String,
}

impl From<Drill> for View {
    fn from(row: Drill) -> View {
        View {
            clone: format!("{}/{}", row.clone_pool, row.clone),
            gigabytes: u64::try_from(row.size).unwrap_or(0).div_ceil(GIB),
            point_in_time: row.point_in_time.map(|t| time(Some(t))),
            site: Some(row.site).filter(|s| !s.is_empty()),
            created_at: time(Some(row.created_at)),
            test: row.test_id,
            backend: row.backend,
            volume: row.volume_id,
            state: row.state,
            snapshot: row.snapshot,
            detail: row.detail,
        }
    }
}

async fn list(context: &Context, backend: Option<&str>) -> Result<Report> {
    let name = match backend {
        Some(name) => Some(backend_name(&Target::find(context, name).await?.scope).to_owned()),
        None => None,
    };
    let rows =
        context.db.read("drills", async |conn| db::drill::list(conn, name.as_deref(), None).await).await?;
    let views: Vec<View> = rows.into_iter().map(View::from).collect();
    if views.is_empty() {
        return Report::new("There is no test.", &views);
    }
    let head = ["Test", "Volume", "State", "Site", "Clone", "GiB", "As of (UTC)", "Detail"];
    let shown = views.iter().map(|v| {
        [
            v.test.clone(),
            v.volume.clone(),
            v.state.clone(),
            v.site.clone().unwrap_or_default(),
            v.clone.clone(),
            v.gigabytes.to_string(),
            v.point_in_time.clone().unwrap_or_default(),
            v.detail.clone().unwrap_or_default(),
        ]
    });
    Report::new(table(head, shown), &views)
}

async fn stop(context: &Context, arguments: Stop) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    target.host()?;
    let id = arguments.id.map(|id| id.to_string());
    let name = backend_name(&target.scope);
    let rows = context
        .db
        .read("drills", async |conn| db::drill::list(conn, Some(name), id.as_deref()).await)
        .await?;
    if rows.is_empty() {
        let nothing: [View; 0] = [];
        return Report::new(format!("Backend {name} has no such test; nothing to stop."), &nothing);
    }
    eprintln!("Removing {} of backend {name}.", clones(rows.len()));
    order(context, &target, Order::TestStop(orders::TestStop { id }), !arguments.no_wait).await
}

fn clones(count: usize) -> String {
    if count == 1 { "1 clone".to_owned() } else { format!("{count} clones") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: &str, group: Option<&str>) -> Volume {
        Volume { id: id.into(), group_id: group.map(str::to_owned), ..Volume::default() }
    }

    #[test]
    fn a_test_is_of_all_of_some_or_of_a_group() {
        let group = Uuid::from_u128(7);
        let found = [volume("v1", Some(&group.to_string())), volume("v2", None)];
        let ids = |chosen: Vec<&Volume>| chosen.iter().map(|v| v.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(choose(&found, &[], None, "b").unwrap()), ["v1", "v2"]);
        assert_eq!(ids(choose(&found, &["v2".into()], None, "b").unwrap()), ["v2"]);
        assert_eq!(ids(choose(&found, &[], Some(group), "b").unwrap()), ["v1"]);
        let stranger = choose(&found, &["v9".into()], None, "b").unwrap_err();
        assert_eq!(stranger.code(), Code::InvalidVolume);
        assert!(choose(&found, &[], Some(Uuid::from_u128(8)), "b").is_err());
    }
}
