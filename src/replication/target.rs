//! Where a failover goes.
//!
//! Upstream takes "any" configured target when none is named, and lets a failover to the site that is
//! active already overwrite rows. Here the choice is the first configured target that is not active (so
//! it can be foretold), and a request that leads nowhere is refused before anything is touched.

use crate::error::{Code, Error, Result};

/// Name of the configured primary in `failover-host --backend_id`.
pub const DEFAULT: &str = "default";

/// The active site by the row: NULL (never failed over) and empty (failed back) both mean `default`.
pub fn active(active_backend_id: Option<&str>) -> &str {
    match active_backend_id {
        None | Some("") => DEFAULT,
        Some(id) => id,
    }
}

/// Chooses the target of a failover.
///
/// # Errors
/// `UnableToFailOver` without any `replication_device`; `InvalidReplicationTarget` when the request
/// names an unknown site or the active one, or when no other target is left.
pub fn choose(devices: &[String], active: &str, requested: Option<&str>) -> Result<String> {
    if devices.is_empty() {
        return Err(Error::new(
            Code::UnableToFailOver,
            "RBD: Replication is not configured for this backend: add a replication_device",
        ));
    }
    let known = devices.iter().map(String::as_str).chain([DEFAULT]).collect::<Vec<_>>();
    let wrong = |what: String| Error::new(Code::InvalidReplicationTarget, what);
    match requested.filter(|r| !r.is_empty()) {
        Some(target) if target == active => Err(wrong(format!(
            "RBD: {target} is the active site already; the others are {}",
            others(&known, active)
        ))),
        Some(target) if known.contains(&target) => Ok(target.to_owned()),
        Some(target) => Err(wrong(format!(
            "RBD: Unknown failover target host {target}; the targets are {}",
            others(&known, active)
        ))),
        None => devices.iter().find(|d| *d != active).cloned().ok_or_else(|| {
            wrong(format!(
                "RBD: Unable to failover, no target is left but {active}; name '{DEFAULT}' to fail back"
            ))
        }),
    }
}

fn others(known: &[&str], active: &str) -> String {
    known.iter().filter(|k| **k != active).copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_choice_is_the_first_that_is_not_active() {
        let two = devices(&["b", "c"]);
        assert_eq!(choose(&two, DEFAULT, None).unwrap(), "b");
        assert_eq!(choose(&two, "b", Some("")).unwrap(), "c");
        assert_eq!(choose(&two, "b", Some(DEFAULT)).unwrap(), DEFAULT);
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let one = devices(&["b"]);
        for (active, requested) in
            [("b", None), ("b", Some("b")), (DEFAULT, Some(DEFAULT)), (DEFAULT, Some("bogus"))]
        {
            assert_eq!(choose(&one, active, requested).unwrap_err().code(), Code::InvalidReplicationTarget);
        }
        assert_eq!(choose(&[], DEFAULT, None).unwrap_err().code(), Code::UnableToFailOver);
    }

    #[test]
    fn null_and_empty_both_mean_the_primary() {
        assert_eq!(active(None), DEFAULT);
        assert_eq!(active(Some("")), DEFAULT);
        assert_eq!(active(Some("b")), "b");
    }
}
