//! Files of `backends.d`: written whole or not at all, put away when their backend is gone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::config::checksum;
use crate::error::{Code, Error, Result};

/// Where files of deleted backends are put.
const ARCHIVE: &str = "archive";

/// One file and its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    path: PathBuf,
}

impl Files {
    /// The file at this path.
    pub fn new(path: impl Into<PathBuf>) -> Files {
        Files { path: path.into() }
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Its content; `None` when it is not there.
    ///
    /// # Errors
    /// `Config` when it cannot be read.
    pub fn content(&self) -> Result<Option<String>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => {
                let text = format!("Cannot read {}", self.path.display());
                Err(Error::new(Code::Config, text).caused_by(e))
            }
        }
    }

    /// Writes it, readable by the service's group and nobody else, so that whoever reads finds the old text or the new
    /// one, also after a power failure. It belongs to whom the directory belongs to: root may write for the service.
    ///
    /// # Errors
    /// `Config`.
    pub fn write(&self, text: &str) -> Result<()> {
        let failed = |e: std::io::Error| {
            let text = format!(
                "Cannot write {}: the service's user must be able to write in this directory",
                self.path.display()
            );
            Error::new(Code::Config, text).caused_by(e)
        };
        let dir = self.dir();
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(failed)?;
        }
        let temporary = dir.join(format!(".{}.part", Uuid::new_v4().simple()));
        let written = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&temporary)?;
            // Whatever the umask of the service is: an administrator of its group reads what it serves.
            file.set_permissions(fs::Permissions::from_mode(0o640))?;
            let (owner, ours) = (fs::metadata(dir)?, file.metadata()?);
            if owner.uid() != ours.uid() {
                std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            fs::File::open(dir)?.sync_all()
        };
        written().map_err(|e| {
            let _ = fs::remove_file(&temporary);
            failed(e)
        })
    }

    /// Removes it, if it still is what was written, by its checksum; somebody else's text stays.
    ///
    /// # Errors
    /// `Config` when it cannot be read or removed.
    pub fn remove_if(&self, sum: &str) -> Result<()> {
        if self.content()?.is_none_or(|text| checksum(text.as_bytes()) != sum) {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => {
                let text = format!("Cannot remove {}", self.path.display());
                Err(Error::new(Code::Config, text).caused_by(e))
            }
        }
    }

    /// Puts it away under a name that has the operation's number; answers where it is. Done before, or without a file:
    /// nothing happens.
    ///
    /// # Errors
    /// `Config`.
    pub fn archive(&self, operation: i64) -> Result<Option<PathBuf>> {
        let archive = self.dir().join(ARCHIVE);
        let name = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let to = archive.join(format!("{name}.{operation}"));
        if !self.path.exists() {
            return Ok(to.exists().then_some(to));
        }
        let moved = || -> std::io::Result<()> {
            if !archive.is_dir() {
                DirBuilder::new().mode(0o750).create(&archive)?;
            }
            fs::rename(&self.path, &to)?;
            fs::File::open(self.dir())?.sync_all()
        };
        moved().map_err(|e| {
            let text = format!("Cannot move {} to {}", self.path.display(), to.display());
            Error::new(Code::Config, text).caused_by(e)
        })?;
        Ok(Some(to))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_written_for_the_group_and_put_away_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backends.d/fast.conf");
        let file = Files::new(&path);
        assert_eq!(file.content().unwrap(), None);
        file.write("[fast]\n").unwrap();
        file.write("[fast]\nrbd_pool = x\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        file.remove_if(&checksum(b"something else")).unwrap();
        assert!(path.exists());
        let put = file.archive(7).unwrap().unwrap();
        assert!(put.ends_with("archive/fast.conf.7") && !path.exists());
        assert_eq!(file.archive(7).unwrap(), Some(put));
        assert_eq!(file.archive(8).unwrap(), None);
        file.write("a").unwrap();
        file.remove_if(&checksum(b"a")).unwrap();
        file.remove_if(&checksum(b"a")).unwrap();
        assert!(!path.exists());
        let names: Vec<_> = fs::read_dir(dir.path().join("backends.d")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing but the archive is left: {names:?}");
    }
}
