//! What a copy from image to image has to look at, and what of that it has to write.
//!
//! Decided here for the worker and the simulator alike, from runs of bytes that can differ. Looked at are whole
//! pieces of [`PIECE`] bytes, because checksums are of those; written are grains.

use super::sums::PIECE;

/// Writes are whole grains of this many bytes.
pub const GRAIN: usize = 64 << 10;

/// A piece in which source and destination can differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its number; it begins at `index * PIECE`.
    pub index: u64,
    /// Where the two can differ, as offsets (from, to) within the piece, in order and apart.
    pub ranges: Vec<(usize, usize)>,
    /// The destination may hold something in it that the source does not have.
    pub stale: bool,
}

/// The pieces that the runs of source and destination touch, in order. Runs are (offset, length), sorted by their
/// offset.
pub fn pieces(source: &[(u64, u64)], dest: &[(u64, u64)]) -> Vec<Piece> {
    let mut found: Vec<Piece> = Vec::new();
    let mut runs: Vec<(u64, u64, bool)> =
        source.iter().map(|(o, l)| (*o, *l, false)).chain(dest.iter().map(|(o, l)| (*o, *l, true))).collect();
    runs.sort_unstable();
    // A run is cut at the ends of pieces; those of one piece stay together, because the parts are sorted again.
    let mut parts: Vec<(u64, u64, bool)> = Vec::with_capacity(runs.len());
    for (offset, length, stale) in runs {
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let next = ((at / PIECE + 1) * PIECE).min(end);
            parts.push((at, next, stale));
            at = next;
        }
    }
    parts.sort_unstable();
    for (from, to, stale) in parts {
        let index = from / PIECE;
        let within = |offset: u64| usize::try_from(offset - index * PIECE).unwrap_or(usize::MAX);
        let range = (within(from), within(to));
        match found.last_mut().filter(|piece| piece.index == index) {
            Some(piece) => {
                piece.stale |= stale;
                match piece.ranges.last_mut() {
                    Some(last) if range.0 <= last.1 => last.1 = last.1.max(range.1),
                    _ => piece.ranges.push(range),
                }
            }
            None => found.push(Piece { index, ranges: vec![range], stale }),
        }
    }
    found
}

/// Adds pieces that are to be looked at although nothing is known to differ in them.
pub fn with(mut pieces: Vec<Piece>, more: impl Iterator<Item = u64>) -> Vec<Piece> {
    let known: std::collections::BTreeSet<u64> = pieces.iter().map(|piece| piece.index).collect();
    pieces.extend(more.filter(|index| !known.contains(index)).map(|index| Piece {
        index,
        ranges: vec![],
        stale: false,
    }));
    pieces.sort_unstable_by_key(|piece| piece.index);
    pieces
}

/// How what is written over must be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// It is zeros wherever a piece is not stale.
    Zeros,
    /// It is anything, but what the runs leave out is right already.
    Anything,
}

impl Piece {
    /// Whether the destination must be read before `new` can be written.
    pub fn wants_old(&self, new: &[u8], over: Over) -> bool {
        match over {
            Over::Zeros => self.stale,
            Over::Anything => self.grains(new.len()).any(|(from, to)| is_zero(&new[from..to])),
        }
    }

    /// What of `new`, the source's piece cut or filled up to what the destination has of it, is to be written. `old`:
    /// what the destination holds; without it everything that is not zero.
    pub fn writes(&self, new: &[u8], old: Option<&[u8]>) -> Vec<(usize, usize)> {
        let mut writes: Vec<(usize, usize)> = Vec::new();
        for (from, to) in self.grains(new.len()) {
            let fresh = &new[from..to];
            let differs = match old {
                Some(old) => old.get(from..to) != Some(fresh),
                None => !is_zero(fresh),
            };
            if !differs {
                continue;
            }
            match writes.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => writes.push((from, to)),
            }
        }
        writes
    }

    /// The grains that its ranges touch, as far as `length` bytes go.
    fn grains(&self, length: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut next = 0;
        self.ranges
            .iter()
            .flat_map(move |(from, to)| {
                let first = (from / GRAIN).max(next);
                let last = to.div_ceil(GRAIN);
                next = next.max(last);
                first..last
            })
            .map(|grain| (grain * GRAIN, (grain + 1) * GRAIN))
            .filter(move |(from, _)| *from < length)
            .map(move |(from, to)| (from, to.min(length)))
    }
}

/// Whether there is nothing but zeros.
pub fn is_zero(data: &[u8]) -> bool {
    static ZEROS: [u8; GRAIN] = [0; GRAIN];
    // Compared as blocks, which is quick in a debug build, too: images are gigabytes.
    data.chunks(GRAIN).all(|chunk| ZEROS.starts_with(chunk))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: u64 = PIECE;

    #[test]
    fn runs_are_cut_at_pieces_and_joined_within_them() {
        let found = pieces(&[(10, 20), (P - 5, 10)], &[(25, 10), (3 * P, 1)]);
        let last = P as usize - 5;
        assert_eq!(
            found,
            [
                Piece { index: 0, ranges: vec![(10, 35), (last, P as usize)], stale: true },
                Piece { index: 1, ranges: vec![(0, 5)], stale: false },
                Piece { index: 3, ranges: vec![(0, 1)], stale: true },
            ]
        );
        let more = with(found, [1, 2].into_iter());
        assert_eq!(more.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(more[2].ranges.is_empty() && more[1].ranges.len() == 1);
    }

    #[test]
    fn only_what_differs_is_written_and_zeros_over_nothing_are_not() {
        let mut new = vec![0u8; P as usize];
        new[GRAIN] = 1;
        let whole = Piece { index: 0, ranges: vec![(0, P as usize)], stale: false };
        assert_eq!(whole.writes(&new, None), [(GRAIN, 2 * GRAIN)]);
        assert!(!whole.wants_old(&new, Over::Zeros) && whole.wants_old(&new, Over::Anything));
        let mut old = new.clone();
        assert!(whole.writes(&new, Some(&old)).is_empty());
        old[5 * GRAIN + 7] = 9;
        assert_eq!(whole.writes(&new, Some(&old)), [(5 * GRAIN, 6 * GRAIN)]);
        let little = Piece { ranges: vec![(GRAIN + 5, GRAIN + 6)], ..whole };
        assert_eq!(little.writes(&new, None), [(GRAIN, 2 * GRAIN)]);
        assert!(!little.wants_old(&new, Over::Anything));
        assert_eq!(little.writes(&new[..GRAIN + 9], None), [(GRAIN, GRAIN + 9)]);
    }

    proptest! {
        /// Whatever the runs are: if they cover all differences, the destination reads like the source afterwards.
        #[test]
        fn what_is_covered_becomes_equal(
            a in proptest::collection::vec(0u8..3, 8), b in proptest::collection::vec(0u8..3, 8), blank in any::<bool>(),
        ) {
            let fill = |grains: &[u8]| grains.iter().flat_map(|g| vec![*g; GRAIN]).collect::<Vec<u8>>();
            let b = if blank { vec![0; 8] } else { b };
            let (new, mut old) = (fill(&a), fill(&b));
            let g = GRAIN as u64;
            let (source, dest): (Vec<_>, Vec<_>) = if blank {
                ((0..8).filter(|n| a[*n as usize] != 0).map(|n| (n * g, g)).collect(), vec![])
            } else {
                ((0..8).filter(|n| a[*n as usize] != b[*n as usize]).map(|n| (n * g, g)).collect(), vec![])
            };
            let over = if blank { Over::Zeros } else { Over::Anything };
            for piece in pieces(&source, &dest) {
                let held = piece.wants_old(&new, over).then(|| old.clone());
                for (from, to) in piece.writes(&new, held.as_deref()) {
                    old[from..to].copy_from_slice(&new[from..to]);
                }
            }
            prop_assert!(old == new);
        }
    }
}
