//! Contents of simulated images: sparse, and cheap to snapshot.
//!
//! A test writes a few bytes into an image of many GiB, takes snapshots and copies them to another
//! site; only the blocks that were written exist, and copies share them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of one block.
const BLOCK: u64 = 4096;

/// The written blocks of an image or a snapshot; everything else reads as the parent, or zero.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(super) struct Data {
    blocks: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Data {
    /// Overwrites `bytes` at `offset`; a block that does not exist yet begins as `base` has it (copy-up).
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], base: &Data) {
        let mut done = 0usize;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (number, within) = (at / BLOCK, (at % BLOCK) as usize);
            let count = (BLOCK as usize - within).min(bytes.len() - done);
            let block = self.blocks.entry(number).or_insert_with(|| {
                base.blocks.get(&number).cloned().unwrap_or_else(|| Arc::new(vec![0; BLOCK as usize]))
            });
            Arc::make_mut(block)[within..within + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    /// Reads `length` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        let mut done = 0usize;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (number, within) = (at / BLOCK, (at % BLOCK) as usize);
            let count = (BLOCK as usize - within).min(bytes.len() - done);
            if let Some(block) = self.blocks.get(&number) {
                bytes[done..done + count].copy_from_slice(&block[within..within + count]);
            }
            done += count;
        }
        bytes
    }

    /// What is not zero between two offsets, with where it is.
    pub(super) fn pieces(&self, from: u64, to: u64) -> Vec<(u64, Vec<u8>)> {
        let written = self.blocks.iter().filter(|(_, block)| block.iter().any(|b| *b != 0));
        written
            .filter_map(|(number, _)| {
                let (start, end) = ((number * BLOCK).max(from), ((number + 1) * BLOCK).min(to));
                (start < end).then(|| (start, self.read(start, end - start)))
            })
            .collect()
    }

    /// Runs of bytes, as (offset, length), in blocks that differ from those of `former`, or that were written since
    /// with what they held: a block that both share did not change.
    pub(super) fn changes(&self, former: &Data, from: u64, to: u64) -> Vec<(u64, u64)> {
        let numbers: std::collections::BTreeSet<u64> =
            self.blocks.keys().chain(former.blocks.keys()).copied().collect();
        numbers
            .into_iter()
            .filter(|n| match (self.blocks.get(n), former.blocks.get(n)) {
                (Some(now), Some(then)) => !Arc::ptr_eq(now, then),
                _ => true,
            })
            .filter_map(|n| {
                let (start, end) = ((n * BLOCK).max(from), ((n + 1) * BLOCK).min(to));
                (start < end).then(|| (start, end - start))
            })
            .collect()
    }

    /// What a reader sees of this layer on top of `base`.
    pub(super) fn over(&self, base: &Data) -> Data {
        let mut blocks = base.blocks.clone();
        blocks.extend(self.blocks.iter().map(|(n, b)| (*n, b.clone())));
        Data { blocks }
    }

    /// This content written over `old`: what `old` alone has becomes zeros.
    pub(super) fn in_place_of(&self, old: &Data) -> Data {
        let zeros = Arc::new(vec![0; BLOCK as usize]);
        let mut blocks: BTreeMap<_, _> = old.blocks.keys().map(|n| (*n, zeros.clone())).collect();
        blocks.extend(self.blocks.iter().map(|(n, b)| (*n, b.clone())));
        Data { blocks }
    }

    /// Bytes of the blocks that differ.
    pub(super) fn differing(&self, other: &Data) -> u64 {
        let numbers: std::collections::BTreeSet<_> = self.blocks.keys().chain(other.blocks.keys()).collect();
        let read = |data: &Data, number: u64| data.read(number * BLOCK, BLOCK);
        numbers.into_iter().filter(|n| read(self, **n) != read(other, **n)).count() as u64 * BLOCK
    }

    /// Cuts off what lies beyond `size` bytes.
    pub(super) fn clip(mut self, size: u64) -> Data {
        self.blocks.retain(|n, _| n * BLOCK < size);
        self
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// FNV-1a over the blocks that hold anything but zeros, so that a written zero equals a hole.
    pub(super) fn checksum(&self) -> u64 {
        let mut sum = 0xcbf2_9ce4_8422_2325u64;
        let mut eat = |byte: u8| sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        for (number, block) in &self.blocks {
            if block.iter().any(|b| *b != 0) {
                number.to_le_bytes().into_iter().for_each(&mut eat);
                block.iter().copied().for_each(&mut eat);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_cross_blocks_and_holes_read_as_zero() {
        let mut data = Data::default();
        data.write(4090, &[7; 12], &Data::default());
        assert_eq!(data.read(4088, 16), [0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
        assert_eq!(data.allocated(), 8192);
    }

    #[test]
    fn a_written_zero_has_the_checksum_of_a_hole_and_a_copy_up_keeps_the_parent() {
        let mut parent = Data::default();
        parent.write(0, b"parent", &Data::default());
        let mut child = Data::default();
        child.write(2, b"X", &parent);
        assert_eq!(child.over(&parent).read(0, 6), b"paXent");
        assert_eq!(parent.read(0, 6), b"parent");
        let mut zeros = Data::default();
        zeros.write(0, &[0; 9], &Data::default());
        assert_eq!(zeros.checksum(), Data::default().checksum());
    }
}
