//! What may be ordered of a link between two sites, as the journal has it.

use serde::{Deserialize, Serialize};

use super::super::check_name;
use super::super::orders::Files;
use crate::error::{Code, Error, Result};
use crate::rbd::link::{ErasureProfile, Way};
use crate::rbd::types::PoolMirrorMode;

/// Which images of a pool are mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Those that are enabled one by one, which is how Cinder does it.
    Image,
    /// Every journaled one.
    Pool,
}

impl Mode {
    /// As the operator and the row say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Image => "image",
            Mode::Pool => "pool",
        }
    }

    /// Reads it back.
    pub fn parse(text: &str) -> Option<Mode> {
        [Mode::Image, Mode::Pool].into_iter().find(|mode| mode.as_str() == text)
    }

    /// As Ceph has it.
    pub fn of_pool(self) -> PoolMirrorMode {
        match self {
            Mode::Image => PoolMirrorMode::Image,
            Mode::Pool => PoolMirrorMode::Pool,
        }
    }
}

/// An erasure-coded pool for the data of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPool {
    /// Its name; `None`: that of the pool, and `-data`.
    pub name: Option<String>,
    /// Its profile.
    pub profile: ErasureProfile,
    /// Chunks that must be there for I/O.
    pub min_size: Option<u32>,
    /// Placement groups.
    pub pg_num: Option<u32>,
}

/// Pools that are not there are made like this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Make {
    /// Copies.
    pub size: Option<u32>,
    /// Copies that must be there for I/O.
    pub min_size: Option<u32>,
    /// Placement groups.
    pub pg_num: Option<u32>,
    /// Where images put their data.
    pub data: Option<DataPool>,
}

/// Connect pools of two sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// The site that sends.
    pub a: String,
    /// The site that receives.
    pub b: String,
    /// Pools, of the same names on both.
    pub pools: Vec<String>,
    /// What is not there is made; `None`: it has to be there.
    pub make: Option<Make>,
    /// Which images.
    pub mode: Mode,
    /// Only one way, or both.
    pub way: Way,
    /// A user for this link, with capabilities on its pools, and not the one of bootstrap tokens.
    pub manual: bool,
    /// A data pool may be of another type on the other side.
    pub accept_pool_type: bool,
    /// Prove it by an image.
    pub canary: bool,
    /// An administrator's files for the first site; `None`: this host's own.
    pub admin_a: Option<Files>,
    /// The same for the second.
    pub admin_b: Option<Files>,
    /// Only look, and say.
    pub dry_run: bool,
}

/// Make two sites strangers again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disconnect {
    /// The site that stays.
    pub a: String,
    /// The site that goes.
    pub b: String,
    /// Pools; none: all that connect them.
    pub pools: Vec<String>,
    /// Also while images are mirrored: their mirroring is ended.
    pub force: bool,
    /// Remove the copies on the site that goes: as many, and as many bytes, as the operator was told. `None`: they stay.
    pub purge: Option<Purge>,
    /// Backups that are stored on the site that goes stay there, and clones of its copies are made independent of them.
    #[serde(default)]
    pub flatten_backups: bool,
    /// Backups that are stored on the site that goes are deleted: as many, and as many GiB, as the operator was told.
    #[serde(default)]
    pub delete_backups: Option<BackupsGo>,
    /// An administrator's files for the first site.
    pub admin_a: Option<Files>,
    /// The same for the second.
    pub admin_b: Option<Files>,
    /// Only look, and say.
    pub dry_run: bool,
}

/// What the operator has agreed to lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    /// Copies, at most.
    pub copies: u64,
    /// Their size, in bytes, at most.
    pub bytes: u64,
}

/// Which backups the operator has agreed to lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupsGo {
    /// Backups, at most.
    pub backups: u64,
    /// The sizes of their volumes, in GiB, at most.
    pub gib: u64,
}

impl Connect {
    /// The data pool of a pool, if its images are to have one.
    pub fn data_pool(&self, pool: &str) -> Option<(String, &DataPool)> {
        let data = self.make.as_ref()?.data.as_ref()?;
        Some((data.name.clone().unwrap_or_else(|| format!("{pool}-data")), data))
    }

    /// Refuses what makes no sense, before anything is asked.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check(&self) -> Result<()> {
        check_pair(&self.a, &self.b)?;
        check_pools(&self.pools)?;
        let wrong = |text: &str| Err(Error::new(Code::InvalidInput, text));
        if self.pools.is_empty() {
            return wrong("Name the pools that are to be connected");
        }
        if let Some(name) = self.make.as_ref().and_then(|m| m.data.as_ref()).and_then(|d| d.name.as_ref()) {
            check_pools(std::slice::from_ref(name))?;
            if self.pools.len() > 1 {
                return wrong(
                    "One data pool is for one pool; leave its name out, and each pool gets one of its own",
                );
            }
            if self.pools.contains(name) {
                return wrong("The data pool is another pool than that of the images");
            }
        }
        Ok(())
    }
}

impl Disconnect {
    /// Refuses what makes no sense, before anything is asked.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check(&self) -> Result<()> {
        check_pair(&self.a, &self.b)?;
        check_pools(&self.pools)?;
        if self.purge.is_some() && !self.force {
            return Err(Error::new(
                Code::InvalidInput,
                "Copies are removed only where mirroring is ended, too: purge_replicas needs force",
            ));
        }
        Ok(())
    }
}

fn check_pair(a: &str, b: &str) -> Result<()> {
    check_name(a)?;
    check_name(b)?;
    match a == b {
        false => Ok(()),
        true => Err(Error::new(Code::InvalidInput, "A link is between two sites, and these are one")),
    }
}

/// Names of pools, which become parts of capabilities: nothing that means something there.
fn check_pools(pools: &[String]) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let bad = |name: &&String| name.is_empty() || name.len() > 200 || !name.chars().all(good);
    if let Some(name) = pools.iter().find(bad) {
        return Err(Error::new(
            Code::InvalidInput,
            format!("'{name}' is no name of a pool: letters, digits, '.', '_' and '-'"),
        ));
    }
    match pools.iter().enumerate().find(|(n, name)| pools.iter().take(*n).any(|other| other == *name)) {
        None => Ok(()),
        Some((_, name)) => Err(Error::new(Code::InvalidInput, format!("Pool {name} is named twice"))),
    }
}
