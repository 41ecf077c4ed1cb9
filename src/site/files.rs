//! Files by which a host reaches a site, and the only place where a key is in memory.
//!
//! What an operator gives as content is written down before anything is journalled: as a *draft*, a pair of files with
//! a name that no other order has, in the directory that only the service's user may read. When the site is accepted
//! the draft becomes the site's own pair, named by its fsid; each file by a rename, so that whoever reads finds the old
//! one or the new one. A draft whose order has ended is a leftover, and is swept away.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use uuid::Uuid;

use super::orders::Files;
use crate::db::site::HostRow;
use crate::error::{Code, Error, Result};

/// What the names of drafts begin with.
const DRAFT: &str = ".draft-";
/// Younger drafts may belong to an order that is about to be written.
const SETTLED: Duration = Duration::from_secs(3600);
/// From here on a kept conf is ours.
const OURS: &str = "# Added by Scoria:";

/// A cephx key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct CephKey(String);

impl std::fmt::Debug for CephKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CephKey")
    }
}

impl CephKey {
    /// A key as `ceph auth get-key` prints it.
    ///
    /// # Errors
    /// `InvalidInput` for what is none; its text is not in the error.
    pub fn parse(text: &str) -> Result<CephKey> {
        let text = text.trim();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
        // Type, time of creation, length, and at least 16 bytes (Ceph, `CryptoKey::encode`).
        if bytes.len() < 28 {
            return Err(Error::new(
                Code::InvalidInput,
                "This is no cephx key; `ceph auth get-key` prints one",
            ));
        }
        Ok(CephKey(text.to_owned()))
    }

    /// The key, for a file.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// The key in `text`: that of `user` in a keyring, or the text itself.
///
/// # Errors
/// `InvalidInput` when the keyring has no key of this user, or it is none.
pub fn read_key(text: &str, user: &str) -> Result<CephKey> {
    if !text.contains('[') {
        return CephKey::parse(text);
    }
    let (section, mut here) = (format!("[client.{user}]"), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            here = line == section;
        } else if here
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == "key"
        {
            return CephKey::parse(value.trim().trim_matches('"'));
        }
    }
    Err(Error::new(Code::InvalidInput, format!("The keyring has no key of client.{user}")))
}

/// A pair of files that waits for its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// ceph.conf.
    pub conf: PathBuf,
    /// Keyring.
    pub keyring: PathBuf,
}

/// The directory of kept files (`scoria_site_dir`).
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Over a directory, which is made when it is needed.
    pub fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// Where a draft's order finds it.
    pub fn is_draft(&self, files: &Files) -> bool {
        let ours = |path: &Path| {
            path.parent() == Some(&self.dir)
                && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAFT))
        };
        ours(&files.conf) && files.keyring.as_deref().is_some_and(ours)
    }

    /// Writes a draft: `conf` without its own words on keys, and the key of `user`.
    ///
    /// # Errors
    /// `Config` when the directory or a file cannot be written.
    pub fn draft(&self, conf: &str, user: &str, key: &CephKey) -> Result<Draft> {
        self.make()?;
        let stem = format!("{DRAFT}{}", Uuid::new_v4().simple());
        let draft = Draft {
            conf: self.dir.join(format!("{stem}.conf")),
            keyring: self.dir.join(format!("{stem}.keyring")),
        };
        self.write(&draft.keyring, &keyring_text(user, key), 0o600)?;
        self.write(&draft.conf, &conf_text(conf, user, &draft.keyring), 0o600)?;
        Ok(draft)
    }

    /// The files that a draft of this site and user becomes.
    pub fn kept(&self, fsid: &str, user: &str) -> Draft {
        Draft {
            conf: self.dir.join(format!("{fsid}.conf")),
            keyring: self.dir.join(format!("{fsid}.client.{user}.keyring")),
        }
    }

    /// Makes a draft the site's own files. Doing it again does no harm, also after the draft was removed.
    ///
    /// # Errors
    /// `Config` when a file cannot be read or written.
    pub fn keep(&self, draft: &Files, fsid: &str) -> Result<Draft> {
        let kept = self.kept(fsid, &draft.user);
        let source = draft.keyring.as_deref().unwrap_or(Path::new(""));
        let (conf, keyring) = match (fs::read_to_string(&draft.conf), fs::read_to_string(source)) {
            (Ok(conf), Ok(keyring)) => (conf, keyring),
            // Done before, and the draft removed.
            (Err(e), _) | (_, Err(e))
                if e.kind() == ErrorKind::NotFound && kept.conf.exists() && kept.keyring.exists() =>
            {
                return Ok(kept);
            }
            (Err(e), _) | (_, Err(e)) => return Err(unreadable(&draft.conf, &e)),
        };
        self.write(&kept.keyring, &keyring, 0o600)?;
        self.write(&kept.conf, &conf_text(&conf, &draft.user, &kept.keyring), 0o644)?;
        Ok(kept)
    }

    /// Removes a draft, if that is what these files are.
    pub fn discard(&self, files: &Files) {
        if files.draft && self.is_draft(files) {
            self.remove(&files.conf);
            if let Some(keyring) = &files.keyring {
                self.remove(keyring);
            }
        }
    }

    /// Removes a file of this directory; false when it is still there.
    pub fn remove(&self, path: &Path) -> bool {
        if path.parent() != Some(&self.dir) {
            return false;
        }
        match fs::remove_file(path) {
            Ok(()) => true,
            Err(e) => e.kind() == ErrorKind::NotFound,
        }
    }

    /// Removes drafts that no order of `open` names, except young ones.
    pub fn sweep(&self, open: &[Files]) {
        let named = |path: &Path| {
            open.iter().any(|files| files.conf == path || files.keyring.as_deref() == Some(path))
        };
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let settled = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > SETTLED));
            if settled && entry.file_name().to_string_lossy().starts_with(DRAFT) && !named(&entry.path()) {
                self.remove(&entry.path());
            }
        }
    }

    /// Removes kept files that no row of any host names: of a site that was refused in the end, or of a client that
    /// was replaced.
    pub(super) fn sweep_kept(&self, rows: &[HostRow]) {
        let named = |path: &Path| {
            let text = path.to_string_lossy();
            rows.iter().any(|row| row.conf == text || row.keyring.as_deref() == Some(&*text))
        };
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kept = name.get(..36).is_some_and(|fsid| Uuid::parse_str(fsid).is_ok())
                && (name.ends_with(".conf") || name.ends_with(".keyring"));
            if kept && !named(&entry.path()) {
                self.remove(&entry.path());
            }
        }
    }

    fn make(&self) -> Result<()> {
        if self.dir.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o750).create(&self.dir).map_err(|e| {
            let dir = self.dir.display();
            let text = format!("Cannot make {dir}, where files of sites are kept; make it, for the service's user, or set scoria_site_dir");
            Error::new(Code::Config, text).caused_by(e)
        })
    }

    /// Writes a file that is there as a whole or not at all, also after a power failure. It belongs to whom the
    /// directory belongs to: root may write what the service is to read.
    fn write(&self, path: &Path, text: &str, mode: u32) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::new(Code::Config, format!("Cannot write {}", path.display())).caused_by(e)
        };
        let temporary = self.dir.join(format!("{DRAFT}{}.part", Uuid::new_v4().simple()));
        let written = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
            let (owner, ours) = (fs::metadata(&self.dir)?, file.metadata()?);
            if owner.uid() != ours.uid() {
                std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            fs::File::open(&self.dir)?.sync_all()
        };
        written().map_err(|e| {
            let _ = fs::remove_file(&temporary);
            failed(e)
        })
    }
}

/// Whether a file can be read by this process, in a few words if it cannot.
pub(super) fn problem(path: &Path) -> Option<String> {
    fs::File::open(path).err().map(|e| format!("{}: {}", path.display(), e.kind()))
}

/// A file that somebody else wrote cannot be used.
pub(super) fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    Error::new(
        Code::InvalidInput,
        format!("The service cannot read {} on this host ({})", path.display(), e.kind()),
    )
}

fn keyring_text(user: &str, key: &CephKey) -> String {
    format!("[client.{user}]\n\tkey = {}\n", key.expose())
}

/// A conf that leads to `keyring` for `user`. What it said of keys and keyrings itself is left out: a key in it would
/// be one more copy, and another keyring would be another client.
pub(super) fn conf_text(conf: &str, user: &str, keyring: &Path) -> String {
    let mut text = String::new();
    for line in conf.lines().take_while(|line| line.trim() != OURS) {
        let name = line.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !line.contains('=')
            || !matches!(name.replace([' ', '-'], "_").as_str(), "key" | "keyfile" | "key_file" | "keyring")
        {
            text.push_str(line);
            text.push('\n');
        }
    }
    let keyring = keyring.display();
    format!("{}\n\n{OURS}\n[client.{user}]\nkeyring = {keyring}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "AQBTsNxdAAAAABAAkn0ypCIDOjzUsUXlt5eTpw==";

    fn files(draft: &Draft) -> Files {
        Files {
            conf: draft.conf.clone(),
            keyring: Some(draft.keyring.clone()),
            user: "cinder".into(),
            draft: true,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_found_and_never_shown() {
        let keyring =
            format!("[client.admin]\n key = AQ==\n[client.cinder]\n\tkey = {KEY}\n\tcaps mon = \"x\"\n");
        assert_eq!(read_key(&keyring, "cinder").unwrap().expose(), KEY);
        assert_eq!(read_key(&format!("{KEY}\n"), "cinder").unwrap().expose(), KEY);
        assert!(!format!("{:?}", CephKey::parse(KEY).unwrap()).contains("AQ"));
        for (text, user) in
            [(keyring.as_str(), "nova"), (keyring.as_str(), "admin"), ("AQ==", "x"), ("", "x")]
        {
            let error = read_key(text, user).unwrap_err();
            assert!(!error.operator().contains("AQ"), "{error}");
        }
        let other = read_key(&keyring, "nova").unwrap_err();
        assert_eq!(other.user(), "The keyring has no key of client.nova");
        let none = read_key("AQ==", "x").unwrap_err();
        assert!(none.user().contains("This is no cephx key"), "{none}");
    }

    #[test]
    fn a_draft_becomes_the_sites_own_files() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("sites"));
        let given = "[global]\nmon host = 10.0.0.1\nkeyring=/etc/ceph/$name.keyring\n[client]\nkey = AQ==\nrbd cache = true\n";
        let draft = store.draft(given, "cinder", &CephKey::parse(KEY).unwrap()).unwrap();
        assert_eq!((mode(&draft.conf), mode(&draft.keyring)), (0o600, 0o600));
        assert!(store.is_draft(&files(&draft)));
        let kept = store.keep(&files(&draft), "f-1").unwrap();
        assert_eq!((mode(&kept.conf), mode(&kept.keyring)), (0o644, 0o600));
        let conf = fs::read_to_string(&kept.conf).unwrap();
        assert!(conf.contains("mon host = 10.0.0.1") && conf.contains("rbd cache = true"), "{conf}");
        assert_eq!(conf.matches("keyring").count(), 2, "{conf}");
        assert!(
            conf.contains(&format!("keyring = {}", kept.keyring.display())) && !conf.contains("AQ"),
            "{conf}"
        );
        assert_eq!(fs::read_to_string(&kept.keyring).unwrap(), format!("[client.cinder]\n\tkey = {KEY}\n"));
        // As after a crash: with the draft still there, and without it.
        assert_eq!(store.keep(&files(&draft), "f-1").unwrap(), kept);
        store.discard(&files(&draft));
        assert!(!draft.conf.exists() && !draft.keyring.exists());
        assert_eq!(store.keep(&files(&draft), "f-1").unwrap(), kept);
        assert_eq!(store.keep(&files(&draft), "f-2").unwrap_err().code(), Code::InvalidInput);
        assert_eq!(fs::read_dir(dir.path().join("sites")).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn only_old_drafts_of_nobody_are_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let key = CephKey::parse(KEY).unwrap();
        let [young, old, open] = [(); 3].map(|()| store.draft("", "cinder", &key).unwrap());
        let past = SystemTime::now() - SETTLED * 2;
        for file in [&old.conf, &old.keyring, &open.conf, &open.keyring] {
            fs::File::options().write(true).open(file).unwrap().set_modified(past).unwrap();
        }
        store.sweep(&[files(&open)]);
        assert!(young.conf.exists() && open.keyring.exists() && !old.conf.exists() && !old.keyring.exists());
        let foreign = Files { conf: "/etc/hostname".into(), keyring: None, user: "x".into(), draft: true };
        store.discard(&foreign);
        assert!(foreign.conf.exists() && !store.remove(&foreign.conf));
    }
}
