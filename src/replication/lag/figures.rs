//! What a daemon's report says in figures.
//!
//! rbd-mirror tells how far behind a copy is only in a text for people, whose shape has changed with nearly every
//! release of Ceph: names in brackets before 16, a JSON object since, with other members in each mode and other
//! ones in each release. So nothing here is an error: what cannot be read is not known. A number that is not
//! finite (`nan`: the mean of nothing) spoils no other.

use serde_json::{Map, Value};

use crate::rbd::types::MirrorMode;

/// A place in a journal: grows with every entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Grows with each change of the writer.
    pub tag: i64,
    /// Grows with each entry under a tag.
    pub entry: i64,
}

/// The figures of one report. `None`: not told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// By what is told, if it is told by one mode only.
    pub mode: Option<MirrorMode>,
    /// Journal: entries that the copy has not replayed.
    pub entries_behind: Option<i64>,
    /// Journal: where the primary writes.
    pub primary: Option<Position>,
    /// Journal: what the copy has replayed.
    pub copy: Option<Position>,
    /// Snapshots: when the snapshot was taken that the copy has completely, in seconds since the epoch.
    pub synced_to: Option<i64>,
    /// Snapshots: when the primary's newest was taken.
    pub newest: Option<i64>,
    /// How long the daemon thinks that it will take.
    pub seconds_until_synced: Option<i64>,
    /// How much of the first copy, or of the present snapshot, has arrived.
    pub percent: Option<i32>,
    /// What arrives.
    pub bytes_per_second: Option<i64>,
    /// An estimate of what has not arrived.
    pub bytes_behind: Option<i64>,
}

impl Figures {
    /// Reads a report's description.
    pub fn of(description: &str) -> Figures {
        match object(description) {
            Some(object) => Figures::of_object(&object),
            None => Figures::of_text(description),
        }
    }

    fn of_object(object: &Map<String, Value>) -> Figures {
        let float = |key: &str| object.get(key).and_then(Value::as_f64).filter(|n| n.is_finite());
        // A counter is written as a whole number or, by some releases, as a float.
        let whole = |key: &str| float(key).map(|n| n as i64);
        let time = |key: &str| whole(key).filter(|t| *t > 0);
        let position = |keys: [&str; 2]| {
            let object = keys.iter().find_map(|key| object.get(*key)?.as_object())?;
            let number = |key: &str| object.get(key).and_then(Value::as_i64);
            Some(Position { tag: number("tag_tid")?, entry: number("entry_tid")? })
        };
        let entries_behind = whole("entries_behind_primary").or_else(|| whole("entries_behind_master"));
        let entries_behind = entries_behind.map(|n| n.max(0));
        let (synced_to, newest) = (time("local_snapshot_timestamp"), time("remote_snapshot_timestamp"));
        let by_snapshots = newest.is_some() || synced_to.is_some() || object.contains_key("replay_state");
        let bytes_per_second = float("bytes_per_second");
        let seconds_until_synced = whole("seconds_until_synced").map(|n| n.max(0));
        let mode = match (entries_behind, by_snapshots) {
            (Some(_), _) => Some(MirrorMode::Journal),
            (None, true) => Some(MirrorMode::Snapshot),
            (None, false) => None,
        };
        let in_step = match mode {
            Some(MirrorMode::Journal) => entries_behind == Some(0),
            Some(MirrorMode::Snapshot) => newest.is_some() && newest == synced_to,
            None => false,
        };
        let entries_per_second = float("entries_per_second").filter(|n| *n > 0.0);
        let bytes_behind = match (in_step, entries_behind, bytes_per_second, entries_per_second) {
            (true, ..) => Some(0),
            (false, Some(entries), Some(bytes), Some(per_second)) if bytes > 0.0 => {
                Some((entries as f64 * bytes / per_second) as i64)
            }
            // Ceph's forecast is just this quotient.
            (false, None, Some(bytes), _) if bytes > 0.0 => {
                seconds_until_synced.map(|seconds| (seconds as f64 * bytes) as i64)
            }
            _ => None,
        };
        Figures {
            mode,
            entries_behind,
            primary: position(["primary_position", "master_position"]),
            copy: position(["non_primary_position", "mirror_position"]),
            synced_to,
            newest,
            seconds_until_synced,
            percent: whole("syncing_percent").and_then(percent),
            bytes_per_second: bytes_per_second.map(|n| n as i64),
            bytes_behind,
        }
    }

    /// `replaying, master_position=[object_number=2, tag_tid=2, entry_tid=3974], …, entries_behind_master=1391`, and
    /// `bootstrapping, IMAGE_SYNC/COPY_IMAGE 42%`.
    fn of_text(text: &str) -> Figures {
        let number_after = |text: &str, name: &str| -> Option<i64> {
            let rest = text.split_once(name)?.1.trim_start_matches(['=', ' ']);
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest.get(..end)?.parse().ok()
        };
        let position = |names: [&str; 2]| {
            let inside = names.iter().find_map(|name| text.split_once(*name)?.1.split_once(']'))?.0;
            Some(Position {
                tag: number_after(inside, "tag_tid")?,
                entry: number_after(inside, "entry_tid")?,
            })
        };
        let behind = ["entries_behind_primary", "entries_behind_master"];
        let entries_behind = behind.iter().find_map(|name| number_after(text, name));
        let before_percent = text.split_once('%').and_then(|(before, _)| before.rsplit([' ', '/']).next());
        Figures {
            mode: entries_behind.map(|_| MirrorMode::Journal),
            entries_behind,
            primary: position([" primary_position=[", "master_position=["]),
            copy: position(["non_primary_position=[", "mirror_position=["]),
            percent: before_percent.and_then(|n| percent(n.parse().ok()?)),
            bytes_behind: (entries_behind == Some(0)).then_some(0),
            ..Figures::default()
        }
    }
}

fn percent(number: i64) -> Option<i32> {
    i32::try_from(number).ok().filter(|n| (0..=100).contains(n))
}

/// The JSON object in a description.
fn object(description: &str) -> Option<Map<String, Value>> {
    let (from, to) = (description.find('{')?, description.rfind('}')?);
    let text = description.get(from..=to)?;
    let parsed = serde_json::from_str(text).or_else(|_| serde_json::from_str(&finite(text)));
    match parsed {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// `nan` and `inf` are no JSON, but Ceph writes them.
fn finite(text: &str) -> String {
    let mut text = text.to_owned();
    for word in ["-nan", "nan", "-inf", "inf"] {
        for end in [",", "}"] {
            text = text.replace(&format!(":{word}{end}"), &format!(":null{end}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports as daemons of Ceph have written them.
    const JOURNAL_IN_STEP: &str = r#"replaying, {"bytes_per_second":0.0,"entries_behind_primary":0,"entries_per_second":0.0,"non_primary_position":{"entry_tid":3,"object_number":3,"tag_tid":6},"primary_position":{"entry_tid":3,"object_number":3,"tag_tid":6}}"#;
    const JOURNAL_BEHIND: &str = r#"replaying, {"bytes_per_second":1048576.0,"entries_behind_primary":120,"entries_per_second":40.0,"non_primary_position":{"entry_tid":880,"object_number":0,"tag_tid":1},"primary_position":{"entry_tid":1000,"object_number":0,"tag_tid":1},"seconds_until_synced":3}"#;
    const SNAPSHOT_IDLE: &str = r#"replaying, {"bytes_per_second":0.0,"bytes_per_snapshot":5742592.0,"last_snapshot_bytes":5742592,"last_snapshot_sync_seconds":0,"local_snapshot_timestamp":1763516344,"remote_snapshot_timestamp":1763516344,"replay_state":"idle"}"#;
    const SNAPSHOT_SYNCING: &str = r#"replaying, {"bytes_per_second":2048.0,"bytes_per_snapshot":nan,"local_snapshot_timestamp":1700000000,"remote_snapshot_timestamp":1700000600,"replay_state":"syncing","seconds_until_synced":10,"syncing_percent":42,"syncing_snapshot_timestamp":1700000600}"#;
    const NAUTILUS: &str = "replaying, master_position=[object_number=2, tag_tid=2, entry_tid=3974], mirror_position=[object_number=3, tag_tid=2, entry_tid=2583], entries_behind_master=1391";

    #[test]
    fn a_journal_is_read_by_entries() {
        let figures = Figures::of(JOURNAL_IN_STEP);
        assert_eq!(figures.mode, Some(MirrorMode::Journal));
        assert_eq!((figures.entries_behind, figures.bytes_behind), (Some(0), Some(0)));
        assert_eq!(figures.primary, Some(Position { tag: 6, entry: 3 }));
        assert_eq!(figures.primary, figures.copy);
        let figures = Figures::of(JOURNAL_BEHIND);
        assert_eq!((figures.entries_behind, figures.seconds_until_synced), (Some(120), Some(3)));
        assert_eq!(figures.bytes_behind, Some(3 << 20), "by the mean size of an entry");
        assert!(figures.copy < figures.primary);
    }

    #[test]
    fn snapshots_are_read_by_times() {
        let figures = Figures::of(SNAPSHOT_IDLE);
        assert_eq!(figures.mode, Some(MirrorMode::Snapshot));
        assert_eq!((figures.synced_to, figures.newest), (Some(1_763_516_344), Some(1_763_516_344)));
        assert_eq!((figures.bytes_behind, figures.percent), (Some(0), None));
        let figures = Figures::of(SNAPSHOT_SYNCING);
        assert_eq!((figures.synced_to, figures.newest), (Some(1_700_000_000), Some(1_700_000_600)));
        assert_eq!((figures.percent, figures.bytes_behind), (Some(42), Some(20_480)));
    }

    #[test]
    fn releases_before_16_are_understood() {
        let figures = Figures::of(NAUTILUS);
        assert_eq!(figures.entries_behind, Some(1391));
        assert_eq!(figures.primary, Some(Position { tag: 2, entry: 3974 }));
        assert_eq!(figures.copy, Some(Position { tag: 2, entry: 2583 }));
    }

    #[test]
    fn what_holds_no_figures_is_no_error() {
        for text in [
            "",
            "local image is primary",
            "split-brain detected",
            "replaying, {}",
            "replaying, {\"bytes_per_second\":",
            "replaying",
            "remote image is not primary",
            "}{",
            "replaying, {\"entries_behind_primary\":\"many\",\"primary_position\":[]}",
        ] {
            assert_eq!(Figures::of(text), Figures::default(), "{text}");
        }
        let first = Figures::of("bootstrapping, IMAGE_SYNC/COPY_IMAGE 42%");
        assert_eq!((first.percent, first.mode), (Some(42), None));
        assert_eq!(Figures::of("bootstrapping, IMAGE_COPY/COPY_OBJECTS 100%").percent, Some(100));
        // A snapshot that has none before it.
        let first = Figures::of(
            r#"replaying, {"bytes_per_second":0.0,"remote_snapshot_timestamp":1,"replay_state":"syncing"}"#,
        );
        assert_eq!((first.mode, first.synced_to), (Some(MirrorMode::Snapshot), None));
    }
}
