//! Tokens: an account's own, kept until shortly before it expires, and a user's, scoped anew.
//!
//! A token that a service refuses is thrown away and asked for once more (keystone may have been restarted
//! with other keys, or the token revoked). Many requests that need one at once ask once.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Client;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tracing::debug;

use super::catalog::Catalog;
use super::http::{self, Connections, Failure};
use crate::config::{Account, AuthScope, Named};

/// A token that has less to live than this is not used any more (keystoneauth: `MIN_TOKEN_LIFE_SECONDS`).
const SHORTEST_LIFE: TimeDelta = TimeDelta::seconds(120);

/// A token and what came with it.
#[derive(Debug)]
pub(super) struct Token {
    /// What is sent.
    pub(super) secret: SecretString,
    /// When it ends; `None`: keystone has not said.
    expires: Option<DateTime<Utc>>,
    /// Where the services are.
    pub(super) catalog: Catalog,
}

impl Token {
    fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|at| at - Utc::now() > SHORTEST_LIFE)
    }
}

/// An account and its token.
#[derive(Debug)]
pub(super) struct Identity {
    account: Account,
    connections: Arc<Connections>,
    token: Mutex<Option<Arc<Token>>>,
}

impl Identity {
    /// Nobody is asked yet.
    pub(super) fn new(account: Account, connections: Arc<Connections>) -> Identity {
        Identity { account, connections, token: Mutex::new(None) }
    }

    /// A token that lives long enough.
    ///
    /// # Errors
    /// `Unauthenticated` when keystone refuses; `Unreachable`.
    pub(super) async fn token(&self) -> Result<Arc<Token>, Failure> {
        // The lock is held while keystone is asked: the others want the same answer.
        let mut kept = self.token.lock().await;
        if let Some(token) = kept.as_ref().filter(|t| t.is_fresh()) {
            return Ok(token.clone());
        }
        let client = self.connections.client(&self.account.tls).await?;
        let auth_url = &self.account.auth_url;
        let token =
            Arc::new(issue(&client, auth_url, &by_password(&self.account), self.account.timeout).await?);
        debug!(auth_url, expires = ?token.expires, "keystone issued a token");
        *kept = Some(token.clone());
        Ok(token)
    }

    /// Somebody has refused this token: the next one is a new one.
    pub(super) async fn forget(&self, refused: &Arc<Token>) {
        let mut kept = self.token.lock().await;
        if kept.as_ref().is_some_and(|token| Arc::ptr_eq(token, refused)) {
            *kept = None;
        }
    }
}

/// What a user's token is exchanged for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UserScope {
    /// Project.
    pub(super) project: Option<Named>,
}

/// A token for the project, in exchange for the user's.
///
/// # Errors
/// As [`Identity::token`].
pub(super) async fn rescope(
    client: &Client,
    auth_url: &str,
    user: &SecretString,
    scope: &UserScope,
    limit: std::time::Duration,
) -> Result<Token, Failure> {
    let mut auth = json!({"identity": {"methods": ["token"], "token": {"id": user.expose_secret()}}});
    if let Some(project) = &scope.project {
        auth["scope"] = json!({ "project": named(project) });
    }
    issue(client, auth_url, &json!({ "auth": auth }), limit).await
}

fn by_password(account: &Account) -> Value {
    let mut user = named(&account.user);
    user["password"] = account.password.expose_secret().into();
    let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": user}}});
    match &account.scope {
        Some(AuthScope::Project(project)) => auth["scope"] = json!({ "project": named(project) }),
        Some(AuthScope::Domain(key, value)) => auth["scope"] = json!({ "domain": { *key: value } }),
        Some(AuthScope::System) => auth["scope"] = json!({"system": {"all": true}}),
        None => {}
    }
    json!({ "auth": auth })
}

fn named(named: &Named) -> Value {
    match named {
        Named::Id(id) => json!({ "id": id }),
        Named::Name(name, None) => json!({ "name": name }),
        Named::Name(name, Some((key, value))) => json!({"name": name, "domain": { *key: value }}),
    }
}

async fn issue(
    client: &Client,
    auth_url: &str,
    body: &Value,
    limit: std::time::Duration,
) -> Result<Token, Failure> {
    let url = format!("{auth_url}/v3/auth/tokens");
    let request = client
        .post(&url)
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .body(body.to_string());
    let answer = http::ask(request, limit).await.map_err(|failure| match failure {
        Failure::Refused { status: status @ (401 | 403), text } => {
            Failure::Unauthenticated(format!("keystone at {auth_url} refused: HTTP {status} {text}"))
        }
        other => Failure::Unreachable(format!("keystone at {auth_url}: {other}")),
    })?;
    let malformed = |what: &str| Failure::Malformed(format!("keystone at {auth_url} answered {what}"));
    let secret = answer.headers.get("x-subject-token").and_then(|v| v.to_str().ok());
    let secret = SecretString::from(secret.ok_or_else(|| malformed("without a token"))?);
    let body = answer.json()?;
    let token = body.get("token").ok_or_else(|| malformed("without a description of the token"))?;
    let expires = token["expires_at"].as_str().and_then(|t| DateTime::parse_from_rfc3339(t).ok());
    Ok(Token { secret, expires: expires.map(|t| t.to_utc()), catalog: Catalog::new(token.get("catalog")) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{self, Reply, Server, account};
    use super::*;

    async fn identity(server: &Server) -> Identity {
        Identity::new(account(&server.url("")), Arc::new(Connections::default()))
    }

    #[tokio::test]
    async fn a_token_is_asked_for_once_and_again_when_it_was_refused() {
        let server = Server::start(testing::keystone("http://nova", Duration::from_secs(3600))).await;
        let identity = identity(&server).await;
        let (a, b) = tokio::join!(identity.token(), identity.token());
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(a.secret.expose_secret(), "token-1");
        assert_eq!(a.catalog.find("compute", "public", None).as_deref(), Some("http://nova"));
        assert_eq!(server.seen().len(), 1);
        identity.forget(&a).await;
        let c = identity.token().await.unwrap();
        assert_eq!(c.secret.expose_secret(), "token-2");
        // Two who were refused with the same token forget it once.
        identity.forget(&a).await;
        assert!(Arc::ptr_eq(&identity.token().await.unwrap(), &c));
        assert_eq!(server.seen().len(), 2);

        let body: Value = serde_json::from_slice(&server.seen()[0].body).unwrap();
        assert_eq!(
            body["auth"]["identity"]["password"]["user"],
            json!({"name": "cinder", "domain": {"name": "Default"}, "password": "s3cret"})
        );
        assert_eq!(
            body["auth"]["scope"],
            json!({"project": {"name": "service", "domain": {"name": "Default"}}})
        );
        assert_eq!(
            (server.seen()[0].method.as_str(), server.seen()[0].path.as_str()),
            ("POST", "/v3/auth/tokens")
        );
    }

    #[tokio::test]
    async fn a_token_near_its_end_is_replaced() {
        let server = Server::start(testing::keystone("http://nova", Duration::from_secs(60))).await;
        let identity = identity(&server).await;
        identity.token().await.unwrap();
        assert_eq!(identity.token().await.unwrap().secret.expose_secret(), "token-2");
    }

    #[tokio::test]
    async fn a_refusal_names_keystone_and_no_secret() {
        let text = json!({"error": {"message": "The request requires authentication."}});
        let server = Server::start(move |_| Reply::json(401, &text)).await;
        let refused = identity(&server).await.token().await.unwrap_err();
        assert!(matches!(refused, Failure::Unauthenticated(_)), "{refused:?}");
        assert!(refused.to_string().contains("requires authentication"), "{refused}");
        assert!(!format!("{refused:?} {:?}", identity(&server).await).contains("s3cret"));

        let empty = Server::start(|_| Reply::json(201, &json!({"token": {}}))).await;
        assert!(matches!(identity(&empty).await.token().await, Err(Failure::Malformed(_))));
    }
}
