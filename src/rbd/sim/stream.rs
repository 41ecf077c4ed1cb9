//! Data that flows into simulated images and out of them, part by part.
//!
//! Between two parts anything may happen: the service may be killed, the site may go away. So each part is an
//! access of its own to the world, and what was written before stays.

use std::collections::BTreeSet;

use super::Sim;
use super::images::{Answer, refuse};
use super::state::Refusal;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::protocol::{ImageExport, ImageImport, Request};
use crate::rbd::stream::{Feed, Flow, PART, Part};

impl Sim {
    /// Lets data flow until its end, or for one part when it is to be cut short; answers its bytes.
    pub(super) async fn flow(&self, site: &str, request: &Request, flow: Flow, half: bool) -> Answer<u64> {
        match (request, flow) {
            (Request::ImageImport(r), Flow::In(mut feed)) => {
                self.lock().write(site, &r.pool, &r.image, 0, &[])?;
                let (mut written, mut reached) = (0, 0);
                loop {
                    match feed.recv().await {
                        Some(Feed::Part(part)) => {
                            written += self.clear(site, r, reached, part.offset)?;
                            reached = reached.max(part.offset + part.data.len() as u64);
                            written += self.take(site, r, &part)?;
                        }
                        Some(Feed::End) => return Ok(written + self.clear(site, r, reached, u64::MAX)?),
                        None => return Err(given_up()),
                    }
                    if half {
                        return Ok(written);
                    }
                }
            }
            (Request::ImageExport(r), Flow::Out(parts)) => {
                let mut sent = 0;
                for start in self.starts(site, r)? {
                    let part = self.give(site, r, start)?;
                    sent += part.data.len() as u64;
                    if parts.send(part).await.is_err() {
                        return Err(given_up());
                    }
                    if half {
                        break;
                    }
                }
                Ok(sent)
            }
            _ => refuse(Kind::Invalid, "no data flows that way"),
        }
    }

    /// What is not sent becomes zero.
    fn clear(&self, site: &str, r: &ImageImport, from: u64, to: u64) -> Answer<u64> {
        if r.blank || from >= to {
            return Ok(0);
        }
        let mut world = self.lock();
        let mut written = 0;
        for (at, old) in world.effective(site, &r.pool, &r.image, None)?.pieces(from, to) {
            world.write(site, &r.pool, &r.image, at, &vec![0; old.len()])?;
            written += old.len() as u64;
        }
        Ok(written)
    }

    fn take(&self, site: &str, r: &ImageImport, part: &Part) -> Answer<u64> {
        let mut world = self.lock();
        world.advance();
        if world.crash.down {
            return refuse(Kind::WorkerLost, "the worker died under the call");
        }
        if r.blank && part.data.iter().all(|b| *b == 0) {
            // What lies behind the end is refused nevertheless.
            world.write(site, &r.pool, &r.image, part.offset + part.data.len() as u64, &[])?;
            return Ok(0);
        }
        world.write(site, &r.pool, &r.image, part.offset, &part.data)?;
        Ok(part.data.len() as u64)
    }

    /// Where the parts begin that are not zero.
    fn starts(&self, site: &str, r: &ImageExport) -> Answer<BTreeSet<u64>> {
        let world = self.lock();
        let data = world.effective(site, &r.pool, &r.image, r.snap.as_deref())?;
        let end = r.offset.saturating_add(r.length);
        let part = PART as u64;
        let pieces = data.pieces(r.offset, end);
        Ok(pieces.iter().map(|(at, _)| (at / part * part).max(r.offset)).collect())
    }

    fn give(&self, site: &str, r: &ImageExport, start: u64) -> Answer<Part> {
        let mut world = self.lock();
        world.advance();
        if world.crash.down {
            return refuse(Kind::WorkerLost, "the worker died under the call");
        }
        let part = PART as u64;
        let end = ((start / part + 1) * part).min(r.offset.saturating_add(r.length));
        let data =
            world.read(site, (&r.pool, &r.image, r.snap.as_deref()), start, end.saturating_sub(start))?;
        Ok(Part { offset: start, data: data.into() })
    }
}

fn given_up() -> Refusal {
    Refusal::new(Kind::Other, "the session was given up")
}
