//! Misspelt options.
//!
//! A `cinder.conf` is full of options that belong to other services, so an unknown name is normally
//! nobody's business. Two cases are: `scoria_…`, which can only be meant for us, and a name one or
//! two keystrokes away from an option that Scoria reads while no OpenStack library has it. The list
//! of those names is [`UPSTREAM`], dumped from cinder 29.0.0 and its libraries.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::options::{Group, OPTIONS, OptionSpec};
use super::problem::{Origin, Severity};
use super::reader::Reader;
use super::source::group_key;

/// `group name` lines; the head of the file says how to make it.
const UPSTREAM: &str = include_str!("upstream_options.txt");

static NAMES: LazyLock<BTreeSet<(&str, &str)>> = LazyLock::new(|| {
    UPSTREAM.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(' ')).collect()
});

/// Edit distance up to which a name counts as a misspelling.
const NEAR: usize = 2;

/// True when Scoria, Cinder or one of its libraries has this option in this section.
pub(super) fn is_known(section: &str, option: &str) -> bool {
    let key = group_key(section);
    NAMES.contains(&(&*key, option))
        || OPTIONS.iter().any(|o| {
            (o.group.section() == key && o.name == option)
                || o.deprecated.iter().any(|(g, n)| group_key(g) == key && *n == option)
        })
}

/// The options of a group's section: some have an account as `[service_user]` has.
fn options_of(group: Group) -> impl Iterator<Item = &'static OptionSpec> {
    let shared =
        matches!(group, Group::Glance | Group::Nova | Group::BarbicanUser).then_some(Group::ServiceUser);
    OPTIONS
        .iter()
        .filter(move |o| o.group == group || (Some(o.group) == shared && o.name != "send_service_user_token"))
}

/// Names of the options that Scoria reads in a group.
pub(super) fn names_of(group: Group) -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().filter(move |o| o.group == group).map(|o| o.name)
}

/// Whether an OpenStack library, or Scoria itself, has options of its own in this section.
pub(super) fn is_reserved(section: &str) -> bool {
    let key = group_key(section);
    // Upstream writes it in capitals, and nobody should have to know.
    section.eq_ignore_ascii_case("DEFAULT")
        || Group::ALL.iter().any(|group| group.section() == key)
        || NAMES.range((&*key, "")..).next().is_some_and(|(group, _)| *group == key)
}

/// The candidate that is closest to `name`, if it is close enough to be what was meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Two edits turn one short name into any other.
    let most = if name.chars().count() <= 4 { 1 } else { NEAR };
    candidates
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(distance, _)| (1..=most).contains(distance))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Which of Scoria's groups a section is. Any section that no OpenStack library uses may be a
/// backend (one that is not enabled, maybe).
fn group_of(section: &str, backends: &[&str]) -> Option<Group> {
    let key = group_key(section);
    if backends.iter().any(|b| group_key(b) == key) {
        return Some(Group::Backend);
    }
    if let Some(group) = Group::ALL.into_iter().find(|g| g.section() == key) {
        return Some(group);
    }
    let foreign = NAMES.range((&*key, "")..).next().is_some_and(|(group, _)| *group == key);
    (!foreign).then_some(Group::Backend)
}

/// Looks at the name of every option in the files and the environment.
pub(super) fn check(reader: &Reader<'_>, backends: &[&str]) {
    for (section, option, origin) in reader.source().entries() {
        one(reader, backends, section, option, origin);
    }
    for (group, option, variable) in reader.source().env_entries() {
        let names: Vec<&str> = backends.iter().copied().chain(Group::ALL.map(Group::section)).collect();
        // `OS_` is everybody's prefix (OS_AUTH_URL): only variables of our groups, or about
        // scoria_ options, are looked at.
        match names.into_iter().find(|name| name.to_uppercase() == group) {
            Some(section) => {
                one(reader, backends, section, &option, Origin::Environment(variable.to_owned()));
            }
            None if option.starts_with("scoria_") => {
                one(reader, backends, group, &option, Origin::Environment(variable.to_owned()));
            }
            None => {}
        }
    }
}

/// Looks at one name.
pub(super) fn one(reader: &Reader<'_>, backends: &[&str], section: &str, option: &str, origin: Origin) {
    let group = group_of(section, backends);
    let shared = Group::Backend.section();
    let known = is_known(section, option) || (group == Some(Group::Backend) && is_known(shared, option));
    let report = |severity, text: String| {
        reader.report(severity, Some(origin.clone()), (section, option), text);
    };
    let ours = group.and_then(|g| options_of(g).find(|o| o.name == option));
    let old = OPTIONS
        .iter()
        .find(|o| o.deprecated.iter().any(|(g, n)| group_key(g) == group_key(section) && *n == option));
    if let Some(spec) = ours {
        if let Some(why) = spec.no_effect {
            report(Severity::Warning, format!("has no effect in Scoria: {why}"));
        }
        return;
    }
    if let Some(new) = old {
        let text = format!("is an old name; use {} in [{}]", new.name, new.group.section());
        report(Severity::Warning, text);
    } else if option.starts_with("scoria_") {
        let elsewhere = OPTIONS.iter().find(|o| o.name == option);
        let text = match elsewhere {
            Some(other) if other.group == Group::Backend => {
                "belongs in the section of a backend or in [backend_defaults]".to_owned()
            }
            Some(other) => format!("belongs in [{}]", other.group.section()),
            None => {
                let all = || OPTIONS.iter().map(|o| o.name).filter(|n| n.starts_with("scoria_"));
                let near = all().min_by_key(|n| strsim::osa_distance(option, n)).unwrap_or_default();
                format!("is no option of Scoria; the nearest one is `{near}`")
            }
        };
        report(Severity::Error, text);
    } else if !known && let Some(near) = group.and_then(|g| nearest(option, options_of(g).map(|o| o.name))) {
        report(Severity::Suspect, format!("is not an option; did you mean `{near}`?"));
    } else if section == "DEFAULT" && names_of(Group::Backend).any(|n| n == option) {
        let text =
            "has no effect in [DEFAULT]; it belongs in the section of a backend or in [backend_defaults]";
        report(Severity::Warning, text.to_owned());
    } else {
        report(Severity::Ignored, "is not read by Scoria".to_owned());
    }
}
