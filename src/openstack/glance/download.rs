//! An image's bytes, one bounded piece after the other.
//!
//! A download of many gigabytes outlives servers. One that breaks off goes on where it stopped, at the next
//! server (`Range`), as often as `glance_num_retries` allows; a server that knows no ranges sends all again, and
//! what is known is passed over. Only when the checksum of all that was handed out is right has the download
//! ended well.

use bytes::{Buf, Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::io::AsyncReadExt;
use tracing::{info, warn};

use super::checksum::Checksum;
use super::signature::Check;
use super::{Attempts, Glance, Image, Request, Verifier, image_error, image_path};
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::openstack::auth::Speaker;
use crate::openstack::http::{self, Failure};

/// How much of a local file is read at once.
const PIECE: usize = 1 << 20;

/// A download under way.
pub struct Download {
    glance: Glance,
    context: RequestContext,
    image: Image,
    source: Source,
    signature: Option<Check>,
}

enum Source {
    Http(Box<Stream>),
    File(tokio::fs::File),
    Ended,
}

struct Stream {
    speaker: Speaker,
    attempts: Attempts,
    response: Option<Response>,
    /// Of the response, before anything new comes.
    skip: u64,
    position: u64,
    checksum: Option<Checksum>,
}

impl Glance {
    /// Begins to download the image. A file that is readable here is read instead, when
    /// `allowed_direct_url_schemes` has `file`.
    ///
    /// # Errors
    /// As [`Glance::show`]; `ImageDownload` for an image without data, or with a checksum that cannot be made.
    pub async fn download(&self, context: &RequestContext, id: &str) -> Result<Download> {
        let image = self.show(context, id).await?;
        let file = if self.config.read_files { self.local_file(context, id).await? } else { None };
        let source = match file {
            Some(file) => Source::File(file),
            None => Source::Http(Box::new(self.first(context, &image).await?)),
        };
        Ok(Download { glance: self.clone(), context: context.clone(), image, source, signature: None })
    }

    async fn local_file(&self, context: &RequestContext, id: &str) -> Result<Option<tokio::fs::File>> {
        let locations = self.locations(context, id).await?;
        let direct = locations.direct_url.as_deref().into_iter();
        let all = direct.chain(locations.locations.iter().filter_map(|l| l.get("url")?.as_str()));
        for path in all.filter_map(|url| url::Url::parse(url).ok()?.to_file_path().ok()) {
            match tokio::fs::File::open(&path).await {
                Ok(file) => {
                    info!(image.id = id, path = %path.display(), "reading the image's file");
                    return Ok(Some(file));
                }
                // Upstream ends here; the servers have the data as well.
                Err(error) => {
                    warn!(image.id = id, path = %path.display(), %error, "cannot read the image's file")
                }
            }
        }
        Ok(None)
    }

    /// The answer of the first server that has one.
    async fn first(&self, context: &RequestContext, image: &Image) -> Result<Stream> {
        let attempts = self.attempts(context).await.map_err(|e| image_error(&image.id, e))?;
        let speaker = self.user(context)?;
        let mut stream = Stream { speaker, attempts, response: None, skip: 0, position: 0, checksum: None };
        let response = stream.open(self, context, &image.id).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Err(failed(&image.id, "image contains no data."));
        }
        let md5 = response.headers().get("content-md5").and_then(|v| v.to_str().ok());
        stream.checksum = Checksum::of(image, md5)
            .map_err(|name| failed(&image.id, &format!("its checksum is of an unknown kind, {name}")))?;
        stream.response = Some(response);
        Ok(stream)
    }
}

impl Download {
    /// What is downloaded.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// From its begin on, it must be what was signed.
    pub fn verify(&mut self, verifier: &Verifier) {
        self.signature = Some(verifier.begin());
    }

    /// The next piece; `None` when all is there, and its checksum and signature are right.
    ///
    /// # Errors
    /// `GlanceConnection` when no server goes on; `ImageDownload` when the data is not the image's; `ImageSignature`
    /// when it is not what was signed.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let next = match &mut self.source {
            Source::Ended => return Ok(None),
            Source::File(file) => piece(file)
                .await
                .map_err(|e| failed(&self.image.id, "its file could not be read").caused_by(e)),
            Source::Http(stream) => stream.next(&self.glance, &self.context, &self.image).await,
        };
        match (&next, &mut self.signature) {
            (Ok(Some(bytes)), Some(check)) => check.add(bytes),
            (Ok(Some(_)), None) => {}
            _ => self.source = Source::Ended,
        }
        let is_whole = matches!(next, Ok(None));
        if let Some(check) = self.signature.take_if(|_| is_whole)
            && !check.verified()
        {
            let text =
                "Failed to verify image signature, reason: Image signature verification failed for image: ";
            return Err(Error::new(Code::ImageSignature, format!("{text}{}.", self.image.id)));
        }
        next
    }
}

async fn piece(file: &mut tokio::fs::File) -> std::io::Result<Option<Bytes>> {
    let mut piece = BytesMut::with_capacity(PIECE);
    let read = file.read_buf(&mut piece).await?;
    Ok((read > 0).then(|| piece.freeze()))
}

impl Stream {
    async fn next(
        &mut self,
        glance: &Glance,
        context: &RequestContext,
        image: &Image,
    ) -> Result<Option<Bytes>> {
        loop {
            let response = match &mut self.response {
                Some(response) => response,
                None => {
                    let response = self.resume(glance, context, &image.id).await?;
                    self.response.insert(response)
                }
            };
            let failure = match http::chunk(response, glance.config.timeout).await {
                Ok(Some(mut bytes)) => {
                    let known = self.skip.min(bytes.len() as u64);
                    bytes.advance(usize::try_from(known).unwrap_or(bytes.len()));
                    self.skip -= known;
                    if bytes.is_empty() {
                        continue;
                    }
                    self.position += bytes.len() as u64;
                    if let Some(checksum) = &mut self.checksum {
                        checksum.add(&bytes);
                    }
                    return Ok(Some(bytes));
                }
                Ok(None) if image.size.is_none_or(|size| self.position >= size) => {
                    if let Some(checksum) = self.checksum.take() {
                        checksum.check().map_err(|text| failed(&image.id, &text))?;
                    }
                    return Ok(None);
                }
                Ok(None) => Failure::Unreachable(format!("it ended after {} bytes", self.position)),
                Err(failure) => failure,
            };
            self.response = None;
            if !self.attempts.again(&failure, "data of an image").await {
                return Err(image_error(&image.id, failure));
            }
        }
    }

    /// One server after the other until one answers.
    async fn open(&mut self, glance: &Glance, context: &RequestContext, id: &str) -> Result<Response> {
        let mut request = Request::get(format!("{}/file", image_path(id)?));
        if self.position > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.position))
        {
            request.headers.insert(RANGE, range);
        }
        loop {
            match glance.open(context, &self.speaker, self.attempts.server(), &request).await {
                Ok(response) => return Ok(response),
                Err(failure) if self.attempts.again(&failure, &request.path).await => {}
                Err(failure) => return Err(image_error(id, failure)),
            }
        }
    }

    async fn resume(&mut self, glance: &Glance, context: &RequestContext, id: &str) -> Result<Response> {
        let response = self.open(glance, context, id).await?;
        info!(image.id = id, bytes = self.position, "download goes on");
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
                let begin = range.and_then(begin_of);
                match begin.and_then(|begin| self.position.checked_sub(begin)) {
                    Some(known) => known,
                    None => return Err(failed(id, "glance sent another part of it than was asked for")),
                }
            }
            _ => self.position,
        };
        Ok(response)
    }
}

/// `bytes 100-199/200` begins at 100.
fn begin_of(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

fn failed(id: &str, reason: &str) -> Error {
    Error::new(Code::ImageDownload, format!("Failed to download image {id}, reason: {reason}"))
}
