//! Schedules of mirror snapshots: what ceph-mgr's module rbd_support remembers. It is not played out: a test makes
//! its mirror snapshots itself.

use super::Sim;
use super::images::{Answer, refuse};
use super::state::World;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::types::{MirrorMode, Schedule, Scheduled};

impl Sim {
    /// The schedules of an image on a site.
    pub fn schedules(&self, site: &str, pool: &str, image: &str) -> Vec<Schedule> {
        let mut world = self.lock();
        world.advance();
        let all = world.schedule_list(site, pool).unwrap_or_default();
        let of = all.into_iter().find(|s| s.image.as_deref() == Some(image));
        of.map(|s| s.schedules).unwrap_or_default()
    }

    /// The manager loses all schedules of a site (a restore of an old state, an operator's hand).
    pub fn lose_schedules(&self, site: &str) {
        if let Some(s) = self.lock().sites.get_mut(site) {
            s.schedules.clear();
        }
    }
}

impl World {
    pub(super) fn schedule_list(&self, site: &str, pool: &str) -> Answer<Vec<Scheduled>> {
        let images = &self.pool(site, pool)?.images;
        let kept = |id: &String| {
            let image = images.get(id).filter(|i| i.trash.is_none())?;
            image.mirror.as_ref().filter(|m| m.mode == MirrorMode::Snapshot).map(|_| image.name.clone())
        };
        let Some(state) = self.sites.get(site) else { return Ok(vec![]) };
        let of_pool = state.schedules.iter().filter(|((of, _), all)| of == pool && !all.is_empty());
        Ok(of_pool
            .filter_map(|((_, id), all)| {
                Some(Scheduled { image: Some(kept(id)?), schedules: all.iter().cloned().collect() })
            })
            .collect())
    }

    /// The key of an image's schedules, if it may have any.
    fn schedule_key(&self, site: &str, pool: &str, image: &str) -> Answer<(String, String)> {
        self.pool(site, pool)?;
        match self.image(site, pool, image) {
            Ok(i) if i.mirror.as_ref().is_some_and(|m| m.mode == MirrorMode::Snapshot) => {
                Ok((pool.to_owned(), i.id.clone()))
            }
            Ok(_) => refuse(Kind::Invalid, format!("image {image} is not in snapshot mirror mode")),
            Err(_) => refuse(Kind::Invalid, format!("image {image} does not exist")),
        }
    }

    pub(super) fn schedule_add(&mut self, site: &str, pool: &str, image: &str, one: Schedule) -> Answer<()> {
        let key = self.schedule_key(site, pool, image)?;
        if let Some(s) = self.sites.get_mut(site) {
            s.schedules.entry(key).or_default().insert(one);
        }
        Ok(())
    }

    pub(super) fn schedule_remove(
        &mut self,
        site: &str,
        pool: &str,
        image: &str,
        one: &Schedule,
    ) -> Answer<()> {
        let key = self.schedule_key(site, pool, image)?;
        if let Some(all) = self.sites.get_mut(site).and_then(|s| s.schedules.get_mut(&key)) {
            all.remove(one);
        }
        Ok(())
    }
}
