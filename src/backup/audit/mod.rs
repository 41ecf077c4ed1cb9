//! `backup audit`: the proof that no data of backups is orphaned, and none is lost.
//!
//! Ceph is read first and the rows after it, so that what is being made meanwhile has its row; what is found wrong is
//! then looked at once more, so that what is being deleted meanwhile is gone. Both sides are read in pages: how much there
//! is in memory does not depend on how many backups there are.
//!
//! An image, snapshot or object is an *orphan* when its name says of which backup it is, the row of that backup is deleted or
//! does not exist, and nobody works on it. A backup is *lost* when its row says `available` and its data is not there.
//! Nothing is said of what has other names, but that it is unknown.

mod losses;
mod places;
mod repair;
mod standing;
mod strays;

use serde::{Deserialize, Serialize};

use super::Backups;
use crate::error::{Code, Error, Result};
use crate::journal::Operation;

/// Findings that are told: an answer goes through the database.
const MOST: usize = 5000;
/// Unknown images that are named for each pool.
const NAMED: usize = 50;
/// Why something was not judged: as many reasons are told.
const REASONS: usize = 100;

/// The document of an audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Host of the service that has looked.
    pub host: String,
    /// Where it has looked.
    pub places: Vec<Looked>,
    /// Backups whose data was looked for.
    pub backups: u64,
    /// Backups whose data could not be looked for.
    pub skipped: u64,
    /// Why not, of the first of them.
    pub reasons: Vec<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How much more of it there is than is told.
    pub more: u64,
    /// What a repair has removed.
    pub removed: Vec<Finding>,
}

/// A pool that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Its site: a registered one, `backup_ceph_conf`, or a backend's section and site.
    pub site: String,
    /// The pool.
    pub pool: String,
    /// Backups are kept there.
    pub backups: bool,
    /// Volumes are kept there.
    pub volumes: bool,
    /// Images that were looked at.
    pub images: u64,
    /// Objects of backups that were looked at.
    pub objects: u64,
    /// Images of a pool for backups that are none of backups.
    pub unknown: u64,
    /// The names of the first of them.
    pub unknown_images: Vec<String>,
    /// Why it could not be looked at to the end.
    pub trouble: Option<String>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An image of backups that are gone.
    OrphanImage,
    /// A snapshot, on a base or on a volume's image, of a backup that is gone.
    OrphanSnapshot,
    /// Metadata or checksums of a backup that is gone.
    OrphanObject,
    /// A backup without its image.
    LostImage,
    /// A backup without its snapshot, or with two of them.
    LostSnapshot,
    /// A backup without the metadata of its volume.
    LostMetadata,
}

impl Kind {
    /// As it is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::OrphanImage => "orphan-image",
            Kind::OrphanSnapshot => "orphan-snapshot",
            Kind::OrphanObject => "orphan-object",
            Kind::LostImage => "lost-image",
            Kind::LostSnapshot => "lost-snapshot",
            Kind::LostMetadata => "lost-metadata",
        }
    }
}

/// Whether a repair would remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// Yes: the rows say that the backups are deleted.
    Sure,
    /// Only when it is told that rows were purged: there is no row, so it may be of another Cinder.
    Purged,
    /// No.
    Never,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where.
    pub site: String,
    /// Where.
    pub pool: String,
    /// The image, also of a snapshot.
    pub image: Option<String>,
    /// The snapshot.
    pub snap: Option<String>,
    /// The object.
    pub object: Option<String>,
    /// The backups.
    pub backups: Vec<String>,
    /// Whether a repair would remove it.
    pub removal: Removal,
    /// What it is, and why it is not removed.
    pub text: String,
    /// Which of the places.
    #[serde(skip)]
    place: usize,
}

impl Finding {
    /// What it is about.
    pub fn subject(&self) -> String {
        match (&self.image, &self.snap, &self.object) {
            (Some(image), Some(snap), _) => format!("{image}@{snap}"),
            (Some(image), None, _) => image.clone(),
            (None, _, Some(object)) => object.clone(),
            (None, _, None) => self.backups.join(", "),
        }
    }

    /// A repair that is told `purged` or not would remove it.
    pub fn goes(&self, purged: bool) -> bool {
        match self.removal {
            Removal::Sure => true,
            Removal::Purged => purged,
            Removal::Never => false,
        }
    }
}

impl Audit {
    fn found(&mut self, finding: Finding) {
        if self.findings.len() < MOST {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    fn skip(&mut self, reason: String) {
        self.skipped += 1;
        if self.reasons.len() < REASONS && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// All was looked at, and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.more == 0 && self.skipped == 0 && !self.is_partial()
    }

    /// Some place was not looked at to the end.
    pub fn is_partial(&self) -> bool {
        self.places.iter().any(|place| place.trouble.is_some())
    }
}

/// An audit of large pools takes long, and nothing of it is lost when it is begun anew: it does not keep the service from
/// stopping.
///
/// # Errors
/// `Cancelled` when that ends.
fn go_on(b: &Backups) -> Result<()> {
    if b.stopping.is_cancelled() {
        return Err(Error::new(Code::Cancelled, "The service ends: the order goes on with its next start"));
    }
    Ok(())
}

/// Compares, and removes what may be removed when that is ordered. Run again, it goes on with what is left. A site that does
/// not answer is told, and keeps no other one from being looked at.
///
/// # Errors
/// `Database`, `Cancelled`.
pub(super) async fn run(b: &Backups, operation: &Operation, removes: bool, purged: bool) -> Result<Audit> {
    let mut audit = Audit { host: b.host.clone(), ..Audit::default() };
    let places = places::find(b).await?;
    for at in 0..places.spots.len() {
        strays::look(b, &places, at, &mut audit).await?;
    }
    losses::look(b, &places, &mut audit).await?;
    if removes {
        repair::run(b, operation, &places, purged, &mut audit).await?;
    }
    tracing::info!(
        operation.id = operation.id(),
        backups = audit.backups,
        findings = audit.findings.len(),
        removed = audit.removed.len(),
        partial = audit.is_partial(),
        "backups were audited"
    );
    Ok(audit)
}
