//! Which backend a command is about: its configuration, its service rows, its cluster row.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;

use super::Context;
use super::output::{age, is_up};
use crate::config::BackendConfig;
use crate::db::{self, admin};
use crate::error::{Code, Error, Result};
use crate::model::{Cluster, Scope, Service};
use crate::replication::target::{DEFAULT, active};

/// A backend, clustered or not.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Whose volumes.
    pub(super) scope: Scope,
    /// Its section, when this host's configuration has it.
    pub(super) config: Option<BackendConfig>,
    /// Its service row, or those of all members of its cluster. Empty when it never ran.
    pub(super) services: Vec<Service>,
    /// Its cluster's row.
    pub(super) cluster: Option<Cluster>,
}

impl Target {
    /// Every backend that has a service row or a section.
    pub(super) async fn all(context: &Context) -> Result<Vec<Target>> {
        let services =
            context.db.read("volume services", async |conn| admin::volume_services(conn).await).await?;
        let mut found: BTreeMap<String, Target> = BTreeMap::new();
        let mut add = |scope: Scope| {
            let name = name_of(&scope).to_owned();
            let target = || Target { scope, config: None, services: Vec::new(), cluster: None };
            found.entry(name.clone()).or_insert_with(target);
            name
        };
        let mut homes = Vec::new();
        for service in services {
            let scope = match service.cluster_name.as_deref().filter(|c| !c.is_empty()) {
                Some(cluster) => Scope::Cluster(cluster.to_owned()),
                None => Scope::Host(service.host.clone()),
            };
            homes.push((add(scope), service));
        }
        let mut sections = Vec::new();
        for backend in &context.config.backends {
            let row = homes.iter().find(|(_, service)| service.host == backend.host);
            let name = match (row, &backend.cluster) {
                (Some((name, _)), _) => name.clone(),
                (None, Some(cluster)) => add(Scope::Cluster(cluster.clone())),
                (None, None) => add(Scope::Host(backend.host.clone())),
            };
            sections.push((name, backend.clone()));
        }
        for (name, service) in homes {
            if let Some(target) = found.get_mut(&name) {
                target.services.push(service);
            }
        }
        for (name, backend) in sections {
            if let Some(target) = found.get_mut(&name) {
                target.config = Some(backend);
            }
        }
        let mut targets: Vec<Target> = found.into_values().collect();
        for target in &mut targets {
            if let Scope::Cluster(name) = &target.scope {
                target.cluster =
                    context.db.read("cluster", async |conn| db::cluster::find(conn, name).await).await?;
            }
        }
        Ok(targets)
    }

    /// The backend called `name`: `host@backend`, `cluster@backend`, or a section of the configuration.
    ///
    /// # Errors
    /// `ServiceNotFound`, with the names that there are.
    pub(super) async fn find(context: &Context, name: &str) -> Result<Target> {
        let targets = Target::all(context).await?;
        match targets.iter().find(|t| t.is_called(name)) {
            Some(target) => Ok(target.clone()),
            None => {
                let names: Vec<&str> = targets.iter().map(Target::name).collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                Err(Error::new(
                    Code::ServiceNotFound,
                    format!("There is no backend {name}; the backends are: {known}"),
                ))
            }
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.name() == name
            || self.services.iter().any(|s| s.host == name)
            || self.config.as_ref().is_some_and(|c| c.section == name || c.host == name)
    }

    /// `host@backend` or `cluster@backend`.
    pub(super) fn name(&self) -> &str {
        name_of(&self.scope)
    }

    /// A `host@backend` of it.
    ///
    /// # Errors
    /// `ServiceNotFound` when no service of it has ever run.
    pub(super) fn host(&self) -> Result<&str> {
        self.services.first().map(|s| s.host.as_str()).ok_or_else(|| {
            Error::new(
                Code::ServiceNotFound,
                format!("Backend {} has no service row: its service has never run", self.name()),
            )
        })
    }

    /// The replication fields that count: the cluster's, or the service's.
    pub(super) fn fields(&self) -> Option<admin::Fields> {
        match &self.cluster {
            Some(cluster) => Some(cluster.into()),
            None => self.services.first().map(Into::into),
        }
    }

    /// Name of the active site.
    pub(super) fn active_site(&self) -> String {
        active(self.fields().and_then(|f| f.active_backend_id).as_deref()).to_owned()
    }

    /// Names of its sites, `default` first; `None` when this host does not know its configuration.
    pub(super) fn sites(&self) -> Option<Vec<String>> {
        let config = self.config.as_ref()?;
        let devices = config.replication_devices.iter().map(|d| d.backend_id.clone());
        Some(std::iter::once(DEFAULT.to_owned()).chain(devices).collect())
    }

    /// Seconds since the last heartbeat of any of its services.
    pub(super) fn heartbeat_age(&self, now: NaiveDateTime) -> Option<i64> {
        age(self.heartbeat(), now)
    }

    /// True when at least one of its services is up.
    pub(super) fn is_up(&self, context: &Context, now: NaiveDateTime) -> bool {
        is_up(self.heartbeat(), now, context.config.service_down_time)
    }

    fn heartbeat(&self) -> Option<NaiveDateTime> {
        self.services.iter().filter_map(|s| s.updated_at).max()
    }

    /// Its cluster, when it is clustered.
    pub(super) fn cluster_name(&self) -> Option<&str> {
        match &self.scope {
            Scope::Cluster(name) => Some(name),
            Scope::Host(_) => None,
        }
    }
}

fn name_of(scope: &Scope) -> &str {
    match scope {
        Scope::Host(name) | Scope::Cluster(name) => name,
    }
}
