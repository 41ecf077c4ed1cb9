//! Whether a cluster can hold a pool: looked at before it is made.
//!
//! Ceph takes any erasure-code profile. A pool whose chunks find no place, since there are fewer hosts than chunks, is
//! made all the same; its placement groups never become active, and whoever writes to it waits for ever. Only buckets
//! with an OSD count: CRUSH keeps those of hosts that are long gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Code, Error, Result};
use crate::rbd::link::{ErasureProfile, OsdPlace};

/// CRUSH's bucket types, the smallest first (`CrushWrapper::build_default`… of Ceph 16), without the root.
const DOMAINS: [&str; 11] =
    ["osd", "host", "chassis", "rack", "row", "pdu", "pod", "room", "datacenter", "zone", "region"];
/// Where a profile without `crush-root` begins.
const ROOT: &str = "default";

fn wrong(text: String) -> Error {
    Error::new(Code::InvalidInput, text)
}

/// How many buckets of each type have an OSD that a pool may use.
pub fn domains(osds: &[OsdPlace], class: Option<&str>) -> BTreeMap<&'static str, usize> {
    let usable = osds.iter().filter(|osd| {
        osd.serves
            && class.is_none_or(|class| osd.class == class)
            && osd.within.get("root").is_none_or(|root| root == ROOT)
    });
    let usable: Vec<&OsdPlace> = usable.collect();
    let count = |kind: &'static str| match kind {
        "osd" => usable.len(),
        _ => usable.iter().filter_map(|osd| osd.within.get(kind)).collect::<BTreeSet<_>>().len(),
    };
    DOMAINS.into_iter().map(|kind| (kind, count(kind))).filter(|(_, count)| *count > 0).collect()
}

/// A count of each, in words.
fn told(domains: &BTreeMap<&'static str, usize>) -> String {
    let named = DOMAINS.into_iter().filter_map(|kind| domains.get(kind).map(|n| format!("{n} {kind}")));
    let text = named.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none at all".to_owned() } else { text }
}

/// Fails unless the profile makes sense and the OSDs of `site` can hold a pool of it.
///
/// # Errors
/// `InvalidInput` with what is wrong, what there is, and what would do.
pub fn check(site: &str, profile: &ErasureProfile, min_size: Option<u32>, osds: &[OsdPlace]) -> Result<()> {
    check_code(profile)?;
    let (k, chunks) = (profile.k, profile.k + profile.m);
    if let Some(least) = min_size.filter(|least| !(k..=chunks).contains(least)) {
        return Err(wrong(format!(
            "min_size {least} of an erasure-coded pool with k={k}, m={} is from {k} to {chunks}: fewer chunks are no \
             data, more there are not",
            profile.m
        )));
    }
    let domain = profile.failure_domain.as_str();
    if !DOMAINS.contains(&domain) {
        return Err(wrong(format!("There is no failure domain {domain}; there are: {}", DOMAINS.join(", "))));
    }
    let there = domains(osds, profile.device_class.as_deref());
    let have = there.get(domain).copied().unwrap_or(0);
    if have >= chunks as usize {
        return Ok(());
    }
    let of_class = profile.device_class.as_deref().map(|c| format!(" of class {c}")).unwrap_or_default();
    let fits = DOMAINS.into_iter().filter(|kind| there.get(kind).is_some_and(|n| *n >= chunks as usize));
    let fits: Vec<&str> = fits.collect();
    let advice = match fits.last() {
        Some(kind) => format!("failure domain {kind} would do"),
        None => "no failure domain does: fewer chunks, or more OSDs".to_owned(),
    };
    Err(wrong(format!(
        "Profile {} needs k+m = {chunks} buckets of type {domain} with OSDs{of_class} that are up and in, and site \
         {site} has {have}; it has: {}. Ceph would make the pool, and everything that touches it would hang; {advice}",
        profile.name,
        told(&there)
    )))
}

/// Fails unless the cluster has as many OSDs as a pool is to have copies.
///
/// # Errors
/// `InvalidInput`.
pub fn check_replicated(
    site: &str,
    size: Option<u32>,
    min_size: Option<u32>,
    osds: &[OsdPlace],
) -> Result<()> {
    if size == Some(0) {
        return Err(wrong("A replicated pool has one copy at least".to_owned()));
    }
    if let (Some(size), Some(least)) = (size, min_size)
        && !(1..=size).contains(&least)
    {
        return Err(wrong(format!("min_size {least} of a pool with {size} copies is from 1 to {size}")));
    }
    let have = domains(osds, None).get("osd").copied().unwrap_or(0);
    let need = size.unwrap_or(1) as usize;
    if have < need {
        return Err(wrong(format!(
            "A pool with {need} copies needs as many OSDs that are up and in, and site {site} has {have}"
        )));
    }
    Ok(())
}

/// What the plugins themselves would refuse, or take and then fail with.
fn check_code(profile: &ErasureProfile) -> Result<()> {
    let ErasureProfile { name, k, m, plugin, technique, .. } = profile;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 100 || !name.chars().all(good) {
        return Err(wrong(
            "The name of an erasure-code profile has letters, digits, '.', '_' and '-'".to_owned(),
        ));
    }
    if *k < 2 || *m < 1 || k.saturating_add(*m) > 254 {
        return Err(wrong(format!(
            "An erasure-code profile has k of 2 or more, m of 1 or more, and 254 chunks at most; k={k}, m={m} is none"
        )));
    }
    // The plugin's techniques, and how many coding chunks each can make; 0: any number.
    let techniques: &[(&str, u32)] = match plugin.as_str() {
        "jerasure" => &[
            ("reed_sol_van", 0),
            ("reed_sol_r6_op", 2),
            ("cauchy_orig", 0),
            ("cauchy_good", 0),
            ("liberation", 2),
            ("blaum_roth", 2),
            ("liber8tion", 2),
        ],
        "isa" => &[("reed_sol_van", 0), ("cauchy", 0)],
        "clay" => &[("reed_sol_van", 0), ("reed_sol_r6_op", 2), ("cauchy_orig", 0), ("cauchy_good", 0)],
        "shec" => &[("single", 0), ("multiple", 0)],
        other => {
            return Err(wrong(format!(
                "Plugin {other} is not one that a data pool of images can be made with: jerasure, isa, clay or shec"
            )));
        }
    };
    let chosen = technique.as_deref().or_else(|| techniques.first().map(|(name, _)| *name));
    let Some((technique, exact)) = techniques.iter().find(|(name, _)| Some(*name) == chosen) else {
        let names: Vec<&str> = techniques.iter().map(|(name, _)| *name).collect();
        return Err(wrong(format!(
            "Plugin {plugin} has no technique {}; it has: {}",
            chosen.unwrap_or_default(),
            names.join(", ")
        )));
    };
    if *exact > 0 && m != exact {
        return Err(wrong(format!(
            "Technique {technique} of plugin {plugin} makes {exact} coding chunks, and not m={m}"
        )));
    }
    let limit = match (plugin.as_str(), *technique) {
        ("jerasure" | "clay", "liber8tion") if *k > 8 => Some("k of 8 at most"),
        // `ErasureCodeIsaDefault::parse`: beyond these the Vandermonde matrix is not invertible.
        ("isa", "reed_sol_van") if *m > 4 || *k > 32 || (*m == 4 && *k > 21) => {
            Some("k of 32 and m of 4 at most, and with m=4 k of 21 at most")
        }
        // `ErasureCodeShec::parse`, with its default c=2.
        ("shec", _) if m > k || *k > 12 || k + m > 20 || *m < 2 => {
            Some("k of 12 and k+m of 20 at most, m from 2 to k")
        }
        _ => None,
    };
    match limit {
        Some(limit) => {
            Err(wrong(format!("Plugin {plugin} with {technique} takes {limit}; k={k}, m={m} is beyond")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::sim::osds_on;

    fn profile(k: u32, m: u32, domain: &str) -> ErasureProfile {
        ErasureProfile {
            name: "ec".into(),
            k,
            m,
            plugin: "jerasure".into(),
            technique: None,
            failure_domain: domain.into(),
            device_class: None,
        }
    }

    fn refusal(profile: &ErasureProfile, osds: &[OsdPlace]) -> String {
        check("a", profile, None, osds).err().map(|e| e.user().to_owned()).unwrap_or_default()
    }

    /// Hosts of the OSDs, k, m, failure domain, and what is said (nothing: it fits).
    #[test]
    fn a_profile_fits_only_where_each_chunk_has_a_place_of_its_own() {
        let one_host: &[&str] = &["h1", "h1", "h1"];
        let three: &[&str] = &["h1/r1", "h2/r1", "h3/r2"];
        let racks: &[&str] = &["h1/r1", "h1/r1", "h2/r2", "h2/r2", "h3/r3"];
        let cases: &[(&[&str], u32, u32, &str, &str)] = &[
            (one_host, 2, 1, "osd", ""),
            (one_host, 2, 1, "host", "has 1; it has: 3 osd, 1 host"),
            (one_host, 2, 1, "host", "failure domain osd would do"),
            (one_host, 2, 2, "osd", "needs k+m = 4 buckets of type osd"),
            (one_host, 2, 2, "osd", "no failure domain does"),
            (one_host, 2, 1, "rack", "has 0"),
            (one_host, 2, 1, "chassis", "has 0"),
            (three, 2, 1, "host", ""),
            (three, 2, 1, "rack", "has 2; it has: 3 osd, 3 host, 2 rack"),
            (three, 2, 1, "rack", "failure domain host would do"),
            (racks, 2, 1, "rack", ""),
            (racks, 3, 2, "osd", ""),
            (racks, 3, 2, "host", "failure domain osd would do"),
            (&[], 2, 1, "osd", "it has: none at all"),
            (three, 2, 1, "galaxy", "no failure domain galaxy"),
        ];
        for (hosts, k, m, domain, said) in cases {
            let refused = refusal(&profile(*k, *m, domain), &osds_on(hosts));
            assert_eq!(refused.is_empty(), said.is_empty(), "{hosts:?} {k}+{m} {domain}: {refused}");
            assert!(refused.contains(said), "{hosts:?} {k}+{m} {domain}: {refused}");
        }
    }

    #[test]
    fn only_osds_that_serve_count_and_those_of_the_class() {
        let mut osds = osds_on(&["h1", "h2", "h3", "h4"]);
        osds[3].serves = false;
        assert!(refusal(&profile(3, 1, "host"), &osds).contains("has 3"));
        osds[2].class = "hdd".into();
        let of_class = ErasureProfile { device_class: Some("ssd".into()), ..profile(2, 1, "host") };
        assert!(refusal(&of_class, &osds).contains("OSDs of class ssd that are up and in, and site a has 2"));
        assert_eq!(refusal(&profile(2, 1, "host"), &osds), "");
        osds[0].within.insert("root".into(), "cache".into());
        assert!(refusal(&profile(2, 1, "host"), &osds).contains("has 2"), "another root is another tree");
    }

    #[test]
    fn what_a_plugin_cannot_do_is_refused() {
        let osds = osds_on(&["h"; 60]);
        let of = |plugin: &str, technique: &str, k: u32, m: u32| {
            let technique = (!technique.is_empty()).then(|| technique.to_owned());
            refusal(&ErasureProfile { plugin: plugin.into(), technique, ..profile(k, m, "osd") }, &osds)
        };
        for (plugin, technique, k, m, said) in [
            ("jerasure", "", 4, 2, ""),
            ("jerasure", "liberation", 4, 2, ""),
            ("jerasure", "liberation", 4, 3, "makes 2 coding chunks"),
            ("jerasure", "liber8tion", 9, 2, "k of 8 at most"),
            ("jerasure", "cauchy", 4, 2, "no technique cauchy; it has: reed_sol_van"),
            ("jerasure", "", 1, 2, "k of 2 or more"),
            ("jerasure", "", 2, 0, "m of 1 or more"),
            ("isa", "cauchy", 4, 5, ""),
            ("isa", "", 4, 5, "m of 4 at most"),
            ("isa", "", 22, 4, "with m=4 k of 21"),
            ("clay", "", 4, 2, ""),
            ("shec", "", 4, 3, ""),
            ("shec", "", 2, 3, "m from 2 to k"),
            ("lrc", "", 4, 2, "Plugin lrc is not one"),
        ] {
            let refused = of(plugin, technique, k, m);
            assert_eq!(refused.is_empty(), said.is_empty(), "{plugin} {technique} {k}+{m}: {refused}");
            assert!(refused.contains(said), "{plugin} {technique} {k}+{m}: {refused}");
        }
        let spaced = ErasureProfile { name: "a b".into(), ..profile(2, 1, "osd") };
        assert!(refusal(&spaced, &osds).contains("name of an erasure-code profile"));
    }

    #[test]
    fn sizes_have_their_bounds() {
        let osds = osds_on(&["h1", "h1", "h1"]);
        let p = profile(2, 1, "osd");
        assert!(check("a", &p, Some(2), &osds).is_ok() && check("a", &p, Some(3), &osds).is_ok());
        for least in [1, 4] {
            assert!(check("a", &p, Some(least), &osds).unwrap_err().user().contains("from 2 to 3"));
        }
        assert!(check_replicated("a", Some(3), Some(2), &osds).is_ok());
        assert!(check_replicated("a", None, None, &osds).is_ok());
        for (size, least, said) in [
            (Some(4), None, "has 3"),
            (Some(2), Some(3), "from 1 to 2"),
            (Some(0), None, "one copy at least"),
        ] {
            let refused = check_replicated("a", size, least, &osds).unwrap_err();
            assert!(refused.user().contains(said), "{refused}");
        }
    }
}
