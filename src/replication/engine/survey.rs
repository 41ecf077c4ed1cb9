//! What both sites say of many images, in one question each.
//!
//! Opening an image is the dear part of every question, and each volume of a failover needs three answers before it may
//! be touched: whether it is primary here, whether it is a copy there, whether that copy keeps up. Asked one by one they
//! would cost more than the move itself.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::{Engine, Event, Job, peer_in};
use crate::error::Result;
use crate::rbd::Site;
use crate::rbd::protocol::{Command, MirrorInfoMany, MirrorStatusMany};
use crate::rbd::types::MirrorReport;
use crate::replication::judge::Judge;
use crate::replication::plan::{Peer, Side};
use crate::replication::verdict::Verdict;

/// How long such a request may hold up its images, before each of them is asked for by itself.
const SURVEY: Duration = Duration::from_secs(8);

/// What a survey has found of one image.
#[derive(Clone, Copy)]
pub(super) struct Surveyed {
    pub(super) source: Side,
    pub(super) target: Side,
    pub(super) peer: Peer,
    /// When it was asked.
    pub(super) at: Instant,
}

impl Engine {
    /// Reads the mirroring state of some images on both sites, and whether their copies keep up.
    pub(super) fn survey(&self, jobs: Vec<Job>) -> BoxFuture<'_, Result<Event<'_>>> {
        Box::pin(async move {
            let at = Instant::now();
            let (pool, images): (_, Vec<String>) =
                (self.pool.clone(), jobs.iter().map(|j| j.image.clone()).collect());
            let info = MirrorInfoMany { pool: pool.clone(), images: images.clone() };
            let source = self.ask(&self.source, &self.source_judge, info);
            let target = self.survey_target(pool, images);
            let (source, target) = tokio::join!(source, target);
            let seen = |n: usize| {
                let source = source.as_ref().and_then(|found| found.get(n));
                let (target, peer) = target.get(n).copied().unwrap_or((Side::Unknown, Peer::Unknown));
                Surveyed {
                    source: source.map_or(Side::Unknown, |i| Side::from(i.as_ref())),
                    target,
                    peer,
                    at,
                }
            };
            let seen: Vec<Surveyed> = (0..jobs.len()).map(seen).collect();
            Ok(Event::Surveyed(jobs.into_iter().zip(seen).collect()))
        })
    }

    async fn survey_target(&self, pool: String, images: Vec<String>) -> Vec<(Side, Peer)> {
        let (site, judge) = (&self.target, &self.target_judge);
        // Whether a copy keeps up with a dead site is no question.
        let found = if self.source_judge.verdict().await == Verdict::Dead {
            let found = self.ask(site, judge, MirrorInfoMany { pool, images }).await;
            found.map(|all| all.iter().map(|info| (Side::from(info.as_ref()), Peer::Unknown)).collect())
        } else {
            let found = self.ask(site, judge, MirrorStatusMany { pool, images }).await;
            let seen = |report: &Option<MirrorReport>| {
                let info = report.as_ref().map(|r| &r.info);
                (Side::from(info), report.as_ref().map_or(Peer::Unknown, peer_in))
            };
            found.map(|all| all.iter().map(seen).collect())
        };
        found.unwrap_or_default()
    }

    /// `None`: each image has to be asked for by itself.
    async fn ask<C: Command>(&self, site: &Site, judge: &Judge, question: C) -> Option<C::Reply> {
        if judge.verdict().await == Verdict::Dead {
            return None;
        }
        // One stuck image spoils its chunk.
        match timeout(SURVEY, site.call(question)).await {
            Ok(Ok(found)) => Some(found),
            Err(_) => None,
            Ok(Err(error)) => {
                debug!(site = site.name(), %error, "could not survey images at once");
                judge.doubt(&error).await;
                None
            }
        }
    }
}
