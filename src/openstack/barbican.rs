//! Barbican: the bytes of a key, and copies of it.
//!
//! A key belongs to the project of the user who made the volume, and Barbican gives it to nobody else: it is
//! asked with the user's token. After a crash that token is gone, and the service user stands in for him, who
//! then needs a right of his own to read secrets.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder};
use secrecy::{ExposeSecret, SecretSlice};
use serde_json::{Value, json};

use super::auth::Auth;
use super::catalog::Catalog;
use super::http::{self, Answer, Connections, Failure};
use crate::config::BarbicanConfig;
use crate::context::RequestContext;

const SERVICE_TYPE: &str = "key-manager";
/// Of the API, when `barbican_api_version` is not set (barbicanclient's own default).
const VERSION: &str = "v1";
/// How a payload is asked for.
const BYTES: &str = "application/octet-stream";
const TEXT: &str = "text/plain";
const JSON: &str = "application/json";
/// How long Barbican may be silent. castellan waits for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// The client.
#[derive(Debug, Clone)]
pub(super) struct Barbican {
    config: Arc<BarbicanConfig>,
    auth: Auth,
    connections: Arc<Connections>,
}

impl Barbican {
    pub(super) fn new(config: &BarbicanConfig, auth: &Auth, connections: Arc<Connections>) -> Barbican {
        // Its own account speaks along with users, not that of [service_user] (castellan).
        let auth = auth.accompanied_by(config.service_user.as_ref());
        Barbican { config: Arc::new(config.clone()), auth, connections }
    }

    /// The payload of a secret.
    ///
    /// # Errors
    /// `Refused` with 404 when there is none.
    pub(super) async fn payload(
        &self,
        context: &RequestContext,
        id: &str,
    ) -> Result<SecretSlice<u8>, Failure> {
        let url = format!("{}/payload", self.secret(context, id).await?);
        let payload = match self.get(context, &url, BYTES).await {
            // A certificate may have been stored as text; a key has not.
            Err(Failure::Refused { status: 406, .. }) => self.get(context, &url, TEXT).await?.body,
            answer => answer?.body,
        };
        if payload.is_empty() {
            return Err(Failure::Malformed("the secret has no payload".to_owned()));
        }
        Ok(SecretSlice::from(payload.to_vec()))
    }

    /// Makes a secret that is described as this one is, and has no payload yet; answers its id. Whoever writes that down
    /// before he has it filled leaves no key behind that nobody knows of.
    ///
    /// # Errors
    /// `Refused` with 404 when there is no such secret; `Malformed` when Barbican does not say where the new one is.
    pub(super) async fn reserve(&self, context: &RequestContext, id: &str) -> Result<String, Failure> {
        let described = self.get(context, &self.secret(context, id).await?, JSON).await?.json()?;
        let mut copy = json!({});
        for field in ["name", "algorithm", "bit_length", "mode", "secret_type"] {
            if let Some(value) = described.get(field).filter(|value| !value.is_null()) {
                copy[field] = value.clone();
            }
        }
        let body = copy.to_string();
        let url = self.secrets(context).await?;
        let answer = self
            .send(context, JSON, |client| client.post(&url).header("content-type", JSON).body(body.clone()))
            .await?
            .json()?;
        let made = answer.get("secret_ref").and_then(Value::as_str).and_then(|url| url.rsplit('/').next());
        match made.filter(|id| is_id(id)) {
            Some(id) => Ok(id.to_owned()),
            None => Err(Failure::Malformed("the answer names no secret_ref".to_owned())),
        }
    }

    /// Stores the payload of a secret in one that was reserved for it. One that has a payload already is a success: a payload
    /// cannot be changed.
    ///
    /// # Errors
    /// As [`Barbican::payload`], of either.
    pub(super) async fn fill(&self, context: &RequestContext, from: &str, to: &str) -> Result<(), Failure> {
        let url = self.secret(context, to).await?;
        let payload = self.payload(context, from).await?;
        let filled = self
            .send(context, JSON, |client| {
                client.put(&url).header("content-type", BYTES).body(payload.expose_secret().to_vec())
            })
            .await;
        match filled {
            Err(failure) if failure.status() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Deletes a secret.
    ///
    /// # Errors
    /// `Refused` with 404 when there is none.
    pub(super) async fn delete(&self, context: &RequestContext, id: &str) -> Result<(), Failure> {
        let url = self.secret(context, id).await?;
        self.send(context, JSON, |client| client.delete(&url)).await.map(drop)
    }

    async fn secrets(&self, context: &RequestContext) -> Result<String, Failure> {
        let version = self.config.version.as_deref().unwrap_or(VERSION);
        Ok(format!("{}/{version}/secrets", base(&self.endpoint(context).await?)))
    }

    async fn secret(&self, context: &RequestContext, id: &str) -> Result<String, Failure> {
        // It is put into a path.
        if !is_id(id) {
            return Err(Failure::Refused { status: 404, text: "that is no id of a secret".to_owned() });
        }
        Ok(format!("{}/{id}", self.secrets(context).await?))
    }

    async fn get(
        &self,
        context: &RequestContext,
        url: &str,
        accept: &'static str,
    ) -> Result<Answer, Failure> {
        self.send(context, accept, |client| client.get(url)).await
    }

    /// A refused token of ours is renewed once.
    async fn send(
        &self,
        context: &RequestContext,
        accept: &'static str,
        request: impl Fn(&Client) -> RequestBuilder + Send + Sync,
    ) -> Result<Answer, Failure> {
        let client = self.connections.client(&self.config.tls).await?;
        let speaker = self.auth.user(context, None)?;
        let mut again = true;
        loop {
            let tokens = speaker.tokens().await?;
            let request = request(&client).headers(headers(context, accept)).headers(tokens.headers.clone());
            let answer = http::ask(request, LIMIT).await;
            let refused = answer.as_ref().is_err_and(|failure| failure.status() == Some(401));
            if !(refused && again && tokens.refused().await) {
                return answer;
            }
            again = false;
        }
    }

    /// As configured, or from the user's catalogue, or from that of who stands in for him.
    async fn endpoint(&self, context: &RequestContext) -> Result<String, Failure> {
        let BarbicanConfig { endpoint, interface, region, .. } = &*self.config;
        if let Some(endpoint) = endpoint {
            return Ok(endpoint.clone());
        }
        let find = |catalog: &Catalog| catalog.find(SERVICE_TYPE, interface, region.as_deref());
        if let Some(url) = find(&Catalog::new(context.field("service_catalog"))) {
            return Ok(url);
        }
        if let Some(identity) = self.auth.stand_in(None).filter(|_| self.auth.keystone)
            && let Some(url) = find(&identity.token().await?.catalog)
        {
            return Ok(url);
        }
        let text = format!("barbican_endpoint is not set, and no catalogue has a {SERVICE_TYPE} service");
        Err(Failure::NoEndpoint(text))
    }
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// A URL without its version, which catalogues of old have.
fn base(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url)
}

fn headers(context: &RequestContext, accept: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("accept", HeaderValue::from_static(accept));
    if let Ok(id) = HeaderValue::from_str(context.global_id()) {
        headers.insert("x-openstack-request-id", id);
    }
    headers
}
