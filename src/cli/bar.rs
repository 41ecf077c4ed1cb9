//! How much of an operation is done, as its items tell: a bar on a terminal, a word elsewhere.
//!
//! The database counts ([`crate::journal::Journal::percent_of`]). An item that takes long says `percent` in its step. One that has come to an end says so by the step's name. What
//! does not say either counts as not begun.

/// Characters of a bar.
const WIDTH: usize = 30;
/// Steps after which an item needs nothing more.
pub(super) const ENDS: &[&str] = &["replaying", "skipped", "failed", "moved"];
/// Orders whose items tell.
const METHODS: &[&str] = &["scoria.site.replicate", "scoria.site.move"];

/// Whether the items of such operations are worth asking for.
pub(super) fn applies(method: &str) -> bool {
    METHODS.contains(&method)
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

    #[test]
    fn a_bar_has_one_length() {
        assert_eq!(bar(0), format!("[{}] 0 %", "-".repeat(WIDTH)));
        assert_eq!(bar(100), format!("[{}] 100 %", "#".repeat(WIDTH)));
        assert!(bar(40).starts_with("[############------------------] 40 %"), "{}", bar(40));
        assert_eq!((word(0), word(39), word(100)), ("0 %".into(), "30 %".into(), "100 %".into()));
    }
}
