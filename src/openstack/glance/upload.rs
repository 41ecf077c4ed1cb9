//! Bytes into an image (`PUT …/file`), without ever holding all of them.
//!
//! Glance takes them as they come, so a broken connection means to begin anew: the caller hands over not a
//! stream but a way to open one. There is no limit for the whole, which may take hours; but when no byte has
//! moved, and no answer come, for `glance_request_timeout`, the attempt has failed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Body, Method, Response};
use tokio::time::Instant;

use super::{Glance, Image, Request, image_error, image_path};
use crate::context::RequestContext;
use crate::error::{Error, Result};
use crate::openstack::http::{self, Failure};

/// What goes along with the bytes.
#[derive(Debug, Clone, Default)]
pub struct Upload {
    /// Glance's store to put them into (`image_service:store_id` of a volume type).
    pub store: Option<String>,
    /// A location that the new image shares data with (`x-openstack-base-image-ref`).
    pub base_image_ref: Option<String>,
    /// How many there are, when that is known.
    pub size: Option<u64>,
}

/// When something last moved, and what the source of the bytes said when it failed.
#[derive(Debug)]
struct Progress {
    moved: Instant,
    source: Option<Error>,
}

impl Glance {
    /// Fills an image that has no data yet; `open` begins the bytes, from the first one each time it is called.
    /// The image is `active` afterwards.
    ///
    /// # Errors
    /// What a stream ends with; `ImageNotFound`, `ImageNotAuthorized`, `ImageLimitExceeded`,
    /// `GlanceConnection`; `Glance`, for example when the image has data already.
    pub async fn upload<S>(
        &self,
        context: &RequestContext,
        id: &str,
        upload: &Upload,
        open: impl Fn() -> S + Send + Sync,
    ) -> Result<Image>
    where
        S: Stream<Item = Result<Bytes>> + Send + 'static,
    {
        let mut request = Request::new(Method::PUT, format!("{}/file", image_path(id)?));
        let size = upload.size.map(|size| size.to_string());
        for (name, value) in [
            ("content-type", Some("application/octet-stream")),
            ("x-image-meta-store", upload.store.as_deref()),
            ("x-openstack-base-image-ref", upload.base_image_ref.as_deref()),
            ("x-openstack-image-size", size.as_deref()),
        ] {
            if let Some(value) = value.and_then(|v| HeaderValue::from_str(v).ok()) {
                request.headers.insert(HeaderName::from_static(name), value);
            }
        }
        let mut attempts = self.attempts(context).await.map_err(|e| image_error(id, e))?;
        loop {
            match self.put(context, attempts.server(), &request, &open).await? {
                Ok(_) => return self.raw(context, id).await,
                Err(failure) if attempts.again(&failure, &request.path).await => {}
                Err(failure) => return Err(image_error(id, failure)),
            }
        }
    }

    /// One attempt. The outer error is the source's.
    async fn put<S>(
        &self,
        context: &RequestContext,
        server: &str,
        request: &Request,
        open: &(impl Fn() -> S + Send + Sync),
    ) -> Result<Result<Response, Failure>>
    where
        S: Stream<Item = Result<Bytes>> + Send + 'static,
    {
        let speaker = self.user(context)?;
        let client = match self.connections.client(&self.config.tls).await {
            Ok(client) => client,
            Err(failure) => return Ok(Err(failure)),
        };
        let mut again = true;
        loop {
            let tokens = match speaker.tokens().await {
                Ok(tokens) => tokens,
                Err(failure) => return Ok(Err(failure)),
            };
            let progress = Arc::new(Mutex::new(Progress { moved: Instant::now(), source: None }));
            let sent = self
                .prepare(&client, context, server, request)
                .headers(tokens.headers.clone())
                .body(watched(open(), progress.clone()))
                .send();
            let limit = self.config.timeout;
            let answer = tokio::select! {
                sent = sent => match sent {
                    Ok(response) => http::accepted(response, limit).await,
                    Err(error) => Err(error.into()),
                },
                () = stalled(&progress, limit) => Err(http::silence(limit)),
            };
            if let Some(error) = progress.lock().unwrap_or_else(PoisonError::into_inner).source.take() {
                return Err(error);
            }
            let refused = answer.as_ref().is_err_and(|failure| failure.status() == Some(401));
            if !(refused && again && tokens.refused().await) {
                return Ok(answer);
            }
            again = false;
        }
    }
}

/// The bytes as a body that notes when they move.
fn watched<S>(bytes: S, progress: Arc<Mutex<Progress>>) -> Body
where
    S: Stream<Item = Result<Bytes>> + Send + 'static,
{
    Body::wrap_stream(bytes.map(move |item| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.moved = Instant::now();
        item.map_err(|error| {
            progress.source = Some(error);
            std::io::Error::other("the source of the data failed")
        })
    }))
}

/// Returns when nothing has moved for `limit`.
async fn stalled(progress: &Mutex<Progress>, limit: Duration) {
    loop {
        let moved = progress.lock().unwrap_or_else(PoisonError::into_inner).moved;
        let end = moved + limit;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}
