//! From what is found in a log or in a pool to the volume, its project and its servers; and images of which only half
//! is there.

pub mod clue;
mod half;
mod which;

use serde::{Deserialize, Serialize};

pub(super) use half::run as half;
pub(super) use which::run as which;

/// Find the image, and the volume, of an object, a block name prefix or a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhichOrder {
    /// What was found.
    pub what: String,
    /// The site; `None`: all that this host reaches.
    pub site: Option<String>,
    /// The pool of the image; `None`: all for RBD.
    pub pool: Option<String>,
}

/// Find images of a pool of which only half is there, and finish their removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HalfOrder {
    /// The site.
    pub name: String,
    /// The pool.
    pub pool: String,
    /// Remove what is left of them.
    pub finish: bool,
}
