//! Retention: how many backups of a volume stay, and which go.
//!
//! What is set for a volume counts (`scoria_backup_retention`), else what its type says by extra specs; with neither all
//! stay. `rule` decides, `many` looks at many volumes in sets, `apply` has those deleted that nothing keeps.

pub mod apply;
pub mod many;
pub mod rule;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::names;
use crate::db;
use crate::db::Conn;
use crate::db::backup_order::taken_at;
use crate::db::backup_retention::RetentionRow;
use crate::error::{Code, Error, Result};
use crate::model::Backup;
use rule::{Fate, Keep, MOST, Point, Verdict};

/// Extra specs of a volume type: how many backups of each of its volumes are kept.
pub const SPECS: [&str; 4] =
    ["backup:keep_last", "backup:keep_daily", "backup:keep_weekly", "backup:keep_monthly"];
/// Extra spec: the time zone that days, weeks and months are counted in (`UTC`).
pub const ZONE_SPEC: &str = "backup:time_zone";
/// Where days begin unless something else is said.
pub const UTC: &str = "UTC";

/// Who says how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "set_for", content = "name", rename_all = "snake_case")]
pub enum Source {
    /// It is set for the volume itself.
    Volume,
    /// The volume's type, by its name.
    Type(String),
}

/// How many are kept of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How many, for what.
    #[serde(flatten)]
    pub keep: Keep,
    /// Name in the IANA database.
    pub time_zone: String,
    /// Who says so.
    #[serde(flatten)]
    pub source: Source,
}

/// What retention reaches besides whole backups of volumes that exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Backups in error go, too.
    pub failed: bool,
    /// For a volume that is deleted its type counts, too: without, its backups all stay, unless a rule was set for itself.
    pub deleted_volumes: bool,
}

/// What retention would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The volume.
    pub volume_id: String,
    /// What counts; `None`: all stay.
    pub policy: Option<Policy>,
    /// Each backup, the newest first.
    pub backups: Vec<Verdict>,
}

impl Preview {
    /// How many would go.
    pub fn going(&self) -> usize {
        self.backups.iter().filter(|verdict| verdict.fate == Fate::Removed).count()
    }
}

/// What is to be set for a volume, checked.
///
/// # Errors
/// `InvalidInput` for numbers that are none, when nothing would be kept, for an unknown time zone.
pub fn row(volume_id: &str, keep: [Option<i64>; 4], time_zone: Option<&str>) -> Result<RetentionRow> {
    let number = |at: usize| match keep[at] {
        None => Ok(None),
        Some(count) if (0..=i64::from(MOST)).contains(&count) => Ok(i32::try_from(count).ok()),
        Some(count) => Err(Error::new(
            Code::InvalidInput,
            format!(
                "{} is {count}: it must be between 0 and {MOST}",
                SPECS[at].trim_start_matches("backup:")
            ),
        )),
    };
    let row = RetentionRow {
        volume_id: volume_id.to_owned(),
        keep_last: number(0)?,
        keep_daily: number(1)?,
        keep_weekly: number(2)?,
        keep_monthly: number(3)?,
        time_zone: time_zone.unwrap_or(UTC).to_owned(),
    };
    rule::zone(&row.time_zone)?;
    if of_row(&row).is_nothing() {
        return Err(Error::new(
            Code::InvalidInput,
            "A rule that keeps nothing is none: name at least one of keep_last, keep_daily, keep_weekly and \
             keep_monthly, greater than 0; to keep all backups, clear the rule",
        ));
    }
    Ok(row)
}

fn of_row(row: &RetentionRow) -> Keep {
    let count = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
    Keep {
        last: count(row.keep_last),
        daily: count(row.keep_daily),
        weekly: count(row.keep_weekly),
        monthly: count(row.keep_monthly),
    }
}

/// What the extra specs of a type say; `None` when they say nothing of it, or zero only.
///
/// # Errors
/// `InvalidInput` for a value that is no number, or an unknown time zone.
pub fn of_specs(type_name: &str, specs: &BTreeMap<String, String>) -> Result<Option<(Keep, String)>> {
    let number = |name: &str| match specs.get(name) {
        None => Ok(0),
        Some(text) => match text.trim().parse::<u32>() {
            Ok(count) if count <= MOST => Ok(count),
            _ => Err(Error::new(
                Code::InvalidInput,
                format!(
                    "Extra spec {name} of volume type {type_name} is \"{}\": it must be a number between 0 and {MOST}",
                    text.escape_debug()
                ),
            )),
        },
    };
    let keep = Keep {
        last: number(SPECS[0])?,
        daily: number(SPECS[1])?,
        weekly: number(SPECS[2])?,
        monthly: number(SPECS[3])?,
    };
    let zone = specs.get(ZONE_SPEC).map_or(UTC, |text| text.trim());
    rule::zone(zone).map_err(|error| {
        Error::new(
            Code::InvalidInput,
            format!("Extra spec {ZONE_SPEC} of volume type {type_name}: {}", error.user()),
        )
    })?;
    Ok((!keep.is_nothing()).then(|| (keep, zone.to_owned())))
}

/// What counts for a volume. For one that is deleted by now its type does only with `deleted_volumes`.
///
/// # Errors
/// As [`of_specs`]; `Database`.
pub async fn policy(conn: &mut Conn, volume_id: &str, deleted_volumes: bool) -> Result<Option<Policy>> {
    let ids = [volume_id.to_owned()];
    policies(conn, &ids, deleted_volumes).await?.remove(volume_id).unwrap_or(Ok(None))
}

/// The same for many volumes, in a fixed number of SELECTs. Of those that have no rule nothing is said.
async fn policies(
    conn: &mut Conn,
    ids: &[String],
    deleted_volumes: bool,
) -> Result<BTreeMap<String, Result<Option<Policy>>>> {
    let mut found = BTreeMap::new();
    let types = db::backup_retention::types_of(conn, ids, deleted_volumes).await?;
    let kinds: BTreeSet<&str> = types.iter().map(|(_, kind)| kind.as_str()).collect();
    let said = db::backup_retention::said_by_types(conn, &kinds).await?;
    for (volume, kind) in &types {
        let Some((name, specs)) = said.get(kind) else { continue };
        let policy = of_specs(name, specs).map(|said| {
            said.map(|(keep, time_zone)| Policy { keep, time_zone, source: Source::Type(name.clone()) })
        });
        found.insert(volume.clone(), policy);
    }
    // What is set for the volume itself counts alone.
    for row in db::backup_retention::of_volumes(conn, ids).await? {
        let policy = Policy { keep: of_row(&row), time_zone: row.time_zone, source: Source::Volume };
        found.insert(row.volume_id, Ok(Some(policy)));
    }
    Ok(found)
}

/// What retention would do with the backups of a volume now, and why.
///
/// # Errors
/// `VolumeNotFound` when there is neither the volume nor a backup of it; as [`policy`].
pub async fn preview(conn: &mut Conn, volume_id: &str, reach: Reach) -> Result<Preview> {
    let backups = db::backup_work::list(conn, Some(volume_id)).await?;
    if backups.is_empty() {
        db::volume::get(conn, volume_id).await?;
    }
    of_backups(conn, volume_id, &backups, reach).await
}

async fn of_backups(conn: &mut Conn, volume_id: &str, backups: &[Backup], reach: Reach) -> Result<Preview> {
    let policy = policy(conn, volume_id, reach.deleted_volumes).await?;
    counted(volume_id, policy, backups, reach.failed)
}

/// What a rule makes of the backups of a volume.
fn counted(volume_id: &str, policy: Option<Policy>, backups: &[Backup], failed: bool) -> Result<Preview> {
    let backups = match &policy {
        Some(policy) => rule::decide(&policy.keep, rule::zone(&policy.time_zone)?, &points(backups), failed),
        None => Vec::new(),
    };
    Ok(Preview { volume_id: volume_id.to_owned(), policy, backups })
}

fn points(backups: &[Backup]) -> Vec<Point> {
    let continued = |id: &str| {
        let mut made = backups.iter().filter(|other| other.status == "creating");
        made.any(|other| other.parent_id.as_deref() == Some(id))
    };
    let point = |b: &Backup| {
        Some(Point {
            id: b.id.clone(),
            at: taken_at(b)?,
            status: b.status.clone(),
            is_ours: names::is_ours(b.service.as_deref()),
            is_continued: continued(&b.id),
        })
    };
    // One without any time is nothing that could be counted: it stays.
    backups.iter().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn extra_specs_are_read_and_what_is_wrong_is_named() {
        let specs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(of_specs("t", &specs(&[("backup:site", "b")])).unwrap(), None);
        assert_eq!(of_specs("t", &specs(&[("backup:keep_last", "0")])).unwrap(), None);
        let good = specs(&[("backup:keep_daily", " 7"), ("backup:time_zone", "Europe/Berlin")]);
        let (keep, zone) = of_specs("t", &good).unwrap().unwrap();
        assert_eq!((keep.daily, keep.last, zone.as_str()), (7, 0, "Europe/Berlin"));
        for (key, value) in [
            ("backup:keep_last", "-1"),
            ("backup:keep_weekly", "many"),
            ("backup:keep_monthly", "100001"),
            ("backup:time_zone", "Mars"),
        ] {
            let error = of_specs("gold", &specs(&[(key, value)])).unwrap_err();
            assert!(error.code() == Code::InvalidInput && error.user().contains(key), "{error}");
            assert!(error.user().contains("gold") && error.user().contains(value), "{error}");
        }
    }

    #[test]
    fn a_rule_for_a_volume_keeps_something() {
        let set = row("v", [Some(3), None, Some(0), None], Some("Asia/Kathmandu")).unwrap();
        assert_eq!((set.keep_last, set.keep_daily, set.keep_weekly), (Some(3), None, Some(0)));
        for (keep, zone) in [
            ([None, None, None, None], None),
            ([Some(0), Some(0), None, None], None),
            ([Some(-1), Some(5), None, None], None),
            ([Some(1), None, None, Some(1 << 40)], None),
            ([Some(1), None, None, None], Some("nowhere")),
        ] {
            assert_eq!(row("v", keep, zone).unwrap_err().code(), Code::InvalidInput, "{keep:?} {zone:?}");
        }
    }
}
