//! How far a copy is behind, by the figures that its daemon writes into its report. They may be 30 s old: good for a
//! forecast, never for a decision.

use serde::Serialize;

use crate::rbd::types::MirrorReport;
use crate::replication::lag::figures::Figures;

/// What is known of a copy's lag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Journal mode: entries that have not been replayed.
    pub entries: Option<u64>,
    /// Snapshot mode: when the newest mirror snapshot was made that the copy holds completely, seconds since the
    /// epoch.
    pub complete_at: Option<i64>,
    /// Snapshot mode: when the newest one of the primary was made.
    pub newest_at: Option<i64>,
    /// When the daemon last reported, seconds since the epoch.
    pub reported_at: Option<i64>,
}

impl Lag {
    /// Reads the report of the copy's side.
    pub fn read(report: &MirrorReport) -> Lag {
        let Some(local) = &report.local else { return Lag::default() };
        let figures = Figures::of(&local.description);
        Lag {
            entries: figures.entries_behind.and_then(|n| u64::try_from(n).ok()),
            complete_at: figures.synced_to,
            newest_at: figures.newest,
            reported_at: Some(local.last_update).filter(|t| *t > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::types::{MirrorMode, MirrorSiteStatus, MirrorState, Mirroring};

    fn lag(description: &str) -> Lag {
        let local = MirrorSiteStatus {
            mirror_uuid: String::new(),
            state: "replaying".into(),
            up: true,
            description: description.into(),
            last_update: 1_700_000_000,
        };
        let info = Mirroring {
            state: MirrorState::Enabled,
            mode: MirrorMode::Journal,
            primary: false,
            global_id: "g".into(),
        };
        Lag::read(&MirrorReport { info, local: Some(local), peers: vec![], registered: vec![] })
    }

    #[test]
    fn figures_are_read_where_there_are_any() {
        let journal = lag(
            "replaying, {\"bytes_per_second\":0.0,\"entries_behind_primary\":12,\"entries_per_second\":0.0,\
             \"non_primary_position\":{\"entry_tid\":3,\"object_number\":3,\"tag_tid\":1}}",
        );
        assert_eq!((journal.entries, journal.complete_at), (Some(12), None));
        let snapshot = lag(
            "replaying, {\"bytes_per_second\":0.0,\"bytes_per_snapshot\":0.0,\"local_snapshot_timestamp\":1700000100,\
             \"remote_snapshot_timestamp\":1700000160,\"replay_state\":\"idle\"}",
        );
        assert_eq!((snapshot.complete_at, snapshot.newest_at), (Some(1_700_000_100), Some(1_700_000_160)));
        for nothing in ["stopping replay", "replaying, {\"entries_behind", "local image is primary", ""] {
            let lag = lag(nothing);
            assert_eq!((lag.entries, lag.complete_at, lag.reported_at), (None, None, Some(1_700_000_000)));
        }
    }
}
