//! `rbd`: images themselves: whose one is, which are half gone.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{facts, table};
use super::replicate::{one_image, pool_and_image};
use super::{Context, Exit, Report, confirm, site};
use crate::error::{Code, Error, Result};
use crate::site::Order;
use crate::site::detective::clue::Clue;
use crate::site::detective::{HalfOrder, WhichOrder};
use crate::site::moving::MoveOrder;
use crate::site::revert::RevertOrder;
use crate::site::switch::SwitchOrder;

/// Actions of `rbd`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// From an object's name, a block name prefix or an image to volume, project and servers
    WhichVolume(Which),
    /// Images of which only half is there: named, and without a header
    HalfDeleted(Half),
    /// Make an image, or all of a pool, primary on a site; both sides are looked at first
    Switch(Switch),
    /// Move a closed image that is no volume to another pool of its site
    Move(Move),
    /// Bring a closed image that is no volume back to a snapshot, by writing only what has changed since
    RevertFast(Revert),
}

/// Arguments of `revert-fast`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Revert {
    /// The site
    pub site: String,
    /// The snapshot
    #[arg(value_name = "POOL/IMAGE@SNAPSHOT")]
    pub what: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

/// The parts of `POOL/IMAGE@SNAPSHOT`.
fn snapshot(text: &str) -> Result<(String, String, String)> {
    let wrong = || Error::new(Code::InvalidInput, format!("'{text}' is not POOL/IMAGE@SNAPSHOT"));
    let (image, snap) = text.split_once('@').filter(|(_, snap)| !snap.is_empty()).ok_or_else(wrong)?;
    let (pool, image) = one_image(image)?;
    Ok((pool, image, snap.to_owned()))
}

/// Arguments of `move`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Move {
    /// The site
    pub site: String,
    /// POOL/IMAGE
    #[arg(value_name = "POOL/IMAGE")]
    pub what: String,
    /// The pool where it is to be; it keeps its name
    #[arg(value_name = "TO-POOL")]
    pub to: String,
    /// Bring back an image whose move has begun and not ended
    #[arg(long)]
    pub undo: bool,
    /// Only say whether it can be moved
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

async fn move_image(context: &Context, arguments: Move) -> Result<Report> {
    let Move { site: name, what, to, undo, dry_run, no_wait, host } = arguments;
    let (pool, image) = one_image(&what)?;
    let order = MoveOrder { name, pool, image, to, undo, dry_run };
    site::order(context, host.as_deref(), Order::Move(order), !no_wait).await
}

/// What `move` has done.
pub(super) fn moved(operation: i64, document: &Value) -> Result<Report> {
    let said = format!(
        "{} on site {}, to pool {}: {}.\n",
        text(document, "moved"),
        text(document, "site"),
        text(document, "to"),
        text(document, "what")
    );
    Report::new(said, &json!({"operation": operation, "result": document}))
}

/// Arguments of `switch`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Switch {
    /// The site where they are to be primary
    pub site: String,
    /// POOL/IMAGE, or POOL
    #[arg(value_name = "POOL[/IMAGE]")]
    pub what: String,
    #[command(flatten)]
    pub how: How,
}

/// How roles are changed.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct How {
    /// By force where the other side is dead: what it has not sent is lost
    #[arg(long)]
    pub unplanned: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Only show what would be done with each image
    #[arg(long, conflicts_with_all = ["yes", "no_wait"])]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

/// `rbd switch`, and `site switch` for all pools.
pub(super) async fn switch(
    context: &Context,
    name: String,
    what: Option<String>,
    how: How,
) -> Result<Report> {
    let (pool, image) = match what.as_deref().map(pool_and_image).transpose()? {
        Some((pool, image)) => (Some(pool), image),
        None => (None, None),
    };
    if !how.dry_run {
        let shown = what.unwrap_or_else(|| "all mirrored pools".to_owned());
        eprintln!(
            "{shown}: images that are no volumes of Cinder become primary on site {name}{}; whoever writes to them \
             elsewhere is refused from then on.",
            if how.unplanned { ", by force where the other side is dead" } else { "" }
        );
        let question = format!("Type the name of the site ({name}) to go on:");
        confirm::ask(question, &name, how.yes).await?;
    }
    let order = SwitchOrder { name, pool, image, unplanned: how.unplanned, dry_run: how.dry_run };
    site::order(context, how.host.as_deref(), Order::Switch(order), !how.no_wait).await
}

/// What `revert-fast` has done.
pub(super) fn reverted(operation: i64, document: &Value) -> Result<Report> {
    let said = format!(
        "{} on site {} holds what snapshot {} holds; {} bytes were written.\n",
        text(document, "reverted"),
        text(document, "site"),
        text(document, "snapshot"),
        text(document, "bytes")
    );
    Report::new(said, &json!({"operation": operation, "result": document}))
}

/// What `switch` has done.
pub(super) fn switched(operation: i64, document: &Value) -> Result<Report> {
    let said = format!("On site {}:\n{}\n", text(document, "switched"), image_rows(document));
    let left = list(document, "images").any(|i| i["fate"]["step"] == json!("failed"));
    let report = Report::new(said, &json!({"operation": operation, "result": document}))?;
    Ok(report.ending(if left { Exit::Failed } else { Exit::Done }))
}

/// Images, with what has become of their roles.
pub(super) fn image_rows(document: &Value) -> String {
    let rows = list(document, "images").map(|i| {
        let fate = &i["fate"];
        let step = match (text(fate, "step").as_str(), text(fate, "way").as_str()) {
            ("planned", "hand-over") => "would be demoted there and promoted here".to_owned(),
            ("planned", "force") => "would be promoted by force".to_owned(),
            ("planned", _) => "would be promoted".to_owned(),
            ("moved", _) if fate["forced"] == json!(true) => "promoted by force".to_owned(),
            ("moved", _) => "promoted".to_owned(),
            ("already", _) => "is primary".to_owned(),
            (other, _) => other.to_owned(),
        };
        [format!("{}/{}", text(i, "pool"), text(i, "image")), step, text(fate, "reason")]
    });
    table(["Image", "", "Why"], rows.collect::<Vec<_>>())
}

/// Arguments of `which-volume`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Which {
    /// rbd_data.…, rbd_header.…, rbd_object_map.…, journal…, an id, [POOL/]IMAGE, or a volume's id
    #[arg(value_name = "OBJECT|PREFIX|IMAGE")]
    pub what: String,
    /// Only on this site [default: all that the host reaches]
    #[arg(long)]
    pub site: Option<String>,
    /// Only in this pool [default: all for RBD]
    #[arg(long, short)]
    pub pool: Option<String>,
    /// Host whose service looks [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

/// Arguments of `half-deleted`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Half {
    /// The site
    pub site: String,
    /// The pool
    pub pool: String,
    /// Remove what is left of them; images of volumes are kept
    #[arg(long)]
    pub finish: bool,
    /// Do not ask
    #[arg(long, requires = "finish")]
    pub yes: bool,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    context.require_tables().await?;
    match action {
        Action::WhichVolume(Which { what, site: of, pool, host }) => {
            Clue::read(&what)?;
            let order = Order::Which(WhichOrder { what, site: of, pool });
            site::order(context, host.as_deref(), order, true).await
        }
        Action::RevertFast(Revert { site: name, what, yes, no_wait, host }) => {
            let (pool, image, snap) = snapshot(&what)?;
            eprintln!("What was written to {pool}/{image} on site {name} since snapshot {snap} is lost.");
            let question = format!("Type the name of the image ({image}) to go on:");
            confirm::ask(question, &image, yes).await?;
            let order = Order::Revert(RevertOrder { name, pool, image, snap });
            site::order(context, host.as_deref(), order, !no_wait).await
        }
        Action::Move(arguments) => move_image(context, arguments).await,
        Action::Switch(Switch { site: name, what, how }) => switch(context, name, Some(what), how).await,
        Action::HalfDeleted(Half { site: name, pool, finish, yes, host }) => {
            if finish {
                eprintln!(
                    "Images of pool {pool} on site {name} that cannot be opened are removed for good, with their data."
                );
                let question = format!("Type the name of the pool ({pool}) to go on:");
                confirm::ask(question, &pool, yes).await?;
            }
            let order = Order::Half(HalfOrder { name, pool, finish });
            site::order(context, host.as_deref(), order, true).await
        }
    }
}

fn text(of: &Value, key: &str) -> String {
    match of.get(key) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn words(of: &Value, key: &str) -> Option<String> {
    let all: Vec<&str> = list(of, key).filter_map(Value::as_str).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// What `which-volume` has found.
pub(super) fn which(operation: i64, document: &Value) -> Result<Report> {
    let mut said = String::new();
    for found in list(document, "found") {
        let (about, volume) = (&found["about"], &found["volume"]);
        let some = |of: &Value, key: &str| Some(text(of, key)).filter(|t| !t.is_empty());
        let bytes = about["bytes"].as_array().and_then(|b| Some(format!("{} to {}", b.first()?, b.get(1)?)));
        let trash = if found["trash"] == json!(true) { " (in the trash)" } else { "" };
        let whose = match volume["kind"].as_str() {
            Some("volume") => some(volume, "id"),
            Some("deleted") => Some(format!("{}, which was deleted", text(volume, "id"))),
            Some("backup") => {
                Some(format!("none: backup {} of volume {}", text(volume, "backup"), text(volume, "of")))
            }
            _ => Some("none: Cinder does not know this image".to_owned()),
        };
        let attached: Vec<String> = list(volume, "attachments")
            .map(|a| format!("server {} on {} as {}", text(a, "server"), text(a, "host"), text(a, "device")))
            .collect();
        let clones: Vec<String> = list(found, "clones")
            .map(|c| match some(c, "volume") {
                Some(volume) => format!("{}/{} (volume {volume})", text(c, "pool"), text(c, "image")),
                None => format!("{}/{}", text(c, "pool"), text(c, "image")),
            })
            .collect();
        said.push_str(&facts([
            ("Image", Some(format!("{}/{}{trash}", text(found, "pool"), text(found, "image")))),
            ("Site", some(found, "site")),
            ("Id", some(found, "id")),
            ("What", document["clue"]["Id"]["what"].as_str().map(str::to_owned)),
            ("Bytes of the image", bytes),
            ("Snapshot", some(about, "snapshot")),
            ("Problem", some(found, "problem")),
            ("Volume", whose),
            ("Name", some(volume, "name")),
            ("Project", some(volume, "project")),
            ("Status", some(volume, "status")),
            ("Replication", some(volume, "replication_status")),
            ("Backend", some(volume, "host")),
            ("Attached", (!attached.is_empty()).then(|| attached.join("\n"))),
            ("Open at", words(found, "open_at")),
            ("Clones that read it, too", (!clones.is_empty()).then(|| clones.join("\n"))),
        ]));
        said.push('\n');
    }
    for silent in list(document, "silent").filter_map(Value::as_str) {
        said.push_str(&format!("! not searched: {silent}\n"));
    }
    Report::new(said, &json!({"operation": operation, "result": document}))
}

/// What `half-deleted` has found and done.
pub(super) fn half(operation: i64, document: &Value) -> Result<Report> {
    let rows: Vec<[String; 4]> = list(document, "images")
        .map(|i| [text(i, "image"), text(i, "id"), text(i, "fate"), text(i, "advice")])
        .collect();
    let open = list(document, "images").any(|i| i["fate"] != json!("removed"));
    let said = match rows.is_empty() {
        true => format!("All images of pool {} can be opened.\n", text(document, "halves_of")),
        false => {
            let table = table(["Image", "Id", "", "What to do"], rows);
            let more = match (open, document["finish"] == json!(true)) {
                (true, false) => "To remove what is left of them: the same with --finish\n",
                _ => "",
            };
            format!("{table}\n{more}")
        }
    };
    let report = Report::new(said, &json!({"operation": operation, "result": document}))?;
    Ok(report.ending(if open { Exit::Failed } else { Exit::Done }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_told_with_its_servers() {
        let volume = json!({"kind": "volume", "id": "v-1", "project": "p-1", "status": "in-use", "name": null,
            "attachments": [{"server": "s-1", "host": "node1", "device": "/dev/vdb"}]});
        let found = json!({"site": "a", "pool": "volumes", "image": "volume-v-1", "id": "10ab", "trash": false,
            "about": {"bytes": [4194304, 8388608], "snapshot": null}, "problem": null, "open_at": ["127.0.0.1:0/1"],
            "volume": volume, "clones": [{"pool": "volumes", "image": "volume-v-2", "volume": "v-2"}]});
        let clue = json!({"Id": {"what": "data"}});
        let text = which(7, &json!({"which": "x", "clue": clue, "found": [found], "silent": ["b: away"]}))
            .unwrap()
            .text;
        for said in [
            "volumes/volume-v-1",
            "4194304 to 8388608",
            "| v-1",
            "server s-1 on node1 as /dev/vdb",
            "volume-v-2 (volume v-2)",
            "! not searched: b: away",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn a_snapshot_is_named_with_pool_and_image() {
        assert_eq!(snapshot("p/i@s").unwrap(), ("p".to_owned(), "i".to_owned(), "s".to_owned()));
        for bad in ["p/i", "p@s", "p/i@", "i@s", "@"] {
            assert_eq!(snapshot(bad).unwrap_err().code(), Code::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn what_was_not_turned_fails_a_preview() {
        let image =
            |fate: Value| json!({"switched": "b", "images": [{"pool": "p", "image": "disk", "fate": fate}]});
        let failed =
            switched(7, &image(json!({"step": "failed", "reason": "primary on both sides"}))).unwrap();
        assert!(
            failed.exit == Exit::Failed && failed.text.contains("primary on both sides"),
            "{}",
            failed.text
        );
        let planned = switched(7, &image(json!({"step": "planned", "way": "hand-over"}))).unwrap();
        assert!(planned.text.contains("would be demoted there and promoted here"), "{}", planned.text);
        assert!(
            switched(7, &image(json!({"step": "moved", "forced": true}))).unwrap().text.contains("by force")
        );
    }

    #[test]
    fn what_is_left_over_fails_the_command_until_it_is_gone() {
        let image = |fate: &str| json!({"image": "disk", "id": "1", "fate": fate, "advice": null});
        let document =
            |finish: bool, fate: &str| json!({"halves_of": "p", "finish": finish, "images": [image(fate)]});
        let found = half(7, &document(false, "found")).unwrap();
        assert!(found.exit == Exit::Failed && found.text.contains("--finish"), "{}", found.text);
        assert_eq!(half(7, &document(true, "removed")).unwrap().exit, Exit::Done);
        assert_eq!(half(7, &document(true, "kept")).unwrap().exit, Exit::Failed);
        let none = half(7, &json!({"halves_of": "p", "images": []})).unwrap();
        assert_eq!((none.exit, none.text.as_str()), (Exit::Done, "All images of pool p can be opened.\n"));
    }
}
