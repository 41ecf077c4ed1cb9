//! What connecting two clusters is made of: where their OSDs are, what pools are like, how peers reach each other.
//!
//! Ceph makes an erasure-coded pool that its OSDs cannot hold without a word, and then everything that touches it
//! waits for ever. So OSDs are told with their places, and whoever makes a pool looks at them first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An OSD, and where CRUSH has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdPlace {
    /// Its number.
    pub id: i64,
    /// `hdd`, `ssd`, …; empty: none.
    pub class: String,
    /// It runs, and data is placed on it (`up`, and not `out`).
    pub serves: bool,
    /// Names of the buckets that it is in, by their type: `host`, `rack`, `root` …
    pub within: BTreeMap<String, String>,
}

/// An erasure-code profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErasureProfile {
    /// Its name in the cluster.
    pub name: String,
    /// Data chunks.
    pub k: u32,
    /// Coding chunks.
    pub m: u32,
    /// `jerasure`, `isa`, `shec` or `clay`.
    pub plugin: String,
    /// The plugin's technique; `None`: its default.
    pub technique: Option<String>,
    /// CRUSH bucket type of which each holds one chunk at most: `osd`, `host`, `chassis`, `rack` …
    pub failure_domain: String,
    /// Only OSDs of this class; `None`: any.
    pub device_class: Option<String>,
}

impl ErasureProfile {
    /// As `ceph osd erasure-code-profile set` takes it.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("k={}", self.k),
            format!("m={}", self.m),
            format!("plugin={}", self.plugin),
            format!("crush-failure-domain={}", self.failure_domain),
        ];
        words.extend(self.technique.iter().map(|technique| format!("technique={technique}")));
        words.extend(self.device_class.iter().map(|class| format!("crush-device-class={class}")));
        words
    }
}

/// How a pool keeps its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Redundancy {
    /// As copies; `None`: as many as the cluster's default.
    Replicated(Option<u32>),
    /// By the erasure-code profile of this name, with overwrites, which images need.
    Erasure(String),
}

/// What a pool is to be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolShape {
    /// How it keeps its data.
    pub redundancy: Redundancy,
    /// How many copies or chunks must be there for I/O; `None`: the cluster's default.
    pub min_size: Option<u32>,
    /// Placement groups; `None`: the cluster's default, or its autoscaler's choice.
    pub pg_num: Option<u32>,
}

/// Which way a link is to go, as the receiving side has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Way {
    /// Only the second cluster takes copies, from the first.
    #[serde(rename = "rx-only")]
    RxOnly,
    /// Each takes copies from the other.
    #[serde(rename = "rx-tx")]
    RxTx,
}

impl Way {
    /// As the operator and the row say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Way::RxOnly => "rx-only",
            Way::RxTx => "rx-tx",
        }
    }

    /// Reads it back.
    pub fn parse(text: &str) -> Option<Way> {
        [Way::RxOnly, Way::RxTx].into_iter().find(|way| way.as_str() == text)
    }
}

/// The user of the bootstrap token's making (`RBD_MIRROR_PEER_CLIENT_ID_PREFIX`, librbd `api/Mirror.cc`): one for a
/// whole cluster, whoever its peers are.
pub const BOOTSTRAP_USER: &str = "rbd-mirror-peer";
