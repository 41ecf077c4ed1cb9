//! One rbd-mirror process that a service runs, on disk and in the process table. Knows no database and no Ceph.
//!
//! The process outlives its service: an upgrade or a crash of scoria-volume must not stop replication. So whoever
//! comes next has to find it, and must never start a second one. What decides is a lock: the daemon's standard input is
//! the file `lock`, with an exclusive lock on it that the kernel holds for exactly as long as a process has that file
//! open, whatever becomes of who has started it. Which process it is, for signals, the file `pid` says; where that
//! was not written any more, the command line tells, which names a file of this directory and so is nobody else's.
//!
//! rbd-mirror looks for the conf of its own cluster by cluster name, in /etc/ceph first, whatever `-c` says. So it gets
//! a cluster name that nobody else has, and a HOME with a conf of that name.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};
use uuid::Uuid;

use crate::error::{Code, Error, Result};

/// A log that is longer is set aside when the daemon is started.
const LOG_MOST: u64 = 16 << 20;
/// So much of the end of a log is told.
const TAIL: u64 = 4096;

/// The directory of one daemon.
#[derive(Debug, Clone)]
pub struct Slot {
    dir: PathBuf,
    fsid: String,
}

/// What is found of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// None runs.
    Nothing,
    /// One runs.
    Running {
        /// Its process; `None`: it is being started this moment, or cannot be told from others.
        pid: Option<i32>,
        /// The operation that it was started for.
        generation: i64,
    },
}

/// What a daemon is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The program.
    pub program: PathBuf,
    /// cephx user without `client.`.
    pub client: String,
    /// The operation that wants it.
    pub generation: i64,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let text =
        format!("Cannot {what} {}: see option scoria_mirror_daemon_dir, and its owner", path.display());
    move |e| Error::new(Code::Config, text).caused_by(e)
}

impl Slot {
    /// That of a cluster under `dir` (`scoria_mirror_daemon_dir`).
    pub fn new(dir: &Path, fsid: &str) -> Slot {
        Slot { dir: dir.join(fsid), fsid: fsid.to_owned() }
    }

    /// The cluster name that only this daemon has.
    fn cluster(&self) -> String {
        format!("scoria-{}", self.fsid)
    }

    fn conf(&self) -> PathBuf {
        self.dir.join(".ceph").join(format!("{}.conf", self.cluster()))
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// What the daemon says.
    pub fn log(&self) -> PathBuf {
        self.dir.join("rbd-mirror.log")
    }

    /// The arguments of the daemon: what `ps` shows, and by what it is found again.
    pub fn arguments(&self, client: &str) -> Vec<String> {
        [
            "-f",
            "-c",
            &self.conf().display().to_string(),
            "--cluster",
            &self.cluster(),
            "-n",
            &format!("client.{client}"),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Writes the daemon's own conf: that of the site, which leads to `keyring`, or to a copy of it when `copy`.
    ///
    /// # Errors
    /// `InvalidInput` when a file cannot be read, `Config` when one cannot be written.
    pub fn equip(&self, client: &str, conf: &Path, keyring: Option<&Path>, copy: bool) -> Result<()> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|e| super::super::files::unreadable(path, &e));
        let text = read(conf)?;
        let home = self.dir.join(".ceph");
        for dir in [&self.dir, &home] {
            DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(failed("make", dir))?;
        }
        let own = self.dir.join("keyring");
        let keyring = match keyring {
            Some(path) if copy => {
                self.write(&own, &read(path)?, 0o600)?;
                Some(own)
            }
            Some(path) => {
                read(path)?;
                let _ = fs::remove_file(&own);
                Some(path.to_owned())
            }
            None => None,
        };
        let text = match &keyring {
            Some(path) => super::super::files::conf_text(&text, client, path),
            None => format!("{}\n\n[client.{client}]\n", text.trim_end()),
        };
        // All that it says goes to standard error, which is its log.
        let quiet =
            "log_file =\nadmin_socket =\nlog_to_stderr = true\nerr_to_stderr = true\nlog_to_file = false\n";
        self.write(&self.conf(), &format!("{text}{quiet}"), 0o640)
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> Result<()> {
        let part = self.dir.join(".part");
        let written = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        written().map_err(failed("write", path))
    }

    fn open_lock(&self) -> Result<File> {
        let path = self.lock();
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(failed("open", &path))
    }

    /// Looks for the daemon.
    ///
    /// # Errors
    /// `Config` when its files cannot be opened.
    pub fn look(&self) -> Result<Found> {
        if !self.lock().exists() {
            return Ok(Found::Nothing);
        }
        let mut lock = self.open_lock()?;
        match lock.try_lock() {
            Ok(()) => Ok(Found::Nothing),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = lock.read_to_string(&mut text);
                let generation = read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0);
                Ok(Found::Running { pid: self.process(), generation })
            }
            Err(TryLockError::Error(e)) => Err(failed("lock", &self.lock())(e)),
        }
    }

    /// The daemon's process: that of the pid file, if its command line is the daemon's, else the one whose is.
    fn process(&self) -> Option<i32> {
        let noted = fs::read_to_string(self.pid()).ok().and_then(|text| text.trim().parse::<i32>().ok());
        if let Some(pid) = noted.filter(|pid| self.is_ours(*pid)) {
            return Some(pid);
        }
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| self.is_ours(*pid))
    }

    /// Whether a process runs with this slot's conf. One that waits to be reaped has no command line any more.
    fn is_ours(&self, pid: i32) -> bool {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let conf = self.conf();
        let (option, value): (&[u8], &[u8]) = (b"-c", conf.as_os_str().as_encoded_bytes());
        words.windows(2).any(|pair| pair == [option, value])
    }

    /// Starts the daemon; `None` when one runs already, by whomever it was started.
    ///
    /// # Errors
    /// `Config` when files cannot be opened or the program cannot be run.
    pub fn start(&self, plan: &Plan) -> Result<Option<Child>> {
        let mut lock = self.open_lock()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &self.lock())(e)),
        }
        // From here on whoever looks finds a daemon of this generation; a crash before the start lets the lock go.
        let _ = fs::remove_file(self.pid());
        let noted = lock
            .set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| lock.write_all(plan.generation.to_string().as_bytes()));
        noted.map_err(failed("write", &self.lock()))?;
        let log = self.open_log()?;
        let again = log.try_clone().map_err(failed("open", &self.log()))?;
        let child = Command::new(&plan.program)
            .args(self.arguments(&plan.client))
            .env("HOME", &self.dir)
            .env_remove("CEPH_CONF")
            .env_remove("CEPH_ARGS")
            .env_remove("CEPH_KEYRING")
            .env_remove("NOTIFY_SOCKET")
            .current_dir(&self.dir)
            // A Ctrl-C for the service is none for the daemon.
            .process_group(0)
            .stdin(Stdio::from(lock))
            .stdout(Stdio::from(again))
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(|e| {
                let program = plan.program.display();
                let text = format!(
                    "Cannot run {program}; install rbd-mirror on this host, or set scoria_mirror_daemon_path"
                );
                Error::new(Code::Config, text).caused_by(e)
            })?;
        crate::volume::crash::point("daemon:started");
        self.write(&self.pid(), &format!("{}\n", child.id()), 0o644)?;
        Ok(Some(child))
    }

    fn open_log(&self) -> Result<File> {
        let log = self.log();
        if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_MOST) {
            let former = self.dir.join("rbd-mirror.log.1");
            fs::rename(&log, &former).map_err(failed("rename", &log))?;
        }
        OpenOptions::new().append(true).create(true).mode(0o640).open(&log).map_err(failed("open", &log))
    }

    /// Sends the daemon a signal: to end, or `hard`, which it cannot refuse. False when it is not to be found.
    pub fn end(&self, hard: bool) -> bool {
        let Some(pid) = self.process().and_then(Pid::from_raw) else { return false };
        let signal = if hard { Signal::KILL } else { Signal::TERM };
        rustix::process::kill_process(pid, signal).is_ok()
    }

    /// The last lines of the daemon's log.
    pub fn tail(&self, lines: usize) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// Removes conf, key and log of a daemon that does not run; false when one does.
    ///
    /// # Errors
    /// `Config` when the directory cannot be removed.
    pub fn clear(&self) -> Result<bool> {
        if !self.dir.exists() {
            return Ok(true);
        }
        if self.look()? != Found::Nothing {
            return Ok(false);
        }
        fs::remove_dir_all(&self.dir).map_err(failed("remove", &self.dir))?;
        Ok(true)
    }
}

/// Removes what is left of daemons that nobody has to do with any more: of clusters that are not `known`.
pub(super) fn sweep(dir: &Path, known: &BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if Uuid::parse_str(&name).is_ok() && !known.contains(&name) {
            // One that runs is left alone: it is nobody's, but it works. It is tried again with the next look.
            let _ = Slot::new(dir, &name).clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    const FSID: &str = "51e00000-0000-4000-8000-000000001001";

    struct Scene {
        dir: tempfile::TempDir,
        slot: Slot,
    }

    impl Scene {
        /// A program that behaves like a daemon: it stays, and says what it was started with.
        fn new(script: &str) -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let program = dir.path().join("rbd-mirror");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            fs::write(dir.path().join("ceph.conf"), "[global]\nmon_host = 10.0.0.1\nkeyring = /nowhere\n")
                .unwrap();
            fs::write(dir.path().join("key"), "[client.rbd-mirror.a]\n\tkey = AQ==\n").unwrap();
            let slot = Slot::new(&dir.path().join("daemons"), FSID);
            slot.equip("rbd-mirror.a", &dir.path().join("ceph.conf"), Some(&dir.path().join("key")), true)
                .unwrap();
            Scene { dir, slot }
        }

        fn plan(&self, generation: i64) -> Plan {
            Plan { program: self.dir.path().join("rbd-mirror"), client: "rbd-mirror.a".into(), generation }
        }
    }

    fn until(what: &str, mut is: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is() {
            assert!(Instant::now() < end, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    const STAYS: &str = "echo \"$HOME $*\"; while :; do sleep 0.1; done";

    #[test]
    fn one_daemon_runs_and_whoever_comes_next_finds_it() {
        let scene = Scene::new(STAYS);
        assert_eq!(scene.slot.look().unwrap(), Found::Nothing);
        let mut child = scene.slot.start(&scene.plan(7)).unwrap().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let same = Slot::new(&scene.dir.path().join("daemons"), FSID);
        assert_eq!(same.look().unwrap(), Found::Running { pid: Some(pid), generation: 7 });
        assert!(same.start(&scene.plan(8)).unwrap().is_none(), "never a second one");
        assert_eq!(same.look().unwrap(), Found::Running { pid: Some(pid), generation: 7 });
        assert!(!same.clear().unwrap());
        // As after a kill of the service between the start and the note of it; and with a note of somebody else.
        fs::remove_file(same.pid()).unwrap();
        until("it is found by its command line", || same.process() == Some(pid));
        fs::write(same.pid(), "1\n").unwrap();
        assert_eq!(same.process(), Some(pid));
        until("it has spoken", || !same.tail(1).is_empty());
        let said = same.tail(5);
        let home = scene.dir.path().join("daemons").join(FSID);
        let conf = home.join(".ceph").join(format!("scoria-{FSID}.conf"));
        let line = format!(
            "{} -f -c {} --cluster scoria-{FSID} -n client.rbd-mirror.a",
            home.display(),
            conf.display()
        );
        assert_eq!(said, line);
        assert!(same.end(false));
        child.wait().unwrap();
        until("it has ended", || same.look().unwrap() == Found::Nothing);
        assert!(!same.end(true), "there is nobody to be ended");
        assert!(same.clear().unwrap() && !home.exists());
    }

    #[test]
    fn one_that_does_not_listen_is_ended_all_the_same() {
        let scene = Scene::new("trap '' TERM; echo ready; while :; do sleep 0.1; done");
        let mut child = scene.slot.start(&scene.plan(1)).unwrap().unwrap();
        until("it ignores signals", || scene.slot.tail(1) == "ready");
        assert!(scene.slot.end(false));
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none());
        assert!(scene.slot.end(true));
        child.wait().unwrap();
        // What it had started holds the file for a moment longer.
        until("it has ended", || scene.slot.look().unwrap() == Found::Nothing);
    }

    #[test]
    fn it_has_a_conf_and_a_key_of_its_own() {
        let scene = Scene::new(STAYS);
        let conf = fs::read_to_string(scene.slot.conf()).unwrap();
        let key = scene.dir.path().join("daemons").join(FSID).join("keyring");
        assert!(conf.contains("mon_host = 10.0.0.1") && !conf.contains("/nowhere"), "{conf}");
        assert!(
            conf.contains(&format!("[client.rbd-mirror.a]\nkeyring = {}\nlog_file =\n", key.display())),
            "{conf}"
        );
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        // One that stays where it is takes the copy's place.
        let given = scene.dir.path().join("key");
        scene.slot.equip("rbd-mirror.a", &scene.dir.path().join("ceph.conf"), Some(&given), false).unwrap();
        assert!(!key.exists());
        assert!(
            fs::read_to_string(scene.slot.conf())
                .unwrap()
                .contains(&format!("keyring = {}\n", given.display()))
        );
        let missing = scene.slot.equip("x", Path::new("/no/such.conf"), None, false).unwrap_err();
        assert!(missing.user().contains("/no/such.conf"), "{missing}");
        let mut plan = scene.plan(1);
        plan.program = "/no/such/program".into();
        let refused = scene.slot.start(&plan).unwrap_err();
        assert!(refused.user().contains("scoria_mirror_daemon_path"), "{refused}");
        assert_eq!(scene.slot.look().unwrap(), Found::Nothing, "the lock is let go");
    }

    #[test]
    fn a_long_log_is_set_aside() {
        let scene = Scene::new("echo once");
        File::create(scene.slot.log()).unwrap().set_len(LOG_MOST + 1).unwrap();
        scene.slot.start(&scene.plan(1)).unwrap().unwrap().wait().unwrap();
        assert_eq!(scene.slot.tail(3), "once");
        assert!(scene.dir.path().join("daemons").join(FSID).join("rbd-mirror.log.1").exists());
    }
}
