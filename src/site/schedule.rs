//! Schedules of mirror snapshots that an operator sets: for all pools of a site, a pool, or an image.
//!
//! Those that volume types ask for are looked after elsewhere (`replication/schedules.rs`), and one that was set by
//! hand is left alone there. An image follows the schedules of its own level if it has any, else those of its pool,
//! else those of all pools.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Sites;
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::{LevelDue, LevelScheduleAdd, LevelScheduleRemove, LevelSchedules};
use crate::rbd::types::{Level, LevelScheduled, Schedule};
use crate::rbd::{RbdError, RbdErrorKind};
use crate::volume::crash;

/// What to do with schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleAct {
    /// Add one.
    Add,
    /// Remove one, or all of a level.
    Remove,
    /// Tell them.
    List,
    /// Tell when the next mirror snapshots are due.
    Status,
}

/// An order for the schedules of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleOrder {
    /// The site.
    pub name: String,
    /// What to do.
    pub act: ScheduleAct,
    /// Where.
    pub level: Level,
    /// Which one (`5m`, `1h@00:30`).
    pub schedule: Option<String>,
    /// List: what is below the level, too.
    pub recursive: bool,
}

impl ScheduleOrder {
    /// The schedule.
    ///
    /// # Errors
    /// `InvalidInput` for what is none, for one that is missing, and for an image without its pool.
    pub fn check(&self) -> Result<Option<Schedule>> {
        if self.level.pool.is_none() && self.level.image.is_some() {
            return Err(Error::new(Code::InvalidInput, "Say in which pool the image is"));
        }
        let texts = [&self.level.pool, &self.level.image];
        if texts.into_iter().flatten().any(|text| text.is_empty() || text.contains('/')) {
            return Err(Error::new(Code::InvalidInput, "The names of pool and image are plain, without '/'"));
        }
        let schedule = self.schedule.as_deref().map(str::parse::<Schedule>).transpose();
        let schedule = schedule.map_err(|e| Error::new(Code::InvalidInput, e.to_string()))?;
        match (self.act, &schedule) {
            (ScheduleAct::Add, None) => {
                Err(Error::new(Code::InvalidInput, "Say which schedule, like 5m or 1h@00:30"))
            }
            _ => Ok(schedule),
        }
    }
}

/// Carries an order out.
pub(super) async fn run(sites: &Sites, order: &ScheduleOrder) -> Result<Value> {
    let schedule = order.check()?;
    let reached = sites.reach(&order.name).await?;
    let ended = carry_out(&reached.site, order, schedule).await;
    sites.part(&reached.site);
    let (listed, due) = ended.map_err(|e| explain(e, order))?;
    let levels: Vec<Value> = listed
        .iter()
        .map(|s| {
            let schedules: Vec<String> = s.schedules.iter().map(Schedule::to_string).collect();
            json!({"level": s.level.kind(), "pool": s.level.pool, "image": s.level.image, "schedules": schedules})
        })
        .collect();
    Ok(json!({
        "schedules_of": order.name, "act": order.act, "level": order.level.kind(), "pool": order.level.pool,
        "image": order.level.image, "schedule": order.schedule, "levels": levels, "due": due,
    }))
}

async fn carry_out(
    site: &crate::rbd::Site,
    order: &ScheduleOrder,
    schedule: Option<Schedule>,
) -> Result<(Vec<LevelScheduled>, Option<Value>), RbdError> {
    let level = order.level.clone();
    match (order.act, schedule) {
        (ScheduleAct::Add, Some(schedule)) => {
            site.insist(LevelScheduleAdd { level: level.clone(), schedule }).await?;
        }
        (ScheduleAct::Remove, schedule) => {
            site.insist(LevelScheduleRemove { level: level.clone(), schedule }).await?;
        }
        (ScheduleAct::Add | ScheduleAct::List | ScheduleAct::Status, _) => {}
    }
    crash::point("schedule:changed");
    let mut listed = site.insist(LevelSchedules { level: level.clone() }).await?;
    // The manager tells what is above and below a level, too.
    listed.retain(|s| order.recursive || s.level == level);
    let due = match order.act {
        ScheduleAct::Status => {
            let due = site.insist(LevelDue { level }).await?;
            Some(due.into_iter().map(|d| json!({"at": d.at, "image": d.image})).collect())
        }
        ScheduleAct::Add | ScheduleAct::Remove | ScheduleAct::List => None,
    };
    Ok((listed, due))
}

/// Why the manager refuses, and what to do.
fn explain(e: RbdError, order: &ScheduleOrder) -> Error {
    let text = match (e.kind, order.level.kind()) {
        (RbdErrorKind::Permission, _) => format!(
            "The client may not see or set schedules of this level ({}): it needs mgr 'profile rbd'",
            e.message
        ),
        (RbdErrorKind::Invalid | RbdErrorKind::NotFound, "image") => format!(
            "{}: image {} of pool {} is not there, or is not mirrored by snapshots",
            e.message,
            order.level.image.as_deref().unwrap_or_default(),
            order.level.pool.as_deref().unwrap_or_default()
        ),
        (RbdErrorKind::Invalid | RbdErrorKind::NotFound, _) => format!("{}: is the pool there?", e.message),
        (RbdErrorKind::Busy, _) => {
            format!("The manager's module is not ready ({}); try again in a minute", e.message)
        }
        _ => return e.into(),
    };
    Error::new(Code::Invalid, text).caused_by(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_makes_no_sense_says_why() {
        let order = |act, pool: Option<&str>, image: Option<&str>, schedule: Option<&str>| ScheduleOrder {
            name: "a".into(),
            act,
            level: Level { pool: pool.map(str::to_owned), image: image.map(str::to_owned) },
            schedule: schedule.map(str::to_owned),
            recursive: false,
        };
        let said = |o: ScheduleOrder| o.check().map_err(|e| e.user().to_owned());
        assert!(said(order(ScheduleAct::Add, None, None, Some("5m"))).unwrap().is_some());
        assert!(said(order(ScheduleAct::Remove, Some("p"), None, None)).unwrap().is_none());
        assert!(said(order(ScheduleAct::Add, Some("p"), None, None)).unwrap_err().contains("which schedule"));
        assert!(said(order(ScheduleAct::List, None, Some("i"), None)).unwrap_err().contains("which pool"));
        assert!(said(order(ScheduleAct::Add, None, None, Some("5w"))).unwrap_err().contains("5w"));
        assert!(said(order(ScheduleAct::List, Some("p/n"), None, None)).unwrap_err().contains("plain"));
    }
}
