//! `trash`: the images of deleted volumes that wait for the end of their deferment.
//!
//! They are in Ceph alone, so the service looks, and does what is ordered; a backend whose service is down answers
//! nothing.

use chrono::DateTime;
use clap::{Args, Subcommand};
use uuid::Uuid;

use super::output::{table, time};
use super::replication::ask::ask;
use super::replication::{Timeout, order};
use super::target::Target;
use super::{Context, Exit, Report};
use crate::error::Result;
use crate::model::GIB;
use crate::replication::foresight::Inquiry;
use crate::replication::orders::{Order, PurgeTrash, RestoreTrash};
use crate::volume::trash::{Contents, Standing, Trashed};

/// Actions of `trash`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// What is in the trash of each site, and until when
    List(List),
    /// Remove what is due, now, on all sites
    ///
    /// Also where deferred deletion is off. What clones need, what is open somewhere, and what was put there by
    /// somebody else stays.
    Purge(Purge),
    /// Give a deleted volume's image its name back, so that it can be managed
    Restore(Restore),
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct List {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    #[command(flatten)]
    pub timeout: Timeout,
}

/// Arguments of `purge`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Purge {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Restore {
    /// The backend: HOST@BACKEND, CLUSTER@BACKEND or its section
    #[arg(long, value_name = "BACKEND")]
    pub backend: String,
    /// The volume that was deleted
    #[arg(value_name = "VOLUME")]
    pub volume: Uuid,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    match action {
        Action::List(arguments) => {
            let target = Target::find(context, &arguments.backend).await?;
            let within = arguments.timeout.within();
            let found: Vec<Contents> = ask(context, &target, Inquiry::Trash {}, within).await?;
            report(target.name(), &found)
        }
        Action::Purge(arguments) => {
            let target = Target::find(context, &arguments.backend).await?;
            order(context, &target, Order::PurgeTrash(PurgeTrash {}), !arguments.no_wait).await
        }
        Action::Restore(arguments) => {
            let target = Target::find(context, &arguments.backend).await?;
            let restore = RestoreTrash { volume: arguments.volume.to_string() };
            order(context, &target, Order::RestoreTrash(restore), !arguments.no_wait).await
        }
    }
}

fn report(backend: &str, found: &[Contents]) -> Result<Report> {
    let silent = found.iter().any(|site| site.error.is_some());
    let exit = if silent { Exit::Failed } else { Exit::Done };
    Ok(Report::new(render(backend, found), &found)?.ending(exit))
}

fn render(backend: &str, found: &[Contents]) -> String {
    let row = |site: &str, image: &Trashed| {
        [
            site.to_owned(),
            image.volume.clone(),
            image.image.clone(),
            image.bytes.map(|b| format!("{:.1}", b as f64 / GIB as f64)).unwrap_or_default(),
            time(DateTime::from_timestamp(image.deferment_end, 0).map(|t| t.naive_utc())),
            image.standing.as_str().to_owned(),
        ]
    };
    let rows: Vec<_> = found.iter().flat_map(|s| s.images.iter().map(|i| row(&s.site, i))).collect();
    let mut text = match rows.is_empty() {
        true => format!("No deleted volume of backend {backend} is in the trash.\n"),
        false => format!("{}\n", table(["Site", "Volume", "Image", "GiB", "Until", "Standing"], rows)),
    };
    for site in found {
        if let Some(error) = &site.error {
            text.push_str(&format!("{}: {error}\n", site.site));
        } else if !site.images.is_empty() {
            let bytes: u64 = site.images.iter().filter_map(|i| i.bytes).sum();
            let due = site.images.iter().filter(|i| i.standing == Standing::Due).count();
            text.push_str(&format!(
                "{}: {} images, {:.1} GiB, {due} due\n",
                site.site,
                site.images.len(),
                bytes as f64 / GIB as f64
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_is_silent_is_said_and_makes_the_report_a_failure() {
        let image = Trashed {
            id: "1a".into(),
            image: "volume-v".into(),
            volume: "v".into(),
            bytes: Some(3 << 29),
            deferment_end: 1_767_323_045,
            standing: Standing::Deferred,
        };
        let full = Contents { site: "default".into(), error: None, images: vec![image] };
        let told = report("h@b", std::slice::from_ref(&full)).unwrap();
        assert_eq!(told.exit, Exit::Done);
        assert!(told.text.contains("2026-01-02 03:04:05") && told.text.contains("1.5"), "{}", told.text);
        assert!(told.text.contains("default: 1 images, 1.5 GiB, 0 due"), "{}", told.text);
        let silent = Contents { site: "b".into(), error: Some("timed out".into()), images: vec![] };
        let told = report("h@b", &[full, silent]).unwrap();
        assert_eq!(told.exit, Exit::Failed);
        assert!(told.text.contains("b: timed out"), "{}", told.text);
    }
}
