//! Volume operations: one file per operation, the same nouns as in `rpc/method`, `db` and `rbd`.

pub mod connection;
pub mod image;
