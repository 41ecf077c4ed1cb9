//! Which cluster a site must be.
//!
//! A conf file is edited, `replication_device` and the backend itself change places, and the same name leads to another
//! cluster: an old one, whose images have the same names and yesterday's data. So whoever knows which cluster a
//! name stands for says so, and then no command but a health probe reaches one that is another.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a site must be, and what it was found to be. Shared by all handles on it.
#[derive(Debug, Default)]
pub struct Identity {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    expected: Option<String>,
    found: Option<String>,
}

/// A site that is another cluster than the one that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Fsid of the cluster that is meant.
    pub expected: String,
    /// Fsid of the one that answers.
    pub found: String,
}

impl Identity {
    /// From now on it must be this cluster; `None`: nobody knows which.
    pub fn expect(&self, fsid: Option<&str>) {
        self.state().expected = fsid.map(str::to_owned);
    }

    /// This cluster answered.
    pub fn is(&self, fsid: &str) {
        self.state().found = Some(fsid.to_owned());
    }

    /// Which cluster it must be.
    pub fn expected(&self) -> Option<String> {
        self.state().expected.clone()
    }

    /// Which cluster it is; `None` while nobody has asked, or it has not answered.
    pub fn found(&self) -> Option<String> {
        self.state().found.clone()
    }

    /// True when it is known to be the cluster that it must be.
    pub fn is_proven(&self) -> bool {
        let state = self.state();
        state.expected.is_some() && state.expected == state.found
    }

    /// It is known to be another.
    pub fn stranger(&self) -> Option<Stranger> {
        let state = self.state();
        match (&state.expected, &state.found) {
            (Some(expected), Some(found)) if expected != found => {
                Some(Stranger { expected: expected.clone(), found: found.clone() })
            }
            _ => None,
        }
    }

    /// True when there is nothing to ask and nothing to say against it.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state();
        state.expected.is_none() || state.expected == state.found
    }

    /// True when it must be asked before it is used.
    pub(super) fn is_open(&self) -> bool {
        let state = self.state();
        state.expected.is_some() && state.found.is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cluster_that_contradicts_what_is_known_is_a_stranger() {
        let site = Identity::default();
        assert!(site.stranger().is_none() && !site.is_open() && !site.is_proven());
        site.is("A");
        assert!(site.stranger().is_none() && !site.is_proven(), "nobody has said what it must be");
        site.expect(Some("A"));
        assert!(site.is_proven() && site.stranger().is_none());
        site.expect(Some("B"));
        assert_eq!(site.stranger(), Some(Stranger { expected: "B".into(), found: "A".into() }));
        let fresh = Identity::default();
        fresh.expect(Some("B"));
        assert!(fresh.is_open() && !fresh.is_settled() && fresh.stranger().is_none());
        assert!(!site.is_settled() && Identity::default().is_settled());
    }
}
