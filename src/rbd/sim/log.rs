//! Every call that the simulator saw, for assertions and for reports of failed tests.

use std::fmt;
use std::time::Duration;

use crate::rbd::error::RbdErrorKind;
use crate::rbd::protocol::Request;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ceph did it and said so.
    Done,
    /// The caller saw this kind of error.
    Failed(RbdErrorKind),
    /// The caller went away before it ended (its future was dropped).
    Abandoned,
}

/// One call.
#[derive(Debug, Clone)]
pub struct CallRecord {
    /// Virtual time of its arrival.
    pub at: Duration,
    /// The simulator's name of the site.
    pub site: String,
    /// Name of the command.
    pub request: &'static str,
    /// The image that it is about.
    pub image: Option<String>,
    /// With all its arguments.
    pub arguments: Request,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether Ceph carried it out, whatever the caller saw.
    pub effect: bool,
}

impl fmt::Display for CallRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  {:<8} {}", self.at.as_secs_f64(), self.site, shorten(&self.arguments))?;
        match self.outcome {
            Outcome::Done => write!(f, "  ok"),
            Outcome::Failed(kind) => {
                write!(f, "  {kind:?}{}", if self.effect { " (but done)" } else { "" })
            }
            Outcome::Abandoned => write!(f, "  abandoned{}", if self.effect { " (but done)" } else { "" }),
        }
    }
}

/// `Debug` of a request without the repetition of its name, and without bulk data.
fn shorten(request: &Request) -> String {
    let text = match request {
        Request::ImageWrite(w) => {
            format!("ImageWrite {}/{} {}~{}", w.pool, w.image, w.offset, w.data.len())
        }
        other => {
            let full = format!("{other:?}");
            match full.find('(') {
                Some(at) => full[at + 1..full.len() - 1].to_owned(),
                None => full,
            }
        }
    };
    if text.chars().count() > 160 { text.chars().take(157).chain("...".chars()).collect() } else { text }
}

/// One call a line; calls that repeat the one before are counted, not shown.
pub(super) fn text(log: &[CallRecord]) -> String {
    let same = |a: &CallRecord, b: &CallRecord| {
        a.site == b.site && a.outcome == b.outcome && a.effect == b.effect && a.arguments == b.arguments
    };
    log.chunk_by(same)
        .map(|calls| match calls {
            [one] => format!("{one}\n"),
            [first, .., last] => {
                format!("{first}  ({} times until {:.3} s)\n", calls.len(), last.at.as_secs_f64())
            }
            [] => String::new(),
        })
        .collect()
}
