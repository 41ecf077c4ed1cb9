//! To whom what is found belongs: what its name says, and what the rows say of that.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::Removal;
use crate::backup::{Backups, names};
use crate::db;
use crate::error::Result;
use crate::journal::Journal;
use crate::model::Backup;

/// What the name of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// Base of a full backup, or a pinned point.
    Own {
        /// The volume.
        volume: String,
        /// The backup.
        backup: String,
    },
    /// Base as old releases, and stock for snapshots, name it.
    Legacy {
        /// The volume.
        volume: String,
    },
    /// Something else.
    Other,
}

/// What the name of an image says. Ids that are none are nobody's.
pub(super) fn named(image: &str) -> Named {
    let own = |volume: &str, backup: &str| {
        (is_id(volume) && is_id(backup))
            .then(|| Named::Own { volume: volume.to_owned(), backup: backup.to_owned() })
    };
    let base = image.strip_prefix("volume-").and_then(|rest| rest.split_once(".backup."));
    let found = match (base, image.strip_prefix(names::PIN).and_then(|rest| rest.split_once('.'))) {
        (Some((volume, "base")), _) if is_id(volume) => Some(Named::Legacy { volume: volume.to_owned() }),
        (Some((volume, backup)), _) => own(volume, backup),
        (None, Some((volume, backup))) => own(volume, backup),
        (None, None) => None,
    };
    found.unwrap_or(Named::Other)
}

/// The backup of which a snapshot is, if it has an id as Cinder makes them.
pub(super) fn of_snapshot(snap: &str) -> Option<&str> {
    names::backup_of(snap).filter(|id| is_id(id))
}

/// The backup of which an object is.
pub(super) fn of_object(object: &str) -> Option<&str> {
    let id = object.strip_prefix("backup.")?;
    let id = id.strip_suffix(".meta").or_else(|| id.strip_suffix(".sums"))?;
    is_id(id).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok()
}

/// What the rows say of some backups.
#[derive(Debug, Default)]
pub(super) struct Standing {
    deleted: HashMap<String, bool>,
    busy: HashSet<String>,
    /// Backups of the volumes that were asked for.
    rows: Vec<Backup>,
}

impl Standing {
    /// Reads it, in one transaction.
    ///
    /// # Errors
    /// `Database`.
    pub(super) async fn read(b: &Backups, ids: &[String], volumes: &[String]) -> Result<Standing> {
        if ids.is_empty() && volumes.is_empty() {
            return Ok(Standing::default());
        }
        b.db.read("backups of what is stored", async |conn| {
            // Whoever ends an operation changes the row with it: in this order none is missed.
            let busy = Journal::busy(conn, ids).await?;
            let deleted = db::backup_audit::deleted(conn, ids).await?;
            let rows = db::backup_audit::of_volumes(conn, volumes).await?;
            Ok(Standing { deleted, busy, rows })
        })
        .await
    }

    /// There is a backup of this id, or somebody works on one.
    pub(super) fn lives(&self, id: &str) -> bool {
        self.busy.contains(id) || self.deleted.get(id) == Some(&false)
    }

    /// Whether a backup of the volume has the image as its base.
    pub(super) fn is_base(&self, volume: &str, image: &str) -> bool {
        self.rows.iter().filter(|row| row.volume_id == volume).any(|row| {
            let parent = self.rows.iter().find(|other| Some(&other.id) == row.parent_id.as_ref());
            names::bases(row, parent).iter().any(|base| base == image)
        })
    }

    /// How sure it is that all of these backups are gone, none of which lives.
    pub(super) fn removal<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Removal {
        let are_deleted = ids.into_iter().all(|id| self.deleted.get(id) == Some(&true));
        if are_deleted { Removal::Sure } else { Removal::Purged }
    }
}

/// Why a repair leaves alone what nobody has a row of.
pub(super) fn word(removal: Removal) -> &'static str {
    match removal {
        Removal::Sure => "the row says that the backup is deleted",
        Removal::Purged | Removal::Never => {
            "there is no row of the backup: it was purged, or the backup is of another Cinder"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: &str = "11111111-1111-4111-8111-111111111111";
    const B: &str = "22222222-2222-4222-8222-222222222222";

    #[test]
    fn names_say_whose_something_is_and_others_say_nothing() {
        let own = Named::Own { volume: V.to_owned(), backup: B.to_owned() };
        assert_eq!(named(&names::own_base(V, B)), own);
        assert_eq!(named(&names::pin(V, B)), own);
        assert_eq!(named(&names::legacy_base(V)), Named::Legacy { volume: V.to_owned() });
        for other in [
            format!("volume-{V}"),
            format!("volume-{V}.backup."),
            format!("volume-{V}.backup.b1"),
            format!("volume-x.backup.{B}"),
            format!("scoria-pin-{V}"),
            format!("scoria-pin-{V}.{B}.old"),
            format!("my-volume-{V}.backup.{B}"),
            "volume-x.backup.base".to_owned(),
            "golden".to_owned(),
        ] {
            assert_eq!(named(&other), Named::Other, "{other}");
        }
        assert_eq!(of_snapshot(&names::new_snapshot(B)), Some(B));
        assert_eq!(of_snapshot("backup.b1.snap.1"), None);
        assert_eq!(of_object(&names::metadata_object(B)), Some(B));
        assert_eq!(of_object(&names::sums_object(B)), Some(B));
        for other in ["backup.b1.meta", "rbd_header.1", "backup."] {
            assert_eq!(of_object(other), None, "{other}");
        }
    }

    #[test]
    fn only_a_row_that_is_deleted_makes_sure() {
        let standing = Standing {
            deleted: HashMap::from([("gone".into(), true), ("there".into(), false), ("busy".into(), true)]),
            busy: HashSet::from(["busy".to_owned()]),
            rows: vec![Backup { id: "there".into(), volume_id: V.into(), ..Backup::default() }],
        };
        assert!(standing.lives("there") && standing.lives("busy"));
        assert!(!standing.lives("gone") && !standing.lives("never"));
        assert_eq!(standing.removal(["gone"]), Removal::Sure);
        assert_eq!(standing.removal(["gone", "never"]), Removal::Purged);
        assert!(standing.is_base(V, &names::legacy_base(V)) && !standing.is_base(B, &names::legacy_base(V)));
    }
}
