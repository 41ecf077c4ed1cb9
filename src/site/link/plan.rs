//! What connecting two sites takes, by what was seen of both: a pure function, so that every refusal comes before
//! anything is changed.

use std::fmt;

use super::erasure;
use super::orders::{Connect, DataPool};
use super::pair::Seen;
use crate::error::{Code, Error, Result};
use crate::rbd::link::{ErasureProfile, PoolShape, Redundancy, Way};
use crate::rbd::mirror_survey::PeerDirection;
use crate::rbd::types::PoolMirrorMode;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    A,
    B,
}

/// One thing to do. All of them may be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Make an erasure-code profile.
    Profile { on: On, profile: ErasureProfile },
    /// Make a pool.
    Pool { on: On, pool: String, shape: PoolShape },
    /// Make it one for images.
    Init { on: On, pool: String, data_pool: Option<String> },
    /// Mirror it.
    Mode { on: On, pool: String, mode: PoolMirrorMode },
    /// Give the cluster its name towards peers.
    Name { on: On, name: String },
    /// Make the peers of a pool; `on` receives.
    Peer { on: On, pool: String, way: Way },
}

/// What is to be done, and what is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) acts: Vec<Act>,
    /// Pools whose peers were there before, made by somebody else.
    pub(super) found: Vec<String>,
    /// Pools that are made here: site's fsid and name.
    pub(super) makes: Vec<(String, String)>,
    /// What the operator should know.
    pub(super) remarks: Vec<String>,
}

/// What an unfinished attempt has left: pools that it has set out to make, and those whose peers it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) makes: Vec<(String, String)>,
    pub(super) peers: Vec<String>,
}

fn wrong(text: String) -> Error {
    Error::new(Code::InvalidInput, text)
}

/// Decides.
pub(super) fn plan(order: &Connect, a: &Seen, b: &Seen, begun: &Begun) -> Result<Plan> {
    if a.fsid == b.fsid {
        return Err(wrong(format!("Sites {} and {} are the same cluster ({})", a.name, b.name, a.fsid)));
    }
    if a.peer_name() == b.peer_name() {
        return Err(wrong(format!(
            "Both clusters call themselves {} towards their peers, who could not tell them apart; give one another name \
             (rbd mirror pool info --all POOL shows it, rbd mirror pool enable --site-name sets it)",
            a.peer_name()
        )));
    }
    let mut plan = Plan { acts: vec![], found: vec![], makes: vec![], remarks: vec![] };
    for pool in &order.pools {
        if let Some((name, data)) = order.data_pool(pool) {
            data_pools(order, &name, data, a, b, begun, &mut plan)?;
        }
        for (on, seen) in [(On::A, a), (On::B, b)] {
            images(order, pool, on, seen, begun, &mut plan)?;
        }
    }
    for pool in &order.pools {
        for (on, seen) in [(On::A, a), (On::B, b)] {
            mode(order, pool, on, seen, &mut plan)?;
        }
    }
    for (on, seen) in [(On::A, a), (On::B, b)] {
        if seen.calls_itself.is_none() {
            plan.acts.push(Act::Name { on, name: seen.name.clone() });
        }
    }
    for pool in &order.pools {
        peers(order, pool, a, b, begun, &mut plan)?;
    }
    Ok(plan)
}

/// The pool of the images.
fn images(order: &Connect, pool: &str, on: On, seen: &Seen, begun: &Begun, plan: &mut Plan) -> Result<()> {
    let made = (seen.fsid.clone(), pool.to_owned());
    let data_pool = order.data_pool(pool).map(|(name, _)| name);
    match (seen.pool(pool), &order.make) {
        (Some(there), _) if there.erasure => {
            return Err(wrong(format!(
                "Pool {pool} of site {} is erasure-coded: images have their names and headers in a replicated pool, and \
                 only their data in such a one",
                seen.name
            )));
        }
        (Some(there), _) if !begun.makes.contains(&made) => {
            if there.applications.iter().any(|app| app != "rbd") {
                return Err(wrong(format!(
                    "Pool {pool} of site {} is for {}, and not for images",
                    seen.name,
                    there.applications.join(", ")
                )));
            }
            if !there.applications.iter().any(|app| app == "rbd") || data_pool.is_some() {
                plan.acts.push(Act::Init { on, pool: pool.to_owned(), data_pool });
            }
            return Ok(());
        }
        (None, None) => {
            return Err(wrong(format!(
                "Site {} has no pool {pool}; make it, or have it made (--create-pools)",
                seen.name
            )));
        }
        (Some(_), None) => {}
        (_, Some(make)) => erasure::check_replicated(&seen.name, make.size, make.min_size, &seen.osds)?,
    }
    let make = order.make.clone().unwrap_or_default();
    let shape = PoolShape {
        redundancy: Redundancy::Replicated(make.size),
        min_size: make.min_size,
        pg_num: make.pg_num,
    };
    plan.makes.push(made);
    plan.acts.push(Act::Pool { on, pool: pool.to_owned(), shape });
    plan.acts.push(Act::Init { on, pool: pool.to_owned(), data_pool });
    Ok(())
}

/// The pools of their data, one of the same name on each side.
fn data_pools(
    order: &Connect,
    name: &str,
    data: &DataPool,
    a: &Seen,
    b: &Seen,
    begun: &Begun,
    plan: &mut Plan,
) -> Result<()> {
    for (on, seen, other) in [(On::A, a, b), (On::B, b, a)] {
        let made = (seen.fsid.clone(), name.to_owned());
        let ours = begun.makes.contains(&made);
        if let Some(there) = seen.pool(name).filter(|_| !ours) {
            if there.erasure {
                continue;
            }
            let type_of_other = match other.pool(name) {
                Some(pool) if !pool.erasure => continue,
                Some(_) => "is erasure-coded",
                None => "is to be erasure-coded",
            };
            let text = format!(
                "Data pool {name} is replicated on site {}, and {type_of_other} on site {}",
                seen.name, other.name
            );
            if !order.accept_pool_type {
                return Err(wrong(format!(
                    "{text}. RBD mirrors between the two types, but not by chance: say that it is meant (--accept-pool-type)"
                )));
            }
            plan.remarks.push(text);
            continue;
        }
        erasure::check(&seen.name, &data.profile, data.min_size, &seen.osds)?;
        plan.makes.push(made);
        plan.acts.push(Act::Profile { on, profile: data.profile.clone() });
        let shape = PoolShape {
            redundancy: Redundancy::Erasure(data.profile.name.clone()),
            min_size: data.min_size,
            pg_num: data.pg_num,
        };
        plan.acts.push(Act::Pool { on, pool: name.to_owned(), shape });
    }
    Ok(())
}

fn mode(order: &Connect, pool: &str, on: On, seen: &Seen, plan: &mut Plan) -> Result<()> {
    let wanted = order.mode.of_pool();
    match seen.mirroring.get(pool).map_or(PoolMirrorMode::Disabled, |view| view.mode) {
        now if now == wanted => {}
        PoolMirrorMode::Disabled => {
            plan.acts.push(Act::Mode { on, pool: pool.to_owned(), mode: wanted });
        }
        PoolMirrorMode::Image | PoolMirrorMode::Pool => {
            return Err(wrong(format!(
                "Pool {pool} of site {} is mirrored in the other mode; connect it in that (--mode), or change it first: \
                 from one to the other images stop being mirrored, or begin to be",
                seen.name
            )));
        }
    }
    Ok(())
}

fn peers(order: &Connect, pool: &str, a: &Seen, b: &Seen, begun: &Begun, plan: &mut Plan) -> Result<()> {
    let ends = match order.way {
        Way::RxOnly => vec![(b, a)],
        Way::RxTx => vec![(b, a), (a, b)],
    };
    let mut there = true;
    for (receiver, source) in ends {
        let peers = receiver.mirroring.get(pool).map(|view| view.peers.as_slice()).unwrap_or_default();
        let receives = || peers.iter().filter(|peer| peer.direction != PeerDirection::Sends);
        if let Some(other) = receives().find(|peer| !source.is_peer(peer)) {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "Pool {pool} of site {} receives from {} already, and rbd-mirror takes one such peer for a pool; \
                     disconnect that first",
                    receiver.name, other.site_name
                ),
            ));
        }
        there &= receives().next().is_some();
    }
    if there && !begun.peers.iter().any(|name| name == pool) {
        plan.found.push(pool.to_owned());
        return Ok(());
    }
    plan.acts.push(Act::Peer { on: On::B, pool: pool.to_owned(), way: order.way });
    // A token makes both at once, a user of its own one after the other.
    if order.manual && order.way == Way::RxTx {
        plan.acts.push(Act::Peer { on: On::A, pool: pool.to_owned(), way: order.way });
    }
    Ok(())
}

/// An act, as it is shown: the sites by their names.
pub(super) struct Told<'a>(pub(super) &'a Act, pub(super) &'a str, pub(super) &'a str);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told(act, a, b) = self;
        let name = |on: &On| if *on == On::A { a } else { b };
        let other = |on: &On| if *on == On::A { b } else { a };
        match act {
            Act::Profile { on, profile } => {
                write!(
                    f,
                    "{}: make erasure-code profile {} ({})",
                    name(on),
                    profile.name,
                    profile.words().join(" ")
                )
            }
            Act::Pool { on, pool, shape } => match &shape.redundancy {
                Redundancy::Replicated(Some(size)) => {
                    write!(f, "{}: make pool {pool} with {size} copies", name(on))
                }
                Redundancy::Replicated(None) => write!(f, "{}: make pool {pool}", name(on)),
                Redundancy::Erasure(profile) => {
                    write!(f, "{}: make erasure-coded pool {pool} by profile {profile}", name(on))
                }
            },
            Act::Init { on, pool, data_pool: None } => {
                write!(f, "{}: initialise pool {pool} for images", name(on))
            }
            Act::Init { on, pool, data_pool: Some(data) } => {
                write!(f, "{}: initialise pool {pool} for images with their data in {data}", name(on))
            }
            Act::Mode { on, pool, mode } => {
                let mode = if *mode == PoolMirrorMode::Pool { "pool" } else { "image" };
                write!(f, "{}: mirror pool {pool} in {mode} mode", name(on))
            }
            Act::Name { on, name: calls } => {
                write!(f, "{}: call the cluster {calls} towards peers", name(on))
            }
            Act::Peer { on, pool, way: Way::RxOnly } => {
                write!(f, "{}: receive pool {pool} from {}", name(on), other(on))
            }
            Act::Peer { on, pool, way: Way::RxTx } => {
                write!(f, "{}: connect pool {pool} with {}, both ways", name(on), other(on))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rbd::sim::osds_on;
    use crate::rbd::types::PoolInfo;
    use crate::site::link::Mode;

    fn seen(name: &str, fsid: &str, pools: &[(&str, bool, &[&str])]) -> Seen {
        let pool = |(name, erasure, of): &(&str, bool, &[&str])| PoolInfo {
            name: (*name).to_owned(),
            erasure: *erasure,
            size: 3,
            min_size: 2,
            applications: of.iter().map(|app| (*app).to_owned()).collect(),
        };
        Seen {
            name: name.into(),
            fsid: fsid.into(),
            calls_itself: None,
            osds: osds_on(&["h1", "h2", "h3"]),
            pools: pools.iter().map(pool).collect(),
            mirroring: BTreeMap::new(),
        }
    }

    #[test]
    fn what_cannot_be_a_pool_of_images_and_one_cluster_by_two_names_are_refused() {
        let order = Connect {
            a: "paris".into(),
            b: "rome".into(),
            pools: vec!["p".into()],
            make: None,
            mode: Mode::Image,
            way: Way::RxTx,
            manual: false,
            accept_pool_type: false,
            canary: false,
            admin_a: None,
            admin_b: None,
            dry_run: false,
        };
        let good = seen("rome", "f2", &[("p", false, &["rbd"])]);
        for (a, said) in [
            (seen("paris", "f2", &[]), "Sites paris and rome are the same cluster (f2)"),
            (
                seen("paris", "f1", &[("p", true, &["rbd"])]),
                "Pool p of site paris is erasure-coded: images have",
            ),
            (
                seen("paris", "f1", &[("p", false, &["cephfs", "rgw"])]),
                "is for cephfs, rgw, and not for images",
            ),
            (seen("paris", "f1", &[]), "Site paris has no pool p; make it, or have it made (--create-pools)"),
        ] {
            let refused = plan(&order, &a, &good, &Begun::default()).unwrap_err();
            assert!(refused.user().contains(said), "{said}: {refused}");
        }
        assert!(
            plan(&order, &seen("paris", "f1", &[("p", false, &["rbd"])]), &good, &Begun::default()).is_ok()
        );
    }
}
