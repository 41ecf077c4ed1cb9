//! `cluster label`: marks of backends, kept by Scoria and seen in the hosts of services.

use clap::Subcommand;
use serde_json::json;

use super::output::{facts, table};
use super::{Context, Report};
use crate::backends::new_label;
use crate::db::label::{self, LabelRow};
use crate::error::Result;

/// Actions of `cluster label`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Make a label; backends bear it by their option host_cluster_id
    Create {
        /// What hosts begin with: ID!host@backend
        id: String,
        /// For people [default: the id]
        #[arg(long)]
        name: Option<String>,
        /// For people
        #[arg(long)]
        description: Option<String>,
    },
    /// All labels
    List,
    /// One label, and the backends that bear it
    Show {
        /// Its id or name
        id: String,
    },
    /// Give a label another name or description
    Update {
        /// Its id or name
        id: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another description
        #[arg(long)]
        description: Option<String>,
    },
    /// Remove a label that no backend bears
    Delete {
        /// Its id or name
        id: String,
    },
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    let db = &context.db;
    match action {
        Action::Create { id, name, description } => {
            let row = new_label(Some(id), name, description)?;
            db.write("a label", async |conn| label::create(conn, &row).await).await?;
            Report::new(
                format!("Label {} is made; backends bear it by host_cluster_id = {}", row.id, row.id),
                &row,
            )
        }
        Action::List => {
            let found = db.read("labels", async |conn| label::list(conn).await).await?;
            let rows = found
                .iter()
                .map(|row| [row.id.clone(), row.name.clone(), row.description.clone().unwrap_or_default()]);
            Report::new(table(["Id", "Name", "Description"], rows), &found)
        }
        Action::Show { id } => {
            let (row, bearers) = db
                .read("a label", async |conn| {
                    let row = label::get(conn, &id).await?;
                    let bearers = label::bearers(conn, &row.id).await?;
                    Ok((row, bearers))
                })
                .await?;
            let text = facts([
                ("id", Some(row.id.clone())),
                ("name", Some(row.name.clone())),
                ("description", row.description.clone()),
                ("backends", Some(bearers.join(", "))),
            ]);
            let json =
                json!({"id": row.id, "name": row.name, "description": row.description, "backends": bearers});
            Report::new(text, &json)
        }
        Action::Update { id, name, description } => {
            let row = db
                .write("a label", async |conn| {
                    let row = label::get(conn, &id).await?;
                    let name = name.clone().unwrap_or_else(|| row.name.clone());
                    let checked =
                        new_label(Some(row.id.clone()), Some(name), description.clone().or(row.description))?;
                    let row = LabelRow { id: row.id, ..checked };
                    label::update(conn, &row).await?;
                    Ok(row)
                })
                .await?;
            Report::new(format!("Label {} is now named {}", row.id, row.name), &row)
        }
        Action::Delete { id } => {
            db.write("a label", async |conn| {
                let row = label::get(conn, &id).await?;
                label::delete(conn, &row.id).await
            })
            .await?;
            Report::new(format!("Label {id} is gone"), &json!({"deleted": id}))
        }
    }
}
