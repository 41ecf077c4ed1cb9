//! `backends.d`: one backend a file, read by the code that reads the sections of `enabled_backends`.
//!
//! The directory is beside the first `--config-file`. A file has one section, whose name is the file's and the
//! backend's; `[backend_defaults]` and references to other sections count as in `cinder.conf`. A file that is wrong
//! leaves its own backend out and nothing else. Nobody's spelling is guessed: an option that no OpenStack service has is
//! a mistake here, since there is nothing else in the file that it could belong to.

use std::path::{Path, PathBuf};

use super::backend;
use super::ini;
use super::problem::{Origin, Problem, Severity, shown};
use super::reader::Reader;
use super::source::Source;
use super::values::checksum;
use super::{BackendConfig, Home, Report, Sources, build, unknown};
use crate::error::{Code, Error};

/// Name of the directory.
const DIR: &str = "backends.d";
/// The longest name of a backend: it is part of the names of queues, of which RabbitMQ takes 255 bytes.
const LONGEST: usize = 64;
/// The longest service host, for the same reason: `cinder-volume.HOST_fanout_` and 32 digits.
const LONGEST_HOST: usize = 190;

/// One file of `backends.d`, or what is to become one.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// Name of the backend: the file's without `.conf`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its content, in hex.
    pub checksum: String,
    /// The backend; `None` when something is wrong with it.
    pub config: Option<BackendConfig>,
    /// Everything that was found.
    pub problems: Vec<Problem>,
}

impl Fragment {
    /// The backend, if nothing is wrong with it. `strict`: a likely mistake is one.
    ///
    /// # Errors
    /// `InvalidInput` with everything that is wrong.
    pub fn accepted(&self, strict: bool) -> Result<&BackendConfig, Error> {
        let least = if strict { Severity::Suspect } else { Severity::LeftOut };
        let wrong: Vec<String> =
            self.problems.iter().filter(|p| p.severity >= least).map(ToString::to_string).collect();
        match &self.config {
            Some(config) if wrong.is_empty() => Ok(config),
            _ => Err(Error::new(
                Code::InvalidInput,
                format!("Backend {} cannot be used: {}", shown(&self.name), wrong.join("; ")),
            )),
        }
    }
}

/// Whether a text can be the mark of a backend.
pub fn is_label(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&text.len()) && text.chars().all(good)
}

/// Fails for options that a backend of Scoria does not read: what is ordered means something, or is refused. It also
/// keeps passwords of other drivers from where they would be written down.
///
/// # Errors
/// `InvalidInput` naming all of them, with the nearest name that there is.
pub fn check_options<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let ours = |name: &str| super::options::find(super::options::Group::Backend, name).is_some();
    let told = |name: &str| {
        let near = unknown::nearest(name, unknown::names_of(super::options::Group::Backend));
        let near = near.map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default();
        format!("`{}`{near}", shown(name))
    };
    let wrong: Vec<String> = names.filter(|name| !ours(name)).map(told).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidInput,
        format!("No options of a backend that Scoria reads: {}", wrong.join(", ")),
    ))
}

/// Refuses what cannot be the name of a backend: it becomes part of hosts, queues and a file's name.
///
/// # Errors
/// `InvalidInput`.
pub fn check_name(name: &str) -> Result<(), Error> {
    match name_problem(name) {
        None => Ok(()),
        Some(text) => Err(Error::new(Code::InvalidInput, text)),
    }
}

fn name_problem(name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty()
        || name.len() > LONGEST
        || !name.chars().all(good)
        || name.starts_with(['.', '-'])
        || name.ends_with(".conf")
    {
        return Some(format!(
            "`{}` cannot be the name of a backend: it has 1 to {LONGEST} letters, digits, `.`, `_` or `-`, begins with a \
             letter, a digit or `_`, and does not end in `.conf`",
            shown(name)
        ));
    }
    unknown::is_reserved(name)
        .then(|| format!("`{name}` cannot be the name of a backend: [{name}] has options of another kind"))
}

impl Sources {
    /// The directory of files with one backend each; `None` when no file was named to be beside.
    pub fn backends_dir(&self) -> Option<PathBuf> {
        let first = self.files.first()?;
        Some(first.parent().unwrap_or(Path::new("")).join(DIR))
    }

    /// The file of a backend of that name.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is none; `Config` when there is no file to be beside.
    pub fn backend_file(&self, name: &str) -> Result<PathBuf, Error> {
        check_name(name)?;
        let missing = || {
            Error::new(
                Code::Config,
                "The service was started without --config-file, so there is no directory for files of backends",
            )
        };
        Ok(self.backends_dir().ok_or_else(missing)?.join(format!("{name}.conf")))
    }

    /// What a file of `backends.d` with this content would mean now.
    ///
    /// # Errors
    /// `Config` when the service's own files cannot be read; what is wrong with the backend is in the answer.
    pub async fn fragment(&self, path: PathBuf, content: Vec<u8>) -> Result<Fragment, Error> {
        let sources = self.clone();
        blocking(move || Ok(read(&sources.main()?, &path, &content))).await
    }

    /// All files of `backends.d`, by name.
    ///
    /// # Errors
    /// `Config` when the service's own files, or the directory, cannot be read.
    pub async fn fragments(&self) -> Result<Vec<Fragment>, Error> {
        let sources = self.clone();
        blocking(move || {
            let main = sources.main()?;
            let Some(dir) = sources.backends_dir() else { return Ok(Vec::new()) };
            Ok(files(&dir)?.iter().map(|path| of_file(&main, path)).collect())
        })
        .await
    }

    fn main(&self) -> Result<Source, Error> {
        Source::read(&self.files, &self.dirs, std::env::vars()).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Error::new(Code::Config, lines.join("\n"))
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("Reading files of backends was dropped").caused_by(e))?
}

/// The files of the directory, in the order of their names; none when it is not there.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |e: std::io::Error| {
        Error::new(Code::Config, format!("Cannot read the directory {}", dir.display())).caused_by(e)
    };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".conf") && !name.starts_with('.') && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Adds the backends of `backends.d` to what was found in the service's own files.
pub(super) fn add(report: &mut Report, main: &Source, sources: &Sources) {
    let Some(dir) = sources.backends_dir() else { return };
    let found = match files(&dir) {
        Ok(found) => found,
        Err(error) => return report.problems.push(left_out(error.operator())),
    };
    if !found.is_empty() {
        // "No backends" is meant for who has forgotten them.
        report
            .problems
            .retain(|p| p.severity != Severity::Suspect || p.option.as_deref() != Some("enabled_backends"));
    }
    for path in found {
        let fragment = of_file(main, &path);
        // One file must not keep the others from being served.
        let mild = |p: Problem| Problem { severity: p.severity.min(Severity::LeftOut), ..p };
        report.problems.extend(fragment.problems.into_iter().map(mild));
        if let (Some(config), Some(backend)) = (report.config.as_mut(), fragment.config) {
            config.backends.push(backend);
        }
    }
}

fn left_out(text: String) -> Problem {
    Problem { severity: Severity::LeftOut, origin: None, section: String::new(), option: None, text }
}

fn of_file(main: &Source, path: &Path) -> Fragment {
    match std::fs::read(path) {
        Ok(content) => read(main, path, &content),
        Err(e) => Fragment {
            name: stem(path),
            path: path.to_owned(),
            checksum: String::new(),
            config: None,
            problems: vec![left_out(format!("{}: cannot read this file of a backend: {e}", path.display()))],
        },
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a file with this content means, beside the service's own files.
fn read(main: &Source, path: &Path, content: &[u8]) -> Fragment {
    let name = stem(path);
    let mut fragment = Fragment {
        name: name.clone(),
        path: path.to_owned(),
        checksum: checksum(content),
        config: None,
        problems: Vec::new(),
    };
    let parsed = match ini::parse(path, content) {
        Ok(parsed) => parsed,
        Err(e) => {
            fragment.problems.push(Problem { severity: Severity::Error, ..left_out(e.to_string()) });
            return fragment;
        }
    };
    let at = |line| Some(Origin::File { path: parsed.path.clone(), line });
    let whole = main.with(parsed.clone());
    let reader = Reader::new(&whole);
    let fail = |line, section: &str, text: String| {
        reader.report(Severity::Error, at(line), (section, ""), text);
    };
    if let Some(text) = name_problem(&name) {
        fail(0, "", text);
    }
    if !parsed.sections.iter().any(|section| **section == *name) {
        fail(
            0,
            "",
            format!("has no section [{}], and a file of a backend is named as its section", shown(&name)),
        );
    }
    for other in parsed.sections.iter().filter(|section| ***section != *name) {
        let line = parsed.entries.iter().find(|e| e.section == *other).map_or(0, |e| e.line);
        let text = format!("does not belong here: the file has one section, [{}]", shown(&name));
        fail(line, other, text);
    }
    if let Some(origin) = main.place_of(&name) {
        let text = format!("there is a section of this name at {origin}, too; take out one of them");
        fail(1, &name, text);
    }
    for entry in parsed.entries.iter().filter(|e| *e.section == *name) {
        let before = reader.count();
        unknown::one(
            &reader,
            &[&name],
            &name,
            &entry.key,
            Origin::File { path: parsed.path.clone(), line: entry.line },
        );
        let known = unknown::is_known(&name, &entry.key)
            || unknown::is_known(super::options::Group::Backend.section(), &entry.key);
        if reader.count() > before && !known && !reader.has(Severity::Suspect, &entry.key) {
            let text = "is no option of any OpenStack service".to_owned();
            reader.report(Severity::Suspect, at(entry.line), (&name, &entry.key), text);
        }
    }
    if backend::driver(&reader, &name) {
        let config = backend::one(&reader, &name, &build::place(&reader), Home::File(path.to_owned()));
        let longest = config.cluster.iter().map(String::len).chain([config.host.len()]).max().unwrap_or(0);
        if longest > LONGEST_HOST {
            fail(
                0,
                &name,
                format!("makes a service host of {longest} bytes; {LONGEST_HOST} fit into names of queues"),
            );
        }
        fragment.config = Some(config);
    }
    fragment.problems = reader.finish();
    if fragment.problems.iter().any(|p| p.severity == Severity::Error) {
        fragment.config = None;
    }
    fragment
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;

    const MAIN: &str = "[DEFAULT]\nhost=h1\nenabled_backends=ceph\ntransport_url=rabbit://u:p@h/v\nstorage_availability_zone=z1\n\
                        [database]\nconnection=mysql+pymysql://c:p@db/cinder\n\
                        [backend_defaults]\nrbd_user=shared\n[ceph]\nrbd_pool=volumes\n[spare]\nrbd_pool=x\n";

    fn main_source() -> Source {
        let file = ini::parse(Path::new("/etc/cinder/cinder.conf"), MAIN.as_bytes()).unwrap();
        Source::new(vec![file], std::iter::empty())
    }

    fn of(name: &str, text: &str) -> Fragment {
        read(&main_source(), Path::new(&format!("/etc/cinder/backends.d/{name}.conf")), text.as_bytes())
    }

    #[test]
    fn a_file_is_a_backend_with_the_defaults_of_all() {
        let fragment =
            of("fast", "[fast]\nrbd_pool=fast\nhost_cluster_id=C-1\nbackend_availability_zone=z2\n");
        let config = fragment.accepted(true).unwrap();
        assert_eq!((config.host.as_str(), config.pool.as_str()), ("C-1!h1@fast", "fast"));
        assert_eq!((config.user.as_deref(), config.availability_zone.as_str()), (Some("shared"), "z2"));
        assert_eq!(config.label.as_deref(), Some("C-1"));
        assert_eq!(config.values.get("rbd_user"), "shared");
        assert_eq!(fragment.checksum.len(), 64);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (name, text, said) in [
            ("fast", "[slow]\nrbd_pool=x\n", "has no section [fast]"),
            ("fast", "[fast]\nrbd_pool=x\n[slow]\nrbd_pool=y\n", "fast.conf:4: [slow] does not belong here"),
            ("ceph", "[ceph]\nrbd_pool=x\n", "at /etc/cinder/cinder.conf:11"),
            ("Spare", "[Spare]\nrbd_pool=x\n", "at /etc/cinder/cinder.conf:13"),
            ("fast", "[fast]\nrbd_pol=x\n", "did you mean `rbd_pool`?"),
            ("fast", "[fast]\nsan_frobnicate=x\n", "san_frobnicate: is no option of any OpenStack service"),
            ("fast", "[fast]\nreserved_percentage=many\n", "reserved_percentage"),
            ("fast", "[fast]\nhost_cluster_id=a!b\n", "must have 1 to 64 letters"),
            ("fast", "[fast]\nvolume_driver=cinder.volume.drivers.lvm.LVMVolumeDriver\n", "only Ceph RBD"),
            ("fast", "rbd_pool=x\n", "before the first [section]"),
            ("a@b", "[a@b]\nrbd_pool=x\n", "cannot be the name of a backend"),
            ("database", "[database]\nrbd_pool=x\n", "has options of another kind"),
        ] {
            let refused = of(name, text).accepted(true).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidInput);
            assert!(refused.user().contains(said), "{text}: {refused}");
        }
        let long = format!("[fast]\nbackend_host={}\n", "h".repeat(200));
        assert!(of("fast", &long).accepted(true).unwrap_err().user().contains("fit into names of queues"));
        // An option of another driver is no mistake of spelling.
        assert!(of("fast", "[fast]\nrbd_pool=x\nsan_ip=10.0.0.1\n").accepted(true).is_ok());
    }

    #[test]
    fn an_option_that_nobody_reads_is_refused_with_the_nearest() {
        assert!(check_options(["rbd_pool", "replication_device"].into_iter()).is_ok());
        let refused = check_options(["rbd_pol", "rbd_user", "san_password"].into_iter()).unwrap_err();
        assert!(refused.user().contains("`rbd_pol` (did you mean `rbd_pool`?), `san_password`"), "{refused}");
    }

    #[test]
    fn names_are_plain() {
        for good in ["fast", "a.b_c-1", "_x", "9"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in
            ["", "-x", ".x", "a b", "a@b", "a#b", "a!b", "a/b", "ä", "x.conf", "DEFAULT", "default", "nova"]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name(&"x".repeat(65)).is_err());
    }

    #[test]
    fn a_file_that_is_wrong_leaves_out_its_own_backend_alone() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("cinder.conf");
        std::fs::write(&conf, MAIN).unwrap();
        let d = dir.path().join("backends.d");
        std::fs::create_dir(&d).unwrap();
        for (file, text) in [
            ("a.conf", "[a]\nrbd_pool=a\n"),
            ("b.conf", "[b]\nrbd_pool=\n"),
            ("ceph.conf", "[ceph]\nrbd_pool=x\n"),
            (".c.conf", "[c]\n"),
            ("d.conf.bak", "[d]\n"),
        ] {
            std::fs::write(d.join(file), text).unwrap();
        }
        let (config, problems) = Config::load(&[conf], &[], std::iter::empty()).unwrap();
        let names: Vec<&str> = config.backends.iter().map(|b| b.section.as_str()).collect();
        assert_eq!(names, ["ceph", "a"]);
        assert_eq!(config.backends[0].home, Home::Main);
        assert_eq!(config.backends[1].home, Home::File(d.join("a.conf")));
        let left: Vec<_> = problems.iter().filter(|p| p.severity == Severity::LeftOut).collect();
        assert_eq!(left.len(), 2, "{problems:?}");
    }
}
