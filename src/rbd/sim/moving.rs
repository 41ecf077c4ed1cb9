//! Simulated images move from pool to pool, as librbd's live migration has it: from the beginning on the image goes by
//! its new place, and its old name is free only in the end.

use super::images::{Answer, refuse};
use super::state::World;
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::types::{MoveState, Moving};

/// Where an image comes from that is being moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MoveFrom {
    pub(super) pool: String,
    pub(super) image: String,
    /// All data is there.
    pub(super) whole: bool,
}

impl World {
    /// By the new place, or by the old one.
    pub(super) fn move_state(&self, site: &str, pool: &str, image: &str) -> Answer<Option<Moving>> {
        let of = |from: &MoveFrom| Moving {
            state: if from.whole { MoveState::Executed } else { MoveState::Prepared },
            percent: None,
        };
        if let Ok(found) = self.image(site, pool, image) {
            return Ok(found.moving.as_ref().map(of));
        }
        let pools = self.sites.get(site).into_iter().flat_map(|s| s.pools.values());
        let mut moving = pools.flat_map(|p| p.images.values()).filter_map(|i| i.moving.as_ref());
        match moving.find(|from| from.pool == pool && from.image == image) {
            Some(from) => Ok(Some(of(from))),
            None => refuse(Kind::NotFound, format!("no image {pool}/{image}")),
        }
    }

    pub(super) fn move_begin(
        &mut self,
        site: &str,
        (pool, image): (&str, &str),
        (dest_pool, dest): (&str, &str),
    ) -> Answer<()> {
        let found = self.image(site, pool, image)?;
        if !found.watchers.is_empty() {
            return refuse(Kind::Busy, format!("{pool}/{image} is open"));
        }
        let id = found.id.clone();
        if self.pool(site, dest_pool)?.by_name(dest).is_some() {
            return refuse(Kind::Exists, format!("{dest_pool}/{dest} exists"));
        }
        let from = MoveFrom { pool: pool.to_owned(), image: image.to_owned(), whole: false };
        self.carry(site, &id, pool, (dest_pool, dest), Some(from))
    }

    pub(super) fn move_data(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        match &mut self.image_mut(site, pool, image)?.moving {
            Some(from) => {
                from.whole = true;
                Ok(())
            }
            None => refuse(Kind::Invalid, format!("{pool}/{image} is not being moved")),
        }
    }

    pub(super) fn move_finish(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let found = self.image_mut(site, pool, image)?;
        if found.moving.as_ref().is_some_and(|from| !from.whole) {
            return refuse(Kind::Invalid, format!("the data of {pool}/{image} has not been moved"));
        }
        found.moving = None;
        Ok(())
    }

    pub(super) fn move_undo(&mut self, site: &str, pool: &str, image: &str) -> Answer<()> {
        let found = self.image(site, pool, image)?;
        let (id, from) = (found.id.clone(), found.moving.clone());
        let Some(from) = from else {
            return refuse(Kind::Invalid, format!("{pool}/{image} is not being moved"));
        };
        self.carry(site, &id, pool, (&from.pool, &from.image), None)
    }

    /// Takes an image to another pool, with its clones' notes of where their parent is.
    fn carry(
        &mut self,
        site: &str,
        id: &str,
        pool: &str,
        (to, name): (&str, &str),
        moving: Option<MoveFrom>,
    ) -> Answer<()> {
        let old = self.pool_mut(site, pool)?;
        let Some(mut image) = old.images.remove(id) else {
            return refuse(Kind::NotFound, format!("no image {id} in {pool}"));
        };
        old.names.remove(&image.name);
        name.clone_into(&mut image.name);
        image.moving = moving;
        let new = self.pool_mut(site, to)?;
        new.names.insert(name.to_owned(), id.to_owned());
        new.images.insert(id.to_owned(), image);
        let pools = self.sites.get_mut(site).into_iter().flat_map(|s| s.pools.values_mut());
        for other in pools.flat_map(|p| p.images.values_mut()) {
            let snaps = other.snaps.values_mut().filter_map(|snap| snap.parent.as_mut());
            for parent in other.parent.iter_mut().chain(snaps) {
                if parent.pool == pool && parent.image_id == id {
                    to.clone_into(&mut parent.pool);
                }
            }
        }
        Ok(())
    }
}
