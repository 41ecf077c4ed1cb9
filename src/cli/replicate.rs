//! `replicate`: images that Cinder does not know get a copy on the other site.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::output::table;
use super::{Context, Report, site};
use crate::error::{Code, Error, Result};
use crate::rbd::types::MirrorMode;
use crate::site::Order;
use crate::site::replicate::ReplicateOrder;

/// Arguments of `replicate`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Replicate {
    /// The site where the images are
    pub site: String,
    /// POOL, or POOL/IMAGE
    #[arg(value_name = "POOL[/IMAGE]")]
    pub what: String,
    /// How they are mirrored
    #[arg(long, value_enum, default_value_t = Mode::Journal)]
    pub mode: Mode,
    /// Only show what would be done with each image
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Return once the order is written down
    #[arg(long)]
    pub no_wait: bool,
    /// Host whose service does it [default: this one's]
    #[arg(long)]
    pub host: Option<String>,
}

/// How images are mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// By replaying their journal
    Journal,
    /// By mirror snapshots, which need a schedule
    Snapshot,
}

/// The parts of `POOL` or `POOL/IMAGE`.
pub(super) fn pool_and_image(text: &str) -> Result<(String, Option<String>)> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [pool] if !pool.is_empty() => Ok(((*pool).to_owned(), None)),
        [pool, image] if !pool.is_empty() && !image.is_empty() => {
            Ok(((*pool).to_owned(), Some((*image).to_owned())))
        }
        _ => Err(Error::new(
            Code::InvalidInput,
            format!("'{text}' is neither POOL nor POOL/IMAGE; namespaces of RBD are not supported"),
        )),
    }
}

/// The parts of `POOL/IMAGE`.
pub(super) fn one_image(text: &str) -> Result<(String, String)> {
    match pool_and_image(text)? {
        (pool, Some(image)) => Ok((pool, image)),
        (_, None) => Err(Error::new(Code::InvalidInput, format!("'{text}' is not POOL/IMAGE"))),
    }
}

pub(super) async fn run(context: &Context, arguments: Replicate) -> Result<Report> {
    context.require_tables().await?;
    let (pool, image) = pool_and_image(&arguments.what)?;
    let mode = match arguments.mode {
        Mode::Journal => MirrorMode::Journal,
        Mode::Snapshot => MirrorMode::Snapshot,
    };
    let order = ReplicateOrder { name: arguments.site, pool, image, mode, dry_run: arguments.dry_run };
    site::order(context, arguments.host.as_deref(), Order::Replicate(order), !arguments.no_wait).await
}

/// What came of an order.
pub(super) fn report(operation: i64, document: &Value) -> Result<Report> {
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |key: &str| document.get(key).and_then(Value::as_array).into_iter().flatten();
    let dry = document.get("dry_run") == Some(&Value::Bool(true));
    let to: Vec<&str> = list("to").filter_map(Value::as_str).collect();
    let rows: Vec<[String; 3]> = list("images")
        .map(|entry| {
            let fate = entry.get("fate").cloned().unwrap_or_default();
            let step = match (text(&fate, "step").as_str(), dry) {
                ("pending", true) => "would be replicated".to_owned(),
                ("enabled", true) => "is mirrored".to_owned(),
                (other, _) => other.to_owned(),
            };
            [text(entry, "image"), step, text(&fate, "reason")]
        })
        .collect();
    let said = format!(
        "Pool {} of site {}, to {}:\n{}\n",
        text(document, "pool"),
        text(document, "replicated"),
        to.join(", "),
        table(["Image", "", "Why"], rows)
    );
    Report::new(said, &json!({"operation": operation, "result": document}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_with_its_pool() {
        assert_eq!(pool_and_image("p").unwrap(), ("p".to_owned(), None));
        assert_eq!(pool_and_image("p/i").unwrap(), ("p".to_owned(), Some("i".to_owned())));
        for bad in ["", "/", "p/", "/i", "p/n/i"] {
            assert_eq!(pool_and_image(bad).unwrap_err().code(), Code::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn each_image_is_told() {
        let images = json!([{"image": "disk", "fate": {"step": "pending"}},
            {"image": "volume-1", "fate": {"step": "skipped", "reason": "volume 1 of Cinder"}}]);
        let document =
            json!({"replicated": "a", "pool": "p", "to": ["b"], "dry_run": true, "images": images});
        let text = report(7, &document).unwrap().text;
        assert!(text.contains("| disk     | would be replicated |"), "{text}");
        assert!(text.contains("volume 1 of Cinder") && text.contains("to b:"), "{text}");
    }
}
