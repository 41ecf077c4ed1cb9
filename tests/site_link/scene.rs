//! Two bare clusters, for one test.
//!
//! The lab of the other suites has pools and peers, which is what these tests make. So they have a lab beside it, in a
//! directory of its own (`$SCORIA_LAB-bare`), with three OSDs a cluster, and a service without backends. It stays up
//! from test to test; each begins by taking away whatever another has left in both clusters and in the tables.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::common::{Driver, env, signal, tool_at, tool_ok_at, wait_until};

/// What the tables of sites are emptied of.
const TABLES: &[&str] = &[
    "scoria_peer_links",
    "scoria_mirror_daemons",
    "scoria_site_hosts",
    "scoria_sites",
    "scoria_operation_steps",
    "scoria_site_uses",
    "scoria_operations",
    "backups",
    "volumes",
];
/// A pool that Ceph makes for itself.
const OF_CEPH: &str = "device_health_metrics";

/// The lab.
pub(crate) struct Bare {
    pub(crate) root: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) ceph: Driver,
    driver: Driver,
    /// Turns the backends of the lab's conf off.
    more: tempfile::NamedTempFile,
    log_from: u64,
    /// Held until the end: the next test waits for it.
    _lock: File,
}

#[track_caller]
fn tool_ok(root: &Path, args: &[&str]) -> String {
    tool_ok_at(root, args, &[])
}

impl Bare {
    /// Two bare clusters, and a service with no backend that knows neither.
    pub(crate) fn get() -> Bare {
        let mut name = env::root().into_os_string();
        name.push("-bare");
        let root = PathBuf::from(name);
        fs::create_dir_all(&root).unwrap();
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("tests.lock"));
        let lock = open.unwrap();
        lock.lock().unwrap();
        if root.join("lab.json").exists() {
            tool_ok(&root, &["resume", "site-a", "site-b", "scoria-volume"]);
            tool_ok(&root, &["stop", "scoria-volume", "scoria-backup", "rbd-mirror-a", "rbd-mirror-b"]);
        }
        let others = ["scoria-volume", "cinder-api", "cinder-scheduler"];
        tool_ok(&root, &[&["up", "--bare", "--osds", "3", "--without"], &others[..]].concat());
        let env: BTreeMap<String, String> = tool_ok(&root, &["env"])
            .lines()
            .filter_map(|l| l.strip_prefix("export ")?.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.trim_matches('\'').to_owned()))
            .collect();
        let more = tempfile::NamedTempFile::new().unwrap();
        fs::write(more.path(), "[DEFAULT]\nenabled_backends =\n").unwrap();
        let bare = Bare {
            ceph: Driver::new("/usr/bin/python3".into(), "ceph.py", env.clone()),
            driver: Driver::new(Path::new(&env["SCORIA_VENV"]).join("bin/python"), "driver.py", env.clone()),
            more,
            log_from: fs::metadata(root.join("log/scoria-volume.log")).map_or(0, |m| m.len()),
            _lock: lock,
            root,
            env,
        };
        bare.wipe();
        bare
    }

    /// What another test has left.
    fn wipe(&self) {
        for table in TABLES {
            // Before the first start of a service there are none of Scoria's.
            let query =
                "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s";
            if !self.rows(query, &[json!(table)]).is_empty() {
                self.sql(&format!("DELETE FROM {table}"), &[]);
            }
        }
        let _ = fs::remove_dir_all(self.root.join("scoria/sites"));
        for site in ["a", "b"] {
            wait_until(&format!("{site} answers"), 120, || {
                tool_at(&self.root, &["ceph", site, "osd", "pool", "ls"], &[]).status.success()
            });
            for pool in self.pools(site) {
                let sure = "--yes-i-really-really-mean-it";
                self.tool(&["ceph", site, "osd", "pool", "rm", &pool, &pool, sure]);
            }
            for key in self.keys_of(site) {
                self.tool(&["ceph", site, "config-key", "rm", &key]);
            }
            for user in self.users(site) {
                self.tool(&["ceph", site, "auth", "rm", &user]);
            }
            for profile in self.tool(&["ceph", site, "osd", "erasure-code-profile", "ls"]).lines() {
                if profile.starts_with("scoria-") {
                    self.tool(&["ceph", site, "osd", "erasure-code-profile", "rm", profile]);
                }
            }
        }
    }

    /// A command of tools/lab that has to succeed.
    #[track_caller]
    pub(crate) fn tool(&self, args: &[&str]) -> String {
        tool_ok(&self.root, args)
    }

    #[track_caller]
    pub(crate) fn rbd(&self, site: &str, words: &[&str]) -> String {
        self.tool(&[&["rbd", site], words].concat())
    }

    /// Starts the service without backends.
    pub(crate) fn start(&self, env: &[(&str, &str)]) {
        let more = self.more.path().display().to_string();
        let out = tool_at(&self.root, &["start", "scoria-volume", "--", "--config-file", &more], env);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// Starts it again, to die at a point.
    pub(crate) fn start_to_die_at(&self, point: &str) {
        self.tool(&["stop", "scoria-volume"]);
        self.start(&[("SCORIA_CRASH_AT", point)]);
    }

    /// Until it has.
    pub(crate) fn wait_dead(&self, point: &str) {
        let record = fs::read_to_string(self.root.join("run/scoria-volume.json")).unwrap();
        let pid = serde_json::from_str::<Value>(&record).unwrap()["pid"].as_i64().unwrap() as i32;
        wait_until(&format!("the service dies at {point}"), 120, || crate::common::is_gone(pid));
        signal("KILL", &[pid]);
    }

    /// `scoria-manage`, with what is typed.
    pub(crate) fn manage(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_scoria-manage"))
            .arg("--config-file")
            .arg(&self.env["SCORIA_CONF"])
            .args(["--format", "json"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("scoria-manage can be run")
    }

    /// The result of a command that has to succeed.
    #[track_caller]
    pub(crate) fn good(&self, words: &[&str]) -> Value {
        let out = self.manage(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{words:?}: {}{}", text(&out.stdout), text(&out.stderr));
        let document: Value = serde_json::from_slice(&out.stdout).unwrap();
        document.get("result").cloned().unwrap_or(document)
    }

    /// What a command says that has to be refused.
    #[track_caller]
    pub(crate) fn refused(&self, words: &[&str]) -> String {
        let out = self.manage(words);
        let said =
            [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(!out.status.success(), "{words:?}: {said}");
        said
    }

    /// Registers both clusters, `paris` and `rome`, with this client.
    pub(crate) fn register(&self, user: &str) {
        for (site, name) in [("A", "paris"), ("B", "rome")] {
            let conf = &self.env[&format!("SITE_{site}_CONF")];
            self.good(&["site", "register", name, "--user", user, "--conf", conf]);
        }
    }

    /// `--admin-keyring …` for the sites, by the keyrings that the clusters were made with.
    pub(crate) fn admins(&self, sites: &[&str]) -> Vec<String> {
        let of = |name: &&str| {
            let site = if *name == "paris" { "a" } else { "b" };
            ["--admin-keyring".to_owned(), format!("{name}={}", self.admin_keyring(site).display())]
        };
        sites.iter().flat_map(of).collect()
    }

    pub(crate) fn admin_keyring(&self, site: &str) -> PathBuf {
        self.root.join(format!("ceph/site-{site}/keys/client.admin.keyring"))
    }

    #[track_caller]
    pub(crate) fn sql(&self, query: &str, args: &[Value]) -> Value {
        self.driver
            .call("sql", json!({"query": query, "args": args}))
            .unwrap_or_else(|e| panic!("{query} {args:?}: {e}"))
    }

    #[track_caller]
    pub(crate) fn rows(&self, query: &str, args: &[Value]) -> Vec<Value> {
        self.sql(query, args).as_array().cloned().unwrap_or_default()
    }

    /// Pools that somebody has made.
    pub(crate) fn pools(&self, site: &str) -> Vec<String> {
        let all = self.tool(&["ceph", site, "osd", "pool", "ls"]);
        all.lines().filter(|pool| *pool != OF_CEPH && !pool.is_empty()).map(str::to_owned).collect()
    }

    pub(crate) fn images(&self, site: &str, pool: &str) -> Vec<String> {
        self.rbd(site, &["ls", pool]).lines().map(str::to_owned).collect()
    }

    /// Users by which another cluster would come.
    pub(crate) fn users(&self, site: &str) -> Vec<String> {
        let all = self.tool(&["ceph", site, "auth", "ls", "--format", "json"]);
        let all: Value = serde_json::from_str(&all).unwrap();
        let names =
            all["auth_dump"].as_array().unwrap().iter().map(|e| e["entity"].as_str().unwrap().to_owned());
        names.filter(|n| n == "client.rbd-mirror-peer" || n.starts_with("client.scoria-link-")).collect()
    }

    /// Keys of the config-key store that mirroring has.
    pub(crate) fn keys_of(&self, site: &str) -> Vec<String> {
        let all: Vec<String> =
            serde_json::from_str(&self.tool(&["ceph", site, "config-key", "ls", "--format", "json"]))
                .unwrap();
        all.into_iter().filter(|key| key.starts_with("rbd/mirror/")).collect()
    }

    /// How a pool is mirrored: its mode, and the number of its peers.
    pub(crate) fn mirroring(&self, site: &str, pool: &str) -> (String, usize) {
        let info: Value =
            serde_json::from_str(&self.rbd(site, &["mirror", "pool", "info", pool, "--format", "json"]))
                .unwrap();
        let peers = info["peers"].as_array().map_or(0, Vec::len);
        (info["mode"].as_str().unwrap().to_owned(), peers)
    }

    /// Neither cluster has anything by which it would find the other.
    #[track_caller]
    pub(crate) fn assert_strangers(&self) {
        for site in ["a", "b"] {
            for pool in self.pools(site) {
                assert_eq!(self.mirroring(site, &pool).1, 0, "peers of {pool} on {site}");
            }
            assert_eq!(self.users(site), Vec::<String>::new(), "{site}");
            let keys = self.keys_of(site);
            assert!(!keys.iter().any(|key| key.starts_with("rbd/mirror/peer")), "{site}: {keys:?}");
        }
        assert_eq!(self.good(&["site", "link", "list"]), json!([]));
    }

    /// No key of an administrator is anywhere but with the clusters themselves.
    #[track_caller]
    pub(crate) fn assert_no_admin_key(&self) {
        let log = fs::read(self.root.join("log/scoria-volume.log")).unwrap();
        let log = String::from_utf8_lossy(&log[self.log_from as usize..]).into_owned();
        let journal = json!([
            self.rows("SELECT request, reply FROM scoria_operations", &[]),
            self.rows("SELECT data FROM scoria_operation_steps", &[]),
        ]);
        for site in ["a", "b"] {
            let key = self.tool(&["ceph", site, "auth", "get-key", "client.admin"]).trim().to_owned();
            assert!(key.len() > 20, "{key}");
            assert!(!log.contains(&key) && !journal.to_string().contains(&key), "logged or journalled");
            for entry in fs::read_dir(self.root.join("scoria/sites")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                assert!(!text.contains(&key), "kept in {}", entry.path().display());
            }
        }
    }
}
