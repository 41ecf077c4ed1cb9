//! Nova, told of volumes that changed under its servers (`POST /os-server-external-events`), and asked to let a
//! server have another volume instead of one that it has (`PUT /servers/ID/os-volume_attachments/ID`).
//!
//! Nova answers for each event. As upstream, an event that nova did not accept (its server is gone or not
//! running) is logged and is no failure of ours: nova has heard of it. A failure is when it has not.

use std::sync::Arc;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::auth::{Auth, Speaker};
use super::catalog::Catalog;
use super::http::{self, Answer, Connections, Failure};
use super::keystone::{self, Identity, UserScope};
use crate::config::{Named, NovaConfig, identity_base};
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};

const SERVICE_TYPE: &str = "compute";
/// The microversion in which an exchange of volumes is asked for, as upstream.
const EXCHANGE: &str = "2.1";

/// What has happened to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeEvent {
    /// It is larger than before.
    Extended,
    /// It has new content.
    Reimaged,
}

impl VolumeEvent {
    /// The name of nova's event.
    pub fn name(self) -> &'static str {
        match self {
            VolumeEvent::Extended => "volume-extended",
            VolumeEvent::Reimaged => "volume-reimaged",
        }
    }

    /// The first microversion that has it.
    fn microversion(self) -> &'static str {
        match self {
            VolumeEvent::Extended => "2.51",
            VolumeEvent::Reimaged => "2.93",
        }
    }
}

/// Why a server may not have begun to exchange its volume for another one.
#[derive(Debug)]
pub enum Exchange {
    /// Nova has said no, or was not asked.
    Refused(Error),
    /// It may have begun.
    Unknown(Error),
}

/// The client.
#[derive(Debug, Clone)]
pub struct Nova {
    config: Arc<NovaConfig>,
    auth: Auth,
    account: Option<Arc<Identity>>,
    connections: Arc<Connections>,
}

impl Nova {
    pub(super) fn new(config: &NovaConfig, auth: Auth, connections: Arc<Connections>) -> Nova {
        let account = auth.identity(config.account.as_ref());
        Nova { config: Arc::new(config.clone()), auth, account, connections }
    }

    /// Tells nova what happened to a volume that these servers have. May be repeated: an event that has been
    /// told before changes nothing.
    ///
    /// # Errors
    /// `NoEndpoint` when no nova is configured: there is neither an account in `[nova]` nor a keystone that the
    /// user's token could be taken to. `Compute` when nova could not be told.
    pub async fn volume_changed(
        &self,
        context: &RequestContext,
        event: VolumeEvent,
        volume_id: &str,
        servers: &[String],
    ) -> Result<()> {
        let events: Vec<Value> = servers
            .iter()
            .map(|server| json!({"name": event.name(), "server_uuid": server, "tag": volume_id}))
            .collect();
        let path = "/os-server-external-events";
        let told =
            self.send(context, Method::POST, path, event.microversion(), &json!({ "events": events })).await;
        let failed = |detail: String| {
            Error::new(Code::Compute, format!("Nova could not be told that volume {volume_id} has changed"))
                .detail(detail)
        };
        let answer = match told {
            Ok(answer) => answer,
            Err(Failure::NoEndpoint(text)) => {
                return Err(Error::new(Code::NoEndpoint, "No compute service is configured").detail(text));
            }
            Err(failure) => return Err(failed(failure.to_string())),
        };
        judge(&answer).map_err(failed)
    }

    /// Has a server copy what `volume_id` holds into `new_id` while it goes on, and have that from then on. When this
    /// comes back the copying has begun; nova reports its end to Cinder's API (`os-migrate_volume_completion`).
    ///
    /// # Errors
    /// Whether it may have begun all the same, with `Compute` or `NoEndpoint`.
    pub async fn exchange_volume(
        &self,
        context: &RequestContext,
        server: &str,
        volume_id: &str,
        new_id: &str,
    ) -> Result<(), Exchange> {
        let path = format!("/servers/{server}/os-volume_attachments/{volume_id}");
        let body = json!({"volumeAttachment": {"volumeId": new_id}});
        let failed =
            |text: &str, failure: &Failure| Error::new(Code::Compute, text).detail(failure.to_string());
        match self.send(context, Method::PUT, &path, EXCHANGE, &body).await {
            Ok(_) => Ok(()),
            Err(failure @ Failure::NoEndpoint(_)) => {
                let text = "No compute service is configured";
                Err(Exchange::Refused(Error::new(Code::NoEndpoint, text).detail(failure.to_string())))
            }
            // Of a server that is broken, or a proxy without one, nobody knows how far it came.
            Err(failure @ (Failure::Unreachable(_) | Failure::Refused { status: 500.., .. })) => {
                Err(Exchange::Unknown(failed("Nova did not say whether it copies the volume", &failure)))
            }
            Err(failure) => {
                Err(Exchange::Refused(failed("Nova does not copy the volume of its server", &failure)))
            }
        }
    }

    /// A refused token of ours is renewed once.
    async fn send(
        &self,
        context: &RequestContext,
        method: Method,
        path: &str,
        microversion: &'static str,
        body: &Value,
    ) -> Result<Answer, Failure> {
        let client = self.connections.client(&self.config.tls).await?;
        let mut again = true;
        loop {
            let (speaker, endpoint) = self.speaker(context).await?;
            let tokens = speaker.tokens().await?;
            let request = client
                .request(method.clone(), format!("{}{path}", endpoint.trim_end_matches('/')))
                .headers(headers(context, microversion))
                .headers(tokens.headers.clone())
                .body(body.to_string());
            let answer = http::ask(request, self.config.timeout).await;
            let refused = answer.as_ref().is_err_and(|failure| failure.status() == Some(401));
            if !(refused && again && tokens.refused().await) {
                return answer;
            }
            again = false;
        }
    }

    /// Who tells, and where: the account of `[nova]`, else the user, else who stands in for him.
    async fn speaker(&self, context: &RequestContext) -> Result<(Speaker, String), Failure> {
        let account = match (&self.account, context.token()) {
            (Some(account), _) => Some(account.clone()),
            (None, Some(_)) => None,
            (None, None) => self.auth.stand_in(None),
        };
        if let Some(account) = account {
            let endpoint = self.endpoint(&account.token().await?.catalog)?;
            return Ok((self.auth.account(&account), endpoint));
        }
        let auth_url = self.user_auth_url(context)?;
        let Some(token) = context.token() else {
            let text =
                "the request has no token (any more), and neither [nova] nor [service_user] an account";
            return Err(Failure::Unauthenticated(text.to_owned()));
        };
        let client = self.connections.client(&self.config.tls).await?;
        let scoped =
            keystone::rescope(&client, &auth_url, token, &scope(context), self.config.timeout).await?;
        let endpoint = self.endpoint(&scoped.catalog)?;
        Ok((self.auth.token(scoped.secret), endpoint))
    }

    /// The keystone that a user's token is taken to.
    fn user_auth_url(&self, context: &RequestContext) -> Result<String, Failure> {
        if let Some(url) = &self.config.token_auth_url {
            return Ok(url.clone());
        }
        let catalog = Catalog::new(context.field("service_catalog"));
        let url = catalog.find("identity", &self.config.interface, self.config.region.as_deref());
        let url = url.ok_or_else(|| {
            let text =
                "[nova] has no account and no token_auth_url, and the user's catalogue no identity service";
            Failure::NoEndpoint(text.to_owned())
        })?;
        Ok(identity_base(&url))
    }

    /// A catalogue without nova is a failure like any other: somebody has said where to ask.
    fn endpoint(&self, catalog: &Catalog) -> Result<String, Failure> {
        let NovaConfig { interface, region, .. } = &*self.config;
        catalog.find(SERVICE_TYPE, interface, region.as_deref()).ok_or_else(|| {
            let region = region.as_deref().unwrap_or("any region");
            let text = format!("keystone's catalogue has no {SERVICE_TYPE} endpoint ({interface}, {region})");
            Failure::Malformed(text)
        })
    }
}

fn scope(context: &RequestContext) -> UserScope {
    let text = |name: &str| context.field(name).and_then(Value::as_str).map(str::to_owned);
    let domain = text("project_domain").map(|id| ("id", id));
    let named = text("project_name").filter(|_| domain.is_some()).map(|name| Named::Name(name, domain));
    UserScope { project: named.or_else(|| context.project_id.clone().map(Named::Id)) }
}

fn headers(context: &RequestContext, microversion: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let compute = HeaderValue::from_str(&format!("{SERVICE_TYPE} {microversion}"));
    let pairs = [
        ("content-type", Ok(HeaderValue::from_static("application/json"))),
        ("accept", Ok(HeaderValue::from_static("application/json"))),
        ("openstack-api-version", compute),
        ("x-openstack-nova-api-version", Ok(HeaderValue::from_static(microversion))),
        ("x-openstack-request-id", HeaderValue::from_str(context.global_id())),
    ];
    for (name, value) in pairs {
        if let Ok(value) = value {
            headers.insert(name, value);
        }
    }
    headers
}

/// Looks at nova's word for each event.
fn judge(answer: &Answer) -> Result<(), String> {
    let body = answer.json().map_err(|e| e.to_string())?;
    let Some(events) = body["events"].as_array() else {
        return Err("nova's answer names no events".to_owned());
    };
    let mut without = 0;
    for event in events {
        let server = event["server_uuid"].as_str().unwrap_or_default();
        let name = event["name"].as_str().unwrap_or_default();
        match event["code"].as_i64() {
            None => without += 1,
            Some(200) => info!(server.id = server, event = name, "nova took the event"),
            Some(code) => warn!(server.id = server, event = name, code, "nova did not accept the event"),
        }
    }
    if without == 0 { Ok(()) } else { Err(format!("nova did not say what became of {without} events")) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::super::testing::{self, Reply, Seen, Server, account};
    use super::*;
    use crate::config::{Account, CatalogInfo, GlanceConfig, KeyManagerConfig, OpenStackConfig, TlsOptions};
    use crate::openstack::OpenStack;

    fn config(nova: Option<Account>, service: Option<Account>) -> OpenStackConfig {
        let timeout = Duration::from_secs(5);
        OpenStackConfig {
            keystone: true,
            send_service_token: service.is_some(),
            service_user: service,
            glance: GlanceConfig {
                servers: Vec::new(),
                catalog: CatalogInfo { service_type: "image".into(), endpoint: "publicURL".into() },
                region: None,
                retries: 0,
                timeout,
                tls: TlsOptions::default(),
                account: None,
                read_files: false,
            },
            nova: NovaConfig {
                interface: "public".into(),
                region: None,
                token_auth_url: None,
                account: nova,
                tls: TlsOptions::default(),
                timeout,
            },
            keys: KeyManagerConfig::default(),
        }
    }

    fn context(token: Option<&str>, auth_url: Option<&str>) -> RequestContext {
        let mut fields = serde_json::Map::new();
        fields.insert("request_id".into(), "req-1".into());
        fields.insert("project_id".into(), "p1".into());
        if let Some(token) = token {
            fields.insert("auth_token".into(), token.into());
        }
        if let Some(url) = auth_url {
            let catalog = json!([{"type": "identity", "endpoints": [{"publicURL": format!("{url}/v3")}]}]);
            fields.insert("service_catalog".into(), catalog);
        }
        RequestContext::from_fields(fields)
    }

    /// A nova that answers this code for each event.
    fn accepting(code: Value) -> impl Fn(&Seen) -> Reply + Send + Sync {
        move |seen: &Seen| {
            let mut body = seen.json();
            for event in body["events"].as_array_mut().unwrap() {
                event["code"] = code.clone();
            }
            Reply::json(if code == 200 { 200 } else { 207 }, &body)
        }
    }

    async fn keystone(nova: &Server) -> Server {
        let url = nova.url("/v2.1");
        Server::start(testing::keystone(&url, Duration::from_secs(3600))).await
    }

    async fn tell(config: &OpenStackConfig, context: &RequestContext) -> Result<(), Code> {
        let servers = ["s1".to_owned(), "s2".to_owned()];
        let nova = OpenStack::new(config).nova;
        nova.volume_changed(context, VolumeEvent::Extended, "v1", &servers).await.map_err(|e| e.code())
    }

    #[tokio::test]
    async fn the_account_of_nova_tells_of_every_server() {
        let nova = Server::start(accepting(json!(200))).await;
        let keystone = keystone(&nova).await;
        let config = config(Some(account(&keystone.url(""))), None);
        tell(&config, &context(Some("users"), None)).await.unwrap();
        let seen = &nova.seen()[0];
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/v2.1/os-server-external-events"));
        assert_eq!(seen.header("x-auth-token"), Some("token-1"));
        assert_eq!(seen.header("x-service-token"), None);
        assert_eq!(seen.header("openstack-api-version"), Some("compute 2.51"));
        assert_eq!(seen.header("x-openstack-request-id"), Some("req-1"));
        let events = json!([{"name": "volume-extended", "server_uuid": "s1", "tag": "v1"},
                            {"name": "volume-extended", "server_uuid": "s2", "tag": "v1"}]);
        assert_eq!(seen.json(), json!({ "events": events }));
    }

    #[tokio::test]
    async fn an_event_that_nova_does_not_accept_is_told_all_the_same() {
        for (code, expected) in
            [(json!(404), Ok(())), (json!(422), Ok(())), (Value::Null, Err(Code::Compute))]
        {
            let nova = Server::start(accepting(code.clone())).await;
            let keystone = keystone(&nova).await;
            let config = config(Some(account(&keystone.url(""))), None);
            assert_eq!(tell(&config, &context(None, None)).await, expected, "{code}");
        }
        for reply in [Reply::text(404, ""), Reply::text(500, ""), Reply::text(200, "[]")] {
            let nova = Server::start(move |_| reply.clone()).await;
            let keystone = keystone(&nova).await;
            let config = config(Some(account(&keystone.url(""))), None);
            assert_eq!(tell(&config, &context(None, None)).await, Err(Code::Compute));
        }
    }

    #[tokio::test]
    async fn a_server_is_asked_to_exchange_its_volume_and_a_lost_answer_is_no_refusal() {
        for (reply, expected) in [
            (Reply::text(202, ""), "begun"),
            (
                Reply::json(409, &json!({"conflictingRequest": {"message": "not now"}})),
                "refused: HTTP 409 not now",
            ),
            (Reply::text(404, ""), "refused: HTTP 404 Not Found"),
            (Reply::text(504, "proxy"), "unknown: HTTP 504 proxy"),
            (Reply::text(202, "abcdef").cut_after(2), "unknown"),
        ] {
            let nova = Server::start(move |_| reply.clone()).await;
            let keystone = keystone(&nova).await;
            let client = OpenStack::new(&config(Some(account(&keystone.url(""))), None)).nova;
            let said = match client.exchange_volume(&context(Some("users"), None), "s1", "v1", "v2").await {
                Ok(()) => "begun".to_owned(),
                Err(Exchange::Refused(e)) => format!("refused: {}", e.operator()),
                Err(Exchange::Unknown(e)) => format!("unknown: {}", e.operator()),
            };
            let (how, why) = expected.split_once(": ").unwrap_or((expected, ""));
            assert!(said.starts_with(how) && said.contains(why), "{said}, not {expected}");
            let seen = &nova.seen()[0];
            assert_eq!(nova.asked(), ["PUT /v2.1/servers/s1/os-volume_attachments/v1"]);
            assert_eq!(seen.json(), json!({"volumeAttachment": {"volumeId": "v2"}}));
            assert_eq!(seen.header("openstack-api-version"), Some("compute 2.1"));
            assert_eq!(seen.header("x-auth-token"), Some("token-1"), "nobody else may");
        }
    }

    #[tokio::test]
    async fn a_refused_token_is_renewed_once() {
        let accept = accepting(json!(200));
        let nova = Server::start(move |seen| match seen.header("x-auth-token") {
            Some("token-2") => accept(seen),
            _ => Reply::text(401, ""),
        })
        .await;
        let keystone = keystone(&nova).await;
        tell(&config(Some(account(&keystone.url(""))), None), &context(None, None)).await.unwrap();
        assert_eq!(nova.seen().len(), 2);

        let never = Server::start(|_| Reply::text(401, "")).await;
        let keystone = self::keystone(&never).await;
        let told = tell(&config(Some(account(&keystone.url(""))), None), &context(None, None)).await;
        assert_eq!((told, never.seen().len(), keystone.seen().len()), (Err(Code::Compute), 2, 2));
    }

    #[tokio::test]
    async fn without_an_account_the_users_token_is_scoped_and_the_services_sent_along() {
        let nova = Server::start(accepting(json!(200))).await;
        let keystone = keystone(&nova).await;
        let config = config(None, Some(account(&keystone.url(""))));
        tell(&config, &context(Some("users"), Some(&keystone.url("")))).await.unwrap();
        let body = keystone.seen()[0].json();
        assert_eq!(body["auth"]["identity"]["token"]["id"], "users");
        assert_eq!(body["auth"]["scope"]["project"]["id"], "p1");
        let headers: HashMap<_, _> = nova.seen()[0].headers.clone().into_iter().collect();
        assert_eq!((&*headers["x-auth-token"], &*headers["x-service-token"]), ("token-1", "token-2"));

        // After a crash the user's token is gone.
        tell(&config, &context(None, Some(&keystone.url("")))).await.unwrap();
        assert_eq!(nova.seen()[1].header("x-auth-token"), Some("token-3"));
    }

    #[tokio::test]
    async fn no_nova_is_another_failure_than_one_that_does_not_answer() {
        assert_eq!(tell(&config(None, None), &context(Some("t"), None)).await, Err(Code::NoEndpoint));
        assert_eq!(tell(&config(None, None), &context(None, None)).await, Err(Code::NoEndpoint));
        let gone = config(Some(account("http://127.0.0.1:1")), None);
        assert_eq!(tell(&gone, &context(None, None)).await, Err(Code::Compute));
        let empty = Server::start(testing::keystone("", Duration::from_secs(3600))).await;
        assert_eq!(
            tell(&config(Some(account(&empty.url(""))), None), &context(None, None)).await,
            Err(Code::Compute)
        );
    }
}
