//! Keeps what is sent to other services within what the oldest of them understands.
//!
//! Upstream reads the versions once and again on SIGHUP; an operator has to send that to every service
//! at the end of an upgrade. Here they are read again every minute, so that an upgrade, or an old service
//! that appears, is noticed by itself.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::db::{self, Db};
use crate::error::Result;
use crate::rpc::{Binary, Peers, Pins};

const EVERY: Duration = Duration::from_secs(60);

/// Reads the versions of all services.
///
/// # Errors
/// `Database` for what waiting does not cure.
pub(super) async fn read(db: &Db, peers: &Peers) -> Result<()> {
    for binary in Binary::ALL {
        let rows = db
            .read("versions of services", async |conn| db::service::versions(conn, binary.name()).await)
            .await?;
        let pins = Pins::least(binary.newest(), &rows);
        if peers.set_pins(binary, pins) {
            info!(
                binary = binary.name(),
                rpc = pins.rpc_text(),
                objects = pins.objects.as_str(),
                "messages are sent in the versions that the oldest service understands"
            );
        }
    }
    Ok(())
}

/// Reads them again and again.
pub(super) async fn keep(db: Db, peers: Arc<Peers>, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = read(&db, &peers).await {
            warn!(%error, "could not read the versions of other services");
        }
    }
}
