//! How much of an operation is done, as its items tell: a bar on a terminal, a word elsewhere.
//!
//! An item that takes long says `percent` in its step. One that has come to an end says so by the step's name. What
//! does not say either counts as not begun.

use serde_json::Value;

use crate::journal::Item;

/// Characters of a bar.
const WIDTH: usize = 30;
/// Steps after which an item needs nothing more.
const ENDS: &[&str] = &["replaying", "skipped", "failed", "moved"];
/// Orders whose items tell.
const METHODS: &[&str] = &["scoria.site.replicate", "scoria.site.move"];

/// Whether the items of such operations are worth asking for.
pub(super) fn applies(method: &str) -> bool {
    METHODS.contains(&method)
}

/// Percent of all items, rounded down, so that 100 means that all have ended. `None` without items.
pub(super) fn percent(items: &[Item]) -> Option<u64> {
    let all: Vec<u64> = items.iter().filter(|i| !i.step.resource_id.is_empty()).map(of_one).collect();
    let count = u64::try_from(all.len()).ok().filter(|n| *n > 0)?;
    Some(all.iter().sum::<u64>() / count)
}

fn of_one(item: &Item) -> u64 {
    if ENDS.contains(&item.name()) {
        return 100;
    }
    // Whatever it says: it has not ended.
    item.step.data.get("percent").and_then(Value::as_u64).unwrap_or(0).min(99)
}

/// `[############------------------] 40 %`.
pub(super) fn bar(percent: u64) -> String {
    let full = usize::try_from(percent.min(100)).unwrap_or(100) * WIDTH / 100;
    format!("[{}{}] {percent} %", "#".repeat(full), "-".repeat(WIDTH - full))
}

/// The same where each change is a line of its own: in tens.
pub(super) fn word(percent: u64) -> String {
    format!("{} %", percent / 10 * 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Step;
    use serde_json::json;

    fn item(image: &str, data: Value) -> Item {
        let step = Step { resource_id: image.into(), name: "image".into(), data };
        Item { step, updated_at: chrono::NaiveDateTime::default() }
    }

    #[test]
    fn what_has_ended_counts_whole_and_what_has_not_never_does() {
        assert_eq!(percent(&[]), None);
        let mut items = vec![
            item("", json!({"percent": 7})),
            item("a", json!({"step": "replaying"})),
            item("b", json!({"step": "enabled", "percent": 40})),
            item("c", json!({"step": "pending"})),
            item("d", json!({"step": "enabled", "percent": null})),
        ];
        assert_eq!(percent(&items), Some(35));
        items.truncate(2);
        assert_eq!(percent(&items), Some(100));
        assert_eq!(percent(&[item("a", json!({"step": "enabled", "percent": 100}))]), Some(99));
    }

    #[test]
    fn a_bar_has_one_length() {
        assert_eq!(bar(0), format!("[{}] 0 %", "-".repeat(WIDTH)));
        assert_eq!(bar(100), format!("[{}] 100 %", "#".repeat(WIDTH)));
        assert!(bar(40).starts_with("[############------------------] 40 %"), "{}", bar(40));
        assert_eq!((word(0), word(39), word(100)), ("0 %".into(), "30 %".into(), "100 %".into()));
    }
}
