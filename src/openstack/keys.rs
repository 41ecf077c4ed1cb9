//! The key of an encrypted volume, whoever keeps it.
//!
//! cinder-api has the key made when it accepts the volume, and destroyed when it accepts its deletion; clones
//! get an id of their own for it. What is left for a volume service is to read it once, when an empty volume is
//! formatted (`cinder/keymgr`, castellan). The backup service keeps a copy of it for each backup.

use std::sync::{Arc, Once};

use secrecy::{ExposeSecret, SecretSlice, SecretString, zeroize::Zeroizing};
use tracing::warn;

use super::auth::Auth;
use super::barbican::Barbican;
use super::http::{Connections, Failure};
use crate::config::{KeyBackend, KeyManagerConfig};
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};

/// The id under which the key of the configuration file goes (`ConfKeyManager`).
const FIXED_ID: &str = "00000000-0000-0000-0000-000000000000";
static TOLD: Once = Once::new();

/// The client; cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys {
    backend: KeyBackend,
    fixed_key: Option<Arc<SecretString>>,
    barbican: Barbican,
}

impl Keys {
    pub(super) fn new(config: &KeyManagerConfig, auth: &Auth, connections: Arc<Connections>) -> Keys {
        if config.backend == KeyBackend::Fixed && config.fixed_key.is_some() {
            // Each backend has a client.
            TOLD.call_once(|| {
                warn!(
                    "all encrypted volumes have the one key of [key_manager] fixed_key: not for production"
                );
            });
        }
        Keys {
            backend: config.backend.clone(),
            fixed_key: config.fixed_key.clone().map(Arc::new),
            barbican: Barbican::new(&config.barbican, auth, connections),
        }
    }

    /// What opens a volume of this key: its bytes in hex, as Nova makes them too.
    ///
    /// # Errors
    /// `KeyManager`.
    pub async fn passphrase(&self, context: &RequestContext, id: &str) -> Result<SecretString> {
        let key = self.key(context, id).await.map_err(|failure| {
            let text = match failure.status() {
                Some(404) => format!("Key not found, uuid: {id}"),
                _ => "the key of the volume cannot be read".to_owned(),
            };
            Error::new(Code::KeyManager, text).detail(failure.to_string())
        })?;
        Ok(hex(key.expose_secret()))
    }

    /// Makes a place for a copy of a key; answers its id, which whoever asks writes down before he has it filled. The key of
    /// the configuration file is its own copy.
    ///
    /// # Errors
    /// `KeyManager`.
    pub async fn reserve(&self, context: &RequestContext, id: &str) -> Result<String> {
        let reserved = match (&self.backend, id) {
            (_, FIXED_ID) => return Ok(FIXED_ID.to_owned()),
            (KeyBackend::Barbican, _) => self.barbican.reserve(context, id).await,
            _ => self.key(context, id).await.map(|_| id.to_owned()),
        };
        reserved.map_err(|failure| not_copied(&failure))
    }

    /// Stores a key in the place that was made for its copy; the two are what `clone_encryption_key` is. Repeatable.
    ///
    /// # Errors
    /// `KeyManager`.
    pub async fn fill(&self, context: &RequestContext, from: &str, to: &str) -> Result<()> {
        if from == to || self.backend != KeyBackend::Barbican {
            return Ok(());
        }
        self.barbican.fill(context, from, to).await.map_err(|failure| not_copied(&failure))
    }

    /// Deletes a key (`delete_encryption_key`); one that is gone is a success.
    ///
    /// # Errors
    /// `KeyManager`.
    pub async fn forget(&self, context: &RequestContext, id: &str) -> Result<()> {
        if id == FIXED_ID || self.backend != KeyBackend::Barbican {
            return Ok(());
        }
        match self.barbican.delete(context, id).await {
            Err(failure) if failure.status() != Some(404) => {
                Err(Error::new(Code::KeyManager, format!("The key {id} cannot be deleted"))
                    .detail(failure.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// A certificate that somebody has stored there, in PEM or DER.
    ///
    /// # Errors
    /// `KeyManager`.
    pub async fn certificate(&self, context: &RequestContext, id: &str) -> Result<Vec<u8>> {
        let found = match &self.backend {
            KeyBackend::Barbican => self.barbican.payload(context, id).await,
            // It knows one key.
            KeyBackend::Fixed => {
                let text = "[key_manager] has one fixed_key, and no certificates";
                Err(Failure::Refused { status: 404, text: text.to_owned() })
            }
            KeyBackend::Other(name) => {
                Err(Failure::Unusable(format!("[key_manager] backend = {name} is not supported")))
            }
        };
        let found = found.map_err(|failure| {
            let text = format!("Unable to retrieve certificate with ID: {id}");
            Error::new(Code::KeyManager, text).detail(failure.to_string())
        })?;
        Ok(found.expose_secret().to_vec())
    }

    async fn key(&self, context: &RequestContext, id: &str) -> Result<SecretSlice<u8>, Failure> {
        let fixed = self.fixed_key.as_ref().filter(|_| id == FIXED_ID);
        match (&self.backend, fixed) {
            // Also of volumes that are older than Barbican here (castellan's `MigrationKeyManager`).
            (_, Some(key)) => unhex(key).ok_or_else(|| {
                let text = "[key_manager] fixed_key must be a whole number of bytes in hexadecimal digits";
                Failure::Unusable(text.to_owned())
            }),
            (KeyBackend::Barbican, None) => self.barbican.payload(context, id).await,
            (KeyBackend::Fixed, None) if id == FIXED_ID => {
                Err(Failure::Unusable("[key_manager] fixed_key is not set".to_owned()))
            }
            (KeyBackend::Fixed, None) => {
                let text =
                    "[key_manager] has one fixed_key, and the volume was made with another key manager";
                Err(Failure::Refused { status: 404, text: text.to_owned() })
            }
            (KeyBackend::Other(name), None) => {
                Err(Failure::Unusable(format!("[key_manager] backend = {name} is not supported")))
            }
        }
    }
}

fn not_copied(failure: &Failure) -> Error {
    let text = "the key of the volume cannot be copied for its backup";
    Error::new(Code::KeyManager, text).detail(failure.to_string())
}

fn hex(bytes: &[u8]) -> SecretString {
    let mut text = String::with_capacity(2 * bytes.len());
    for nibble in bytes.iter().flat_map(|b| [b >> 4, b & 15]) {
        text.push(char::from_digit(u32::from(nibble), 16).unwrap_or_default());
    }
    SecretString::from(text)
}

fn unhex(text: &SecretString) -> Option<SecretSlice<u8>> {
    let digits = text.expose_secret().trim().bytes().map(|b| char::from(b).to_digit(16));
    let digits: Zeroizing<Vec<u8>> = Zeroizing::new(digits.map(|d| Some(d? as u8)).collect::<Option<_>>()?);
    let whole = digits.len().is_multiple_of(2) && !digits.is_empty();
    let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]);
    whole.then(|| SecretSlice::from(bytes.collect::<Vec<u8>>()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::testing::{self, Reply, Seen, Server, account};
    use super::*;
    use crate::config::{Account, BarbicanConfig};

    const ID: &str = "5b8a3d6e-1111-4222-8333-444455556666";

    fn keys(config: &KeyManagerConfig, service: Option<Account>) -> Keys {
        let connections = Arc::new(Connections::default());
        Keys::new(config, &Auth::of(true, service.as_ref(), false, &connections), connections)
    }

    fn context(token: Option<&str>, barbican: Option<&str>) -> RequestContext {
        let endpoints = barbican.map(|url| json!([{"region": "R", "publicURL": url}]));
        let fields = json!({"request_id": "req-1", "auth_token": token,
            "service_catalog": [{"type": "key-manager", "endpoints": endpoints}]});
        match fields {
            Value::Object(fields) => RequestContext::from_fields(fields),
            _ => unreachable!(),
        }
    }

    fn at(endpoint: Option<String>) -> KeyManagerConfig {
        let barbican = BarbicanConfig { endpoint, interface: "public".into(), ..BarbicanConfig::default() };
        KeyManagerConfig { barbican, ..KeyManagerConfig::default() }
    }

    /// A Barbican that knows one key, and these tokens.
    async fn barbican(tokens: &'static [&'static str]) -> Server {
        Server::start(move |seen: &Seen| match seen.header("x-auth-token") {
            Some(token) if !tokens.contains(&token) => Reply::text(401, "no"),
            _ if seen.path == format!("/v1/secrets/{ID}/payload") => Reply::bytes(200, &[0, 0xff, 0x1c]),
            _ => Reply::json(404, &json!({"title": "Not Found", "description": "Secret not found."})),
        })
        .await
    }

    #[tokio::test]
    async fn the_key_of_the_file_has_one_id() {
        let fixed = |key: Option<&str>| KeyManagerConfig {
            backend: KeyBackend::Fixed,
            fixed_key: key.map(SecretString::from),
            ..KeyManagerConfig::default()
        };
        let get = async |config: &KeyManagerConfig, id: &str| {
            keys(config, None).passphrase(&context(None, None), id).await
        };
        let good = get(&fixed(Some("00FFa0")), FIXED_ID).await.unwrap();
        assert_eq!(good.expose_secret(), "00ffa0");
        for (key, id, why) in [
            (Some("00ff"), ID, "another key manager"),
            (None, FIXED_ID, "is not set"),
            (Some("00f"), FIXED_ID, "hexadecimal"),
            (Some("s3cret"), FIXED_ID, "hexadecimal"),
            (Some(""), FIXED_ID, "hexadecimal"),
        ] {
            let error = get(&fixed(key), id).await.unwrap_err();
            assert_eq!(error.code(), Code::KeyManager);
            assert!(error.operator().contains(why), "{error}");
            assert!(key.is_none_or(|key| key.is_empty() || !error.operator().contains(key)), "{error}");
        }
        let vault = KeyManagerConfig { backend: KeyBackend::Other("vault".into()), ..fixed(None) };
        assert!(get(&vault, ID).await.unwrap_err().operator().contains("vault"));
    }

    #[tokio::test]
    async fn barbican_is_asked_with_the_users_token_where_his_catalogue_says() {
        let server = barbican(&["users"]).await;
        let found = keys(&at(None), None);
        for path in ["", "/", "/v1", "/v1/"] {
            let context = context(Some("users"), Some(&server.url(path)));
            let key = found.passphrase(&context, ID).await.unwrap();
            assert_eq!(key.expose_secret(), "00ff1c");
        }
        let seen = &server.seen()[0];
        assert_eq!(seen.path, format!("/v1/secrets/{ID}/payload"));
        assert_eq!(seen.header("accept"), Some("application/octet-stream"));
        assert_eq!(seen.header("x-openstack-request-id"), Some("req-1"));
        assert_eq!(seen.header("x-service-token"), None);
        // The key of the time before Barbican needs none.
        let config = KeyManagerConfig { fixed_key: Some("0b".into()), ..at(None) };
        let old = keys(&config, None).passphrase(&context(None, None), FIXED_ID).await.unwrap();
        assert_eq!(old.expose_secret(), "0b");
    }

    #[tokio::test]
    async fn after_a_crash_the_service_user_asks_and_a_refused_token_is_renewed() {
        let server = barbican(&["token-2"]).await;
        let keystone = Server::start(testing::keystone("", Duration::from_secs(3600))).await;
        let found = keys(&at(Some(server.url("/"))), Some(account(&keystone.url(""))));
        let key = found.passphrase(&context(None, None), ID).await.unwrap();
        assert_eq!((key.expose_secret(), server.seen().len()), ("00ff1c", 2));
    }

    #[tokio::test]
    async fn the_account_of_barbican_speaks_along_with_the_user() {
        let server = barbican(&["users"]).await;
        let keystone = Server::start(testing::keystone("", Duration::from_secs(3600))).await;
        let mut config = at(Some(server.url("")));
        config.barbican.service_user = Some(account(&keystone.url("")));
        keys(&config, None).passphrase(&context(Some("users"), None), ID).await.unwrap();
        assert_eq!(server.seen()[0].header("x-service-token"), Some("token-1"));
        // It does not stand in for him.
        let nobody = keys(&config, None).passphrase(&context(None, None), ID).await.unwrap_err();
        assert!(nobody.operator().contains("[service_user]"), "{nobody}");
    }

    #[tokio::test]
    async fn a_certificate_is_read_as_bytes_or_as_text() {
        let server = Server::start(|seen: &Seen| match (seen.path.as_str(), seen.header("accept")) {
            ("/v1/secrets/c-1/payload", Some("application/octet-stream")) => Reply::bytes(200, b"der"),
            ("/v1/secrets/c-2/payload", Some("text/plain")) => Reply::text(200, "pem"),
            ("/v1/secrets/c-2/payload", _) => Reply::text(406, ""),
            _ => Reply::text(404, ""),
        })
        .await;
        let found = keys(&at(Some(server.url(""))), None);
        let get = async |id: &str| found.certificate(&context(Some("users"), None), id).await;
        assert_eq!(get("c-1").await.unwrap(), b"der");
        assert_eq!(get("c-2").await.unwrap(), b"pem");
        assert_eq!(get("c-3").await.unwrap_err().code(), Code::KeyManager);
        let fixed = KeyManagerConfig { backend: KeyBackend::Fixed, ..KeyManagerConfig::default() };
        let none = keys(&fixed, None).certificate(&context(Some("users"), None), "c-1").await;
        assert_eq!(none.unwrap_err().code(), Code::KeyManager);
    }

    #[tokio::test]
    async fn a_copy_has_an_id_before_it_has_a_key_and_is_filled_once() {
        const COPY: &str = "7c8a3d6e-1111-4222-8333-444455556666";
        let server = Server::start(|seen: &Seen| match (seen.method.as_str(), seen.path.as_str()) {
            ("POST", "/v1/secrets") => {
                Reply::json(201, &json!({"secret_ref": format!("http://here/v1/secrets/{COPY}")}))
            }
            ("PUT", path) if path.ends_with(COPY) => match seen.body.as_slice() {
                [0, 0xff, 0x1c] => Reply::bytes(204, &[]),
                _ => Reply::text(400, ""),
            },
            ("PUT", _) => Reply::json(409, &json!({"description": "Secret already has data"})),
            ("GET", path) if path.ends_with("/payload") => Reply::bytes(200, &[0, 0xff, 0x1c]),
            ("GET", _) => Reply::json(200, &json!({"algorithm": "aes", "bit_length": 256, "name": null})),
            _ => Reply::text(404, ""),
        })
        .await;
        let (found, context) = (keys(&at(Some(server.url(""))), None), context(Some("users"), None));
        assert_eq!(found.reserve(&context, ID).await.unwrap(), COPY);
        let made: Value = serde_json::from_slice(&server.seen()[1].body).unwrap();
        assert_eq!(made, json!({"algorithm": "aes", "bit_length": 256}), "and no payload");
        found.fill(&context, ID, COPY).await.unwrap();
        // After a crash nobody knows whether it was.
        found.fill(&context, COPY, ID).await.unwrap();
        let asked = server.seen().len();
        assert_eq!(found.reserve(&context, FIXED_ID).await.unwrap(), FIXED_ID);
        found.fill(&context, FIXED_ID, FIXED_ID).await.unwrap();
        assert_eq!(server.seen().len(), asked, "the key of the file is its own copy");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_without_the_key() {
        let server = barbican(&["users"]).await;
        let found = keys(&at(Some(server.url(""))), None);
        let ask = async |token: Option<&str>, id: &str| {
            found.passphrase(&context(token, None), id).await.unwrap_err().operator()
        };
        assert!(ask(Some("users"), &ID.replace('5', "6")).await.starts_with("Key not found"));
        assert!(ask(Some("users"), "../containers").await.starts_with("Key not found"));
        assert!(ask(Some("another's"), ID).await.contains("HTTP 401"));
        assert_eq!(server.seen().len(), 2);
        let nowhere = keys(&at(None), None).passphrase(&context(Some("users"), None), ID).await.unwrap_err();
        assert!(nowhere.operator().contains("barbican_endpoint"), "{nowhere}");
        let empty = Server::start(|_| Reply::text(200, "")).await;
        let none = keys(&at(Some(empty.url(""))), None).passphrase(&context(Some("users"), None), ID).await;
        assert!(none.unwrap_err().operator().contains("no payload"));
        let gone = keys(&at(Some("http://127.0.0.1:1".into())), None);
        let silent = gone.passphrase(&context(Some("users"), None), ID).await.unwrap_err();
        assert_eq!(silent.code(), Code::KeyManager);
    }
}
