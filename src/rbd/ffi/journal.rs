//! Who follows the journal of an image, and how far he is: what rbd-mirror notes of itself in the journal's header.
//!
//! librbd's C interface has no call for it, so the records are read as Ceph encodes them (`cls/journal`,
//! `cls_journal_types.cc`; `librbd/journal/Types.cc`). Later releases may add to the end of a record, which is
//! skipped; a record that cannot be read is of nobody.

use super::Failure;
use super::image::Image;
use crate::rbd::types::{JournalPeer, features};

/// The omap key of a client of a journal's header object; the image itself is the client without a name
/// (`cls_journal.cc`: `HEADER_KEY_CLIENT_PREFIX`).
const CLIENT_KEY: &str = "client_";
/// `librbd::journal::MIRROR_PEER_CLIENT_META_TYPE`.
const PEER_CLIENT: u32 = 1;
/// `librbd::journal::MIRROR_PEER_STATE_REPLAYING`; 0 while the first copy is made.
const REPLAYING: u32 = 1;

impl Image<'_> {
    /// See [`JournalPeers`](crate::rbd::protocol::JournalPeers).
    pub(crate) fn journal_peers(&self) -> Result<Vec<JournalPeer>, Failure> {
        if self.features()? & features::JOURNALING == 0 {
            return Ok(Vec::new());
        }
        let journal = self.io.omap(&format!("journal.{}", self.id()?))?;
        let clients =
            journal.iter().filter_map(|(key, record)| Some((key.strip_prefix(CLIENT_KEY)?, record)));
        let peers = clients.filter(|(uuid, _)| !uuid.is_empty());
        Ok(peers.filter_map(|(uuid, record)| peer(uuid, record)).collect())
    }
}

/// `cls::journal::Client` with the `librbd::journal::ClientData` in it.
fn peer(uuid: &str, record: &[u8]) -> Option<JournalPeer> {
    let mut client = Bytes(record).structure()?;
    let _id = client.counted()?;
    let mut data = Bytes(client.counted()?).structure()?;
    if data.number()? != PEER_CLIENT {
        return None;
    }
    let image_id = std::str::from_utf8(data.counted()?).ok()?.to_owned();
    Some(JournalPeer { mirror_uuid: uuid.to_owned(), image_id, synced: data.number()? == REPLAYING })
}

/// Bytes as Ceph encodes them: little-endian, lengths of 32 bits before what they count.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }

    /// What `ENCODE_START` has begun: version, oldest reader, length.
    fn structure(mut self) -> Option<Bytes<'a>> {
        self.take(2)?;
        Some(Bytes(self.counted()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes()[..], bytes].concat()
    }

    fn record(kind: u32, image: &str, state: u32) -> Vec<u8> {
        let meta =
            [&kind.to_le_bytes()[..], &counted(image.as_bytes()), &state.to_le_bytes(), &[0; 16]].concat();
        let data = [&[2, 1][..], &counted(&meta)].concat();
        let client = [counted(b"uuid"), counted(&data), vec![1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        [&[1, 1][..], &counted(&client)].concat()
    }

    #[test]
    fn a_peer_says_which_copy_it_has_and_whether_that_is_whole() {
        let read = |kind, state| peer("u1", &record(kind, "10ab", state));
        let whole = read(PEER_CLIENT, 1).map(|p| (p.mirror_uuid, p.image_id, p.synced));
        assert_eq!(whole, Some(("u1".to_owned(), "10ab".to_owned(), true)));
        assert_eq!(read(PEER_CLIENT, 0).map(|p| p.synced), Some(false));
        assert_eq!(read(0, 1), None, "the image itself");
    }

    #[test]
    fn a_record_that_is_cut_anywhere_is_of_nobody() {
        let whole = record(PEER_CLIENT, "10ab", 1);
        for length in 0..whole.len() {
            assert_eq!(peer("u1", &whole[..length]), None, "{length}");
        }
    }
}
