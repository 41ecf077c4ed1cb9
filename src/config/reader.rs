//! Typed look-ups: registry, layers and interpolation put together.
//!
//! Every getter names an option of the registry and returns a usable value whatever the operator
//! wrote: a bad value is recorded as a problem and its default is returned, so that one pass finds
//! all problems. Nothing built from defaults that stand in for errors escapes: [`Reader::finish`]
//! tells whether there were any.

use std::cell::RefCell;
use std::time::Duration;

use super::interpolate::{self, InterpolationError, Lookup};
use super::options::{self, Group, Kind, OptionSpec};
use super::problem::{Origin, Problem, Severity, shown};
use super::source::{Raw, Source, group_key};
use super::value;

/// Where an option is looked up.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// In its group's section.
    Global(Group),
    /// In `[oslo_messaging_rabbit]`, after the query of a transport URL.
    Transport(&'a [(String, String)], &'a Option<Origin>),
    /// In a backend's section, then in `[backend_defaults]`.
    Backend(&'a str),
    /// keystoneauth's options in any section.
    Auth(&'a str),
}

impl<'a> Scope<'a> {
    fn group(self) -> Group {
        match self {
            Scope::Global(group) => group,
            Scope::Transport(..) => Group::Rabbit,
            Scope::Backend(_) => Group::Backend,
            Scope::Auth(_) => Group::ServiceUser,
        }
    }

    /// The section that a complaint names.
    fn section(self) -> &'a str {
        match self {
            Scope::Backend(section) | Scope::Auth(section) => section,
            other => other.group().section(),
        }
    }
}

/// An expanded value and its place; no place means the default.
pub(super) struct Found {
    pub(super) value: String,
    pub(super) origin: Option<Origin>,
    section: String,
}

/// Options that other parts of Cinder own, with their defaults: they are referred to by `$name`.
const REFERRED: &[(&str, &str)] = &[("state_path", "/var/lib/cinder"), ("bindir", "/usr/local/bin")];

pub(super) struct Reader<'a> {
    source: &'a Source,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Reader { source, problems: RefCell::new(Vec::new()) }
    }

    pub(super) fn source(&self) -> &'a Source {
        self.source
    }

    /// Everything found so far, worst first within reading order.
    pub(super) fn finish(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// How many findings there are.
    pub(super) fn count(&self) -> usize {
        self.problems.borrow().len()
    }

    /// Whether something at least that bad was found about an option.
    pub(super) fn has(&self, severity: Severity, option: &str) -> bool {
        self.problems.borrow().iter().any(|p| p.severity >= severity && p.option.as_deref() == Some(option))
    }

    /// Records a finding about an option.
    pub(super) fn report(
        &self,
        severity: Severity,
        origin: Option<Origin>,
        (section, option): (&str, &str),
        text: impl Into<String>,
    ) {
        let option = (!option.is_empty()).then(|| option.to_owned());
        let problem = Problem { severity, origin, section: section.to_owned(), option, text: text.into() };
        let mut all = self.problems.borrow_mut();
        if !all.contains(&problem) {
            all.push(problem);
        }
    }

    /// Records a finding about the option that `found` was read from.
    pub(super) fn complain(&self, severity: Severity, found: &Found, option: &str, text: impl Into<String>) {
        self.report(severity, found.origin.clone(), (&found.section, option), text);
    }

    fn spec(&self, scope: Scope<'_>, name: &str) -> Option<&'static OptionSpec> {
        let spec = options::find(scope.group(), name);
        if spec.is_none() {
            let text = "is read but not in the registry of options: a defect of Scoria";
            self.report(Severity::Error, None, (scope.section(), name), text);
        }
        spec
    }

    /// The value as set by the operator, expanded; `None` when it is not set anywhere.
    fn set(&self, scope: Scope<'_>, spec: &OptionSpec) -> Option<Found> {
        if let Scope::Transport(query, origin) = scope
            && let Some((_, value)) = query.iter().find(|(key, _)| key == spec.name)
        {
            let origin = (*origin).clone();
            return Some(Found { value: value.clone(), origin, section: spec.group.section().to_owned() });
        }
        sections(scope, spec).into_iter().find_map(|section| {
            let raw = self.source.single(&names(section, spec))?;
            let found = self.expanded(raw, section, spec)?;
            // An empty number is "unset" in oslo, so the next layer is asked.
            let unset = matches!(spec.kind, Kind::Int { .. }) && found.value.trim().is_empty();
            (!unset).then_some(found)
        })
    }

    fn expanded(&self, raw: Raw, section: &str, spec: &OptionSpec) -> Option<Found> {
        match interpolate::expand(&References(self.source), section, &raw.value) {
            Ok(value) => Some(Found { value, origin: Some(raw.origin), section: section.to_owned() }),
            Err(error) => {
                let text = match error {
                    InterpolationError::Unknown(_) if spec.secret => {
                        "holds a `$` that does not refer to an option; write `$$` for a dollar".to_owned()
                    }
                    other => other.to_string(),
                };
                self.report(Severity::Error, Some(raw.origin), (section, spec.name), text);
                None
            }
        }
    }

    /// The value or the default; `None` when there is neither.
    pub(super) fn found(&self, scope: Scope<'_>, name: &str) -> Option<Found> {
        let spec = self.spec(scope, name)?;
        self.set(scope, spec).or_else(|| {
            // A default may refer to another option, too ($state_path).
            let (section, default) = (scope.section(), spec.default?);
            let value = interpolate::expand(&References(self.source), section, default)
                .unwrap_or_else(|_| default.to_owned());
            Some(Found { value, origin: None, section: section.to_owned() })
        })
    }

    /// Text; empty when unset.
    pub(super) fn text(&self, scope: Scope<'_>, name: &str) -> String {
        self.optional(scope, name).unwrap_or_default()
    }

    /// Text; `None` when unset or empty.
    pub(super) fn optional(&self, scope: Scope<'_>, name: &str) -> Option<String> {
        self.found(scope, name).map(|f| f.value).filter(|v| !v.is_empty())
    }

    /// A truth value.
    pub(super) fn boolean(&self, scope: Scope<'_>, name: &str) -> bool {
        self.typed(scope, name, value::boolean).unwrap_or_default()
    }

    /// A whole number within the bounds of the registry.
    pub(super) fn integer(&self, scope: Scope<'_>, name: &str) -> i64 {
        let (min, max) = match self.spec(scope, name).map(|s| s.kind) {
            Some(Kind::Int { min, max }) => (min, max),
            _ => (i64::MIN, i64::MAX),
        };
        self.typed(scope, name, |text| value::integer(text, min, max)).flatten().unwrap_or_default()
    }

    /// A whole number that Scoria needs to be within `min..=max` though upstream sets no bounds.
    pub(super) fn bounded(&self, scope: Scope<'_>, name: &str, min: i64, max: i64) -> i64 {
        self.typed(scope, name, |text| value::integer(text, min, max)).flatten().unwrap_or_default()
    }

    /// Seconds, 0 or more (the largest is ten years: more is a slip of the keyboard).
    pub(super) fn seconds(&self, scope: Scope<'_>, name: &str) -> Duration {
        self.seconds_from(scope, name, 0)
    }

    /// Seconds, at least `min`.
    pub(super) fn seconds_from(&self, scope: Scope<'_>, name: &str, min: i64) -> Duration {
        const TEN_YEARS: i64 = 315_360_000;
        let min = match self.spec(scope, name).map(|s| s.kind) {
            Some(Kind::Int { min: own, .. }) => own.max(min),
            _ => min,
        };
        let max = match self.spec(scope, name).map(|s| s.kind) {
            Some(Kind::Int { max: own, .. }) => own.min(TEN_YEARS),
            _ => TEN_YEARS,
        };
        Duration::from_secs(self.bounded(scope, name, min, max).unsigned_abs())
    }

    /// Comma-separated items.
    pub(super) fn list(&self, scope: Scope<'_>, name: &str) -> Vec<String> {
        self.found(scope, name).map(|f| value::list(&f.value)).unwrap_or_default()
    }

    /// One of the registry's choices.
    pub(super) fn choice(&self, scope: Scope<'_>, name: &str) -> String {
        let choices = match self.spec(scope, name).map(|s| s.kind) {
            Some(Kind::Choice(choices)) => choices,
            _ => &[],
        };
        let check = |text: &str| match choices.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(format!("must be one of {}", choices.join(", "))),
        };
        self.typed(scope, name, check).unwrap_or_default()
    }

    /// Every value of a repeatable option, from the first layer that has any.
    pub(super) fn multi(&self, scope: Scope<'_>, name: &str) -> Vec<Found> {
        let Some(spec) = self.spec(scope, name) else { return Vec::new() };
        for section in sections(scope, spec) {
            let raws = self.source.multi(&names(section, spec));
            if !raws.is_empty() {
                return raws.into_iter().filter_map(|raw| self.expanded(raw, section, spec)).collect();
            }
        }
        Vec::new()
    }

    fn typed<T>(&self, scope: Scope<'_>, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let found = self.found(scope, name)?;
        match parse(&found.value) {
            Ok(value) => Some(value),
            Err(text) => {
                let secret = options::find(scope.group(), name).is_none_or(|s| s.secret);
                let text = if secret { text } else { format!("{text}, not `{}`", shown(&found.value)) };
                self.complain(Severity::Error, &found, name, text);
                let default = options::find(scope.group(), name)?.default?;
                parse(default).ok()
            }
        }
    }
}

fn sections<'a>(scope: Scope<'a>, spec: &OptionSpec) -> Vec<&'a str> {
    match scope {
        Scope::Backend(section) if spec.section_only => vec![section],
        Scope::Backend(section) => vec![section, Group::Backend.section()],
        Scope::Auth(section) => vec![section],
        other => vec![other.group().section()],
    }
}

fn names<'s>(section: &'s str, spec: &OptionSpec) -> Vec<(&'s str, &'static str)> {
    let mut names = vec![(section, spec.name)];
    // An account's options have their old names in the section that they are looked up in.
    let home = |old: &'static str| if spec.group == Group::ServiceUser { section } else { old };
    names.extend(spec.deprecated.iter().map(|(old, name)| (home(old), *name)));
    names
}

/// What `$name` may refer to: any option that is in the files, in the registry, or in [`REFERRED`].
struct References<'a>(&'a Source);

impl Lookup for References<'_> {
    fn raw(&self, group: &str, option: &str) -> Option<(String, String)> {
        let key = group_key(group);
        let spec = options::OPTIONS.iter().find(|s| {
            s.name == option
                && (s.group.section() == key
                    || (s.group == Group::Backend && options::Group::ALL.iter().all(|g| g.section() != key)))
        });
        let backend = spec.is_some_and(|s| s.group == Group::Backend && !s.section_only);
        let mut candidates = vec![group.to_owned()];
        if backend {
            candidates.push(Group::Backend.section().to_owned());
        }
        for section in candidates {
            let names = match spec {
                Some(spec) => names(&section, spec),
                None => vec![(section.as_str(), option)],
            };
            if let Some(raw) = self.0.single(&names) {
                return Some((raw.value, section));
            }
        }
        let default = match spec {
            Some(spec) => Some(spec.default.unwrap_or_default()),
            None if group == "DEFAULT" => REFERRED.iter().find(|(n, _)| *n == option).map(|(_, v)| *v),
            None => None,
        };
        default.map(|value| (value.to_owned(), group.to_owned()))
    }
}
