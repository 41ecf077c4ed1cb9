//! What an operator says of the site that volumes leave, and so how far their move may go.
//!
//! The verdict on a site is ours; that it will never come back, or that a stuck image is worth a split, is
//! something that only a person knows. An intent widens or narrows what the verdict alone would allow; it
//! never lets a volume be forced that could still be moved in good order.

use serde::{Deserialize, Serialize};

use super::verdict::Verdict;
use crate::error::{Code, Error, Result};

/// How volumes are to leave their site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// The verdict decides, for each volume where needed.
    #[default]
    Automatic,
    /// In good order or not at all: nothing is ever forced.
    Planned,
    /// The site is dead, says the operator: forced where it is, or where it does not answer.
    Unplanned,
    /// Also where the site lives, when it did not demote the image in time.
    Force,
}

impl Intent {
    /// All of them.
    pub const ALL: [Intent; 4] = [Intent::Automatic, Intent::Planned, Intent::Unplanned, Intent::Force];

    /// As in orders, logs and RPC.
    pub fn as_str(self) -> &'static str {
        match self {
            Intent::Automatic => "automatic",
            Intent::Planned => "planned",
            Intent::Unplanned => "unplanned",
            Intent::Force => "force",
        }
    }

    /// The opposite of [`Intent::as_str`].
    ///
    /// # Errors
    /// `InvalidInput` for any other word.
    pub fn parse(text: &str) -> Result<Intent> {
        Intent::ALL.into_iter().find(|intent| intent.as_str() == text).ok_or_else(|| {
            let known = Intent::ALL.map(Intent::as_str).join(", ");
            Error::new(Code::InvalidInput, format!("There is no intent {text}; the intents are {known}"))
        })
    }

    /// Whether a move from `site` may begin at all. To be asked before anything is touched.
    ///
    /// # Errors
    /// `InvalidInput` when the verdict contradicts what the operator said.
    pub fn admits(self, verdict: Verdict, site: &str) -> Result<()> {
        let contradiction = match (self, verdict) {
            (Intent::Automatic | Intent::Force, _)
            | (Intent::Planned, Verdict::Alive)
            | (Intent::Unplanned, Verdict::Dead | Verdict::Degraded) => return Ok(()),
            (Intent::Planned, Verdict::Dead | Verdict::Degraded) => "a planned failover leaves a living site",
            (Intent::Unplanned, Verdict::Alive) => "an unplanned failover leaves a dead one",
        };
        Err(Error::new(
            Code::InvalidInput,
            format!("Site {site} is {}, and {contradiction}: nothing was touched", verdict.as_str()),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_intent_is_one_word_everywhere() {
        for intent in Intent::ALL {
            assert_eq!(Intent::parse(intent.as_str()).unwrap(), intent);
            assert_eq!(serde_json::to_value(intent).unwrap(), intent.as_str());
        }
        assert_eq!(Intent::parse("forced").unwrap_err().code(), Code::InvalidInput);
    }

    #[test]
    fn what_the_site_itself_contradicts_does_not_begin() {
        let admits = |intent: Intent| {
            [Verdict::Alive, Verdict::Degraded, Verdict::Dead].map(|v| intent.admits(v, "a").is_ok())
        };
        assert_eq!(admits(Intent::Automatic), [true; 3]);
        assert_eq!(admits(Intent::Force), [true; 3]);
        assert_eq!(admits(Intent::Planned), [true, false, false]);
        assert_eq!(admits(Intent::Unplanned), [false, true, true]);
    }
}
