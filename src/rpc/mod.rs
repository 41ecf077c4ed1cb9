//! Cinder's RPC over RabbitMQ, compatible with oslo.messaging to the letter.
//!
//! A message's way in: [`connection`] brings it, [`envelope`] takes it apart, [`dispatch`] gives its
//! arguments types ([`method`], [`objects`]), [`server`] has it journalled, acknowledged and run, and
//! [`fault`] turns an error into the exception that the caller will see. The way out: [`notifier`],
//! [`scheduler`] and [`backup`] implement the traits of `backend::peers`.

pub mod backup;
pub mod call;
pub mod caller;
mod compression;
pub mod connection;
mod consumer;
pub mod dispatch;
pub mod envelope;
pub mod fault;
pub mod method;
pub mod namespace;
pub mod notifier;
pub mod objects;
pub mod pins;
pub mod publisher;
pub mod scheduler;
pub mod server;
pub mod synthetic;
#[cfg(test)]
mod testing;
mod tls;
pub mod topology;
pub mod usage;
#[cfg(test)]
mod wire_tests;

pub use call::Call;
pub use caller::Caller;
pub use dispatch::{Method, Resource};
pub use envelope::{Reply, ReplyTo};
pub use notifier::Notifier;
pub use pins::Pins;
pub use publisher::Publisher;
pub use scheduler::{Binary, Peers};
pub use server::{Accept, Handler, Rpc, Server};
