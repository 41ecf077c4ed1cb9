//! What each option of a backend is in the end, whatever file or default says so.
//!
//! Two readings of a backend are compared by these: what an edit has changed, and whether two hosts that share a
//! backend serve the same thing. Between hosts it is hashes that are compared, since options stay in their files.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::options::{Group, Kind, OPTIONS};
use super::reader::{Reader, Scope};

/// Options that belong to a host and not to what it serves.
const OF_HOST: [&str; 1] = ["backend_host"];

/// The value of each option. Never printed: `replication_device` is secret upstream.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, String>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Values")
    }
}

impl Values {
    pub(super) fn read(reader: &Reader<'_>, section: &str) -> Values {
        let scope = Scope::Backend(section);
        let options = OPTIONS.iter().filter(|o| o.group == Group::Backend);
        let value = |name, kind| match kind {
            Kind::Multi | Kind::MultiDict => {
                reader.multi(scope, name).into_iter().map(|f| f.value).collect::<Vec<_>>().join("\n")
            }
            _ => reader.found(scope, name).map(|f| f.value).unwrap_or_default(),
        };
        Values(options.map(|o| (o.name, value(o.name, o.kind))).collect())
    }

    /// The value of an option, empty when it has none.
    pub fn get(&self, option: &str) -> &str {
        self.0.get(option).map_or("", String::as_str)
    }

    /// Names of the options that differ.
    pub fn differing(&self, other: &Values) -> Vec<&'static str> {
        self.0.iter().filter(|(name, value)| other.0.get(*name) != Some(value)).map(|(n, _)| *n).collect()
    }

    /// A short hash of each value, for comparison with another host's.
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let shared = self.0.iter().filter(|(name, _)| !OF_HOST.contains(*name));
        shared
            .map(|(name, value)| ((*name).to_owned(), checksum(value.as_bytes())[..16].to_owned()))
            .collect()
    }
}

/// SHA-256 in hex.
pub fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_a_host_may_differ_in_its_own() {
        let of = |pairs: &[(&'static str, &str)]| {
            Values(pairs.iter().map(|(k, v)| (*k, (*v).to_owned())).collect())
        };
        let (a, b) = (
            of(&[("rbd_pool", "a"), ("rbd_user", "u"), ("backend_host", "x")]),
            of(&[("rbd_pool", "b"), ("rbd_user", "u"), ("backend_host", "y")]),
        );
        assert_eq!(a.differing(&b), ["backend_host", "rbd_pool"]);
        let (a, b) = (a.fingerprints(), b.fingerprints());
        assert_eq!(a.len(), 2);
        assert!(a["rbd_user"] == b["rbd_user"] && a["rbd_pool"] != b["rbd_pool"]);
        assert_eq!(checksum(b"")[..8], *"e3b0c442");
    }
}
