//! oslo's INI dialect, read exactly as `oslo_config/iniparser.py` reads it.
//!
//! An operator's `cinder.conf` must mean the same here as in Cinder, so the odd corners are kept:
//! a repeated key is a list, an indented line continues the value above it (even when it looks like
//! a comment), only an empty line, a comment or the next key ends it, a pair of equal quotes around
//! a whole value is dropped, and section and key names are taken verbatim. What oslo rejects is
//! rejected too, with file and line. An error never repeats the line: it may hold a password.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One `key = value`, with the place it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Section name between the brackets, verbatim.
    pub section: Arc<str>,
    /// Key, verbatim (oslo's file keys are case-sensitive).
    pub key: String,
    /// Value; continuation lines are joined with `\n`.
    pub value: String,
    /// Line of the key, from 1.
    pub line: usize,
}

/// The value may be a password, so it is not printed.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {} (line {})", self.section, self.key, self.line)
    }
}

/// One parsed file.
#[derive(Debug, Clone)]
pub struct IniFile {
    /// Where it was read from.
    pub path: Arc<Path>,
    /// Entries in file order.
    pub entries: Vec<Entry>,
    /// Section names in the order of their first appearance, empty sections included.
    pub sections: Vec<Arc<str>>,
}

/// Why a file could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A line that is neither section, comment, assignment nor continuation.
    NoAssignment,
    /// `= value`.
    EmptyKey,
    /// An indented line with nothing above it to continue.
    UnexpectedContinuation,
    /// `[name` without the closing bracket at the end of the line.
    UnclosedSection,
    /// `[]`.
    EmptySection,
    /// An assignment before the first section.
    OutsideSection,
    /// Not UTF-8.
    NotUtf8,
}

impl Fault {
    fn text(&self) -> &'static str {
        match self {
            Fault::NoAssignment => "neither a [section], a comment nor `key = value`",
            Fault::EmptyKey => "the key in front of `=` is empty",
            Fault::UnexpectedContinuation => {
                "an indented line continues the value above it, and there is none; remove the leading blanks"
            }
            Fault::UnclosedSection => {
                "a section line must end with `]` (nothing may follow it, no comment either)"
            }
            Fault::EmptySection => "the section name is empty",
            Fault::OutsideSection => "an option before the first [section]; put [DEFAULT] above it",
            Fault::NotUtf8 => "the file is not UTF-8 from this line on",
        }
    }
}

/// A syntax error: file, line and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {}", path.display(), fault.text())]
pub struct IniError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Parses the bytes of one file; never panics, whatever they are.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<IniFile, IniError> {
    let fail = |line: usize, fault: Fault| IniError { path: path.to_owned(), line, fault };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let good = bytes.get(..e.valid_up_to()).unwrap_or_default();
        fail(1 + good.iter().filter(|b| **b == b'\n').count(), Fault::NotUtf8)
    })?;
    // oslo would call a byte order mark a syntax error; it is invisible in an editor, so skip it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);

    let mut entries: Vec<Entry> = Vec::new();
    let mut sections: Vec<Arc<str>> = Vec::new();
    let mut section: Option<Arc<str>> = None;
    let mut open = false; // whether the last entry may be continued

    for (index, line) in lines(text).enumerate() {
        let number = index + 1;
        let line = line.trim_end_matches(is_space);
        if line.is_empty() {
            open = false;
        } else if line.starts_with([' ', '\t']) {
            match entries.last_mut() {
                Some(entry) if open => {
                    entry.value.push('\n');
                    entry.value.push_str(line.trim_start_matches(is_space));
                }
                _ => return Err(fail(number, Fault::UnexpectedContinuation)),
            }
        } else if let Some(rest) = line.strip_prefix('[') {
            open = false;
            let name = rest.strip_suffix(']').ok_or_else(|| fail(number, Fault::UnclosedSection))?;
            if name.is_empty() {
                return Err(fail(number, Fault::EmptySection));
            }
            let known = sections.iter().find(|s| &***s == name).cloned();
            section = Some(known.unwrap_or_else(|| {
                let new: Arc<str> = name.into();
                sections.push(new.clone());
                new
            }));
        } else if line.starts_with(['#', ';']) {
            open = false;
        } else {
            let at = line.find([':', '=']).ok_or_else(|| fail(number, Fault::NoAssignment))?;
            let (key, value) = line.split_at(at);
            let key = key.trim_matches(is_space);
            if key.is_empty() {
                return Err(fail(number, Fault::EmptyKey));
            }
            let section = section.clone().ok_or_else(|| fail(number, Fault::OutsideSection))?;
            let value = unquote(value.get(1..).unwrap_or_default().trim_matches(is_space));
            entries.push(Entry { section, key: key.to_owned(), value: value.to_owned(), line: number });
            open = true;
        }
    }
    Ok(IniFile { path: path.into(), entries, sections })
}

/// Python's universal newlines: `\n`, `\r\n` and a lone `\r` each end a line.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// Python's `str.isspace`: Unicode white space and the four ASCII separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Drops one pair of equal quotes. A value that is a single quote character becomes empty, as in
/// oslo, where first and last character may be the same one.
fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if value.len() == 1 && value.starts_with(quote) {
            return "";
        }
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, (usize, Fault)> {
        match parse(Path::new("/etc/cinder/cinder.conf"), text.as_bytes()) {
            Ok(file) => Ok(file.entries.into_iter().map(|e| (e.key, e.value)).collect()),
            Err(e) => Err((e.line, e.fault)),
        }
    }

    fn one(text: &str) -> String {
        let all = read(&format!("[DEFAULT]\n{text}\n")).unwrap();
        all.into_iter().find(|(k, _)| k == "a").unwrap().1
    }

    /// The right-hand column was printed by oslo.config 10.7.0 for the same input.
    #[test]
    fn values_are_those_of_oslo_config() {
        for (text, value) in [
            ("a=\"q\"", "q"),
            ("a='q'", "q"),
            ("a=\"", ""),
            ("a=\"q'", "\"q'"),
            ("a:1=2", "1=2"),
            ("a=1:2", "1:2"),
            ("a = x # no", "x # no"),
            ("a=one\n two\n  three\nb=1", "one\ntwo\nthree"),
            ("a=\nb=2", ""),
            ("a=x\n #c", "x\n#c"),
            ("a= \" s \"", " s "),
            ("a=é\u{a0}", "é"),
            ("a=1\rb=2\r", "1"),
            ("a=\"q\n r\"", "\"q\nr\""),
            ("a=x\u{1c}\n", "x"),
            ("a=\u{b}x", "x"),
        ] {
            assert_eq!(one(text), value, "{text:?}");
        }
    }

    /// Each of these is a `ConfigFileParseError` (or `UnicodeDecodeError`) in oslo.config 10.7.0.
    #[test]
    fn what_oslo_config_rejects_is_rejected_with_the_line() {
        for (text, line, fault) in [
            ("[DEFAULT]\na=one\n\n two\n", 4, Fault::UnexpectedContinuation),
            ("[DEFAULT]\na=one\n# c\n two\n", 4, Fault::UnexpectedContinuation),
            ("[DEFAULT]\n  a=1\n", 2, Fault::UnexpectedContinuation),
            ("[DEFAULT]\n=1\n", 2, Fault::EmptyKey),
            ("[DEFAULT]\nx\n", 2, Fault::NoAssignment),
            ("[DEFAULT]\n[z\n", 2, Fault::UnclosedSection),
            ("[DEFAULT]\n[]\n", 2, Fault::EmptySection),
            ("[DEFAULT]\n[z] # c\n", 2, Fault::UnclosedSection),
            ("a=1\n", 1, Fault::OutsideSection),
        ] {
            assert_eq!(read(text), Err((line, fault)), "{text:?}");
        }
        let bad = parse(Path::new("f"), b"[DEFAULT]\na=\xff\n").unwrap_err();
        assert_eq!((bad.line, bad.fault), (2, Fault::NotUtf8));
    }

    #[test]
    fn a_repeated_key_and_a_reopened_section_keep_every_entry() {
        let file = parse(Path::new("f"), b"[A.b@c]\nk=1\n[d]\n[A.b@c]\nk=2\n").unwrap();
        let all: Vec<_> = file.entries.iter().map(|e| (&*e.section, e.value.as_str(), e.line)).collect();
        assert_eq!(all, [("A.b@c", "1", 2), ("A.b@c", "2", 5)]);
        assert_eq!(file.sections.iter().map(|s| &**s).collect::<Vec<_>>(), ["A.b@c", "d"]);
    }

    #[test]
    fn an_error_names_the_place_and_hides_the_line() {
        let e = parse(Path::new("/etc/cinder/cinder.conf"), b"[database]\nconnection mysql//s3cret\n");
        let text = e.unwrap_err().to_string();
        assert!(text.starts_with("/etc/cinder/cinder.conf:2: "), "{text}");
        assert!(!text.contains("s3cret"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(Path::new("f"), &bytes);
        }

        #[test]
        fn syntax_soup_never_panics(text in "[\\[\\]a\"'=:# \t\r\n\\\\;\u{a0}é]{0,80}") {
            let _ = parse(Path::new("f"), text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read_back(
            pairs in proptest::collection::vec(("[a-z_]{1,12}", "[!-&(-~][ -&(-~]{0,20}[!#-&(-~]"), 0..20),
            section in "[A-Za-z0-9_.@-]{1,12}",
        ) {
            let mut text = format!("[{section}]\n");
            for (key, value) in &pairs {
                text.push_str(&format!("{key} = {value}\n"));
            }
            let file = parse(Path::new("f"), text.as_bytes()).unwrap();
            let got: Vec<_> = file.entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
            prop_assert_eq!(got, pairs);
        }
    }
}
