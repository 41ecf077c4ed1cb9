//! `db`: Scoria's tables in Cinder's database. Cinder's own are `cinder-manage db sync`'s.

use clap::Subcommand;
use serde_json::json;

use super::{Context, Report};
use crate::db::{migration, schema_revision};
use crate::error::Result;

/// Actions of `db`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Alembic revision of Cinder's tables, and version of Scoria's
    Version,
    /// Bring Scoria's tables up to date (scoria-volume does so at its start)
    Migrate,
}

pub(super) async fn run(context: &Context, action: &Action) -> Result<Report> {
    let versions = async || {
        context
            .db
            .read("versions", async |conn| {
                Ok((schema_revision(conn).await?, migration::version(conn).await?))
            })
            .await
    };
    match action {
        Action::Version => {
            let (cinder, scoria) = versions().await?;
            let text = format!(
                "cinder {}\nscoria {scoria} (this program knows {})",
                cinder.as_deref().unwrap_or("None"),
                migration::newest()
            );
            Report::new(text, &json!({"cinder": cinder, "scoria": scoria, "known": migration::newest()}))
        }
        Action::Migrate => {
            let applied = migration::run(&context.db).await?;
            let (_, scoria) = versions().await?;
            let text = match applied {
                0 => format!("Scoria's tables are up to date (version {scoria})."),
                1 => format!("1 migration applied; Scoria's tables have version {scoria}."),
                n => format!("{n} migrations applied; Scoria's tables have version {scoria}."),
            };
            Report::new(text, &json!({"applied": applied, "scoria": scoria}))
        }
    }
}
