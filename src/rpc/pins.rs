//! How old the services are that Scoria talks to, and so what they may be sent.
//!
//! During a rolling upgrade, services of two releases share broker and database. Each writes into its row
//! which RPC version and which history of objects it speaks; whoever sends keeps to the oldest that may
//! receive (`cinder/rpc.py`, `RPCAPI.determine_rpc_version_cap` and `determine_obj_version_cap`). Rows of
//! services that are down count: they take what is in their queue when they come back.

use crate::model::Versions;
use crate::rpc::objects::Pin;

/// What every service of one binary understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pins {
    rpc: (u32, u32),
    /// To which history objects are relabelled.
    pub objects: Pin,
}

impl Pins {
    /// Peers of this RPC version and of the newest objects: of those who are not there yet, the best is
    /// assumed, as upstream.
    pub const fn newest(rpc: (u32, u32)) -> Pins {
        Pins { rpc, objects: Pin::V1_39 }
    }

    /// The least of the `rows`, and of what Scoria itself speaks. A row without a version, or with one that
    /// Cinder 29 does not know any more, counts as the oldest: upstream refuses to start then.
    pub fn least(newest: Pins, rows: &[Versions]) -> Pins {
        rows.iter().fold(newest, |least, row| Pins {
            rpc: least.rpc.min(row.rpc.as_deref().and_then(number).unwrap_or((newest.rpc.0, 0))),
            objects: match row.objects.as_deref().and_then(number) {
                // A later release reads what Scoria sends.
                Some(version) if version > (1, 38) => least.objects,
                _ => Pin::V1_38,
            },
        })
    }

    /// The RPC version, for the log.
    pub fn rpc_text(&self) -> String {
        format!("{}.{}", self.rpc.0, self.rpc.1)
    }

    /// Whether all of them take a request of this version (oslo.messaging's `can_send_version`).
    pub fn accept(&self, version: (u32, u32)) -> bool {
        version.0 == self.rpc.0 && version.1 <= self.rpc.1
    }
}

fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWEST: Pins = Pins::newest((3, 12));

    fn row(rpc: &str, objects: &str) -> Versions {
        Versions { rpc: Some(rpc.to_owned()), objects: Some(objects.to_owned()) }
    }

    #[test]
    fn the_oldest_service_decides_and_each_version_for_itself() {
        assert_eq!(Pins::least(NEWEST, &[]), NEWEST);
        assert_eq!(Pins::least(NEWEST, &[row("3.12", "1.39"), row("3.12", "1.39")]), NEWEST);
        let mixed = Pins::least(NEWEST, &[row("3.12", "1.38"), row("3.9", "1.39")]);
        assert_eq!(mixed.objects, Pin::V1_38);
        // Numbers, not texts: 3.9 is older than 3.12.
        assert!(mixed.accept((3, 9)) && mixed.accept((3, 0)) && !mixed.accept((3, 10)));
        assert!(!mixed.accept((2, 0)) && !mixed.accept((4, 0)));
    }

    #[test]
    fn nobody_is_sent_more_than_scoria_speaks() {
        assert_eq!(Pins::least(NEWEST, &[row("3.99", "1.40"), row("4.0", "2.0")]), NEWEST);
    }

    #[test]
    fn what_a_row_does_not_say_is_the_oldest() {
        let unknown = Versions { rpc: None, objects: None };
        for row in [unknown, row("", ""), row("x.y", "1.37")] {
            let pins = Pins::least(NEWEST, &[row]);
            assert_eq!(pins.objects, Pin::V1_38);
            assert!(pins.accept((3, 0)) && !pins.accept((3, 1)));
        }
    }
}
