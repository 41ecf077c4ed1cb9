//! Whom to fence after a crash: the addresses of our librados clients, per Ceph site.
//!
//! A killed worker's watches and locks outlive it for up to half a minute. Whoever takes its work over
//! looks its addresses up here and blocklists exactly those.

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{Journal, db_now};
use crate::db::schema::scoria_rbd_clients as clients;
use crate::error::Result;

/// One librados client.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = clients, check_for_backend(Mysql))]
pub struct RbdClient {
    /// The Ceph cluster it is connected to.
    pub site_fsid: String,
    /// `ip:port/nonce` as in `rados_getaddrs`.
    pub address: String,
    /// The instance whose worker it belongs to.
    pub owner: String,
    /// The machine it ran on.
    pub owner_host: String,
    /// The worker process.
    pub pid: i32,
}

impl Journal {
    /// Writes a client down, before the worker touches an image.
    ///
    /// # Errors
    /// `Database`.
    pub async fn record_client(&self, site_fsid: &str, address: &str, pid: i32) -> Result<()> {
        let owner = self.owner();
        self.shared
            .db
            .read("record client", async |conn| {
                diesel::replace_into(clients::table)
                    .values((
                        clients::site_fsid.eq(site_fsid),
                        clients::address.eq(address),
                        clients::owner.eq(&owner.instance),
                        clients::owner_host.eq(&owner.host),
                        clients::pid.eq(pid),
                        clients::recorded_at.eq(db_now()),
                    ))
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// The clients of one instance (of `Operation::former`).
    ///
    /// # Errors
    /// `Database`.
    pub async fn clients_of(&self, instance: &str) -> Result<Vec<RbdClient>> {
        self.shared
            .db
            .read("clients", async |conn| {
                Ok(clients::table
                    .filter(clients::owner.eq(instance))
                    .select(RbdClient::as_select())
                    .load(conn)
                    .await?)
            })
            .await
    }

    /// The clients that former instances on this machine left behind.
    ///
    /// # Errors
    /// `Database`.
    pub async fn dead_clients(&self) -> Result<Vec<RbdClient>> {
        let owner = self.owner();
        self.shared
            .db
            .read("dead clients", async |conn| {
                Ok(clients::table
                    .filter(clients::owner_host.eq(&owner.host))
                    .filter(clients::owner.ne(&owner.instance))
                    .select(RbdClient::as_select())
                    .load(conn)
                    .await?)
            })
            .await
    }

    /// The client is gone: shut down in good order, or fenced.
    ///
    /// # Errors
    /// `Database`.
    pub async fn forget_client(&self, site_fsid: &str, address: &str) -> Result<()> {
        self.shared
            .db
            .read("forget client", async |conn| {
                diesel::delete(clients::table)
                    .filter(clients::site_fsid.eq(site_fsid))
                    .filter(clients::address.eq(address))
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
    }

    /// All clients of an instance are gone: it stopped in good order, or was fenced as a whole.
    ///
    /// # Errors
    /// `Database`.
    pub async fn forget_clients_of(&self, instance: &str) -> Result<()> {
        self.shared
            .db
            .read("forget clients", async |conn| {
                diesel::delete(clients::table).filter(clients::owner.eq(instance)).execute(conn).await?;
                Ok(())
            })
            .await
    }
}
