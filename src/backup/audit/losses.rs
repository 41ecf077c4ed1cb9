//! Backups whose data is not there.

use std::collections::{BTreeMap, HashMap};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::places::Places;
use super::standing::Standing;
use super::{Audit, Finding, Kind, Removal, go_on};
use crate::backup::{Backups, images, is_unsettled, names, restore};
use crate::db;
use crate::error::{Code, Result};
use crate::model::Backup;
use crate::rbd::protocol::{ImageSurvey, ObjectRead};
use crate::rbd::types::Surveyed;
use crate::rbd::{RbdErrorKind, Site};
use crate::volume::image::Place;

/// Rows that are read at once.
const ROWS: i64 = 200;
/// Images that are opened for one question.
const IMAGES: usize = 64;
/// Objects that are read at once.
const OBJECTS: usize = 8;

/// Rows by the site that they name and their pool, with the site.
type Pools<'a> = BTreeMap<(Option<String>, String), (Site, Vec<&'a Backup>)>;

/// Looks for the data of all backups that should have some.
///
/// # Errors
/// `Database`, `Cancelled`.
pub(super) async fn look(b: &Backups, places: &Places, audit: &mut Audit) -> Result<()> {
    let mut after = String::new();
    loop {
        go_on(b)?;
        let rows = b
            .db
            .read("backups to audit", async |conn| db::backup_audit::whole_after(conn, &after, ROWS).await)
            .await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after.clone_from(&last.id);
        let rows: Vec<Backup> =
            rows.into_iter().filter(|row| names::is_ours(row.service.as_deref())).collect();
        let parents: Vec<String> = rows.iter().filter_map(|row| row.parent_id.clone()).collect();
        let parents: HashMap<String, Backup> =
            b.db.read("parents of backups", async |conn| db::backup_place::of_ids(conn, &parents).await)
                .await?
                .into_iter()
                .map(|row| (row.id.clone(), row))
                .collect();
        let mut pools = Pools::new();
        for row in &rows {
            let noted = names::ServiceMetadata::read(row.service_metadata.as_deref()).and_then(|m| m.site);
            let pool = b.pool_of(row);
            let site = places.site(noted.as_deref()).and_then(|site| {
                let trouble = places.at(site, &pool).and_then(|at| places.spots[at].trouble.clone());
                trouble.map_or(Ok(site), Err)
            });
            match site {
                Ok(site) => {
                    let key = (noted.clone(), pool);
                    pools.entry(key).or_insert_with(|| (site.clone(), Vec::new())).1.push(row);
                }
                Err(why) => audit.skip(why),
            }
        }
        for ((_, pool), (site, rows)) in pools {
            let place = Place { site, pool };
            match of_pool(b, places, &place, &rows, &parents, audit).await {
                Err(error) if is_unsettled(&error) => return Err(error),
                Err(error) => {
                    for _ in &rows {
                        audit.skip(error.operator());
                    }
                }
                Ok(()) => audit.backups += rows.len() as u64,
            }
        }
    }
}

async fn of_pool(
    b: &Backups,
    places: &Places,
    place: &Place,
    rows: &[&Backup],
    parents: &HashMap<String, Backup>,
    audit: &mut Audit,
) -> Result<()> {
    let candidates: Vec<(&Backup, Vec<String>)> = rows
        .iter()
        .map(|row| (*row, names::bases(row, row.parent_id.as_ref().and_then(|id| parents.get(id)))))
        .collect();
    let mut bases: Vec<String> = candidates.iter().flat_map(|(_, bases)| bases.clone()).collect();
    bases.sort_unstable();
    bases.dedup();
    let (mut found, mut has_pool): (HashMap<String, Surveyed>, bool) = (HashMap::new(), true);
    for chunk in bases.chunks(IMAGES) {
        let survey = ImageSurvey { pool: place.pool.clone(), images: chunk.to_vec() };
        let seen = match place.site.insist(survey).await {
            Ok(seen) => seen,
            Err(error) if error.kind == RbdErrorKind::NoPool => {
                has_pool = false;
                break;
            }
            Err(error) => return Err(error.into()),
        };
        found.extend(chunk.iter().zip(seen).filter_map(|(name, seen)| Some((name.clone(), seen?))));
    }
    let asks: Vec<BoxFuture<'static, Result<bool>>> =
        rows.iter().map(|row| has_metadata(place.clone(), row.id.clone()).boxed()).collect();
    let objects: Vec<bool> = match has_pool {
        true => stream::iter(asks).buffered(OBJECTS).try_collect().await?,
        false => vec![false; rows.len()],
    };
    let mut doubtful: Vec<&Backup> = Vec::new();
    for ((row, bases), has_metadata) in candidates.iter().zip(objects) {
        if !has_metadata || !is_whole(row, bases, &found) {
            doubtful.push(row);
        }
    }
    if doubtful.is_empty() {
        return Ok(());
    }
    // What has been deleted, restored or made anew since the rows were read is none of this.
    let ids: Vec<String> = doubtful.iter().map(|row| row.id.clone()).collect();
    let standing = Standing::read(b, &ids, &[]).await?;
    let now = b.db.read("backups to audit", async |conn| db::backup_place::of_ids(conn, &ids).await).await?;
    let still = now.iter().filter(|row| matches!(row.status.as_str(), "available" | "restoring"));
    let at = places.at(&place.site, &place.pool);
    for row in still.filter(|row| standing.lives(&row.id)) {
        if has_pool {
            lost(b, places, at, place, row, parents, audit).await?;
        } else {
            let text = format!("there is no pool {}: delete the backup, and make a full one", place.pool);
            audit.found(finding(places, at, place, row, Kind::LostImage, text));
        }
    }
    Ok(())
}

fn finding(
    places: &Places,
    at: Option<usize>,
    place: &Place,
    row: &Backup,
    kind: Kind,
    text: String,
) -> Finding {
    Finding {
        kind,
        site: at.map_or_else(|| place.site.name().to_owned(), |at| places.spots[at].label.clone()),
        pool: place.pool.clone(),
        image: None,
        snap: None,
        object: None,
        backups: vec![row.id.clone()],
        removal: Removal::Never,
        text,
        place: at.unwrap_or_default(),
    }
}

/// Whether a backup has its point, as far as many are looked at: a restoration looks the same way.
fn is_whole(row: &Backup, bases: &[String], found: &HashMap<String, Surveyed>) -> bool {
    let Some(base) = bases.iter().find_map(|base| found.get(base)) else { return false };
    match names::snapshots(&base.snaps, &row.id).count() {
        1 => true,
        // Without any snapshot of a backup the image itself is one.
        0 => !base.snaps.iter().any(|snap| names::backup_of(&snap.name).is_some()),
        _ => false,
    }
}

async fn has_metadata(place: Place, id: String) -> Result<bool> {
    let read = ObjectRead { pool: place.pool, object: names::metadata_object(&id) };
    Ok(place.site.insist(read).await?.is_some())
}

/// Looks at one again, as a restoration would, and tells what is missing.
async fn lost(
    b: &Backups,
    places: &Places,
    at: Option<usize>,
    place: &Place,
    row: &Backup,
    parents: &HashMap<String, Backup>,
    audit: &mut Audit,
) -> Result<()> {
    let finding = |kind: Kind, text: String| finding(places, at, place, row, kind, text);
    match restore::find_point(b, row, place).await {
        Ok(_) => {}
        Err(error) if error.code() == Code::InvalidBackup => {
            let mut kind = Kind::LostImage;
            for base in names::bases(row, row.parent_id.as_ref().and_then(|id| parents.get(id))) {
                if images::inspect(place, &base).await?.is_some() {
                    kind = Kind::LostSnapshot;
                }
            }
            audit.found(finding(kind, format!("{}: delete the backup, and make a full one", error.user())));
        }
        Err(error) => return Err(error),
    }
    if !has_metadata(place.clone(), row.id.clone()).await? {
        let text =
            "the metadata of the volume is not there: its data can be restored, its name and type cannot";
        let object = Some(names::metadata_object(&row.id));
        audit.found(Finding { object, ..finding(Kind::LostMetadata, text.to_owned()) });
    }
    Ok(())
}
