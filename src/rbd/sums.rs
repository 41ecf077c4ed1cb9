//! Checksums of a backup, piece by piece, in one object beside it.
//!
//! An incremental backup changes a few pieces of its base and keeps the others, so a checksum of the whole would have
//! to read the whole. Here each piece of [`PIECE`] bytes has its own: those of pieces that did not change are copied
//! from the parent's table. A table is a header and [`DIGEST`] bytes a piece: 8 MiB for a TiB. A piece of zeros has a
//! digest of zeros, so that what was never written needs no reading.

/// Bytes of a piece; the last one of an image counts as if zeros followed it.
pub const PIECE: u64 = 2 << 20;
/// Bytes of a checksum: the first of BLAKE3, which a copy hardly notices, and which nobody can make fit by intent.
pub const DIGEST: u64 = 16;
/// What a table begins with; its length is that of the header.
pub const HEADER: &[u8; 32] = b"scoria sums 2 blake3/16 2097152\n";
/// Largest table that is made: an object has a limit (`osd_max_object_size`, 128 MiB), and so has a memory.
pub const LARGEST: u64 = 96 << 20;

/// The checksum of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; DIGEST as usize]);

impl Digest {
    /// Of a piece that is all zeros.
    pub const ZEROS: Digest = Digest([0; DIGEST as usize]);
    /// Of a piece that nobody has read, in a chain that was begun without checksums.
    pub const UNKNOWN: Digest = Digest([0xff; DIGEST as usize]);

    /// Of a piece, or of what there is of the last one: zeros at its end do not count.
    pub fn of(piece: &[u8]) -> Digest {
        let Some(last) = piece.iter().rposition(|b| *b != 0) else { return Digest::ZEROS };
        let hash = blake3::hash(piece.get(..=last).unwrap_or_default());
        let mut digest = [0; DIGEST as usize];
        digest.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
        Digest(digest)
    }

    /// Whether what has this digest may be a piece of which `expected` was noted.
    pub fn fits(self, expected: Digest) -> bool {
        expected == Digest::UNKNOWN || self == expected
    }
}

/// How many pieces `size` bytes have.
pub fn pieces(size: u64) -> u64 {
    size.div_ceil(PIECE)
}

/// Where the checksum of a piece is in its table.
pub fn place(piece: u64) -> u64 {
    HEADER.len() as u64 + piece * DIGEST
}

/// Bytes of the table of an image of `size` bytes.
pub fn length(size: u64) -> u64 {
    place(pieces(size))
}

/// Takes a run of checksums apart.
pub fn digests(bytes: &[u8]) -> impl Iterator<Item = Digest> + '_ {
    bytes.chunks_exact(DIGEST as usize).map(|chunk| {
        let mut digest = [0; DIGEST as usize];
        digest.copy_from_slice(chunk);
        Digest(digest)
    })
}

/// Whether the beginning of an object is that of a table of this version.
pub fn is_table(head: &[u8]) -> bool {
    head.starts_with(HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_do_not_count_and_anything_else_does() {
        assert_eq!(Digest::of(&[0; 4096]), Digest::ZEROS);
        assert_eq!(Digest::of(&[]), Digest::ZEROS);
        assert_eq!(Digest::of(b"ab"), Digest::of(b"ab\0\0"));
        assert_ne!(Digest::of(b"ab"), Digest::of(b"\0ab"));
        assert_ne!(Digest::of(b"ab"), Digest::of(b"ac"));
        assert!(Digest::of(b"ab").fits(Digest::UNKNOWN) && !Digest::of(b"ab").fits(Digest::ZEROS));
    }

    #[test]
    fn a_table_has_a_place_for_each_piece() {
        assert_eq!((pieces(0), pieces(1), pieces(PIECE), pieces(PIECE + 1)), (0, 1, 1, 2));
        assert_eq!(length(PIECE * 3), 32 + 3 * 16);
        let bytes = [[1; 16], [2; 16]].concat();
        assert_eq!(digests(&bytes).collect::<Vec<_>>(), [Digest([1; 16]), Digest([2; 16])]);
        assert!(is_table(HEADER) && !is_table(b"scoria sums 2"));
    }
}
