//! Services and clusters: who serves which volumes.

use chrono::NaiveDateTime;

/// A row of `services`.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Service {
    pub id: i32,
    /// `host@backend`.
    pub host: String,
    pub binary: String,
    pub topic: String,
    pub uuid: String,
    pub cluster_name: Option<String>,
    pub availability_zone: Option<String>,
    pub report_count: i32,
    pub disabled: bool,
    pub disabled_reason: Option<String>,
    pub replication_status: Option<String>,
    pub frozen: bool,
    /// NULL: never failed over; empty: failed back; else a `backend_id`.
    pub active_backend_id: Option<String>,
    pub rpc_current_version: Option<String>,
    pub object_current_version: Option<String>,
    pub created_at: Option<NaiveDateTime>,
    pub updated_at: Option<NaiveDateTime>,
    pub modified_at: Option<NaiveDateTime>,
}

/// What a service says of itself in its row of `services`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    /// `rpc_current_version`.
    pub rpc: Option<String>,
    /// `object_current_version`.
    pub objects: Option<String>,
}

/// A row of `clusters`.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Cluster {
    pub id: i32,
    pub name: String,
    pub binary: String,
    pub disabled: bool,
    pub disabled_reason: Option<String>,
    pub replication_status: Option<String>,
    pub frozen: bool,
    pub active_backend_id: Option<String>,
}

/// Whose volumes: those of one service host, or those of a Cinder cluster
/// (`VolumeList.get_all` with filters host or cluster_name; the pool part is ignored).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `volumes.host` equals this `host@backend`, or begins with it and `#`.
    Host(String),
    /// `volumes.cluster_name` likewise.
    Cluster(String),
}

/// The host of a service, without its mark and its backend: `h1` of `row-7!h1@ceph`.
pub fn host_part(service: &str) -> &str {
    let host = service.split_once('@').map_or(service, |(host, _)| host);
    host.rsplit_once('!').map_or(host, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::host_part;

    #[test]
    fn a_mark_and_a_backend_are_no_part_of_a_host() {
        for service in ["h1", "h1@ceph", "row-7!h1@ceph", "row-7!h1"] {
            assert_eq!(host_part(service), "h1", "{service}");
        }
    }
}
