//! As whom a request is sent.
//!
//! Upstream's rules (`service_auth`, `glance._create_glance_client`, `nova.novaclient`): the user's token, with
//! the service user's beside it when `send_service_user_token` is on; for what only a service may ask, the
//! account of `[glance]` or `[nova]`. One rule more is Scoria's: an operation that is finished after a crash has
//! no token of its user, which is never stored. The service user stands in for him, or else the section's own
//! account.

use std::sync::Arc;

use reqwest::header::{HeaderMap, HeaderName};
use secrecy::SecretString;

use super::http::{Connections, Failure, secret};
use super::keystone::{Identity, Token};
use crate::config::{Account, OpenStackConfig};
use crate::context::RequestContext;

const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const SERVICE_TOKEN: HeaderName = HeaderName::from_static("x-service-token");

/// What all clients know of accounts.
#[derive(Debug, Clone)]
pub(super) struct Auth {
    /// Requests carry tokens (`auth_strategy = keystone`).
    pub(super) keystone: bool,
    /// `[service_user]`.
    service: Option<Arc<Identity>>,
    /// Whose token goes along with others: most often its.
    companion: Option<Arc<Identity>>,
    connections: Arc<Connections>,
}

impl Auth {
    pub(super) fn new(config: &OpenStackConfig, connections: &Arc<Connections>) -> Auth {
        let service = config.service_user.as_ref();
        Auth::of(config.keystone, service, config.send_service_token, connections)
    }

    /// The account of `[service_user]`, and whether its token goes along.
    pub(super) fn of(
        keystone: bool,
        service: Option<&Account>,
        send: bool,
        connections: &Arc<Connections>,
    ) -> Auth {
        let mut auth = Auth { keystone, service: None, companion: None, connections: connections.clone() };
        auth.service = auth.identity(service);
        auth.companion = auth.service.clone().filter(|_| send);
        auth
    }

    /// The same, with the token of another account, or of none, going along.
    pub(super) fn accompanied_by(&self, account: Option<&Account>) -> Auth {
        Auth { companion: self.identity(account), ..self.clone() }
    }

    /// An account's identity, when there is an account.
    pub(super) fn identity(&self, account: Option<&Account>) -> Option<Arc<Identity>> {
        let account = account?.clone();
        Some(Arc::new(Identity::new(account, self.connections.clone())))
    }

    /// Who stands in for a user whose token is not known: the service user, or else the section's `own`.
    pub(super) fn stand_in(&self, own: Option<&Arc<Identity>>) -> Option<Arc<Identity>> {
        self.service.as_ref().or(own).cloned()
    }

    /// The user, or who stands in for him.
    ///
    /// # Errors
    /// `Unauthenticated` when there is nobody.
    pub(super) fn user(
        &self,
        context: &RequestContext,
        own: Option<&Arc<Identity>>,
    ) -> Result<Speaker, Failure> {
        if !self.keystone {
            return Ok(Speaker { voice: Voice::Silent, service: None });
        }
        let voice = match (context.token(), self.stand_in(own)) {
            (Some(token), _) => Voice::User(token.clone()),
            (None, Some(account)) => Voice::Account(account),
            (None, None) => {
                let text = "the request has no token (any more), and [service_user] has no account";
                return Err(Failure::Unauthenticated(text.to_owned()));
            }
        };
        Ok(self.speaker(voice))
    }

    /// The account.
    pub(super) fn account(&self, account: &Arc<Identity>) -> Speaker {
        self.speaker(Voice::Account(account.clone()))
    }

    /// This token.
    pub(super) fn token(&self, token: SecretString) -> Speaker {
        self.speaker(Voice::User(token))
    }

    fn speaker(&self, voice: Voice) -> Speaker {
        // Without keystone nobody asks for a service's word (`nova.novaclient`).
        let service = self.companion.clone().filter(|_| self.keystone);
        Speaker { voice, service }
    }
}

#[derive(Debug, Clone)]
enum Voice {
    Silent,
    User(SecretString),
    Account(Arc<Identity>),
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    voice: Voice,
    service: Option<Arc<Identity>>,
}

impl Speaker {
    /// The headers for one request.
    ///
    /// # Errors
    /// What keystone answers when a token is needed.
    pub(super) async fn tokens(&self) -> Result<Tokens, Failure> {
        let mut tokens = Tokens::default();
        match &self.voice {
            Voice::Silent => return Ok(tokens),
            Voice::User(token) => {
                tokens.headers.insert(AUTH_TOKEN, secret(token)?);
            }
            Voice::Account(identity) => tokens.add(AUTH_TOKEN, identity).await?,
        }
        if let Some(identity) = &self.service {
            tokens.add(SERVICE_TOKEN, identity).await?;
        }
        Ok(tokens)
    }
}

/// The tokens of one request.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// As headers.
    pub(super) headers: HeaderMap,
    used: Vec<(Arc<Identity>, Arc<Token>)>,
}

impl Tokens {
    async fn add(&mut self, name: HeaderName, identity: &Arc<Identity>) -> Result<(), Failure> {
        let token = identity.token().await?;
        self.headers.insert(name, secret(&token.secret)?);
        self.used.push((identity.clone(), token));
        Ok(())
    }

    /// They were refused. True when another attempt will be made with other ones: which of two is to blame
    /// cannot be told, so all that can be renewed are.
    pub(super) async fn refused(&self) -> bool {
        for (identity, token) in &self.used {
            identity.forget(token).await;
        }
        !self.used.is_empty()
    }
}
