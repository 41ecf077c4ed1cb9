//! Glance: what an image is, where it lies, its bytes in both directions.
//!
//! Several servers may be named; a request begins at a random one, and when that cannot be reached it is sent
//! to the next, `glance_num_retries` times, as upstream does. What Glance refuses is one of Cinder's errors
//! (`cinder/image/glance.py`).

mod checksum;
mod download;
mod image;
mod signature;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rand::seq::SliceRandom;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Map, Value, json};
use tracing::{debug, warn};

pub use download::Download;
pub use image::Image;
pub use signature::{Claim, Verifier};
pub use upload::Upload;

use super::auth::{Auth, Speaker};
use super::catalog::Catalog;
use super::http::{self, Answer, Connections, Failure};
use super::keystone::Identity;
use crate::config::GlanceConfig;
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};

/// Before another server is tried.
const PAUSE: Duration = Duration::from_secs(1);
/// The form of a change that Glance understands.
const PATCH: &str = "application/openstack-images-v2.1-json-patch";

/// The client; cheap to clone.
#[derive(Debug, Clone)]
pub struct Glance {
    config: Arc<GlanceConfig>,
    auth: Auth,
    account: Option<Arc<Identity>>,
    connections: Arc<Connections>,
}

/// Where an image's data lies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Locations {
    /// `direct_url`; only from a Glance that has no API for locations.
    pub direct_url: Option<String>,
    /// `{"url": …, "metadata": {…}}` each.
    pub locations: Vec<Map<String, Value>>,
}

impl Locations {
    /// All URLs: of the locations, or the direct one when there are none.
    pub fn urls(&self) -> Vec<&str> {
        let urls: Vec<&str> = self.locations.iter().filter_map(|l| l.get("url")?.as_str()).collect();
        if urls.is_empty() { self.direct_url.as_deref().into_iter().collect() } else { urls }
    }
}

/// One request, to be sent to one server after the other.
#[derive(Debug, Clone)]
struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Option<String>,
}

impl Request {
    fn new(method: Method, path: String) -> Request {
        Request { method, path, headers: HeaderMap::new(), body: None }
    }

    fn get(path: String) -> Request {
        Request::new(Method::GET, path)
    }

    fn json(method: Method, path: String, content_type: &'static str, body: &Value) -> Request {
        let mut request = Request::new(method, path);
        request.headers.insert("content-type", HeaderValue::from_static(content_type));
        request.body = Some(body.to_string());
        request
    }
}

/// One server after the other, as often as configured.
struct Attempts {
    servers: Vec<String>,
    next: usize,
    left: usize,
}

impl Attempts {
    fn server(&self) -> &str {
        &self.servers[self.next % self.servers.len()]
    }

    /// After a failure: whether another attempt is made, now at the next server. Waits before it.
    async fn again(&mut self, failure: &Failure, what: &str) -> bool {
        let retryable = matches!(failure, Failure::Unreachable(_)) || failure.status() == Some(503);
        if !retryable || self.left == 0 {
            return false;
        }
        self.left -= 1;
        let server = self.server();
        warn!(glance.server = server, request = what, error = %failure, "glance cannot be reached, trying again");
        self.next += 1;
        tokio::time::sleep(PAUSE).await;
        true
    }
}

impl Glance {
    pub(super) fn new(config: &GlanceConfig, auth: Auth, connections: Arc<Connections>) -> Glance {
        let account = auth.identity(config.account.as_ref());
        Glance { config: Arc::new(config.clone()), auth, account, connections }
    }

    /// The image.
    ///
    /// # Errors
    /// `ImageNotFound`, also when the user may not see it; `ImageNotAuthorized`; `GlanceConnection`.
    pub async fn show(&self, context: &RequestContext, id: &str) -> Result<Image> {
        let image = self.raw(context, id).await?;
        match image.is_available(context) {
            Some(true) => return Ok(image),
            None if self.is_member(context, id).await? => return Ok(image),
            _ => {}
        }
        Err(not_found(id))
    }

    async fn raw(&self, context: &RequestContext, id: &str) -> Result<Image> {
        let answer = self.call(context, &self.user(context)?, &Request::get(image_path(id)?)).await;
        Image::from_answer(of_image(id, answer.and_then(|a| a.json()))?)
    }

    async fn is_member(&self, context: &RequestContext, id: &str) -> Result<bool> {
        let request = Request::get(format!("{}/members", image_path(id)?));
        let answer = self.call(context, &self.user(context)?, &request).await;
        let body = of_image(id, answer.and_then(|a| a.json()))?;
        let members = body["members"].as_array().cloned().unwrap_or_default();
        Ok(members.iter().any(|member| {
            member["status"] == "accepted" && member["member_id"].as_str() == context.project_id.as_deref()
        }))
    }

    /// Where the image's data lies. The API for that wants the service role, which the account of `[glance]`
    /// has; without it, or with an old Glance, what the image itself tells is used.
    ///
    /// # Errors
    /// As [`Glance::show`].
    pub async fn locations(&self, context: &RequestContext, id: &str) -> Result<Locations> {
        let request = Request::get(format!("{}/locations", image_path(id)?));
        let refusal = match self.call(context, &self.service(context)?, &request).await {
            Ok(answer) => {
                // The user's right to see the image was not asked by this.
                if context.token().is_none() {
                    self.show(context, id).await?;
                }
                let list = of_image(id, answer.json())?;
                let found: Vec<_> =
                    list.as_array().into_iter().flatten().filter_map(|l| l.as_object().cloned()).collect();
                return Ok(Locations { direct_url: None, locations: found });
            }
            Err(failure) => failure,
        };
        match refusal.status() {
            Some(403) => warn!(
                image.id = id,
                error = %refusal,
                "glance does not tell locations; [glance] needs an account that has the service role"
            ),
            // An old Glance has no such path, or there is no such image: the image itself will tell.
            Some(404 | 405 | 501) => debug!(image.id = id, "glance has no API for locations"),
            _ => return Err(image_error(id, refusal)),
        }
        let image = self.show(context, id).await?;
        let direct_url = image.base.get("direct_url").and_then(Value::as_str).map(str::to_owned);
        let list = image.base.get("locations").and_then(Value::as_array).cloned().unwrap_or_default();
        let locations = list.iter().filter_map(|l| l.as_object().cloned()).collect();
        Ok(Locations { direct_url, locations })
    }

    /// Says where data of the image lies too.
    ///
    /// # Errors
    /// As [`Glance::show`]; `Invalid` when Glance refuses the location.
    pub async fn add_location(
        &self,
        context: &RequestContext,
        id: &str,
        url: &str,
        metadata: &Map<String, Value>,
    ) -> Result<Image> {
        let path = format!("{}/locations", image_path(id)?);
        let body = json!({"url": url, "validation_data": metadata});
        let request = Request::json(Method::POST, path, "application/json", &body);
        match self.call(context, &self.service(context)?, &request).await {
            Ok(_) => return self.raw(context, id).await,
            // As in `locations`: a missing image is found by what follows.
            Err(failure) if matches!(failure.status(), Some(404 | 405 | 501)) => {}
            Err(failure) => return Err(image_error(id, failure)),
        }
        let location = json!({"url": url, "metadata": metadata});
        let patch = json!([{"op": "add", "path": "/locations/-", "value": location}]);
        let request = Request::json(Method::PATCH, image_path(id)?, PATCH, &patch);
        of_image(id, self.call(context, &self.user(context)?, &request).await)?;
        self.raw(context, id).await
    }

    /// Makes an image without data from Cinder's image metadata.
    ///
    /// # Errors
    /// `ImageLimitExceeded`, `NotAuthorized`, `Invalid`, `GlanceConnection`, `Glance`.
    pub async fn create(&self, context: &RequestContext, meta: &Map<String, Value>) -> Result<Image> {
        let mut body = image::to_glance(meta);
        if let Some(id) = meta.get("id") {
            body.insert("id".to_owned(), id.clone());
        }
        let body = Value::Object(body);
        let request = Request::json(Method::POST, "/v2/images".to_owned(), "application/json", &body);
        let answer = self.call(context, &self.user(context)?, &request).await;
        Image::from_answer(answer.and_then(|a| a.json()).map_err(plain_error)?)
    }

    /// Gives the image these properties (Cinder's image metadata). With `purge_props` it loses all added
    /// properties that are not among them.
    ///
    /// # Errors
    /// As [`Glance::show`]; `Invalid` when Glance refuses a property.
    pub async fn update(
        &self,
        context: &RequestContext,
        id: &str,
        meta: &Map<String, Value>,
        purge_props: bool,
    ) -> Result<Image> {
        let before = self.show(context, id).await?;
        let patch = image::patch(&before, &image::to_glance(meta), purge_props);
        if patch.is_empty() {
            return Ok(before);
        }
        let request = Request::json(Method::PATCH, image_path(id)?, PATCH, &Value::Array(patch));
        of_image(id, self.call(context, &self.user(context)?, &request).await)?;
        self.raw(context, id).await
    }

    /// Deletes the image.
    ///
    /// # Errors
    /// `ImageNotFound`; `ImageNotAuthorized`, `GlanceConnection`, `Glance`.
    pub async fn delete(&self, context: &RequestContext, id: &str) -> Result<()> {
        let request = Request::new(Method::DELETE, image_path(id)?);
        of_image(id, self.call(context, &self.user(context)?, &request).await)?;
        Ok(())
    }

    // ---- asking ---------------------------------------------------------------------------------

    fn user(&self, context: &RequestContext) -> Result<Speaker> {
        self.auth.user(context, self.account.as_ref()).map_err(plain_error)
    }

    /// The account of `[glance]`, or else the user.
    fn service(&self, context: &RequestContext) -> Result<Speaker> {
        match self.account.as_ref().filter(|_| self.auth.keystone) {
            Some(account) => Ok(self.auth.account(account)),
            None => self.user(context),
        }
    }

    /// Asks one server after the other. Boxed, as all that many futures end in: a compiler proves each anew.
    fn call<'a>(
        &'a self,
        context: &'a RequestContext,
        speaker: &'a Speaker,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let mut attempts = self.attempts(context).await?;
            loop {
                let answer = match self.open(context, speaker, attempts.server(), request).await {
                    Ok(response) => {
                        let headers = response.headers().clone();
                        let body = http::collect(response, self.config.timeout).await;
                        body.map(|body| Answer { headers, body })
                    }
                    Err(failure) => Err(failure),
                };
                match answer {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if attempts.again(&failure, &request.path).await => {}
                    Err(failure) => return Err(failure),
                }
            }
        })
    }

    /// The head of one server's answer. A refused token of ours is renewed once.
    fn open<'a>(
        &'a self,
        context: &'a RequestContext,
        speaker: &'a Speaker,
        server: &'a str,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Response, Failure>> {
        Box::pin(async move {
            let client = self.connections.client(&self.config.tls).await?;
            let mut again = true;
            loop {
                let tokens = speaker.tokens().await?;
                let sent = self.prepare(&client, context, server, request).headers(tokens.headers.clone());
                let sent = match &request.body {
                    Some(body) => sent.body(body.clone()),
                    None => sent,
                };
                let answer = http::open(sent, self.config.timeout).await;
                let refused = answer.as_ref().is_err_and(|failure| failure.status() == Some(401));
                if !(refused && again && tokens.refused().await) {
                    return answer;
                }
                again = false;
            }
        })
    }

    fn prepare(
        &self,
        client: &Client,
        context: &RequestContext,
        server: &str,
        request: &Request,
    ) -> RequestBuilder {
        let url = format!("{server}{}", request.path);
        let sent = client.request(request.method.clone(), url).headers(request.headers.clone());
        match HeaderValue::from_str(context.global_id()) {
            Ok(id) => sent.header("x-openstack-request-id", id),
            Err(_) => sent,
        }
    }

    /// The servers in random order.
    fn attempts<'a>(&'a self, context: &'a RequestContext) -> BoxFuture<'a, Result<Attempts, Failure>> {
        Box::pin(async move {
            let mut servers: Vec<String> = self.config.servers.iter().map(|s| base(s)).collect();
            if servers.is_empty() {
                servers.push(base(&self.server_in_catalog(context).await?));
            }
            servers.shuffle(&mut rand::rng());
            Ok(Attempts { servers, next: 0, left: self.config.retries })
        })
    }

    /// From the user's catalogue, which came with the request, or that of who stands in for him.
    async fn server_in_catalog(&self, context: &RequestContext) -> Result<String, Failure> {
        let (info, region) = (&self.config.catalog, self.config.region.as_deref());
        let find = |catalog: &Catalog| catalog.find_near(&info.service_type, &info.endpoint, region);
        if let Some(url) = find(&Catalog::new(context.field("service_catalog"))) {
            return Ok(url);
        }
        let stand_in = self.auth.stand_in(self.account.as_ref()).filter(|_| self.auth.keystone);
        if let Some(identity) = stand_in
            && let Some(url) = find(&identity.token().await?.catalog)
        {
            return Ok(url);
        }
        let text = "glance_api_servers is not set, and no catalogue has the service of glance_catalog_info";
        Err(Failure::NoEndpoint(text.to_owned()))
    }
}

/// A server's URL without a version.
fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let versioned = url.rsplit_once('/').filter(|(_, last)| {
        last.strip_prefix('v').is_some_and(|v| {
            !v.is_empty()
                && v.starts_with(|c: char| c.is_ascii_digit())
                && v.bytes().all(|b| b == b'.' || b.is_ascii_digit())
        })
    });
    versioned.map_or(url, |(base, _)| base).trim_end_matches('/').to_owned()
}

/// An id is put into a path: it must be one.
fn image_path(id: &str) -> Result<String> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if id.is_empty() || !id.chars().all(harmless) {
        return Err(not_found(id));
    }
    Ok(format!("/v2/images/{id}"))
}

fn not_found(id: &str) -> Error {
    Error::new(Code::ImageNotFound, format!("Image {id} could not be found."))
}

fn of_image<T>(id: &str, answer: Result<T, Failure>) -> Result<T> {
    answer.map_err(|failure| image_error(id, failure))
}

/// A failure of a request about one image (`_translate_image_exception`).
fn image_error(id: &str, failure: Failure) -> Error {
    match failure.status() {
        Some(401 | 403) => {
            let text = format!("Not authorized for image {id}.");
            Error::new(Code::ImageNotAuthorized, text).detail(failure.to_string())
        }
        Some(404) => not_found(id).detail(failure.to_string()),
        _ => plain_error(failure),
    }
}

/// Any other failure.
fn plain_error(failure: Failure) -> Error {
    let detail = failure.to_string();
    let error = match failure {
        Failure::Refused { status: 400, text } => return Error::new(Code::Invalid, text),
        Failure::Refused { status: 401 | 403, .. } | Failure::Unauthenticated(_) => {
            Error::new(Code::NotAuthorized, "Not authorized.")
        }
        Failure::Refused { status: 413, .. } => Error::new(Code::ImageLimitExceeded, "Image quota exceeded"),
        Failure::Unreachable(_) | Failure::Refused { status: 503, .. } => {
            Error::new(Code::GlanceConnection, "Connection to glance failed: no server answers")
        }
        Failure::Refused { .. } | Failure::Malformed(_) => {
            Error::new(Code::Glance, "Glance answered with an error")
        }
        Failure::NoEndpoint(_) => Error::new(Code::NoEndpoint, "No image service is configured"),
        Failure::Unusable(_) => Error::new(Code::Config, "The image service is not configured correctly"),
    };
    error.detail(detail)
}

#[cfg(test)]
mod tests;
