//! Images that begin with a header: they are larger than their volumes by its room, which no change of size may
//! take from the data behind it.

use super::Place;
use crate::model::GIB;
use crate::rbd::RbdError;
use crate::rbd::protocol::{ImageRead, ImageWrite};

/// Bytes of one write.
const PIECE: usize = 256 << 10;

impl Place {
    /// Writes `bytes` from the beginning of an image on. Repeatable.
    pub async fn write_head(&self, image: &str, bytes: &[u8]) -> Result<(), RbdError> {
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            let write = ImageWrite {
                pool: self.pool.clone(),
                image: image.to_owned(),
                offset: (number * PIECE) as u64,
                data: piece.to_vec(),
            };
            self.site.insist(write).await?;
        }
        Ok(())
    }

    /// Reads the first `length` bytes of an image, or of a snapshot of it.
    pub async fn read_head(&self, image: &str, snap: Option<&str>, length: u64) -> Result<Vec<u8>, RbdError> {
        let (pool, image, snap) = (self.pool.clone(), image.to_owned(), snap.map(str::to_owned));
        let read = ImageRead { pool, image, snap, offset: 0, length };
        self.site.insist(read).await
    }

    /// Makes an image so large that at least as much of `bytes` (a whole number of GiB) lies behind its header
    /// as lay there of its former size. Stock's own extension cuts the header's room off; such an image stays
    /// without. Repeatable.
    pub async fn grow_behind_header(&self, image: &str, bytes: u64) -> Result<(), RbdError> {
        let header = self.stat(image).await?.size % GIB;
        self.grow(image, bytes.saturating_add(header)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Attempt, Shape};
    use super::*;
    use crate::rbd::sim::{Sim, SimConfig};

    #[tokio::test]
    async fn a_header_keeps_its_room() {
        let sim = Sim::new(SimConfig::default());
        let place = Place { site: sim.site("a"), pool: "volumes".to_owned() };
        let shape = Shape { order: 22, features: 61 };
        let header: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        place.create("v", GIB + 600_000, shape, Attempt::First).await.unwrap();
        for _ in 0..2 {
            place.write_head("v", &header).await.unwrap();
            place.grow_behind_header("v", 3 * GIB).await.unwrap();
            assert_eq!(place.stat("v").await.unwrap().size, 3 * GIB + 600_000);
        }
        let found = place.read_head("v", None, 600_001).await.unwrap();
        assert_eq!((&found[..600_000], found[600_000]), (&header[..], 0));

        place.create("plain", GIB, shape, Attempt::First).await.unwrap();
        place.grow_behind_header("plain", 2 * GIB).await.unwrap();
        assert_eq!(place.stat("plain").await.unwrap().size, 2 * GIB);
    }
}
