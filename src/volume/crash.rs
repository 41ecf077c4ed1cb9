//! Named points at which a test can make the service die.
//!
//! Recovery is only proven by dying at every step. In debug builds, `SCORIA_CRASH_AT=<point>[:<n>]` ends the
//! process (abort: no unwinding, no destructors, no flushing) when the point is passed for the n-th
//! time; release builds contain none of it.

/// Passes a named point.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    debug::point(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod debug {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static AT: LazyLock<Option<(String, u64)>> =
        LazyLock::new(|| std::env::var("SCORIA_CRASH_AT").ok().map(|text| parse(&text)));
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn parse(text: &str) -> (String, u64) {
        match text.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?))) {
            Some((name, n)) => (name.to_owned(), n),
            None => (text.to_owned(), 1),
        }
    }

    pub(super) fn point(name: &str) {
        let Some((at, n)) = &*AT else { return };
        if name == at && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *n {
            tracing::error!(point = name, "dying here, as SCORIA_CRASH_AT asks");
            std::process::abort();
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::debug::parse;

    #[test]
    fn a_point_may_be_counted() {
        assert_eq!(parse("create_volume:accepted"), ("create_volume:accepted".into(), 1));
        assert_eq!(parse("failover:demoting:3"), ("failover:demoting".into(), 3));
    }
}
