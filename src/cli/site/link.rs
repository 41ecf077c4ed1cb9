//! `site connect`, `site disconnect` and `site link`.
//!
//! Administrators' keyrings are read from files or standard input, go to the service in a file (or, for another host,
//! over the broker), and live as long as the one order. What a disconnection ends is shown before it is asked for.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::super::confirm;
use super::super::follow::follow;
use super::super::output::table;
use super::super::{Context, Exit, Report};
use super::{host, read, remote, watch};
use crate::error::{Code, Error, Result};
use crate::rbd::link::{ErasureProfile, Way};
use crate::site::{
    self, BackupsGo, CephKey, DataPool, LinkMode, Make, Order, Purge, Store, read_key, user_name,
};

/// Which images of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ModeWord {
    Image,
    Pool,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum WayWord {
    RxOnly,
    RxTx,
}

/// By whose key, and who does it.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct By {
    /// Administrator's keyring or key of one of the sites, for this order only ('-': standard input); repeatable
    #[arg(long = "admin-keyring", value_name = "SITE=FILE")]
    pub admin_keyrings: Vec<String>,
    /// The administrator's cephx client, with or without 'client.'
    #[arg(long, default_value = "admin")]
    pub admin_user: String,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
    /// Only look, and say what would be done
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `connect`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Connect {
    /// The site that sends
    pub a: String,
    /// The site that receives; both do both, unless --way rx-only
    pub b: String,
    /// Pool to connect, of the same name on both; repeatable
    #[arg(long = "pool", value_name = "POOL", required = true)]
    pub pools: Vec<String>,
    /// Images that are enabled one by one, as Cinder does it, or every journaled one
    #[arg(long, value_enum, default_value_t = ModeWord::Image)]
    pub mode: ModeWord,
    /// One way, or both
    #[arg(long, value_enum, default_value_t = WayWord::RxTx)]
    pub way: WayWord,
    /// A user for this link alone, with capabilities on its pools, and not the cluster-wide one of bootstrap tokens
    #[arg(long)]
    pub manual: bool,
    /// Do not prove the link by an image that is mirrored, compared and removed
    #[arg(long)]
    pub no_canary: bool,
    /// Make the pools that are not there
    #[arg(long)]
    pub create_pools: bool,
    /// Copies of a pool that is made [default: the cluster's]
    #[arg(long, requires = "create_pools")]
    pub size: Option<u32>,
    /// Copies that must be there for I/O [default: the cluster's]
    #[arg(long, requires = "create_pools")]
    pub min_size: Option<u32>,
    /// Placement groups [default: the cluster's]
    #[arg(long, requires = "create_pools")]
    pub pg_num: Option<u32>,
    /// Data chunks: images get an erasure-coded pool for their data
    #[arg(long, requires_all = ["m", "create_pools"])]
    pub k: Option<u32>,
    /// Coding chunks
    #[arg(long, requires = "k")]
    pub m: Option<u32>,
    /// Name of the erasure-code profile [default: scoria-kK-mM]
    #[arg(long, requires = "k")]
    pub profile: Option<String>,
    /// jerasure, isa, clay or shec
    #[arg(long, requires = "k", default_value = "jerasure")]
    pub plugin: String,
    /// The plugin's technique [default: the plugin's]
    #[arg(long, requires = "k")]
    pub technique: Option<String>,
    /// What each holds one chunk at most: osd, host, chassis, rack …
    #[arg(long, requires = "k", default_value = "host")]
    pub failure_domain: String,
    /// Only OSDs of this class
    #[arg(long, requires = "k")]
    pub device_class: Option<String>,
    /// Name of the data pool [default: that of the pool, and -data]
    #[arg(long, requires = "k")]
    pub data_pool: Option<String>,
    /// Chunks that must be there for I/O [default: the cluster's]
    #[arg(long, requires = "k")]
    pub data_min_size: Option<u32>,
    /// Placement groups of the data pool [default: the cluster's]
    #[arg(long, requires = "k")]
    pub data_pg_num: Option<u32>,
    /// The data pool may be replicated on one side and erasure-coded on the other
    #[arg(long)]
    pub accept_pool_type: bool,
    #[command(flatten)]
    pub by: By,
}

/// Arguments of `disconnect`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Disconnect {
    /// The site that stays
    pub a: String,
    /// The site that goes; it may be dead
    pub b: String,
    /// Pool to disconnect [default: all that connect the two]; repeatable
    #[arg(long = "pool", value_name = "POOL")]
    pub pools: Vec<String>,
    /// Also while images are mirrored: their mirroring is ended, volumes become replication_status=disabled
    #[arg(long)]
    pub force: bool,
    /// Remove the copies on the site that goes; those with clones stay
    #[arg(long, requires = "force")]
    pub purge_replicas: bool,
    /// Backups that are stored on the site that goes stay there; clones of its copies are made independent of them
    #[arg(long)]
    pub flatten_backups: bool,
    /// Backups that are stored on the site that goes are deleted, by the backup service
    #[arg(long)]
    pub delete_backups: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub by: By,
}

/// Actions of `link`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// All links, or those of a site
    List {
        /// The site
        site: Option<String>,
    },
    /// The links of two sites, with what came of their canaries
    Show {
        /// One site
        a: String,
        /// The other
        b: String,
    },
}

/// The administrators' keys, as they were given.
struct Keys {
    user: String,
    a: Option<CephKey>,
    b: Option<CephKey>,
}

impl Keys {
    async fn read(by: &By, a: &str, b: &str) -> Result<Keys> {
        let mut keys = Keys { user: user_name(&by.admin_user)?, a: None, b: None };
        for given in &by.admin_keyrings {
            let wrong = || {
                Error::new(
                    Code::InvalidInput,
                    format!(
                        "--admin-keyring is SITE=FILE, of one of the sites {a} and {b}, and one for each"
                    ),
                )
            };
            let (site, path) = given.split_once('=').ok_or_else(wrong)?;
            let slot = match site {
                _ if site == a && keys.a.is_none() => &mut keys.a,
                _ if site == b && keys.b.is_none() => &mut keys.b,
                _ => return Err(wrong()),
            };
            *slot = Some(read_key(&read(&PathBuf::from(path)).await?, &keys.user)?);
        }
        Ok(keys)
    }

    fn is_empty(&self) -> bool {
        self.a.is_none() && self.b.is_none()
    }

    /// As arguments of a message, which goes to the service that needs them and to nobody else.
    fn put(&self, args: &mut Value) {
        if let Value::Object(args) = args {
            args.insert("admin_user".to_owned(), json!(self.user));
            args.insert("admin_key_a".to_owned(), json!(self.a.as_ref().map(CephKey::expose)));
            args.insert("admin_key_b".to_owned(), json!(self.b.as_ref().map(CephKey::expose)));
        }
    }

    async fn files(&self, context: &Context, a: &str, b: &str) -> Result<[Option<site::Files>; 2]> {
        let store = Store::new(context.config.scoria.site_dir.clone());
        let mut made = [None, None];
        for (slot, (name, key)) in made.iter_mut().zip([(a, &self.a), (b, &self.b)]) {
            if let Some(key) = key {
                let host = &context.config.host;
                *slot = Some(site::admin_files(&context.db, &store, host, name, &self.user, key).await?);
            }
        }
        Ok(made)
    }
}

pub(super) async fn connect(context: &Context, arguments: Connect) -> Result<Report> {
    let data = match (arguments.k, arguments.m) {
        (Some(k), Some(m)) => Some(DataPool {
            name: arguments.data_pool,
            profile: ErasureProfile {
                name: arguments.profile.unwrap_or_else(|| format!("scoria-k{k}-m{m}")),
                k,
                m,
                plugin: arguments.plugin,
                technique: arguments.technique,
                failure_domain: arguments.failure_domain,
                device_class: arguments.device_class,
            },
            min_size: arguments.data_min_size,
            pg_num: arguments.data_pg_num,
        }),
        _ => None,
    };
    let make = Make {
        size: arguments.size,
        min_size: arguments.min_size,
        pg_num: arguments.pg_num,
        data: data.clone(),
    };
    let mut order = site::Connect {
        a: arguments.a,
        b: arguments.b,
        pools: arguments.pools,
        make: arguments.create_pools.then_some(make),
        mode: match arguments.mode {
            ModeWord::Image => LinkMode::Image,
            ModeWord::Pool => LinkMode::Pool,
        },
        way: match arguments.way {
            WayWord::RxOnly => Way::RxOnly,
            WayWord::RxTx => Way::RxTx,
        },
        manual: arguments.manual,
        accept_pool_type: arguments.accept_pool_type,
        canary: !arguments.no_canary,
        admin_a: None,
        admin_b: None,
        dry_run: arguments.by.dry_run,
    };
    order.check()?;
    let by = arguments.by;
    let host = host(context, by.host.as_deref());
    let keys = Keys::read(&by, &order.a, &order.b).await?;
    let operation = if host == context.config.host || keys.is_empty() {
        [order.admin_a, order.admin_b] = keys.files(context, &order.a, &order.b).await?;
        submit(context, &host, Order::Connect(Box::new(order))).await?
    } else {
        let profile = data.as_ref().map(|d| &d.profile);
        let mut args = json!({
            "a": order.a, "b": order.b, "pools": order.pools, "mode": order.mode.as_str(),
            "way": order.way.as_str(), "manual": order.manual, "accept_pool_type": order.accept_pool_type,
            "canary": order.canary, "dry_run": order.dry_run, "create_pools": order.make.is_some(),
            "size": arguments.size, "min_size": arguments.min_size, "pg_num": arguments.pg_num,
            "k": profile.map(|p| p.k), "m": profile.map(|p| p.m), "profile": profile.map(|p| &p.name),
            "plugin": profile.map(|p| &p.plugin), "technique": profile.and_then(|p| p.technique.as_ref()),
            "failure_domain": profile.map(|p| &p.failure_domain),
            "device_class": profile.and_then(|p| p.device_class.as_ref()),
            "data_pool": data.as_ref().and_then(|d| d.name.as_ref()),
            "data_min_size": data.as_ref().and_then(|d| d.min_size),
            "data_pg_num": data.as_ref().and_then(|d| d.pg_num),
        });
        keys.put(&mut args);
        remote::deliver(context, &host, ("connect", "1.1"), args).await?
    };
    watch(context, &host, operation, true, !by.no_wait).await
}

pub(super) async fn disconnect(context: &Context, arguments: Disconnect) -> Result<Report> {
    let Disconnect { a, b, pools, force, purge_replicas, flatten_backups, delete_backups, yes, by } =
        arguments;
    let order = site::Disconnect {
        a,
        b,
        pools,
        force,
        purge: None,
        flatten_backups,
        // How many is only known when that was looked at.
        delete_backups: delete_backups.then_some(BackupsGo { backups: 0, gib: 0 }),
        admin_a: None,
        admin_b: None,
        dry_run: true,
    };
    order.check()?;
    let host = host(context, by.host.as_deref());
    let keys = Keys::read(&by, &order.a, &order.b).await?;
    let looked = part(context, &host, &order, &keys).await?;
    let report = follow(context, looked).await?;
    let Some(found) = context.journal.answer_of(looked).await?.filter(|_| report.exit == Exit::Done) else {
        return Ok(report);
    };
    if by.dry_run {
        return self::report(looked, &found);
    }
    eprintln!("{}", shared(&found));
    let refused = found.get("refused").and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(reason) = refused {
        return Err(Error::new(Code::Invalid, reason.to_owned()));
    }
    let question = format!("Type the name of the site that goes ({}) to go on:", order.b);
    confirm::ask(question, &order.b, yes).await?;
    let purge = match purge_replicas {
        false => None,
        true => {
            let copies = found.pointer("/shared/copies").and_then(Value::as_array).map_or(0, Vec::len) as u64;
            let bytes = found.pointer("/shared/copies_bytes").and_then(Value::as_u64).unwrap_or(0);
            let question = format!(
                "{copies} copies of {bytes} bytes on site {} are removed for good. Type their number to go on:",
                order.b
            );
            confirm::ask(question, &copies.to_string(), yes).await?;
            Some(Purge { copies, bytes })
        }
    };
    let delete_backups = match delete_backups {
        false => None,
        true => {
            let backups =
                found.pointer("/shared/backups").and_then(Value::as_array).map_or(0, Vec::len) as u64;
            let gib = found.pointer("/shared/backups_gib").and_then(Value::as_u64).unwrap_or(0);
            let question = format!(
                "{backups} backups of {gib} GiB on site {} are deleted for good. Type their number to go on:",
                order.b
            );
            confirm::ask(question, &backups.to_string(), yes).await?;
            Some(BackupsGo { backups, gib })
        }
    };
    let order = site::Disconnect { purge, delete_backups, dry_run: false, ..order };
    let operation = part(context, &host, &order, &keys).await?;
    watch(context, &host, operation, true, !by.no_wait).await
}

/// Orders a disconnection, with the keys in files of its own.
async fn part(context: &Context, host: &str, order: &site::Disconnect, keys: &Keys) -> Result<i64> {
    let mut order = order.clone();
    if host == context.config.host || keys.is_empty() {
        [order.admin_a, order.admin_b] = keys.files(context, &order.a, &order.b).await?;
        return submit(context, host, Order::Disconnect(Box::new(order))).await;
    }
    let mut args = json!({
        "a": order.a, "b": order.b, "pools": order.pools, "force": order.force, "dry_run": order.dry_run,
        "purge_copies": order.purge.map(|p| p.copies), "purge_bytes": order.purge.map(|p| p.bytes),
    });
    // A service of before 1.4 knows nothing of backups, and must not disregard them.
    let mut version = "1.1";
    if let Value::Object(args) = &mut args
        && (order.flatten_backups || order.delete_backups.is_some())
    {
        version = "1.4";
        args.insert("flatten_backups".to_owned(), json!(order.flatten_backups));
        args.insert("delete_backups".to_owned(), json!(order.delete_backups.map(|d| d.backups)));
        args.insert("delete_gib".to_owned(), json!(order.delete_backups.map(|d| d.gib)));
    }
    keys.put(&mut args);
    remote::deliver(context, host, ("disconnect", version), args).await
}

async fn submit(context: &Context, host: &str, order: Order) -> Result<i64> {
    Ok(site::submit(&context.journal, host, order, None).await?.operation)
}

/// What two sites share, for who is about to part them.
fn shared(document: &Value) -> String {
    let list = |key: &str| {
        let of = document.pointer(&format!("/shared/{key}")).and_then(Value::as_array);
        of.map(Vec::as_slice).unwrap_or_default().to_vec()
    };
    let rows = |images: Vec<Value>| {
        images
            .into_iter()
            .map(|image| {
                let text = |key: &str| image.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                let bytes = image.get("bytes").and_then(Value::as_u64).unwrap_or(0);
                let clones = image.get("clones").and_then(Value::as_array).map_or(0, Vec::len);
                [text("pool"), text("image"), bytes.to_string(), clones.to_string()]
            })
            .collect::<Vec<_>>()
    };
    let mut text = String::new();
    for (key, title) in [("images", "Mirrored images"), ("copies", "Copies on the site that goes")] {
        let rows = rows(list(key));
        if !rows.is_empty() {
            text.push_str(&format!("{title}: {}\n", rows.len()));
            text.push_str(&table(["Pool", "Image", "Bytes", "Clones"], rows));
            text.push('\n');
        }
    }
    let backups = list("backups");
    if !backups.is_empty() {
        let rows = backups.iter().map(|backup| {
            let text = |key: &str| backup.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let gib = backup.get("gib").and_then(Value::as_i64).unwrap_or(0);
            [text("id"), text("volume"), gib.to_string(), text("pool"), text("status")]
        });
        text.push_str(&format!("Backups stored on the site that goes: {}\n", backups.len()));
        text.push_str(&table(["Backup", "Volume", "GiB", "Pool", "Status"], rows));
        text.push('\n');
    }
    for (key, title) in [("volumes", "Volumes"), ("backends", "Backends that work with both")] {
        let all: Vec<String> = list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        if !all.is_empty() {
            text.push_str(&format!("{title}: {}\n", all.join(", ")));
        }
    }
    if text.is_empty() { "They share no images, volumes, backends or backups.\n".to_owned() } else { text }
}

/// The answer of an operation.
pub(super) fn report(operation: i64, document: &Value) -> Result<Report> {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
    let lines = |key: &str| {
        let all = document.get(key).and_then(Value::as_array);
        all.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let would = if document.get("dry_run") == Some(&Value::Bool(true)) { "would be " } else { "" };
    let pools = lines("pools").join(", ");
    let mut said =
        format!("Sites {} and {}, {pools}: {would}{}.\n", text("with"), text("site"), text("what"));
    for act in lines("acts") {
        said.push_str(&format!("  {act}\n"));
    }
    for remark in lines("remarks") {
        said.push_str(&format!("Note: {remark}\n"));
    }
    for pool in lines("found") {
        said.push_str(&format!("Pool {pool} had its peers before; they were left as they are.\n"));
    }
    let mut proven = true;
    for proof in document.get("proofs").and_then(Value::as_array).into_iter().flatten() {
        let of = |key: &str| proof.get(key).and_then(Value::as_str).unwrap_or_default();
        proven &=
            proof.get("verified") == Some(&Value::Bool(true)) || of("text").contains("no canary was asked");
        said.push_str(&format!("Pool {}: {}\n", of("pool"), of("text")));
    }
    if document.get("shared").is_some() && !would.is_empty() {
        said.push_str(&shared(document));
    }
    if !text("refused").is_empty() {
        said.push_str(&format!("As ordered this is refused: {}\n", text("refused")));
    }
    for (key, title) in [
        ("deleted_backups", "Deleted backup"),
        ("removed", "Removed"),
        ("kept", "Kept"),
        ("left", "Left"),
        ("strangers", "Verified"),
    ] {
        for line in lines(key) {
            said.push_str(&format!("{title}: {line}\n"));
        }
    }
    let report = Report::new(said, &json!({"operation": operation, "result": document}))?;
    Ok(report.ending(if proven { Exit::Done } else { Exit::Failed }))
}

pub(super) async fn show(context: &Context, action: Action) -> Result<Report> {
    let (name, other) = match &action {
        Action::List { site } => (site.as_deref(), None),
        Action::Show { a, b } => (Some(a.as_str()), Some(b.as_str())),
    };
    let mut links = context.db.read("links", async |conn| site::links(conn, name).await).await?;
    if let Some(other) = other {
        let view = context.db.read("a site", async |conn| site::one(conn, other).await).await?;
        links.retain(|link| link.a == view.name || link.b == view.name);
        if links.is_empty() {
            return Err(Error::new(
                Code::InvalidInput,
                format!("Sites {} and {other} are not connected by Scoria", name.unwrap_or_default()),
            ));
        }
    }
    let rows = links.iter().map(|link| {
        [
            link.a.clone(),
            link.b.clone(),
            link.pool.clone(),
            format!("{}, {}", link.way, link.mode),
            link.method.clone(),
            link.state.clone(),
            link.note.clone().unwrap_or_default(),
        ]
    });
    let mut text = match links.is_empty() {
        true => "No site is connected by Scoria; peers that were made by hand are in `rbd mirror pool info`."
            .to_owned(),
        false => table(["From", "To", "Pool", "Way", "By", "State", "Note"], rows),
    };
    if other.is_some() {
        for link in &links {
            let user =
                |user: &Option<String>| user.as_deref().map_or("-".to_owned(), |u| format!("client.{u}"));
            text.push_str(&format!(
                "\nPool {}: {} reaches {} as {}, and the other way as {}; data pool {}; since {}, operation {}",
                link.pool,
                link.b,
                link.a,
                user(&link.client_a),
                user(&link.client_b),
                link.data_pool.as_deref().unwrap_or("-"),
                link.created_at,
                link.operation
            ));
        }
    }
    Report::new(text, &links)
}
