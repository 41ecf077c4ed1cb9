//! Schedules of mirror snapshots at any level.

use super::images::{Answer, refuse};
use super::state::{Owner, World};
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::types::{Due, Level, LevelScheduled, MirrorMode, Schedule};

/// When everything is due: the manager's clock is not played out.
const AT: &str = "2026-01-01 00:05:00";

impl World {
    fn check_level(&self, site: &str, level: &Level) -> Answer<()> {
        match &level.pool {
            // ceph-mgr: "Invalid level spec".
            Some(pool) => self
                .pool(site, pool)
                .map(|_| ())
                .or_else(|_| refuse(Kind::Invalid, format!("no pool {pool}"))),
            None => Ok(()),
        }
    }

    pub(super) fn level_list(&self, site: &str, level: &Level) -> Answer<Vec<LevelScheduled>> {
        self.check_level(site, level)?;
        let Some(state) = self.sites.get(site) else { return Ok(vec![]) };
        let mut found: Vec<LevelScheduled> = Vec::new();
        for (pool, all) in state.wide_schedules.iter().filter(|(_, all)| !all.is_empty()) {
            let of = Some(pool.clone()).filter(|pool| !pool.is_empty());
            if of.is_none() || level.pool.is_none() || level.pool == of {
                let level = Level { pool: of, image: None };
                found.push(LevelScheduled { level, schedules: all.iter().cloned().collect() });
            }
        }
        for pool in state.pools.keys().filter(|pool| level.pool.as_ref().is_none_or(|of| of == *pool)) {
            for one in self.schedule_list(site, pool)? {
                if level.image.is_none() || level.image == one.image {
                    let level = Level { pool: Some(pool.clone()), image: one.image };
                    found.push(LevelScheduled { level, schedules: one.schedules });
                }
            }
        }
        found.sort_by(|a, b| a.level.cmp(&b.level));
        Ok(found)
    }

    pub(super) fn level_add(&mut self, site: &str, level: &Level, schedule: Schedule) -> Answer<()> {
        self.check_level(site, level)?;
        if let (Some(pool), Some(image)) = (&level.pool, &level.image) {
            return self.schedule_add(site, pool, image, schedule);
        }
        if let Some(state) = self.sites.get_mut(site) {
            state.wide_schedules.entry(level.pool.clone().unwrap_or_default()).or_default().insert(schedule);
        }
        Ok(())
    }

    pub(super) fn level_remove(
        &mut self,
        site: &str,
        level: &Level,
        schedule: Option<&Schedule>,
    ) -> Answer<()> {
        self.check_level(site, level)?;
        let gone = |one: &Schedule| schedule.is_none_or(|wanted| wanted == one);
        if let (Some(pool), Some(image)) = (&level.pool, &level.image) {
            let has = self.schedule_list(site, pool)?.into_iter().find(|s| s.image.as_ref() == Some(image));
            for one in has.map(|s| s.schedules).unwrap_or_default().iter().filter(|one| gone(one)) {
                self.schedule_remove(site, pool, image, one)?;
            }
            return Ok(());
        }
        let pool = level.pool.clone().unwrap_or_default();
        if let Some(all) = self.sites.get_mut(site).and_then(|s| s.wide_schedules.get_mut(&pool)) {
            all.retain(|one| !gone(one));
        }
        Ok(())
    }

    pub(super) fn level_due(&self, site: &str, level: &Level) -> Answer<Vec<Due>> {
        let levels = self.level_list(site, level)?;
        let Some(state) = self.sites.get(site) else { return Ok(vec![]) };
        let mut due = Vec::new();
        for (name, pool) in &state.pools {
            let primary = pool.images.values().filter(|i| {
                i.mirror.as_ref().is_some_and(|m| m.mode == MirrorMode::Snapshot && m.owner == Owner::Local)
            });
            for image in primary {
                let under = level.pool.as_ref().is_none_or(|of| of == name)
                    && level.image.as_ref().is_none_or(|of| *of == image.name);
                let scheduled = levels.iter().any(|s| {
                    s.level.pool.as_ref().is_none_or(|of| of == name)
                        && s.level.image.as_ref().is_none_or(|of| *of == image.name)
                });
                if under && scheduled {
                    due.push(Due { at: AT.to_owned(), image: format!("{name}/{}", image.name) });
                }
            }
        }
        Ok(due)
    }
}
