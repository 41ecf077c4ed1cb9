//! What a backend asks a Ceph site once and then remembers, and what it measures for each report.

use std::time::Duration;

use super::Backend;
use super::capacity::Measured;
use crate::error::Result;
use crate::model::GIB;
use crate::rbd::Site;
use crate::rbd::protocol::{ConfGet, ImageList, ImageSurvey, PoolStats};
use crate::rbd::types::features;
use crate::volume::image::default_features;

/// Until a measurement counts as failed: a report must never be late because a site hangs.
const MEASURE: Duration = Duration::from_secs(10);

/// Images whose sizes are asked for in one request.
const CHUNK: usize = 100;

/// What does not change while a site lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFacts {
    /// Its fsid.
    pub fsid: String,
    /// Feature bits of new images.
    pub default_features: u64,
}

impl SiteFacts {
    pub(super) async fn ask(site: &Site) -> Result<SiteFacts> {
        let fsid = site.fsid(MEASURE).await?;
        let option = site.call_within(MEASURE, ConfGet { option: "rbd_default_features".to_owned() }).await?;
        Ok(SiteFacts { fsid, default_features: default_features(option.as_deref()) })
    }
}

impl Backend {
    pub(super) async fn measure(&self) -> Result<Measured> {
        let site = self.active_site()?;
        let pool = self.config.pool.clone();
        let capacity = site.call_within(MEASURE, PoolStats { pool }).await?;
        let facts = self.facts(&site).await?;
        let fsid = facts.fsid.clone();
        let exclusive_lock = facts.default_features & features::EXCLUSIVE_LOCK != 0;
        let provisioned_gb =
            if self.config.exclusive_pool { None } else { Some(self.provisioned(&site).await?) };
        Ok(Measured { fsid, capacity, exclusive_lock, provisioned_gb })
    }

    /// Sum of all image sizes of a pool that others use too, ceil GiB (`rbd_exclusive_cinder_pool`).
    async fn provisioned(&self, site: &Site) -> Result<u64> {
        let pool = &self.config.pool;
        let mut bytes = 0;
        for images in site.call(ImageList { pool: pool.clone() }).await?.chunks(CHUNK) {
            let ask = ImageSurvey { pool: pool.clone(), images: images.to_vec() };
            // One that has been deleted since it was listed counts for nothing.
            bytes += site.call(ask).await?.into_iter().flatten().map(|image| image.size).sum::<u64>();
        }
        Ok(bytes.div_ceil(GIB))
    }
}
