//! A link is proven by an image: made on one side, mirrored, compared on the other, removed.
//!
//! Peers that are listed prove nothing: a wrong address of a monitor, a key without capabilities or a daemon that does
//! not run leave a link that looks well until the day it is needed. Where no rbd-mirror runs on the receiving side that
//! is said at once: nobody would ever fetch the image.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::orders::{Connect, Mode};
use super::pair::End;
use crate::error::{Code, Error, Result};
use crate::rbd::link::Way;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorMode, MirrorState, features};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::replication::engine::Pause;
use crate::site::Patience;

/// Bytes of the image.
const SIZE: u64 = 4 << 20;
/// Bytes that are compared.
const SAMPLE: u64 = 64 << 10;
/// log2 of the object size: more objects than one.
const ORDER: u8 = 20;

/// What came of it for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) pool: String,
    /// From, to, and why it is not proven, if it is not.
    ways: Vec<(String, String, Option<String>)>,
}

impl Proof {
    pub(super) fn not_asked(pool: &str) -> Proof {
        Proof { pool: pool.to_owned(), ways: vec![] }
    }

    /// In a sentence.
    pub(super) fn text(&self) -> String {
        if self.ways.is_empty() {
            return "not verified: no canary was asked for".to_owned();
        }
        let way = |(from, to, problem): &(String, String, Option<String>)| match problem {
            None => format!("verified from {from} to {to}"),
            Some(problem) => format!("not verified from {from} to {to}: {problem}"),
        };
        self.ways.iter().map(way).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn view(&self) -> Value {
        let verified = !self.ways.is_empty() && self.ways.iter().all(|(_, _, problem)| problem.is_none());
        json!({"pool": self.pool, "verified": verified, "text": self.text()})
    }
}

/// Proves a pool in each direction that it is connected in.
pub(super) async fn fly(
    patience: Patience,
    operation: i64,
    order: &Connect,
    pool: &str,
    a: &End,
    b: &End,
) -> Result<Proof> {
    let mut ways = vec![];
    let mut flights = vec![(a, b)];
    if order.way == Way::RxTx {
        flights.push((b, a));
    }
    for (from, to) in flights {
        let name = format!("scoria-canary-{operation}-{}", from.row.name);
        let problem = match Box::pin(daemon_problem(patience.noticed, pool, to)).await? {
            Some(problem) => Some(problem),
            None => Box::pin(flight(patience.arrived, pool, &name, order.mode, from, to)).await?,
        };
        Box::pin(remove(patience.gone, pool, &name, from, to)).await?;
        ways.push((from.row.name.clone(), to.row.name.clone(), problem));
    }
    Ok(Proof { pool: pool.to_owned(), ways })
}

/// Why nobody would fetch anything, if that is so.
async fn daemon_problem(noticed: Duration, pool: &str, to: &End) -> Result<Option<String>> {
    let site = &to.row.name;
    let none = || {
        Some(format!(
            "no rbd-mirror daemon runs on site {site}, which is to receive; start one, and connect again to verify"
        ))
    };
    let (end, mut pause) = (Instant::now() + noticed, Pause::default());
    loop {
        let serving = to.site.insist(MirrorDaemons { pool: pool.to_owned() }).await;
        if !serving.map_err(|e| to.explain(e))?.is_empty() {
            return Ok(None);
        }
        match to.site.insist(MirrorServices {}).await {
            Ok(Some(running)) if running.is_empty() => return Ok(none()),
            // `None`: this client may not ask, so nobody says whether one runs.
            Ok(_) => {}
            Err(e) => return Err(to.explain(e)),
        }
        if Instant::now() >= end {
            return Ok(Some(format!(
                "no rbd-mirror daemon of site {site} has taken pool {pool} up in {} s",
                noticed.as_secs()
            )));
        }
        pause.rest().await;
    }
}

/// What is written: nothing that another canary, or an empty image, has.
fn sample(name: &str) -> Vec<u8> {
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(SAMPLE as usize / 8).flatten().collect()
}

/// Makes the image, waits for its copy, compares. What is wrong, if anything is.
async fn flight(
    arrived: Duration,
    pool: &str,
    name: &str,
    mode: Mode,
    from: &End,
    to: &End,
) -> Result<Option<String>> {
    let (pool, image) = (pool.to_owned(), name.to_owned());
    let bits = features::LAYERING | features::EXCLUSIVE_LOCK | features::JOURNALING;
    let create =
        ImageCreate { pool: pool.clone(), image: image.clone(), size: SIZE, order: ORDER, features: bits };
    match from.site.insist(create).await {
        // Of an attempt that was interrupted.
        Err(e) if e.kind == RbdErrorKind::Exists => {}
        other => other.map_err(|e| from.explain(e))?,
    }
    let data = sample(name);
    let write =
        ImageWrite { pool: pool.clone(), image: image.clone(), offset: SIZE - SAMPLE, data: data.clone() };
    from.site.insist(write).await.map_err(|e| from.explain(e))?;
    if mode == Mode::Image {
        let enable = MirrorEnable { pool: pool.clone(), image: image.clone(), mode: MirrorMode::Journal };
        from.site.insist(enable).await.map_err(|e| from.explain(e))?;
    }
    let (end, mut pause) = (Instant::now() + arrived, Pause::default());
    let mut last = String::from("the image has not appeared there");
    while Instant::now() < end {
        let read = ImageRead {
            pool: pool.clone(),
            image: image.clone(),
            snap: None,
            offset: SIZE - SAMPLE,
            length: SAMPLE,
        };
        match to.site.insist(read).await {
            Ok(copy) if copy == data => return Ok(None),
            Ok(_) => "the copy differs from the image".clone_into(&mut last),
            Err(e) if e.kind == RbdErrorKind::NotFound => {}
            Err(e) => last = e.message,
        }
        pause.rest().await;
    }
    let status = to.site.insist(MirrorStatus { pool, image }).await.ok().and_then(|report| report.local);
    let said =
        status.map(|s| format!(" (rbd-mirror says: {} {})", s.state, s.description)).unwrap_or_default();
    Ok(Some(format!("{last} after {} s{said}", arrived.as_secs())))
}

/// Removes the image and, if mirroring does not, its copy.
async fn remove(gone: Duration, pool: &str, name: &str, from: &End, to: &End) -> Result<()> {
    let (pool, image) = (pool.to_owned(), name.to_owned());
    let (end, mut pause) = (Instant::now() + gone, Pause::default());
    let left = |on: &End, e: RbdError| {
        Error::new(
            Code::VolumeBackend,
            format!(
                "The canary {pool}/{image} is left on site {} ({}); remove it there (rbd rm {pool}/{image}), and connect \
                 again",
                on.row.name, e.message
            ),
        )
        .caused_by(e)
    };
    loop {
        match from.site.insist(ImageRemove { pool: pool.clone(), image: image.clone() }).await {
            Ok(()) => break,
            Err(e) if e.kind == RbdErrorKind::NotFound => break,
            // The first copy is being made, or the daemon has it open.
            Err(e)
                if matches!(e.kind, RbdErrorKind::Busy | RbdErrorKind::HasSnapshots)
                    && Instant::now() < end =>
            {
                pause.rest().await;
            }
            Err(e) => return Err(left(from, e)),
        }
    }
    while Instant::now() < end {
        match to.site.insist(MirrorInfo { pool: pool.clone(), image: image.clone() }).await {
            Err(e) if e.kind == RbdErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(to.explain(e)),
            Ok(info) if info.state == MirrorState::Disabled => break,
            Ok(_) => pause.rest().await,
        }
    }
    let disable = MirrorDisable { pool: pool.clone(), image: image.clone(), force: true };
    match to.site.insist(disable).await {
        Err(e) if e.kind == RbdErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| left(to, e))?,
    }
    match to.site.insist(ImageRemove { pool: pool.clone(), image: image.clone() }).await {
        Err(e) if e.kind == RbdErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| left(to, e)),
    }
}
