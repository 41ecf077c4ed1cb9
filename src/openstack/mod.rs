//! Clients of the other OpenStack services: keystone, glance, nova and barbican.
//!
//! Volume operations need four things of them: an image's description and bytes, a place to upload bytes to,
//! a word to nova when an attached volume has changed, and the key of an encrypted one. Who asks differs: most requests go with the token of
//! the user who made the RPC request, some with an account of Cinder's own; and after a crash the user's token
//! is gone, because it is never stored. All that is decided here (`auth`), so that an operation hands over its
//! context and gets an answer or one of Cinder's errors.
//!
//! Nothing here knows volumes, rows or RPC. Every wait is bounded, and no token or password is ever in a log
//! line or an error.

mod auth;
mod barbican;
mod catalog;
pub mod glance;
mod http;
mod keys;
mod keystone;
pub mod nova;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use crate::config::OpenStackConfig;

use auth::Auth;
pub use glance::Glance;
use http::Connections;
pub use keys::Keys;
pub use nova::Nova;

/// The clients; cheap to clone. Nothing is connected, and no file read, before it is needed.
#[derive(Debug, Clone)]
pub struct OpenStack {
    /// Images.
    pub glance: Glance,
    /// Servers.
    pub nova: Nova,
    /// Keys of encrypted volumes.
    pub keys: Keys,
}

impl OpenStack {
    /// Clients as configured.
    pub fn new(config: &OpenStackConfig) -> OpenStack {
        let connections = Arc::new(Connections::default());
        let auth = Auth::new(config, &connections);
        OpenStack {
            keys: Keys::new(&config.keys, &auth, connections.clone()),
            glance: Glance::new(&config.glance, auth.clone(), connections.clone()),
            nova: Nova::new(&config.nova, auth, connections),
        }
    }
}
