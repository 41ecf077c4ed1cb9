//! Moving an image that Cinder does not know to another pool of its cluster, by librbd's live migration.
//!
//! It has three parts, each of which may be asked for again: the image is prepared (from then on it goes by its new
//! place), its data is moved, and the old place is given up. Until the last one the image can be brought back. A volume
//! is refused: its row would lead to the old pool.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::info;

use super::{Sites, item, owner};
use crate::error::{Code, Error, Result};
use crate::journal::Operation;
use crate::rbd::protocol::*;
use crate::rbd::types::{MirrorState, MoveState, Moving};
use crate::rbd::{RbdError, RbdErrorKind, Site};
use crate::volume::crash;
use crate::volume::image::Place;

/// Between two looks at how far it is.
const PERIOD: Duration = Duration::from_secs(1);

/// Move an image that is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveOrder {
    /// The site.
    pub name: String,
    /// The pool where it is.
    pub pool: String,
    /// The image; it keeps its name.
    pub image: String,
    /// The pool where it is to be.
    pub to: String,
    /// Bring back one that is being moved.
    pub undo: bool,
    /// Only look, and say.
    pub dry_run: bool,
}

/// Where the image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// Where it was, and nobody moves it.
    Here,
    /// On its way.
    Moving(Moving),
    /// Not there any more.
    Gone,
}

/// Carries an order out.
pub(super) async fn run(sites: &Sites, operation: &Operation, order: &MoveOrder) -> Result<Value> {
    let MoveOrder { name, pool, image, to, .. } = order;
    if pool == to {
        return Err(Error::new(Code::InvalidInput, format!("{pool}/{image} is in pool {to} already")));
    }
    let owners = owner::volumes(sites, std::slice::from_ref(image)).await?;
    if let Some(volume) = owners.get(image) {
        let text = format!(
            "{pool}/{image} is volume {volume} of Cinder: move it there, to a backend of that pool (cinder migrate \
             {volume} HOST@BACKEND#POOL)"
        );
        return Err(Error::new(Code::Invalid, text));
    }
    let reached = sites.reach(name).await?;
    let done = Box::pin(carry_out(&reached.site, operation, order)).await;
    sites.part(&reached.site);
    done
}

async fn carry_out(site: &Site, operation: &Operation, order: &MoveOrder) -> Result<Value> {
    let MoveOrder { name, pool, image, to, .. } = order;
    let stand = stand(site, order).await?;
    let answer = |what: &str| json!({"moved": format!("{pool}/{image}"), "site": name, "to": to, "what": what, "dry_run": order.dry_run});
    if order.undo {
        return undo(site, order, stand, answer).await;
    }
    match stand {
        // By an attempt that was interrupted at its last step.
        Stand::Gone if operation.reached::<Value>(FINISHING).await?.is_some() => return Ok(answer("moved")),
        Stand::Gone => {
            return Err(Error::new(Code::InvalidInput, format!("There is no {pool}/{image} on site {name}")));
        }
        Stand::Moving(Moving { state: MoveState::Aborting, .. }) => {
            let text = format!(
                "{pool}/{image} is being brought back; have that finished first (scoria-manage rbd move {name} \
                 {pool}/{image} {to} --undo)"
            );
            return Err(Error::new(Code::Conflict, text));
        }
        Stand::Moving(_) => {
            require_ours(site, order).await?;
            if order.dry_run {
                return Ok(answer("on its way"));
            }
        }
        Stand::Here => {
            check(site, order).await?;
            if order.dry_run {
                return Ok(answer("to be moved"));
            }
            let ask = ImageMoveBegin {
                pool: pool.clone(),
                image: image.clone(),
                dest_pool: to.clone(),
                dest: image.clone(),
            };
            match site.call(ask).await {
                // By an attempt whose answer was lost.
                Err(e) if matches!(e.kind, RbdErrorKind::NotFound | RbdErrorKind::WorkerLost) => {
                    if !matches!(self::stand(site, order).await?, Stand::Moving(_)) {
                        return Err(explain(order, e));
                    }
                }
                other => other.map_err(|e| explain(order, e))?,
            }
            crash::point("move:begun");
            require_ours(site, order).await?;
        }
    }
    data(site, operation, order).await?;
    crash::point("move:data");
    operation.step(FINISHING, &json!({})).await?;
    let ask = ImageMoveFinish { pool: to.clone(), image: image.clone() };
    site.insist(ask).await.map_err(|e| explain(order, e))?;
    crash::point("move:finished");
    operation.item_step(&item(image), "image", &json!({"step": "moved"})).await?;
    info!(
        operation.id = operation.id(),
        op = "move",
        site = name,
        image,
        from = pool,
        to,
        "an image was moved"
    );
    Ok(answer("moved"))
}

/// Fails when the image is on its way to another place than the order's: that is somebody else's move.
async fn require_ours(site: &Site, order: &MoveOrder) -> Result<()> {
    let MoveOrder { pool, image, to, .. } = order;
    match site.insist(ImageMoveState { pool: to.clone(), image: image.clone() }).await {
        Ok(Some(_)) => Ok(()),
        Err(e) if e.kind != RbdErrorKind::NotFound => Err(explain(order, e)),
        Ok(None) | Err(_) => Err(Error::new(
            Code::Conflict,
            format!(
                "{pool}/{image} is being moved, and not to {to}/{image}: somebody else has begun that (rbd status \
                 {pool}/{image} has the place); let him finish it, or bring it back by rbd migration abort {pool}/{image}"
            ),
        )),
    }
}

/// The step before the old place is given up.
const FINISHING: &str = "finishing";

async fn stand(site: &Site, order: &MoveOrder) -> Result<Stand> {
    match site.insist(ImageMoveState { pool: order.pool.clone(), image: order.image.clone() }).await {
        Ok(None) => Ok(Stand::Here),
        Ok(Some(moving)) => Ok(Stand::Moving(moving)),
        Err(e) if e.kind == RbdErrorKind::NotFound => Ok(Stand::Gone),
        Err(e) => Err(explain(order, e)),
    }
}

/// Fails when the image cannot be moved, before anything is done.
async fn check(site: &Site, order: &MoveOrder) -> Result<()> {
    let MoveOrder { pool, image, to, .. } = order;
    let wrong = |text: String| Err(Error::new(Code::Invalid, text));
    let there = ImageStat { pool: to.clone(), image: image.clone() };
    match site.insist(there).await {
        Err(e) if e.kind == RbdErrorKind::NotFound => {}
        Ok(_) => {
            return wrong(format!("Pool {to} has an image {image} already; rename one of the two first"));
        }
        Err(e) => return Err(explain(order, e)),
    }
    let (of_pool, of_image) = (pool.clone(), image.clone());
    let info =
        site.insist(MirrorInfo { pool: of_pool, image: of_image }).await.map_err(|e| explain(order, e))?;
    if info.state != MirrorState::Disabled {
        return wrong(format!(
            "{pool}/{image} is mirrored, and its copy would not follow it: end that first (rbd mirror image disable \
             {pool}/{image}), and replicate it in its new pool (scoria-manage replicate)"
        ));
    }
    let place = Place { site: site.clone(), pool: pool.clone() };
    place.refuse_watched(image).await.map_err(|e| explain(order, e))
}

/// Moves the data, and writes down how far it is meanwhile.
async fn data(site: &Site, operation: &Operation, order: &MoveOrder) -> Result<()> {
    let (to, image) = (order.to.clone(), order.image.clone());
    let ask = ImageMoveState { pool: to.clone(), image: image.clone() };
    let mut told = None;
    let moved = site.insist(ImageMoveData { pool: to, image });
    tokio::pin!(moved);
    loop {
        tokio::select! {
            biased;
            done = &mut moved => return done.map_err(|e| explain(order, e)),
            () = sleep(PERIOD) => {
                // Nothing depends on it.
                let percent = site.call(ask.clone()).await.ok().flatten().and_then(|moving| moving.percent);
                let percent = percent.unwrap_or(0);
                if told != Some(percent) {
                    let step = json!({"step": "moving", "percent": percent});
                    operation.item_step(&item(&order.image), "image", &step).await?;
                    told = Some(percent);
                }
            }
        }
    }
}

async fn undo(site: &Site, order: &MoveOrder, stand: Stand, answer: impl Fn(&str) -> Value) -> Result<Value> {
    let MoveOrder { name, pool, image, to, .. } = order;
    // Where the move is only being begun, or taken back, the new place need not be there.
    let has_place = |moving: Moving| !matches!(moving.state, MoveState::Preparing | MoveState::Aborting);
    if matches!(stand, Stand::Moving(moving) if has_place(moving)) {
        require_ours(site, order).await?;
    }
    match stand {
        Stand::Moving(_) if order.dry_run => Ok(answer("to be brought back")),
        Stand::Moving(_) => {
            let ask = ImageMoveUndo { pool: to.clone(), image: image.clone() };
            match site.insist(ask).await {
                Err(e) if e.kind == RbdErrorKind::NotFound => {}
                other => other.map_err(|e| explain(order, e))?,
            }
            info!(site = name, image, pool, op = "move", "an image was brought back");
            Ok(answer("brought back"))
        }
        Stand::Here => Ok(answer("where it was")),
        Stand::Gone => Err(Error::new(
            Code::InvalidInput,
            format!(
                "There is no {pool}/{image} on site {name} that is being moved; one that has moved is moved back by \
                     another move"
            ),
        )),
    }
}

fn explain(order: &MoveOrder, e: RbdError) -> Error {
    let MoveOrder { name, pool, image, to, .. } = order;
    let text = match e.kind {
        RbdErrorKind::Busy => format!(
            "{pool}/{image} is open somewhere ({}): close it first (scoria-manage rbd which-volume {pool}/{image})",
            e.message
        ),
        RbdErrorKind::NoPool => format!("Site {name} has no pool {pool} or no pool {to}: {}", e.message),
        RbdErrorKind::Permission => format!(
            "The client of site {name} may not do this in pools {pool} and {to} ({}); give it osd 'profile rbd' for both",
            e.message
        ),
        RbdErrorKind::NotFound => format!("There is no {pool}/{image} on site {name}: {}", e.message),
        _ => return e.into(),
    };
    Error::new(Code::Invalid, text).caused_by(e)
}
