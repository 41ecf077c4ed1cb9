//! What an operator gives to reach a site by, before it is files.

use std::path::PathBuf;

use uuid::Uuid;

use super::files::{CephKey, Store, read_key};
use super::orders::{Files, Order, Request};
use super::{blocking, user_name};
use crate::error::{Code, Error, Result};
use crate::journal::{Journal, NewOperation, Submitted};

/// Files that are on the host, or what is to be in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// cephx user without `client.`.
    pub user: String,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    InPlace { conf: PathBuf, keyring: Option<PathBuf> },
    Content { conf: String, key: CephKey },
}

/// The same before it is checked: which of them are there tells what is meant.
#[derive(Clone, Default)]
pub struct Parts {
    /// cephx user, with or without `client.`; default `cinder`.
    pub user: Option<String>,
    /// Path of a ceph.conf on the host.
    pub conf: Option<String>,
    /// Path of a keyring on the host.
    pub keyring: Option<String>,
    /// Content of a ceph.conf.
    pub conf_text: Option<String>,
    /// Monitors, as `mon_host` names them.
    pub monitors: Option<String>,
    /// Content of a keyring, or a key.
    pub key: Option<String>,
}

impl Parts {
    fn is_empty(&self) -> bool {
        [&self.conf, &self.keyring, &self.conf_text, &self.monitors, &self.key]
            .into_iter()
            .all(Option::is_none)
    }

    /// What is meant; `None` when nothing was given.
    ///
    /// # Errors
    /// `InvalidInput` for a mixture, or a part that is missing.
    pub fn given(self) -> Result<Option<Given>> {
        if self.is_empty() {
            return Ok(None);
        }
        let user = user_name(self.user.as_deref().unwrap_or("cinder"))?;
        let wrong = |text: String| Err(Error::new(Code::InvalidInput, text));
        let source = match (self.conf, self.keyring, self.conf_text, self.monitors, self.key) {
            (Some(conf), keyring, None, None, None) => {
                if let Some(path) =
                    [Some(&conf), keyring.as_ref()].into_iter().flatten().find(|p| !p.starts_with('/'))
                {
                    return wrong(format!(
                        "'{path}' is not an absolute path: the service of the host reads conf and keyring itself, from \
                         its own directory"
                    ));
                }
                Source::InPlace { conf: conf.into(), keyring: keyring.map(PathBuf::from) }
            }
            (None, None, Some(conf), None, Some(key)) => {
                Source::Content { conf, key: read_key(&key, &user)? }
            }
            (None, None, None, Some(monitors), Some(key)) => {
                let odd = |c: char| c.is_control() || "#;=\\".contains(c);
                if monitors.trim().is_empty() || monitors.contains(odd) {
                    let shown: String = monitors.chars().take(80).collect();
                    return wrong(format!(
                        "'{}' are no monitors: give addresses as mon_host of a ceph.conf names them, like \
                         10.0.0.1,10.0.0.2 or [v2:10.0.0.1:3300,v1:10.0.0.1:6789]",
                        shown.escape_debug()
                    ));
                }
                let conf = format!("[global]\nmon_host = {}\n", monitors.trim());
                Source::Content { conf, key: read_key(&key, &user)? }
            }
            _ => {
                return wrong(
                    "A site is given by the paths of its conf (and keyring) on the host, or by the content of a conf \
                     and a key, or by monitors and a key"
                        .to_owned(),
                );
            }
        };
        Ok(Some(Given { user, source }))
    }
}

impl Given {
    /// Its files for an order. What is given as content becomes a draft.
    ///
    /// # Errors
    /// `Config` when a draft cannot be written.
    pub async fn files(self, store: &Store) -> Result<Files> {
        let user = self.user;
        Ok(match self.source {
            Source::InPlace { conf, keyring } => Files { conf, keyring, user, draft: false },
            Source::Content { conf, key } => {
                let (store, of) = (store.clone(), user.clone());
                let draft = blocking(move || store.draft(&conf, &of, &key)).await??;
                Files { conf: draft.conf, keyring: Some(draft.keyring), user, draft: true }
            }
        })
    }
}

/// An order that was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    /// Its operation.
    pub operation: i64,
    /// False when the same order was open already.
    pub new: bool,
    /// What finds it in the log.
    pub request_id: String,
}

/// Writes an order down for the service of `host`. One with the same `id` is written once.
///
/// # Errors
/// `Database`.
pub async fn submit(journal: &Journal, host: &str, order: Order, id: Option<String>) -> Result<Ordered> {
    let request = Request::new(order);
    let new = NewOperation {
        unique_id: id.unwrap_or_else(|| Uuid::new_v4().simple().to_string()),
        method: request.order.method().to_owned(),
        backend_host: host.to_owned(),
        request: request.to_text()?,
        ..NewOperation::default()
    };
    let (operation, new) = match journal.submit(&new).await? {
        Submitted::New(id) => (id, true),
        Submitted::Open(id) => (id, false),
    };
    Ok(Ordered { operation, new, request_id: request.request_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==";

    fn parts(conf: &str, keyring: &str, conf_text: &str, monitors: &str, key: &str) -> Parts {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let user = Some("client.nova".to_owned());
        Parts {
            user,
            conf: some(conf),
            keyring: some(keyring),
            conf_text: some(conf_text),
            monitors: some(monitors),
            key: some(key),
        }
    }

    #[test]
    fn one_of_three_ways_and_no_mixture() {
        assert_eq!(Parts::default().given().unwrap(), None);
        let good = |p: Parts| p.given().unwrap().unwrap();
        assert_eq!(good(parts("/c", "/k", "", "", "")).user, "nova");
        assert!(matches!(good(parts("", "", "[global]", "", KEY)).source, Source::Content { .. }));
        let Source::Content { conf, .. } =
            good(parts("", "", "", " 10.0.0.1,[v2:10.0.0.2:3300]", KEY)).source
        else {
            panic!("monitors are content");
        };
        assert_eq!(conf, "[global]\nmon_host = 10.0.0.1,[v2:10.0.0.2:3300]\n");
        let mixture = "A site is given by the paths of its conf (and keyring) on the host, or by";
        for (bad, said) in [
            (parts("c", "", "", "", ""), "'c' is not an absolute path"),
            (parts("/c", "k", "", "", ""), "'k' is not an absolute path"),
            (parts("/c", "", "", "", KEY), mixture),
            (parts("", "/k", "", "", ""), mixture),
            (parts("", "", "[global]", "m", KEY), mixture),
            (parts("", "", "[global]", "", ""), mixture),
            (parts("", "", "", "m\nkeyring = /x", KEY), "'m\\nkeyring = /x' are no monitors"),
            (parts("", "", "", " ", KEY), "' ' are no monitors"),
            (parts("", "", "", "m#", KEY), "like 10.0.0.1,10.0.0.2"),
            (parts("", "", "", "m", "AQ=="), "key"),
        ] {
            let refused = bad.given().unwrap_err();
            assert_eq!(refused.code(), Code::InvalidInput);
            assert!(refused.user().contains(said), "{said}: {refused}");
        }
    }
}
