//! `get_manageable_volumes` and `get_manageable_snapshots`: what of a pool could be taken over, and what not, and
//! why.
//!
//! A pool may have thousands of images, and a caller is waiting: they are looked at a hundred to a request, some
//! requests at a time, and the database is asked once. Order, pages and reasons are those of
//! `paginate_entries_list` and of the RBD driver.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::image::{DELETED, DRILL, Place, is_helper_snapshot, is_named_as_backup};
use super::manage::{id_in, size_gib};
use crate::backend::Backend;
use crate::db;
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::{ImageList, ImageSurvey};
use crate::rbd::types::Surveyed;

/// Images that one request looks at.
const CHUNK: usize = 128;
/// Requests at a time; each has several images open at once.
const AT_ONCE: usize = 4;

/// Which part of a list, and in which order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The reference behind which the page begins: an object, or one as text.
    pub marker: Option<Value>,
    /// Entries at most; all without one.
    pub limit: Option<i64>,
    /// Entries to skip.
    pub offset: i64,
    /// `size` and `reference`.
    pub sort_keys: Vec<String>,
    /// `asc`, or anything else for descending.
    pub sort_dirs: Vec<String>,
}

/// An image or a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manageable {
    /// Its name.
    pub name: String,
    /// For a snapshot, the name of its image.
    pub image: Option<String>,
    /// Its size, rounded up.
    pub gib: i32,
    /// The volume or snapshot that it is.
    pub cinder_id: Option<String>,
    /// Why it cannot, or should not, be managed.
    pub reason: Option<&'static str>,
}

/// A page of the pool's images.
///
/// # Errors
/// `DriverNotInitialized`; `InvalidInput` for a marker or a sort key that does not exist; `VolumeBackend`.
pub async fn volumes(backend: &Backend, page: &Page) -> Result<Vec<Manageable>> {
    let images = survey(backend).await?;
    let template = &backend.globals.volume_name_template;
    let ids: Vec<String> =
        images.iter().filter_map(|(name, _)| id_in(name, template)).map(str::to_owned).collect();
    let owners = backend
        .db
        .read("volumes of images", async |conn| db::manageable::volumes_by_name(conn, &ids).await)
        .await?;
    let entries = images.into_iter().map(|(name, seen)| volume(name, &seen, template, &owners));
    paginate(entries.collect::<Result<_>>()?, page)
}

/// A page of the snapshots of all images of the pool.
///
/// # Errors
/// As [`volumes`].
pub async fn snapshots(backend: &Backend, page: &Page) -> Result<Vec<Manageable>> {
    let images = survey(backend).await?;
    let template = &backend.globals.snapshot_name_template;
    let names = images.iter().flat_map(|(_, seen)| &seen.snaps).map(|s| s.name.as_str());
    let ids: Vec<String> = names.filter_map(|name| id_in(name, template)).map(str::to_owned).collect();
    let known = backend
        .db
        .read("known snapshots", async |conn| db::manageable::snapshots_by_name(conn, &ids).await)
        .await?;
    let mut entries = Vec::new();
    for (image, seen) in images {
        for snap in seen.snaps {
            entries.push(snapshot(&image, snap.name, snap.size, template, &known)?);
        }
    }
    paginate(entries, page)
}

/// All images of the pool that can be opened, in no particular order.
async fn survey(backend: &Backend) -> Result<Vec<(String, Surveyed)>> {
    backend.require_up()?;
    let place = Place { site: backend.active_site()?, pool: backend.config.pool.clone() };
    let mut names = place.site.insist(ImageList { pool: place.pool.clone() }).await?;
    // A drill's clones go when it ends.
    names.retain(|name| !name.starts_with(DRILL));
    let chunks: Vec<Vec<String>> = names.chunks(CHUNK).map(<[String]>::to_vec).collect();
    let seen: Vec<Vec<(String, Surveyed)>> = futures::stream::iter(chunks)
        .map(|images| {
            let place = place.clone();
            async move {
                let ask = ImageSurvey { pool: place.pool.clone(), images: images.clone() };
                let seen = place.site.insist(ask).await?;
                let both = images.into_iter().zip(seen);
                Ok::<_, Error>(both.filter_map(|(name, seen)| Some((name, seen?))).collect())
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(seen.into_iter().flatten().collect())
}

fn volume(
    name: String,
    seen: &Surveyed,
    template: &str,
    owners: &HashMap<String, String>,
) -> Result<Manageable> {
    let cinder_id = id_in(&name, template).and_then(|id| owners.get(id)).cloned();
    let reason = if cinder_id.is_some() {
        Some("already managed")
    } else if seen.watchers > 0 {
        Some("volume in use")
    } else if name.ends_with(DELETED) {
        Some("volume marked as deleted")
    } else {
        None
    };
    let gib = size_gib(seen.size, &name)?;
    Ok(Manageable { name, image: None, gib, cinder_id, reason })
}

fn snapshot(
    image: &str,
    name: String,
    bytes: u64,
    template: &str,
    known: &HashSet<String>,
) -> Result<Manageable> {
    let cinder_id = id_in(&name, template).filter(|id| known.contains(*id)).map(str::to_owned);
    let reason = if cinder_id.is_some() {
        Some("already managed")
    } else if is_helper_snapshot(&name) {
        Some("used for clone snap")
    } else if is_named_as_backup(&name) {
        Some("used for volume backup")
    } else {
        None
    };
    let gib = size_gib(bytes, &name)?;
    Ok(Manageable { name, image: Some(image.to_owned()), gib, cinder_id, reason })
}

/// Sorts, and cuts the page out. Upstream's order is stable, and so is this one; where it leaves the order open,
/// the image decides, so that two pages of the same list never overlap.
fn paginate(mut entries: Vec<Manageable>, page: &Page) -> Result<Vec<Manageable>> {
    let mut orders = Vec::new();
    for (key, direction) in page.sort_keys.iter().zip(&page.sort_dirs) {
        let compare: fn(&Manageable, &Manageable) -> Ordering = match key.trim() {
            "size" => |a, b| a.gib.cmp(&b.gib),
            "reference" => |a, b| a.name.cmp(&b.name),
            other => {
                return Err(Error::new(Code::InvalidInput, format!("Invalid sort key: {other}")));
            }
        };
        orders.push((compare, direction == "asc"));
    }
    entries.sort_by(|a, b| {
        let by_keys = orders.iter().map(|(compare, ascending)| {
            let order = compare(a, b);
            if *ascending { order } else { order.reverse() }
        });
        let rest = std::iter::once_with(|| (&a.image, &a.name).cmp(&(&b.image, &b.name)));
        by_keys.chain(rest).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    });
    let behind = match &page.marker {
        None => 0,
        Some(marker) => after(marker, &entries)?,
    };
    let offset = usize::try_from(page.offset).unwrap_or(0);
    let limit = page.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0));
    Ok(entries.into_iter().skip(behind.saturating_add(offset)).take(limit).collect())
}

/// The place behind the entry that the marker names.
fn after(marker: &Value, entries: &[Manageable]) -> Result<usize> {
    let wanted = match marker {
        Value::String(text) if text.is_empty() => return Ok(0),
        Value::Null => return Ok(0),
        Value::String(text) => serde_json::from_str(text).map_err(|e| {
            let text = format!("marker {text} can not be analysed, please use json like format");
            Error::new(Code::InvalidInput, text).caused_by(e)
        })?,
        other => other.clone(),
    };
    let found = entries.iter().position(|entry| json!({ "source-name": entry.name }) == wanted);
    found
        .map(|at| at + 1)
        .ok_or_else(|| Error::new(Code::InvalidInput, format!("marker not found: {wanted}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rbd::types::Snap;

    const ID: &str = "0f0e0d0c-0000-4000-8000-000000000001";

    fn entries() -> Vec<Manageable> {
        let entry = |name: &str, gib| Manageable { name: name.into(), gib, ..Manageable::default() };
        vec![entry("b", 1), entry("a", 3), entry("d", 1), entry("c", 2)]
    }

    fn page(keys: &[(&str, &str)]) -> Page {
        Page {
            sort_keys: keys.iter().map(|(k, _)| (*k).to_owned()).collect(),
            sort_dirs: keys.iter().map(|(_, d)| (*d).to_owned()).collect(),
            ..Page::default()
        }
    }

    fn names(page: &Page) -> String {
        paginate(entries(), page).unwrap().into_iter().map(|e| e.name).collect()
    }

    #[test]
    fn lists_are_sorted_by_several_keys() {
        assert_eq!(names(&page(&[("reference", "desc")])), "dcba");
        assert_eq!(names(&page(&[("size", "asc"), ("reference", "desc")])), "dbca");
        assert_eq!(names(&page(&[("size", "desc"), ("reference", "asc")])), "acbd");
        let refusal = paginate(entries(), &page(&[("id", "asc")])).unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidInput);
    }

    #[test]
    fn pages_follow_each_other() {
        let by_name = page(&[("reference", "asc")]);
        let cut = |marker: Option<Value>, limit, offset| {
            names(&Page { marker, limit: Some(limit), offset, ..by_name.clone() })
        };
        assert_eq!(cut(None, 2, 0), "ab");
        assert_eq!(cut(Some(json!({"source-name": "b"})), 2, 0), "cd");
        assert_eq!(cut(Some(json!("{\"source-name\": \"a\"}")), 1, 1), "c");
        assert_eq!(cut(Some(json!("")), 9, 3), "d");
        assert_eq!(cut(Some(json!({"source-name": "d"})), 9, 0), "");
        for bad in [json!("b"), json!({"source-name": "x"}), json!({"name": "a"})] {
            let page = Page { marker: Some(bad), ..by_name.clone() };
            assert_eq!(paginate(entries(), &page).unwrap_err().code(), Code::InvalidInput);
        }
    }

    #[test]
    fn reasons_are_upstreams() {
        let owners = HashMap::from([(ID.to_owned(), "owner".to_owned())]);
        let seen = |watchers| Surveyed { size: 1, watchers, snaps: Vec::<Snap>::new() };
        let of = |name: &str, watchers| volume(name.into(), &seen(watchers), "volume-%s", &owners).unwrap();
        let managed = of(&format!("volume-{ID}"), 1);
        assert_eq!((managed.reason, managed.cinder_id.as_deref()), (Some("already managed"), Some("owner")));
        assert_eq!(of("foreign", 1).reason, Some("volume in use"));
        assert_eq!(of(&format!("volume-{ID}.deleted"), 0).reason, Some("volume marked as deleted"));
        assert_eq!((of("foreign", 0).reason, of("foreign", 0).gib), (None, 1));

        let known = HashSet::from([ID.to_owned()]);
        let of = |name: &str| snapshot("i", name.into(), 1, "snapshot-%s", &known).unwrap().reason;
        assert_eq!(of(&format!("snapshot-{ID}")), Some("already managed"));
        assert_eq!(of("volume-x.clone_snap"), Some("used for clone snap"));
        assert_eq!(of("backup.b.snap.1.0"), Some("used for volume backup"));
        assert_eq!(of("mine"), None);
    }
}
