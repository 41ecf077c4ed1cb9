//! `site libvirt-secret` and `site client-conf`: what compute nodes need.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::super::{Context, Report};
use super::read;
use crate::error::Result;
use crate::site::{self, LibvirtSecret as Secret, View};

/// Arguments of `libvirt-secret`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct LibvirtSecret {
    /// The site
    pub site: String,
    /// UUID of the secret. Default: what the backends of this configuration hand to Nova, else the fsid
    #[arg(long)]
    pub uuid: Option<Uuid>,
    /// cephx client. Default: that of the backends
    #[arg(long)]
    pub user: Option<String>,
    /// File with the key, or a keyring ('-': standard input)
    #[arg(long, value_name = "FILE", requires = "into")]
    pub key_file: Option<PathBuf>,
    /// Write definition and key into this directory, to be copied to compute nodes
    #[arg(long, value_name = "DIR", requires = "key_file")]
    pub into: Option<PathBuf>,
}

/// Arguments of `client-conf`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ClientConf {
    /// The site
    pub site: String,
    /// cephx client. Default: that of the backends
    #[arg(long)]
    pub user: Option<String>,
    /// Where clients have its keyring [default: /etc/ceph/SITE.client.USER.keyring]
    #[arg(long, value_name = "PATH")]
    pub keyring: Option<PathBuf>,
}

/// User and secret of each backend of this configuration that works with the site.
fn credentials(context: &Context, view: &View) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for config in &context.config.backends {
        for used in view.backends.iter().filter(|b| b.backend == config.host) {
            let (user, secret) = config.credentials(&used.site);
            let user = user.unwrap_or_else(|| "admin".to_owned());
            found.push((user, secret.unwrap_or_else(|| view.fsid.clone())));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The client that looked at the site last.
fn client(view: &View) -> String {
    view.report.as_ref().map_or_else(|| "cinder".to_owned(), |report| report.client.clone())
}

pub(super) async fn libvirt_secret(context: &Context, arguments: LibvirtSecret) -> Result<Report> {
    let view = context.db.read("a site", async |conn| site::one(conn, &arguments.site).await).await?;
    let user = arguments.user.as_deref().map(site::user_name).transpose()?;
    let mut known = credentials(context, &view);
    if arguments.uuid.is_some() || user.is_some() || known.is_empty() {
        let first = known.first().cloned();
        let (by, secret) = first.unwrap_or_else(|| (client(&view), view.fsid.clone()));
        known = vec![(user.unwrap_or(by), arguments.uuid.map_or(secret, |uuid| uuid.to_string()))];
    }
    let secrets: Vec<Secret> =
        known.into_iter().map(|(user, uuid)| Secret { uuid, user, site: view.name.clone() }).collect();
    let mut text = String::new();
    let mut written = Vec::new();
    if let (Some(file), Some(dir)) = (&arguments.key_file, &arguments.into) {
        let keys = read(file).await?;
        for secret in &secrets {
            written.extend(secret.write(dir, &site::read_key(&keys, &secret.user)?)?);
        }
    }
    let dir = arguments.into.as_deref().unwrap_or(Path::new(""));
    for secret in &secrets {
        if written.is_empty() {
            text.push_str(&format!(
                "# {}\n{}\n# {}: ceph auth get-key client.{} > {0}, or --key-file and --into\n",
                secret.xml_name(),
                secret.xml(),
                secret.key_name(),
                secret.user,
            ));
        }
        text.push_str(&format!("# on each compute node, with both files\n{}\n", secret.commands(dir)));
    }
    for path in &written {
        text.push_str(&format!("written: {}\n", path.display()));
    }
    let documents: Vec<_> = secrets
        .iter()
        .map(|s| json!({"uuid": s.uuid, "user": s.user, "xml": s.xml(), "commands": s.commands(dir)}))
        .collect();
    Report::new(text, &json!({"site": view.name, "secrets": documents, "written": written}))
}

pub(super) async fn client_conf(context: &Context, arguments: ClientConf) -> Result<Report> {
    let view = context.db.read("a site", async |conn| site::one(conn, &arguments.site).await).await?;
    let user = match &arguments.user {
        Some(user) => site::user_name(user)?,
        None => {
            credentials(context, &view).into_iter().next().map_or_else(|| client(&view), |(user, _)| user)
        }
    };
    let keyring = arguments
        .keyring
        .unwrap_or_else(|| PathBuf::from(format!("/etc/ceph/{}.client.{user}.keyring", view.name)));
    let conf = site::client_conf(&view.name, &view.fsid, &view.monitors, &user, &keyring);
    let document =
        json!({"site": view.name, "fsid": view.fsid, "user": user, "keyring": keyring, "conf": conf});
    Report::new(conf, &document)
}
