//! Backends made, changed and removed while the service runs, through real RabbitMQ, MariaDB, Ceph and cinder-api.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod life;
mod many;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Lab, wait_until};
use serde_json::{Value, json};

/// The lab's service as its orderer sees it: an unmodified oslo.messaging client.
struct Host<'a> {
    lab: &'a Lab,
}

impl Host<'_> {
    /// Asks a method of a namespace; `{result}` or `{class, text}`.
    fn ask(&self, namespace: &str, method: &str, args: Value) -> Value {
        let request = json!({"topic": "scoria", "server": "lab", "namespace": namespace, "version": "1.0",
            "method": method, "args": args});
        self.lab.driver.call("oslo", request).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// Orders, and waits for the end of it.
    fn try_order(&self, method: &str, args: Value) -> Value {
        let ordered = self.ask("backend", method, args);
        let Some(operation) = ordered["result"]["operation"].as_i64() else { return ordered };
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let told =
                self.ask("backend", "get_operation", json!({"operation": operation}))["result"].clone();
            if told["state"] == "closed" {
                return told;
            }
            assert!(Instant::now() < end, "{method} does not end: {told}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same when it has to succeed; its answer.
    #[track_caller]
    fn order(&self, method: &str, args: Value) -> Value {
        let told = self.try_order(method, args.clone());
        assert_eq!(told["outcome"], "succeeded", "{method} {args}: {told}");
        told["result"].clone()
    }

    /// A creation's arguments: a backend on the pool of the lab's second one.
    fn creation(&self, name: &str) -> Value {
        json!({"name": name, "volume_type": name, "options": {
            "rbd_pool": "volumes2", "rbd_user": "cinder", "rbd_ceph_conf": self.lab.env["SITE_A_CONF"]}})
    }

    /// Removes a backend and its volume type.
    #[track_caller]
    fn remove(&self, name: &str) {
        self.order("delete", json!({"name": name}));
        self.lab.forget_type(name);
    }

    /// Names of all queues but those of answers.
    fn queues(&self) -> Vec<String> {
        let listed = self.lab.tool(&["rabbitmqctl", "-q", "list_queues", "name"]);
        let mut names: Vec<String> = listed
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|name| !name.starts_with("reply_"))
            .collect();
        names.sort();
        names
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(&self.lab.env["SCORIA_CONF"]).with_file_name("backends.d").join(format!("{name}.conf"))
    }

    /// Asserts that nothing of a backend is left, but what is meant to be.
    #[track_caller]
    fn is_gone(&self, name: &str) {
        let host = format!("lab@{name}");
        let live = self.lab.rows("SELECT host FROM services WHERE host = %s AND deleted = 0", &[json!(host)]);
        assert!(live.is_empty(), "{live:?}");
        let rows = self.lab.rows("SELECT * FROM scoria_backends WHERE name = %s", &[json!(name)]);
        assert!(rows.is_empty(), "{rows:?}");
        let left: Vec<String> =
            self.queues().into_iter().filter(|q| q.contains(&format!("@{name}"))).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.file(name).exists());
    }

    /// A volume of the type `name`, waited for closely; how long it took since `began`.
    #[track_caller]
    fn volume(&self, name: &str, began: Instant) -> (String, Duration) {
        let id = self.lab.create(json!({"volume_type": name}));
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.lab.volume(&id)["status"].clone();
            if status == "available" {
                return (id, began.elapsed());
            }
            let messages = self.lab.messages(&id);
            assert!(status == "creating" && Instant::now() < end, "volume {id} is {status}: {messages:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes what a failed test has left of backends.
fn swept(lab: &Lab) -> Host<'_> {
    let host = Host { lab };
    let names: Vec<String> = host.ask("backend", "list", json!({}))["result"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|view| view["origin"] == "file")
        .map(|view| view["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    for name in names {
        host.try_order("delete", json!({"name": name, "force": true}));
        lab.forget_type(&name);
    }
    lab.manage(&["cluster", "label", "delete", "row-7"]);
    wait_until("no backend of an earlier test is left", 30, || {
        host.ask("backend", "list", json!({}))["result"].as_array().is_some_and(|all| all.len() == 2)
    });
    host
}
