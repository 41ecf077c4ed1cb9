//! Named points at which a test can make the service die, or its workers.
//!
//! Recovery is only proven by dying at every step. In debug builds two variables name points; release
//! builds contain none of it.
//!
//! - `SCORIA_CRASH_AT=<point>[:<n>]` ends the process (abort: no unwinding, no destructors, no flushing)
//!   when the point is passed for the n-th time;
//! - `SCORIA_KILL_WORKERS_AT=<point>[:<n>][,<point>[:<n>]…]` kills (`kill -9`) all workers that there are
//!   when one of the points is passed for the n-th time, and goes on.

/// Passes a named point.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    debug::point(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod debug {
    use std::process::{Command, Stdio};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A point, how often it must be passed, and how often it has been.
    #[derive(Debug)]
    pub(super) struct Awaited {
        pub(super) name: String,
        pub(super) n: u64,
        passed: AtomicU64,
    }

    impl Awaited {
        /// True exactly once.
        pub(super) fn is_due(&self, name: &str) -> bool {
            name == self.name && self.passed.fetch_add(1, Ordering::Relaxed) + 1 == self.n
        }
    }

    static CRASH: LazyLock<Vec<Awaited>> = LazyLock::new(|| named_by("SCORIA_CRASH_AT"));
    static KILL: LazyLock<Vec<Awaited>> = LazyLock::new(|| named_by("SCORIA_KILL_WORKERS_AT"));

    fn named_by(variable: &str) -> Vec<Awaited> {
        std::env::var(variable).map(|text| parse(&text)).unwrap_or_default()
    }

    pub(super) fn parse(text: &str) -> Vec<Awaited> {
        let one = |text: &str| {
            let counted = text.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok()?)));
            let (name, n) = counted.unwrap_or((text, 1));
            Awaited { name: name.to_owned(), n, passed: AtomicU64::new(0) }
        };
        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(one).collect()
    }

    // What is said here is not said by the log: that is written by a thread of its own, which dies too.
    pub(super) fn point(name: &str) {
        // Each counts for itself, so all of them are asked.
        if KILL.iter().filter(|at| at.is_due(name)).count() > 0 {
            kill_workers(name);
        }
        if CRASH.iter().any(|at| at.is_due(name)) {
            eprintln!("dying at {name}, as SCORIA_CRASH_AT asks");
            std::process::abort();
        }
    }

    fn kill_workers(name: &str) {
        let workers: Vec<String> = children().into_iter().filter(|pid| is_worker(pid)).collect();
        eprintln!("killing all workers at {name}, as SCORIA_KILL_WORKERS_AT asks: {}", workers.join(" "));
        if workers.is_empty() {
            return;
        }
        let killed = Command::new("kill").arg("-KILL").args(&workers).stderr(Stdio::null()).status();
        if let Err(error) = killed {
            eprintln!("could not run kill: {error}");
        }
    }

    fn children() -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn is_worker(pid: &str) -> bool {
        let program = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = program.split(|b| *b == 0).next().unwrap_or_default();
        program.ends_with(b"scoria-rbd-worker")
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::debug::parse;

    #[test]
    fn points_may_be_counted_and_be_many() {
        let parsed = |text: &str| parse(text).into_iter().map(|a| (a.name, a.n)).collect::<Vec<_>>();
        assert_eq!(parsed("create_volume:accepted"), [("create_volume:accepted".into(), 1)]);
        assert_eq!(
            parsed("failover:demoting:3, failover:moved"),
            [("failover:demoting".into(), 3), ("failover:moved".into(), 1)]
        );
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn a_point_is_due_once() {
        let points = parse("failover:demoting:2");
        let due: Vec<bool> =
            ["failover:demoting", "failover:moved", "failover:demoting", "failover:demoting"]
                .iter()
                .map(|name| points.iter().any(|p| p.is_due(name)))
                .collect();
        assert_eq!(due, [false, false, true, false]);
    }
}
