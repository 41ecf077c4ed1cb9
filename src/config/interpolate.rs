//! `$option` in a value: oslo.config's template substitution, made safe against hostile input.
//!
//! `$name`, `${name}`, `$group.name` and `${group.name}` stand for another option's value, `$$` (or
//! `\$`) for a dollar; anything else after a dollar stays as it is (`string.Template.safe_substitute`
//! with oslo's identifier pattern). A plain name is looked for in the value's own group, then in
//! `DEFAULT`. A reference to something that is not an option is an error, as it is in oslo: silently
//! keeping it would hide a password with an unescaped dollar.

use super::source::group_key;

/// Where referenced options are looked up.
pub(super) trait Lookup {
    /// The unexpanded value of an option; `Some("")` when the option exists and is unset, `None`
    /// when there is no such option. The string in the result is the group to expand it in.
    fn raw(&self, group: &str, option: &str) -> Option<(String, String)>;
}

/// Why a value could not be expanded. Never holds the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InterpolationError {
    /// The name after the dollar is not an option. May be a piece of a password: shown only for
    /// options that are not secret.
    #[error("refers to `${0}`, which is not an option; write `$$` for a dollar")]
    Unknown(String),
    /// The chain of references leads back to itself.
    #[error("its `$` references lead back to itself ([{group}] {option})")]
    Loop {
        /// Group of the option that is referred to again.
        group: String,
        /// The option.
        option: String,
    },
    /// More than [`MAX_REFERENCES`] references or [`MAX_BYTES`] of text.
    #[error("its `$` references expand to too much text")]
    TooBig,
}

/// References followed for one value. Real files use one or two.
const MAX_REFERENCES: usize = 200;
/// Size of an expanded value in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// Expands `text`, the value of an option in `group`.
pub(super) fn expand(lookup: &dyn Lookup, group: &str, text: &str) -> Result<String, InterpolationError> {
    let mut work = Expansion { lookup, stack: Vec::new(), left: MAX_REFERENCES };
    work.expand(group, text)
}

struct Expansion<'a> {
    lookup: &'a dyn Lookup,
    stack: Vec<(String, String)>,
    left: usize,
}

impl Expansion<'_> {
    fn expand(&mut self, group: &str, text: &str) -> Result<String, InterpolationError> {
        if !text.contains('$') {
            return Ok(text.to_owned());
        }
        let text = text.replace("\\$", "$$");
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            rest = if let Some(after) = after.strip_prefix('$') {
                out.push('$');
                after
            } else if let Some((name, after)) = reference(after) {
                out.push_str(&self.resolve(group, name)?);
                after
            } else {
                out.push('$');
                after
            };
            if out.len() + rest.len() > MAX_BYTES {
                return Err(InterpolationError::TooBig);
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn resolve(&mut self, group: &str, name: &str) -> Result<String, InterpolationError> {
        self.left = self.left.checked_sub(1).ok_or(InterpolationError::TooBig)?;
        let (wanted_group, option) = name.split_once('.').unwrap_or((group, name));
        let found = match self.lookup.raw(wanted_group, option) {
            Some(found) => Some((wanted_group, option, found)),
            None => self.lookup.raw("DEFAULT", name).map(|found| ("DEFAULT", name, found)),
        };
        let Some((group, option, (value, value_group))) = found else {
            return Err(InterpolationError::Unknown(name.to_owned()));
        };
        let step = (group_key(group).into_owned(), option.to_owned());
        if self.stack.contains(&step) {
            return Err(InterpolationError::Loop { group: step.0, option: step.1 });
        }
        self.stack.push(step);
        let expanded = self.expand(&value_group, &value);
        self.stack.pop();
        expanded
    }
}

/// A reference right after a dollar: its name and what follows.
fn reference(after: &str) -> Option<(&str, &str)> {
    if let Some(braced) = after.strip_prefix('{') {
        let (name, rest) = braced.split_at(name_length(braced)?);
        return Some((name, rest.strip_prefix('}')?));
    }
    Some(after.split_at(name_length(after)?))
}

/// Length of oslo's identifier (`[_a-z][\._a-z0-9]*`, ignoring case) at the start of `text`.
fn name_length(text: &str) -> Option<usize> {
    text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic()).then(|| {
        text.find(|c: char| !(c == '_' || c == '.' || c.is_ascii_alphanumeric())).unwrap_or(text.len())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct Map(HashMap<(String, String), String>);

    impl Lookup for Map {
        fn raw(&self, group: &str, option: &str) -> Option<(String, String)> {
            let value = self.0.get(&(group.to_owned(), option.to_owned()))?;
            Some((value.clone(), group.to_owned()))
        }
    }

    fn map(values: &[(&str, &str, &str)]) -> Map {
        Map(values.iter().map(|(g, k, v)| (((*g).into(), (*k).into()), (*v).into())).collect())
    }

    /// Printed by oslo.config 10.7.0 for the same options (`c` is registered and unset).
    #[test]
    fn expansions_are_those_of_oslo_config() {
        let values = map(&[
            ("DEFAULT", "b", "BB"),
            ("DEFAULT", "c", ""),
            ("DEFAULT", "n", "7"),
            ("DEFAULT", "d", "x$$y"),
            ("g", "x", "XX"),
        ]);
        for (text, expected) in [
            ("$b", "BB"),
            ("${b}", "BB"),
            ("$$b", "$b"),
            ("\\$b", "$b"),
            ("pa$", "pa$"),
            ("$g.x", "XX"),
            ("${g.x}", "XX"),
            ("${n}.", "7."),
            ("$1", "$1"),
            ("${", "${"),
            ("${b", "${b"),
            ("$c", ""),
            ("a$$$b", "a$BB"),
            ("\\$$b", "$BB"),
            ("$d", "x$y"),
        ] {
            assert_eq!(expand(&values, "DEFAULT", text).unwrap(), expected, "{text}");
        }
        for text in ["$nosuch", "pa$s", "$x", "$n.", "$N", "$g.nosuch"] {
            assert!(
                matches!(expand(&values, "DEFAULT", text), Err(InterpolationError::Unknown(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_name_means_its_own_group_first_then_default() {
        let values = map(&[("DEFAULT", "a", "dflt"), ("g", "a", "grp"), ("DEFAULT", "b", "B")]);
        assert_eq!(expand(&values, "g", "$a/$b").unwrap(), "grp/B");
        assert_eq!(expand(&values, "h", "$a").unwrap(), "dflt");
    }

    #[test]
    fn a_loop_and_an_explosion_are_typed_errors() {
        let values = map(&[("DEFAULT", "a", "$b"), ("DEFAULT", "b", "$a")]);
        assert!(matches!(expand(&values, "DEFAULT", "$a"), Err(InterpolationError::Loop { .. })));

        let names: Vec<String> = (0..26u8).map(|i| char::from(b'a' + i).to_string()).collect();
        let laughs = |last: &str| {
            let mut all = HashMap::new();
            for pair in names.windows(2) {
                all.insert(("DEFAULT".to_owned(), pair[0].clone()), format!("${}${}", pair[1], pair[1]));
            }
            all.insert(("DEFAULT".to_owned(), "z".to_owned()), last.to_owned());
            Map(all)
        };
        assert_eq!(expand(&laughs("ha"), "DEFAULT", "$a"), Err(InterpolationError::TooBig));
        assert_eq!(expand(&laughs(""), "DEFAULT", "$a"), Err(InterpolationError::TooBig));
    }

    proptest! {
        #[test]
        fn it_terminates_on_any_graph_of_references(
            bodies in proptest::collection::vec("[a-e$.{}\\\\ ]{0,30}", 5),
            text in "\\PC{0,40}",
        ) {
            let mut all = HashMap::new();
            for (name, body) in ["a", "b", "c", "d", "e"].iter().zip(bodies) {
                all.insert(("DEFAULT".to_owned(), (*name).to_owned()), body);
            }
            let values = Map(all);
            let _ = expand(&values, "DEFAULT", &text);
            let _ = expand(&values, "DEFAULT", "$a$b$c$d$e");
        }
    }
}
