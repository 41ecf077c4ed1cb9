//! Whether a client may do what Scoria needs, and no more.
//!
//! Too few rights are found on the worst day: a failover cannot fence, a schedule cannot be set. Too many are a key
//! that opens every pool, lying on every host. Both are judged by what the client was let do, not by the text of its
//! capabilities, which it usually cannot read.

use serde::{Deserialize, Serialize};

use super::probe::Pool;

/// Which way it is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gap {
    /// Something will fail.
    TooFew,
    /// Something could be done that nobody needs.
    TooMany,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which way.
    pub gap: Gap,
    /// In words.
    pub text: String,
}

/// What a client was let do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried<'a> {
    /// cephx user without `client.`.
    pub user: &'a str,
    /// It may fence clients, and so break locks.
    pub may_fence: bool,
    /// It may read the keys of others.
    pub reads_keys: bool,
    /// It may ask the manager for schedules of mirror snapshots; `None`: could not be found out.
    pub schedules: Option<bool>,
    /// All pools of the site.
    pub pools: &'a [Pool],
    /// Pools that Scoria works in; none: not known.
    pub wanted: &'a [String],
}

/// What is wrong, and the command that gives just enough. The command is `None` when nothing is wrong, or no pool is
/// known that the client is for.
pub fn judge(tried: &Tried<'_>) -> (Vec<Finding>, Option<String>) {
    let mut findings = Vec::new();
    let mut add = |gap, text: String| findings.push(Finding { gap, text });
    if !tried.may_fence {
        add(
            Gap::TooFew,
            "it cannot fence clients (osd blocklist), which breaking a lock after a failover takes".into(),
        );
    }
    if tried.schedules == Some(false) {
        add(Gap::TooFew, "the manager does not let it see schedules of mirror snapshots".into());
    }
    for name in tried.wanted {
        let Some(pool) = tried.pools.iter().find(|p| p.name == *name) else {
            add(Gap::TooFew, format!("there is no pool {name} on this site"));
            continue;
        };
        match (pool.read, pool.write) {
            (Some(false), _) => add(Gap::TooFew, format!("it cannot read pool {name}")),
            (_, Some(false)) => add(Gap::TooFew, format!("it cannot write to pool {name}")),
            (None, _) | (_, None) => add(Gap::TooFew, format!("pool {name} did not answer")),
            (Some(true), Some(true)) => {}
        }
    }
    if tried.reads_keys {
        add(Gap::TooMany, "it can read the keys of all clients: it is an administrator".into());
    }
    let wanted = |pool: &&Pool| tried.wanted.contains(&pool.name);
    let foreign: Vec<&str> = tried
        .pools
        .iter()
        .filter(|pool| !tried.wanted.is_empty() && !wanted(pool) && pool.write == Some(true))
        .map(|pool| pool.name.as_str())
        .collect();
    if !foreign.is_empty() {
        let text = format!(
            "it can write to pools that no backend works in: {} (name those that others need it for, such as Nova's, with --pool)",
            foreign.join(", ")
        );
        add(Gap::TooMany, text);
    }
    let line = (!findings.is_empty()).then(|| command(tried)).flatten();
    (findings, line)
}

/// `ceph auth caps` with what is needed for the pools that are wanted, and no more than reading where the client only
/// reads now (images, for instance).
fn command(tried: &Tried<'_>) -> Option<String> {
    if tried.wanted.is_empty() {
        return None;
    }
    let write: Vec<String> = tried.wanted.iter().map(|pool| format!("profile rbd pool={pool}")).collect();
    let reads = |pool: &&Pool| {
        pool.read == Some(true) && pool.write == Some(false) && !tried.wanted.contains(&pool.name)
    };
    let read =
        tried.pools.iter().filter(reads).map(|pool| format!("profile rbd-read-only pool={}", pool.name));
    let osd: Vec<String> = write.iter().cloned().chain(read).collect();
    Some(format!(
        "ceph auth caps client.{} mon 'profile rbd' mgr '{}' osd '{}'",
        tried.user,
        write.join(", "),
        osd.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, read: bool, write: bool) -> Pool {
        Pool {
            name: name.into(),
            erasure: false,
            size: 3,
            min_size: 2,
            applications: vec![],
            read: Some(read),
            write: Some(write),
        }
    }

    fn tried<'a>(pools: &'a [Pool], wanted: &'a [String]) -> Tried<'a> {
        Tried { user: "cinder", may_fence: true, reads_keys: false, schedules: Some(true), pools, wanted }
    }

    #[test]
    fn just_enough_is_silent() {
        let wanted = ["volumes".to_owned()];
        let pools = [pool("volumes", true, true), pool("images", true, false), pool("rgw", false, false)];
        assert_eq!(judge(&tried(&pools, &wanted)), (vec![], None));
        assert_eq!(judge(&tried(&pools, &[])), (vec![], None), "nothing is known to be too much");
    }

    #[test]
    fn too_few_and_too_many_are_named_with_the_line_that_mends_them() {
        let wanted = ["volumes".to_owned(), "vms".to_owned(), "gone".to_owned()];
        let pools = [
            pool("volumes", true, false),
            pool("vms", true, true),
            pool("images", true, false),
            pool("rgw", true, true),
        ];
        let client =
            Tried { may_fence: false, reads_keys: true, schedules: Some(false), ..tried(&pools, &wanted) };
        let (findings, line) = judge(&client);
        let texts =
            |gap| findings.iter().filter(|f| f.gap == gap).map(|f| f.text.as_str()).collect::<Vec<_>>();
        let few = texts(Gap::TooFew);
        assert_eq!(few.len(), 4, "{few:?}");
        assert!(
            few[2].contains("cannot write to pool volumes") && few[3].contains("no pool gone"),
            "{few:?}"
        );
        let many = texts(Gap::TooMany);
        assert!(many[0].contains("administrator") && many[1].contains("rgw"), "{many:?}");
        assert_eq!(
            line.unwrap(),
            "ceph auth caps client.cinder mon 'profile rbd' \
             mgr 'profile rbd pool=volumes, profile rbd pool=vms, profile rbd pool=gone' \
             osd 'profile rbd pool=volumes, profile rbd pool=vms, profile rbd pool=gone, profile rbd-read-only pool=images'"
        );
    }
}
