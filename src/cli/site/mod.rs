//! `site`: the Ceph clusters that Scoria knows, and how each host reaches them.
//!
//! What is known comes from the tables. What needs Ceph is an order for the service of a host, like everywhere in this
//! tool. A key is read from a file or from standard input, and written into a file of the service's before anything
//! is ordered: neither arguments nor the journal ever hold it.

mod answer;
mod compute;
mod daemon;
mod independent;
mod link;
mod remote;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::confirm;
use super::follow::{follow, look};
use super::{Context, Exit, Report};
use crate::error::{Code, Error, Result};
use crate::site::{self, Files, Order, Parts, Store};

/// Actions of `site`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Make a cluster known under a name, or give one more host its files; what its client may do is tried out
    Register(Register),
    /// All sites
    List,
    /// One site: health, pools, capabilities, and which hosts lack its files
    Show {
        /// The site
        site: String,
    },
    /// Look at a site anew; give it another name, or a host other files
    Update(Update),
    /// Forget a site that no backend works with; files that Scoria wrote are removed
    Delete(Delete),
    /// Connect pools of two sites by mirroring
    Connect(Box<link::Connect>),
    /// Make two sites strangers again
    Disconnect(Box<link::Disconnect>),
    /// Links between sites
    Link {
        #[command(subcommand)]
        action: link::Action,
    },
    /// rbd-mirror of a site: how it is, start, stop, restart
    #[command(subcommand, arg_required_else_help = true)]
    Daemon(daemon::Daemons),
    /// Make all mirrored images that are no volumes primary on a site
    Switch {
        /// The site
        site: String,
        /// Then make it independent of the other sites, which are dead: peers, mirroring, daemons and their files go
        #[arg(long)]
        independent: bool,
        #[command(flatten)]
        admin: independent::Admin,
        #[command(flatten)]
        how: super::rbd::How,
    },
    /// The libvirt secret that compute nodes need for a site
    LibvirtSecret(compute::LibvirtSecret),
    /// The smallest ceph.conf for clients of a site
    ClientConf(compute::ClientConf),
}

/// How a site is reached.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Source {
    /// cephx client, with or without 'client.' [default: cinder]
    #[arg(long)]
    pub user: Option<String>,
    /// ceph.conf on the host; with --copy one that is copied into Scoria's directory
    #[arg(long, value_name = "PATH", conflicts_with = "monitors")]
    pub conf: Option<PathBuf>,
    /// Keyring on the host, which the conf leads to; with --copy one whose key is copied ('-': standard input)
    #[arg(long, value_name = "PATH", requires = "conf")]
    pub keyring: Option<PathBuf>,
    /// Keep copies of both in Scoria's directory (scoria_site_dir), the key for its user alone
    #[arg(long, requires = "keyring")]
    pub copy: bool,
    /// Monitors, as mon_host of a ceph.conf names them
    #[arg(long, value_name = "HOSTS", requires = "key_file")]
    pub monitors: Option<String>,
    /// File with the client's key, or a keyring ('-': standard input)
    #[arg(long, value_name = "FILE", requires = "monitors")]
    pub key_file: Option<PathBuf>,
}

/// Arguments of `register`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Register {
    /// Name of the site
    pub site: String,
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Update {
    /// The site
    pub site: String,
    /// Another name for it
    #[arg(long, value_name = "NAME")]
    pub new_name: Option<String>,
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub at: At,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Delete {
    /// The site
    pub site: String,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Only show what would be removed
    #[arg(long, conflicts_with_all = ["yes", "no_wait"])]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Who does it, and how far.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct At {
    /// Pool that the client is for, beside those of backends; repeatable
    #[arg(long = "pool", value_name = "POOL")]
    pub pools: Vec<String>,
    /// Host whose service looks, and has the files [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
    /// Only look at the site, and say what is found
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    match action {
        Action::Register(arguments) => register(context, arguments).await,
        Action::List => show::list(context).await,
        Action::Show { site } => show::one(context, &site).await,
        Action::Update(arguments) => update(context, arguments).await,
        Action::Delete(arguments) => delete(context, arguments).await,
        Action::Connect(arguments) => link::connect(context, *arguments).await,
        Action::Disconnect(arguments) => link::disconnect(context, *arguments).await,
        Action::Link { action } => link::show(context, action).await,
        Action::Switch { site, independent: true, admin, how } => {
            independent::run(context, site, admin, how).await
        }
        Action::Switch { site, how, .. } => super::rbd::switch(context, site, None, how).await,
        Action::Daemon(action) => daemon::run(context, action).await,
        Action::LibvirtSecret(arguments) => compute::libvirt_secret(context, arguments).await,
        Action::ClientConf(arguments) => compute::client_conf(context, arguments).await,
    }
}

/// The service that an order is for.
fn host(context: &Context, named: Option<&str>) -> String {
    named.unwrap_or(&context.config.host).to_owned()
}

async fn register(context: &Context, arguments: Register) -> Result<Report> {
    let Register { site: name, source, at } = arguments;
    site::check_name(&name)?;
    let host = host(context, at.host.as_deref());
    let At { pools, dry_run, no_wait, .. } = at;
    match place(context, source, &host).await? {
        Place::There(given) => {
            let args = json!({"name": name, "pools": pools, "dry_run": dry_run});
            remote::send(context, &host, "register", args, given, !no_wait).await
        }
        Place::Here(None) => Err(Error::new(
            Code::InvalidInput,
            "Say how the site is reached: --conf, or --monitors and --key-file",
        )),
        Place::Here(Some(files)) => {
            let order = site::Register { name, files, pools, dry_run };
            send(context, &host, Order::Register(order), !no_wait).await
        }
    }
}

async fn update(context: &Context, arguments: Update) -> Result<Report> {
    let Update { site: name, new_name, source, at } = arguments;
    new_name.as_deref().map_or(Ok(()), site::check_name)?;
    let host = host(context, at.host.as_deref());
    let At { pools, dry_run, no_wait, .. } = at;
    match place(context, source, &host).await? {
        Place::There(given) => {
            let args = json!({"name": name, "new_name": new_name, "pools": pools, "dry_run": dry_run});
            remote::send(context, &host, "update", args, given, !no_wait).await
        }
        Place::Here(files) => {
            let order = site::Update { name, new_name, files, pools, dry_run };
            send(context, &host, Order::Update(order), !no_wait).await
        }
    }
}

async fn delete(context: &Context, arguments: Delete) -> Result<Report> {
    let name = arguments.site;
    let view = context.db.read("a site", async |conn| site::one(conn, &name).await).await?;
    if !arguments.dry_run {
        eprintln!("Site {} ({}) is forgotten; nothing on the cluster itself changes.", view.name, view.fsid);
        let question = format!("Type the name of the site ({}) to go on:", view.name);
        confirm::ask(question, &view.name, arguments.yes).await?;
    }
    let order = site::Delete { name: view.name, dry_run: arguments.dry_run };
    let host = host(context, arguments.host.as_deref());
    send(context, &host, Order::Delete(order), !arguments.no_wait).await
}

/// Where what was given becomes files.
enum Place {
    /// They are there, or a draft was written on this host.
    Here(Option<Files>),
    /// Content for the service of another host.
    There(Parts),
}

/// The files that the arguments name, or what they hold.
async fn place(context: &Context, source: Source, host: &str) -> Result<Place> {
    let Source { user, conf, keyring, copy, monitors, key_file } = source;
    let text = |path: PathBuf| path.display().to_string();
    if !copy && monitors.is_none() {
        let parts = Parts { user, conf: conf.map(text), keyring: keyring.map(text), ..Parts::default() };
        let Some(given) = parts.given()? else { return Ok(Place::Here(None)) };
        return given
            .files(&Store::new(context.config.scoria.site_dir.clone()))
            .await
            .map(Some)
            .map(Place::Here);
    }
    let (conf_text, key) = match (conf, keyring.or(key_file)) {
        (Some(conf), Some(key)) => (Some(read(&conf).await?), read(&key).await?),
        (None, Some(key)) => (None, read(&key).await?),
        (_, None) => return Err(Error::new(Code::InvalidInput, "There is no file with a key")),
    };
    let parts = Parts { user, conf_text, monitors, key: Some(key), ..Parts::default() };
    let given = parts.clone().given()?;
    if host != context.config.host {
        return Ok(Place::There(parts));
    }
    let Some(given) = given else { return Ok(Place::Here(None)) };
    given.files(&Store::new(context.config.scoria.site_dir.clone())).await.map(Some).map(Place::Here)
}

/// A file's text, or standard input's for `-`.
async fn read(path: &Path) -> Result<String> {
    let path = path.to_owned();
    let failed = |path: &Path, e: std::io::Error| {
        Error::new(Code::InvalidInput, format!("Cannot read {}", path.display())).caused_by(e)
    };
    let read = move || match path == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()).map_err(|e| failed(&path, e)),
        false => std::fs::read_to_string(&path).map_err(|e| failed(&path, e)),
    };
    // A terminal is read for as long as its owner types.
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|e| Error::internal("Reading ended early").caused_by(e))?
}

/// An order of another category, for the service of `named`, or of this host.
pub(super) async fn order(
    context: &Context,
    named: Option<&str>,
    order: Order,
    wait: bool,
) -> Result<Report> {
    send(context, &host(context, named), order, wait).await
}

/// Writes an order down and watches it to its end, unless told not to.
async fn send(context: &Context, host: &str, order: Order, wait: bool) -> Result<Report> {
    let ordered = site::submit(&context.journal, host, order, None).await?;
    watch(context, host, ordered.operation, ordered.new, wait).await
}

/// An order is written down: what is said of it.
async fn watch(context: &Context, host: &str, id: i64, new: bool, wait: bool) -> Result<Report> {
    let said = match new {
        true => format!("Operation {id} is written down; the service of {host} takes it from here."),
        false => format!("The same order is open already as operation {id}; nothing was added."),
    };
    if !wait {
        let text = format!("{said}\nTo watch it: {}", look(id));
        return Report::new(text, &json!({"operation": id, "new": new}));
    }
    eprintln!("{said} Ctrl-C stops watching, not the operation.");
    let report = follow(context, id).await?;
    match context.journal.answer_of(id).await? {
        Some(document) if report.exit == Exit::Done && document.get("with").is_some() => {
            link::report(id, &document)
        }
        Some(document) if report.exit == Exit::Done => answer::report(id, &document),
        _ => Ok(report),
    }
}
