//! What the name of a RADOS object, of a block name prefix or of an image says. Pure.
//!
//! Names are those of `librbd/Types.h` and `include/rbd_types.h` (Ceph): `rbd_data.<id>.<number>`, with the number of
//! the image's pool before the id where its data is in another one, `rbd_header.<id>`, `rbd_object_map.<id>[.<snap>]`,
//! `rbd_id.<name>`, `journal.<id>` and `journal_data.<pool>.<id>.<number>`.

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clue {
    /// The image of an internal id.
    Id {
        /// The id.
        id: String,
        /// What the object holds: `data`, `header`, `object map`, `journal` …
        what: String,
        /// Which object of the image's data.
        object: Option<u64>,
        /// Which snapshot's object map.
        snap: Option<u64>,
    },
    /// An image by its name, maybe of one pool.
    Name {
        /// The pool.
        pool: Option<String>,
        /// The image.
        image: String,
    },
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn hex(text: &str) -> Option<u64> {
    (text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u64::from_str_radix(text, 16).ok())?
}

impl Clue {
    /// Reads what an operator has found in a log, in `rados ls`, or in `rbd info`.
    ///
    /// # Errors
    /// `InvalidInput` for an object that belongs to no image of the present format.
    pub fn read(text: &str) -> Result<Clue> {
        let text = text.trim();
        let strange = |why: &str| {
            let shown: String = text.chars().take(100).collect();
            Err(Error::new(Code::InvalidInput, format!("'{shown}': {why}")))
        };
        let of = |id: &str, what: &str, object, snap| {
            Ok(Clue::Id { id: id.to_owned(), what: what.to_owned(), object, snap })
        };
        if text.is_empty() || text.chars().any(char::is_control) {
            return strange("name an object, a block name prefix, or an image");
        }
        if let Some(rest) = text.strip_prefix("rbd_data.") {
            let parts: Vec<&str> = rest.trim_end_matches('.').split('.').collect();
            return match parts.as_slice() {
                [id] if is_id(id) => of(id, "data", None, None),
                [id, number] if is_id(id) && hex(number).is_some() => of(id, "data", hex(number), None),
                [pool, id] if pool.bytes().all(|b| b.is_ascii_digit()) && is_id(id) => {
                    of(id, "data", None, None)
                }
                [_, id, number] if is_id(id) && hex(number).is_some() => of(id, "data", hex(number), None),
                _ => strange("this is no name of an object of data: rbd_data.[POOL.]ID[.NUMBER]"),
            };
        }
        if let Some(rest) = text.strip_prefix("rbd_object_map.") {
            return match rest.split('.').collect::<Vec<_>>().as_slice() {
                [id] if is_id(id) => of(id, "object map", None, None),
                [id, snap] if is_id(id) && hex(snap).is_some() => {
                    of(id, "object map of a snapshot", None, hex(snap))
                }
                _ => strange("this is no name of an object map: rbd_object_map.ID[.SNAPSHOT]"),
            };
        }
        if let Some(id) = text.strip_prefix("rbd_header.").filter(|id| is_id(id)) {
            return of(id, "header", None, None);
        }
        if let Some(name) = text.strip_prefix("rbd_id.") {
            return Ok(Clue::Name { pool: None, image: name.to_owned() });
        }
        if let Some(rest) = text.strip_prefix("journal_data.") {
            return match rest.split('.').collect::<Vec<_>>().as_slice() {
                [_, id, ..] if is_id(id) => of(id, "journal", None, None),
                _ => strange("this is no name of an object of a journal: journal_data.POOL.ID.NUMBER"),
            };
        }
        if let Some(id) = text.strip_prefix("journal.").filter(|id| is_id(id)) {
            return of(id, "journal", None, None);
        }
        if text.starts_with("rb.0.") || text.ends_with(".rbd") {
            return strange(
                "this is an image of format 1, which Cinder has never made; rbd info finds it by its name",
            );
        }
        if text.starts_with("rbd_") {
            return strange("this object belongs to the pool, and to no single image");
        }
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [image] => Ok(Clue::Name { pool: None, image: (*image).to_owned() }),
            [pool, image] if !pool.is_empty() && !image.is_empty() => {
                Ok(Clue::Name { pool: Some((*pool).to_owned()), image: (*image).to_owned() })
            }
            _ => strange("an image is named IMAGE or POOL/IMAGE"),
        }
    }

    /// Whether an image of the directory is meant. A name that looks like an id may be one; so may that of a volume
    /// stand for its image.
    pub fn means(&self, pool: &str, id: &str, name: &str, template: &str) -> bool {
        match self {
            Clue::Id { id: wanted, .. } => wanted == id,
            Clue::Name { pool: of, image } => {
                of.as_deref().is_none_or(|of| of == pool)
                    && (image == name || image == id || template.replacen("%s", image, 1) == name)
            }
        }
    }

    /// The bytes of the image that an object of data holds, by the size of its objects.
    pub fn bytes(&self, order: u8) -> Option<(u64, u64)> {
        let Clue::Id { object: Some(number), .. } = self else { return None };
        let size = 1_u64.checked_shl(u32::from(order))?;
        let from = number.checked_mul(size)?;
        Some((from, from.checked_add(size)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> (String, String, Option<u64>, Option<u64>) {
        match Clue::read(text).unwrap() {
            Clue::Id { id, what, object, snap } => (id, what, object, snap),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_object_of_an_image_leads_to_its_id() {
        let is = |what: &str, object, snap| ("10ab34cd".to_owned(), what.to_owned(), object, snap);
        assert_eq!(id("rbd_data.10ab34cd"), is("data", None, None));
        assert_eq!(id("rbd_data.10ab34cd."), is("data", None, None));
        assert_eq!(id("rbd_data.10ab34cd.000000000000001f"), is("data", Some(31), None));
        assert_eq!(id("rbd_data.7.10ab34cd"), is("data", None, None));
        assert_eq!(id("rbd_data.7.10ab34cd.0000000000000000"), is("data", Some(0), None));
        assert_eq!(id("rbd_header.10ab34cd"), is("header", None, None));
        assert_eq!(id("rbd_object_map.10ab34cd"), is("object map", None, None));
        assert_eq!(
            id("rbd_object_map.10ab34cd.000000000000000a"),
            is("object map of a snapshot", None, Some(10))
        );
        assert_eq!(id("journal.10ab34cd"), is("journal", None, None));
        assert_eq!(id("journal_data.7.10ab34cd.3"), is("journal", None, None));
    }

    #[test]
    fn names_stay_names_and_nonsense_is_refused() {
        let name = |pool: Option<&str>, image: &str| Clue::Name {
            pool: pool.map(str::to_owned),
            image: image.into(),
        };
        assert_eq!(Clue::read("volumes/disk").unwrap(), name(Some("volumes"), "disk"));
        assert_eq!(Clue::read("rbd_id.disk").unwrap(), name(None, "disk"));
        assert_eq!(Clue::read(" disk ").unwrap(), name(None, "disk"));
        let data = "this is no name of an object of data: rbd_data.[POOL.]ID[.NUMBER]";
        let named = "an image is named IMAGE or POOL/IMAGE";
        for (bad, said) in [
            ("", "name an object, a block name prefix, or an image"),
            ("a\nb", "name an object, a block name prefix, or an image"),
            ("rbd_data.", data),
            ("rbd_data.xyz", data),
            ("rbd_data.1.2.3.4", data),
            ("rbd_directory", "this object belongs to the pool, and to no single image"),
            ("a/b/c", named),
            ("/x", named),
            ("rb.0.1.2", "this is an image of format 1"),
            ("rbd_object_map.1.2", "this is no name of an object map: rbd_object_map.ID[.SNAPSHOT]"),
            ("journal_data.1", "this is no name of an object of a journal: journal_data.POOL.ID.NUMBER"),
        ] {
            let refused = Clue::read(bad).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidInput, "{bad}");
            assert!(refused.user().contains(&format!("'{}': {said}", bad.trim())), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_volume_stands_for_its_image_and_an_object_for_its_bytes() {
        let volume = Clue::read("51e00000-0000-4000-8000-000000001001").unwrap();
        assert!(volume.means("p", "1", "volume-51e00000-0000-4000-8000-000000001001", "volume-%s"));
        assert!(!volume.means("p", "1", "disk", "volume-%s"));
        assert!(!Clue::read("q/disk").unwrap().means("p", "1", "disk", "volume-%s"));
        assert!(Clue::read("10ab").unwrap().means("p", "10ab", "disk", "volume-%s"));
        let object = Clue::read("rbd_data.10ab.0000000000000003").unwrap();
        assert_eq!(object.bytes(22), Some((12 << 20, 16 << 20)));
        assert_eq!(Clue::read("rbd_data.10ab.ffffffffffffffff").unwrap().bytes(22), None);
        assert_eq!(Clue::read("rbd_header.10ab").unwrap().bytes(22), None);
    }
}
