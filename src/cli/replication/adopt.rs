//! `replication adopt`: the site that a backend has failed over to becomes its own.
//!
//! Whether that can be is for the service to say, which reads its own configuration files and asks the clusters. Here
//! the operator sees what the file that this command reads would make of it, before he agrees.

use super::super::confirm::{self, Confirmed};
use super::super::target::Target;
use super::super::{Context, Report};
use super::{Adopt, order, require_settled};
use crate::error::Result;
use crate::replication::orders::{self, Order};

pub(super) async fn run(context: &Context, arguments: Adopt) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    target.host()?;
    require_settled(context, &target).await?;
    let adopt = orders::Adopt {
        leave_behind: arguments.leave_behind,
        stop_mirroring: arguments.stop_mirroring,
        fsid: arguments.fsid.map(|fsid| fsid.to_string()),
        dry_run: arguments.dry_run,
    };
    eprintln!("{}", preview(&target, &adopt));
    if arguments.dry_run {
        return order(context, &target, Order::Adopt(adopt), !arguments.no_wait).await;
    }
    let word =
        if adopt.leave_behind || adopt.fsid.is_some() { target.active_site() } else { "yes".to_owned() };
    let confirmed = confirm::ask(format!("Type '{word}' to go on:"), &word, arguments.yes).await?;
    go(context, &target, adopt, confirmed, !arguments.no_wait).await
}

async fn go(
    context: &Context,
    target: &Target,
    adopt: orders::Adopt,
    _confirmed: Confirmed,
    wait: bool,
) -> Result<Report> {
    order(context, target, Order::Adopt(adopt), wait).await
}

fn preview(target: &Target, adopt: &orders::Adopt) -> String {
    let mut text =
        format!("Backend {} works on site {}, which becomes its own.\n", target.name(), target.active_site());
    match &target.config {
        Some(config) => {
            text.push_str(&format!(
                "By the configuration read here that is rbd_ceph_conf = {}",
                config.ceph_conf.display()
            ));
            let peers: Vec<String> = config
                .replication_devices
                .iter()
                .map(|d| format!("{} ({})", d.backend_id, d.conf.display()))
                .collect();
            match peers.is_empty() {
                true => {
                    text.push_str(", and there is no other site: its volumes are not replicated any more.\n")
                }
                false => text.push_str(&format!(", and its other sites are {}.\n", peers.join(", "))),
            }
        }
        None => text
            .push_str("The configuration read here does not have its section: the service reads its own.\n"),
    }
    if adopt.leave_behind {
        text.push_str(
            "WARNING: volumes that are not on it are given up: they become error and not-capable, and nothing brings \
             them back.\n",
        );
    }
    if adopt.stop_mirroring {
        text.push_str("Images are not mirrored any more; what is left on other sites is left there.\n");
    }
    if let Some(fsid) = &adopt.fsid {
        text.push_str(&format!("WARNING: cluster {fsid} is taken for it because you say so.\n"));
    }
    text.push_str(
        "The service reads its configuration file again, looks at every volume, and changes nothing when one does not \
         fit. Requests wait meanwhile.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Scope, Service};

    #[test]
    fn what_is_given_up_is_said_before() {
        let target = Target {
            scope: Scope::Host("node1@ceph".into()),
            config: None,
            services: vec![Service { active_backend_id: Some("b".into()), ..Service::default() }],
            cluster: None,
        };
        let adopt = orders::Adopt { leave_behind: false, stop_mirroring: false, fsid: None, dry_run: false };
        let text = preview(&target, &adopt);
        assert!(text.contains("node1@ceph works on site b") && !text.contains("WARNING"), "{text}");
        let text = preview(&target, &orders::Adopt { leave_behind: true, fsid: Some("F".into()), ..adopt });
        assert!(text.contains("error and not-capable") && text.contains("cluster F is taken"), "{text}");
    }
}
