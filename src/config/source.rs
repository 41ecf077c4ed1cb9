//! Several files and the environment, layered as oslo.config layers them.
//!
//! A later file overrides an earlier one, value by value; a list-like ("multi") option gathers the
//! values of all files. The environment (`OS_<GROUP>__<OPTION>`) overrides every file. Group names
//! are compared without case, except that `DEFAULT` is only ever `DEFAULT`
//! (`oslo_config.cfg._normalize_group_name`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::ini::{self, IniFile};
use super::problem::{Origin, Problem, Severity};

/// A raw value and its place.
#[derive(Clone)]
pub(super) struct Raw {
    pub(super) value: String,
    pub(super) origin: Origin,
}

/// Everything that was read, unchecked.
pub struct Source {
    files: Vec<IniFile>,
    env: BTreeMap<String, String>,
}

/// Lower case, except for `DEFAULT`.
pub(super) fn group_key(group: &str) -> Cow<'_, str> {
    if group == "DEFAULT" { Cow::Borrowed(group) } else { Cow::Owned(group.to_lowercase()) }
}

fn same_group(a: &str, b: &str) -> bool {
    group_key(a) == group_key(b)
}

/// `OS_<GROUP>__<OPTION>`, as oslo.config's `EnvironmentConfigurationSource.get_name`.
pub(super) fn env_name(group: &str, option: &str) -> String {
    format!("OS_{}__{}", group.to_uppercase(), option.to_uppercase())
}

impl Source {
    /// Reads all files, then every `*.conf` of each directory in name order (hidden files left out,
    /// as `glob` does). All unreadable files are reported, not only the first.
    pub fn read(
        files: &[PathBuf],
        dirs: &[PathBuf],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Source, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut paths = files.to_vec();
        for dir in dirs {
            match list_dir(dir) {
                Ok(found) => paths.extend(found),
                Err(e) => problems.push(unreadable("configuration directory", dir, &e)),
            }
        }
        let mut parsed = Vec::new();
        for path in paths {
            match std::fs::read(&path) {
                Err(e) => problems.push(unreadable("configuration file", &path, &e)),
                Ok(bytes) => match ini::parse(&path, &bytes) {
                    Ok(file) => parsed.push(file),
                    Err(e) => problems.push(failure(e.to_string())),
                },
            }
        }
        if problems.is_empty() { Ok(Source::new(parsed, env)) } else { Err(problems) }
    }

    /// Layers files that were parsed already, in order of increasing priority.
    pub fn new(files: Vec<IniFile>, env: impl Iterator<Item = (String, String)>) -> Source {
        Source { files, env: env.filter(|(name, _)| name.starts_with("OS_")).collect() }
    }

    /// The same with one more file above the others.
    pub(super) fn with(&self, file: IniFile) -> Source {
        let mut files = self.files.clone();
        files.push(file);
        Source { files, env: self.env.clone() }
    }

    /// Where a section is first spoken of.
    pub(super) fn place_of(&self, section: &str) -> Option<Origin> {
        self.files.iter().find_map(|file| {
            let entry = file.entries.iter().find(|e| same_group(&e.section, section));
            let empty = file.sections.iter().any(|s| same_group(s, section));
            let line = entry.map(|e| e.line).or(empty.then_some(0))?;
            Some(Origin::File { path: file.path.clone(), line })
        })
    }

    /// The value that counts for a single-valued option known under `names` (its own first, then
    /// deprecated ones): the environment, else the last file that has any of the names.
    pub(super) fn single(&self, names: &[(&str, &str)]) -> Option<Raw> {
        if let Some(raw) = self.environment(names) {
            return Some(raw);
        }
        self.files.iter().rev().find_map(|file| names.iter().find_map(|name| raws(file, name).last()))
    }

    /// All values of a multi-valued option, in file order.
    pub(super) fn multi(&self, names: &[(&str, &str)]) -> Vec<Raw> {
        match self.environment(names) {
            Some(raw) => vec![raw],
            None => {
                let each = |file| names.iter().flat_map(move |name| raws(file, name));
                self.files.iter().flat_map(each).collect()
            }
        }
    }

    /// oslo.config asks the environment for the option's own name only, not the deprecated ones.
    fn environment(&self, names: &[(&str, &str)]) -> Option<Raw> {
        let (group, option) = names.first()?;
        let name = env_name(group, option);
        let value = self.env.get(&name)?.clone();
        Some(Raw { value, origin: Origin::Environment(name) })
    }

    /// True when a file has the section, or the environment an option of it.
    pub(super) fn has_section(&self, section: &str) -> bool {
        let prefix = env_name(section, "");
        self.files.iter().any(|f| f.sections.iter().any(|s| same_group(s, section)))
            || self.env.keys().any(|name| name.starts_with(&prefix))
    }

    /// Every section name of the files, verbatim.
    pub(super) fn sections(&self) -> BTreeSet<&str> {
        self.files.iter().flat_map(|f| f.sections.iter().map(|s| &**s)).collect()
    }

    /// Every entry of the files as section, key and place.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &str, Origin)> {
        self.files.iter().flat_map(|file| {
            file.entries.iter().map(|e| {
                (&*e.section, e.key.as_str(), Origin::File { path: file.path.clone(), line: e.line })
            })
        })
    }

    /// `OS_<GROUP>__<OPTION>` variables as (group in upper case, option in lower case, variable).
    pub(super) fn env_entries(&self) -> impl Iterator<Item = (&str, String, &str)> {
        self.env.keys().filter_map(|name| {
            let (group, option) = name.strip_prefix("OS_")?.split_once("__")?;
            Some((group, option.to_lowercase(), name.as_str()))
        })
    }
}

fn raws<'a>(file: &'a IniFile, name: &(&'a str, &'a str)) -> impl DoubleEndedIterator<Item = Raw> + use<'a> {
    let (group, key) = *name;
    file.entries.iter().filter(move |e| e.key == key && same_group(&e.section, group)).map(|e| Raw {
        value: e.value.clone(),
        origin: Origin::File { path: file.path.clone(), line: e.line },
    })
}

fn list_dir(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".conf") && !name.starts_with('.') {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn unreadable(what: &str, path: &Path, e: &std::io::Error) -> Problem {
    failure(format!("{}: cannot read this {what}: {e}", path.display()))
}

fn failure(text: String) -> Problem {
    Problem { severity: Severity::Error, origin: None, section: String::new(), option: None, text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn source(texts: &[&str], env: &[(&str, &str)]) -> Source {
        let files = texts
            .iter()
            .enumerate()
            .map(|(i, t)| ini::parse(Path::new(&format!("/f{i}")), t.as_bytes()).unwrap())
            .collect();
        Source::new(files, env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_last_value_of_the_last_file_counts_and_the_environment_above_all() {
        let s = source(&["[g]\na=1\na=2\nb=3\n", "[G]\na=4\na=5\n"], &[("OS_G__C", "env")]);
        let get = |k| s.single(&[("g", k)]).map(|r| (r.value, r.origin.to_string()));
        assert_eq!(get("a"), Some(("5".into(), "/f1:3".into())));
        assert_eq!(get("b"), Some(("3".into(), "/f0:4".into())));
        assert_eq!(get("c"), Some(("env".into(), "environment variable OS_G__C".into())));
        let all: Vec<_> = s.multi(&[("g", "a")]).into_iter().map(|r| r.value).collect();
        assert_eq!(all, ["1", "2", "4", "5"]);
    }

    #[test]
    fn a_deprecated_name_in_a_later_file_overrides_the_new_name_in_an_earlier_one() {
        let s = source(&["[g]\nnew=1\nold=2\n", "[DEFAULT]\nold=3\n"], &[]);
        assert_eq!(s.single(&[("g", "new"), ("g", "old")]).unwrap().value, "1");
        assert_eq!(s.single(&[("g", "new"), ("DEFAULT", "old")]).unwrap().value, "3");
    }

    #[test]
    fn default_is_not_default_in_lower_case() {
        let s = source(&["[default]\na=1\n"], &[]);
        assert!(s.single(&[("DEFAULT", "a")]).is_none());
    }

    #[test]
    fn a_directory_is_read_in_name_order_without_hidden_and_other_files() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [("20.conf", "b"), ("10.conf", "a"), (".30.conf", "c"), ("40.conf.bak", "d")] {
            std::fs::write(dir.path().join(name), format!("[g]\nk={value}\n")).unwrap();
        }
        let s = Source::read(&[], &[dir.path().to_owned()], std::iter::empty()).ok().unwrap();
        let all: Vec<_> = s.multi(&[("g", "k")]).into_iter().map(|r| r.value).collect();
        assert_eq!(all, ["a", "b"]);
    }

    #[test]
    fn every_unreadable_file_is_named() {
        let missing = [PathBuf::from("/nonexistent/a"), PathBuf::from("/nonexistent/b")];
        let problems = Source::read(&missing, &[], std::iter::empty()).err().unwrap();
        let text: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(text[0].contains("/nonexistent/a") && text[1].contains("/nonexistent/b"), "{text:?}");
    }
}
