//! Copies of what differs between simulated images, and tables of checksums.

use std::collections::BTreeMap;

use super::data::Data;
use super::images::{Answer, refuse};
use super::state::World;
use crate::rbd::delta::{self, Over, Piece};
use crate::rbd::error::RbdErrorKind as Kind;
use crate::rbd::protocol::{DeltaCopy, SumsBegin, SumsCheck, SumsFill};
use crate::rbd::sums::{self, Digest, PIECE};
use crate::rbd::types::{Checked, Copied};

impl World {
    pub(super) fn delta_copy(&mut self, site: &str, c: &DeltaCopy) -> Answer<Copied> {
        let dest_site = self.resolve(&c.dest_site);
        let reachable =
            dest_site.as_ref().and_then(|s| self.sites.get(s)).is_some_and(|s| s.health.data_flows());
        let Some(dest_site) = dest_site.filter(|_| reachable) else {
            return refuse(Kind::Unreachable, format!("no way to {}", c.dest_site.site));
        };
        let (size, end) = (
            self.size_at(site, &c.pool, &c.image, c.snap.as_deref())?,
            self.size_at(&dest_site, &c.dest_pool, &c.dest, None)?,
        );
        if size > end {
            return refuse(Kind::Invalid, format!("{}/{} has {end} bytes, not {size}", c.dest_pool, c.dest));
        }
        self.check_writable(&dest_site, &c.dest_pool, &c.dest)?;
        let new = self.effective(site, &c.pool, &c.image, c.snap.as_deref())?;
        let old = self.effective(&dest_site, &c.dest_pool, &c.dest, None)?;
        let runs = self.runs(site, (&c.pool, &c.image), &new, c.since.as_deref(), c.offset, size)?;
        let there =
            self.runs(&dest_site, (&c.dest_pool, &c.dest), &old, c.dest_since.as_deref(), c.offset, end)?;
        let mut pieces = delta::pieces(&runs, &there);
        let expected = match &c.sums.expect {
            Some(table) => self.known(site, &c.pool, table)?,
            None => BTreeMap::new(),
        };
        if c.since.is_none() {
            pieces = delta::with(pieces, noted(&expected, c.offset));
        }
        let over = if c.dest_since.is_some() { Over::Anything } else { Over::Zeros };
        let mut copied = Copied { reached: end, complete: true, ..Copied::default() };
        let mut digests = BTreeMap::new();
        for piece in pieces {
            if copied.read >= c.budget {
                copied.reached = piece.index * PIECE;
                copied.complete = false;
                break;
            }
            let offset = piece.index * PIECE;
            let mut data = read(&new, &piece, size);
            let digest = Digest::of(&data);
            if expected.get(&piece.index).is_some_and(|noted| !digest.fits(*noted)) {
                return refuse(Kind::Other, format!("{}/{}: its checksum is another", c.pool, c.image));
            }
            digests.insert(piece.index, digest);
            copied.read += data.len() as u64;
            let length = PIECE.min(end - offset);
            data.resize(length as usize, 0);
            let held = piece.wants_old(&data, over).then(|| old.read(offset, length));
            for (from, to) in piece.writes(&data, held.as_deref()) {
                let at = offset + from as u64;
                self.write(&dest_site, &c.dest_pool, &c.dest, at, &data[from..to])?;
                copied.written += (to - from) as u64;
            }
        }
        if let Some(table) = &c.sums.write {
            self.note(&dest_site, (&c.dest_pool, table), digests)?;
        }
        Ok(copied)
    }

    fn note(
        &mut self,
        site: &str,
        (pool, table): (&str, &str),
        digests: BTreeMap<u64, Digest>,
    ) -> Answer<()> {
        let bytes = self.pool_mut(site, pool)?.objects.entry(table.to_owned()).or_default();
        for (index, digest) in digests {
            let at = sums::place(index) as usize;
            if bytes.len() < at + digest.0.len() {
                bytes.resize(at + digest.0.len(), 0);
            }
            bytes[at..at + digest.0.len()].copy_from_slice(&digest.0);
        }
        Ok(())
    }

    pub(super) fn sums_fill(&mut self, site: &str, c: &SumsFill) -> Answer<Copied> {
        let size = self.size_at(site, &c.pool, &c.image, c.snap.as_deref())?;
        let data = self.effective(site, &c.pool, &c.image, c.snap.as_deref())?;
        let pieces = delta::pieces(&data.changes(&Data::default(), c.offset, size), &[]);
        let mut filled = Copied { reached: size, complete: true, ..Copied::default() };
        let mut digests = BTreeMap::new();
        for piece in pieces {
            if filled.read >= c.budget {
                (filled.reached, filled.complete) = (piece.index * PIECE, false);
                break;
            }
            let found = read(&data, &piece, size);
            filled.read += found.len() as u64;
            digests.insert(piece.index, Digest::of(&found));
        }
        for index in c.offset / PIECE..sums::pieces(filled.reached) {
            digests.entry(index).or_insert(Digest::ZEROS);
        }
        self.note(site, (&c.pool, &c.table), digests)?;
        Ok(filled)
    }

    pub(super) fn sums_check(&mut self, site: &str, c: &SumsCheck) -> Answer<Checked> {
        let size = self.size_at(site, &c.pool, &c.image, c.snap.as_deref())?;
        let data = self.effective(site, &c.pool, &c.image, c.snap.as_deref())?;
        let expected = self.known(site, &c.pool, &c.table)?;
        let runs = data.changes(&Data::default(), c.offset, size);
        let pieces = delta::with(delta::pieces(&runs, &[]), noted(&expected, c.offset));
        let mut checked = Checked { reached: size, complete: true, ..Checked::default() };
        for piece in pieces {
            if checked.compared + checked.unknown >= c.budget {
                checked.reached = piece.index * PIECE;
                checked.complete = false;
                break;
            }
            let found = read(&data, &piece, size);
            match expected.get(&piece.index) {
                Some(noted) if *noted != Digest::UNKNOWN => {
                    checked.compared += found.len() as u64;
                    if !Digest::of(&found).fits(*noted) {
                        checked.wrong.push(piece.index * PIECE);
                    }
                }
                _ => checked.unknown += found.len() as u64,
            }
        }
        Ok(checked)
    }

    pub(super) fn sums_begin(&mut self, site: &str, c: &SumsBegin) -> Answer<()> {
        let pool = self.pool_mut(site, &c.pool)?;
        if pool.objects.get(&c.table).is_some_and(|table| sums::is_table(table)) {
            return Ok(());
        }
        let length = sums::length(c.size) as usize;
        let parent = c.parent.as_ref().and_then(|parent| pool.objects.get(parent));
        let mut table = match parent.filter(|table| sums::is_table(table)) {
            Some(parent) => parent.clone(),
            None => {
                let fill = if c.blank { Digest::ZEROS } else { Digest::UNKNOWN }.0[0];
                let mut fresh = sums::HEADER.to_vec();
                fresh.resize(length, fill);
                fresh
            }
        };
        table.resize(length, Digest::ZEROS.0[0]);
        pool.objects.insert(c.table.clone(), table);
        Ok(())
    }

    fn size_at(&self, site: &str, pool: &str, image: &str, snap: Option<&str>) -> Answer<u64> {
        let i = self.image(site, pool, image)?;
        let Some(snap) = snap else { return Ok(i.size) };
        match i.snap_id(snap).and_then(|id| i.snaps.get(&id)) {
            Some(s) => Ok(s.size),
            None => refuse(Kind::NotFound, format!("no snapshot {pool}/{image}@{snap}")),
        }
    }

    fn runs(
        &self,
        site: &str,
        (pool, image): (&str, &str),
        now: &Data,
        since: Option<&str>,
        from: u64,
        to: u64,
    ) -> Answer<Vec<(u64, u64)>> {
        let former = match since {
            Some(snap) => self.effective(site, pool, image, Some(snap))?,
            None => Data::default(),
        };
        Ok(now.changes(&former, from, to))
    }

    fn known(&self, site: &str, pool: &str, table: &str) -> Answer<BTreeMap<u64, Digest>> {
        let Some(bytes) = self.pool(site, pool)?.objects.get(table).filter(|t| sums::is_table(t)) else {
            return Ok(BTreeMap::new());
        };
        Ok((0..).zip(sums::digests(&bytes[sums::HEADER.len()..])).collect())
    }
}

fn noted(expected: &BTreeMap<u64, Digest>, from: u64) -> impl Iterator<Item = u64> + '_ {
    expected
        .iter()
        .filter(move |(index, digest)| {
            **index >= from / PIECE && **digest != Digest::ZEROS && **digest != Digest::UNKNOWN
        })
        .map(|(index, _)| *index)
}

fn read(data: &Data, piece: &Piece, size: u64) -> Vec<u8> {
    let offset = piece.index * PIECE;
    data.read(offset, PIECE.min(size.saturating_sub(offset)))
}
