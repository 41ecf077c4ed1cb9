//! How many volumes of a backend have a copy that is broken or too old, for its capability report.

use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Map, Value};

/// The capability by which a filter or a weigher of the scheduler can keep away from such a backend. The scheduler
/// alone is told: what `get_capabilities` answers is stock's.
pub const CAPABILITY: &str = "replication_degraded_volumes";

/// The number, once it is known.
#[derive(Debug)]
pub struct Degraded(AtomicI64);

impl Default for Degraded {
    fn default() -> Degraded {
        Degraded(AtomicI64::new(-1))
    }
}

impl Degraded {
    /// Remembers it.
    pub fn set(&self, volumes: i64) {
        self.0.store(volumes.max(0), Ordering::Relaxed);
    }

    /// Adds it to a report; nothing as long as nobody has looked.
    pub(super) fn report(&self, report: &mut Map<String, Value>) {
        let volumes = self.0.load(Ordering::Relaxed);
        if volumes >= 0 {
            report.insert(CAPABILITY.to_owned(), volumes.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_reported_before_somebody_has_looked() {
        let (degraded, mut report) = (Degraded::default(), Map::new());
        degraded.report(&mut report);
        assert!(report.is_empty());
        degraded.set(0);
        degraded.report(&mut report);
        assert_eq!(report.get(CAPABILITY), Some(&Value::from(0)));
    }
}
