//! Against what a stock deployment declared (tests/wire/topology).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use super::*;
use crate::rpc::testing::rabbit;

/// One of the captured listings: sections of tab-separated lines, each under its header.
struct Listing {
    exchanges: BTreeSet<String>,
    queues: BTreeSet<String>,
    bindings: BTreeSet<String>,
}

/// Keeps what belongs to cinder-volume, and replaces the random part of fanout queues.
fn listing(text: &str) -> Listing {
    let mut listing =
        Listing { exchanges: BTreeSet::new(), queues: BTreeSet::new(), bindings: BTreeSet::new() };
    let mut section = 0;
    for line in text.lines() {
        let columns: Vec<_> = line.split('\t').collect();
        match columns[0] {
            "name" => section += 1,
            "source_name" => section = 3,
            _ if line.starts_with('#') => {}
            name => {
                let volume = columns.iter().any(|c| c.starts_with(VOLUME_TOPIC));
                match section {
                    1 if volume || name == "openstack" => {
                        listing.exchanges.insert(columns[..4].join(" "));
                    }
                    2 if volume => {
                        // Quorum queues and streams show no `exclusive`; consumers do not matter here.
                        listing.queues.insert(format!(
                            "{} {} {} {} {}",
                            plain(name),
                            columns[1],
                            columns[2],
                            columns[3],
                            columns[5]
                        ));
                    }
                    3 if volume => {
                        listing.bindings.insert(format!(
                            "{} {} {}",
                            columns[0],
                            plain(columns[1]),
                            columns[2]
                        ));
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(!listing.exchanges.is_empty() && !listing.queues.is_empty() && !listing.bindings.is_empty());
    listing
}

fn plain(name: &str) -> String {
    match name.split_once("_fanout_") {
        Some((topic, random)) => {
            assert_eq!(random.len(), 32);
            format!("{topic}_fanout_*")
        }
        None => name.to_owned(),
    }
}

fn shown(arguments: &Arguments) -> String {
    let all: Vec<_> = arguments
        .iter()
        .map(|(name, value)| match value {
            Argument::Text(text) => format!("{{\"{name}\",\"{text}\"}}"),
            Argument::Number(number) => format!("{{\"{name}\",{number}}}"),
            Argument::Flag(flag) => format!("{{\"{name}\",{flag}}}"),
        })
        .collect();
    format!("[{}]", all.join(","))
}

fn declared(config: &RabbitConfig) -> Listing {
    let mut names = FanoutNames::new(config);
    let mut listing =
        Listing { exchanges: BTreeSet::new(), queues: BTreeSet::new(), bindings: BTreeSet::new() };
    for target in targets("qlab@fake1", None) {
        for queue in queues(config, "openstack", &target, &mut names) {
            let e = &queue.exchange;
            let kind = match e.kind {
                ExchangeKind::Topic => "topic",
                ExchangeKind::Fanout => "fanout",
            };
            listing.exchanges.insert(format!("{} {kind} {} {}", e.name, e.durable, e.auto_delete));
            let kind = queue
                .arguments
                .iter()
                .find_map(|(name, value)| match value {
                    Argument::Text(text) if *name == "x-queue-type" => Some(text.as_str()),
                    _ => None,
                })
                .unwrap_or("classic");
            listing.queues.insert(format!(
                "{} {kind} {} {} {}",
                plain(&queue.name),
                queue.durable,
                queue.auto_delete,
                shown(&queue.arguments)
            ));
            listing.bindings.insert(format!("{} {} {}", e.name, plain(&queue.name), queue.routing_key));
        }
    }
    // `cinder-volume.qlab@fake1@...`: the generic server's own queue is the backend's topic queue.
    listing
}

fn agrees(text: &str, change: impl FnOnce(&mut RabbitConfig)) {
    let mut config = rabbit();
    change(&mut config);
    let (stock, ours) = (listing(text), declared(&config));
    assert_eq!(ours.exchanges, stock.exchanges);
    assert_eq!(ours.queues, stock.queues);
    assert_eq!(ours.bindings, stock.bindings);
}

macro_rules! captured {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/topology/", $name))
    };
}

#[test]
fn default_options() {
    agrees(captured!("vdefault.txt"), |_| {});
}

#[test]
fn durable_queues() {
    agrees(captured!("vdurable.txt"), |c| c.durable_queues = true);
}

#[test]
fn quorum_queues() {
    agrees(captured!("vquorum.txt"), |c| c.quorum_queue = true);
}

#[test]
fn transient_quorum_queues() {
    agrees(captured!("vquorumtrans.txt"), |c| {
        c.quorum_queue = true;
        c.transient_quorum_queue = true;
        c.durable_queues = true;
    });
}

#[test]
fn streams_with_a_queue_manager() {
    agrees(captured!("vqmstream.txt"), |c| {
        c.quorum_queue = true;
        c.transient_quorum_queue = true;
        c.durable_queues = true;
        c.use_queue_manager = true;
        c.stream_fanout = true;
    });
}

#[test]
fn a_cluster_adds_a_third_server() {
    let keys: Vec<_> =
        targets("lab2@fake3", Some("clu@fake3")).iter().map(|t| (t.topic.clone(), t.routing_key())).collect();
    let queues = captured!("queues-cluster.txt");
    for (topic, key) in &keys {
        for name in [topic, key] {
            assert!(queues.lines().any(|l| l.split('\t').next() == Some(name)), "{name}");
        }
    }
    assert_eq!(keys[0].1, "cinder-volume.lab2@fake3");
    assert_eq!(keys[2].1, "cinder-volume.clu@fake3.clu");
}

#[test]
fn limits_of_quorum_queues_and_the_queue_managers_names() {
    let mut config = rabbit();
    config.quorum_queue = true;
    config.quorum_delivery_limit = 5;
    config.use_queue_manager = true;
    config.cancel_on_failover = true;
    let mut names = FanoutNames::new(&config);
    let queues = queues(&config, "openstack", &Target::of_backend("h1@rbd#pool"), &mut names);
    assert_eq!(shown(&queues[0].arguments), "[{\"x-queue-type\",\"quorum\"},{\"x-delivery-limit\",5}]");
    assert_eq!(shown(&queues[0].consumer_arguments), "[{\"x-cancel-on-ha-failover\",true}]");
    assert_eq!(queues[1].name, "cinder-volume.h1@rbd.h1");
    assert_eq!(queues[2].name, "cinder-volume.h1@rbd_fanout_qhost:cinder-volume:1");
    assert!(!queues[2].is_temporary);
    assert_eq!(names.next_name(), "qhost:cinder-volume:2");
}
