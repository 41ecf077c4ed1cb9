//! Extending a volume that servers have: nova hears of it, and whatever it says the volume is extended.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use scoria::journal::Operation;
use scoria::volume::extend::{self, Extend};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::seed::{self, PROJECT};
use crate::stage::Stage;

/// What nova does with events.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Nova {
    Takes,
    Fails,
    Refuses,
    Hangs,
    /// Keystone hangs, so that nobody comes to nova.
    IsNotReached,
    /// It takes the first request, and hangs in others.
    TakesOne,
    /// It takes the first request, and refuses others.
    RefusesMore,
}

/// Keystone and nova in one: remembers the events, and which volumes servers were to have.
pub struct Control {
    url: String,
    nova: Arc<Mutex<Nova>>,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Control {
    pub async fn start(nova: Nova) -> Control {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let control = Control { url: url.clone(), nova: Arc::new(Mutex::new(nova)), heard: Arc::default() };
        let (nova, heard) = (control.nova.clone(), control.heard.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (url, nova, heard) = (url.clone(), nova.clone(), heard.clone());
                tokio::spawn(async move { serve(stream, &url, &nova, &heard).await });
            }
        });
        control
    }

    /// Options of a backend that tells it.
    pub fn options(&self) -> String {
        let url = &self.url;
        format!(
            "[nova]\nauth_type=password\nauth_url={url}\nusername=cinder\npassword=p\nproject_name=service\n\
             user_domain_name=Default\nproject_domain_name=Default\ntimeout=30\n"
        )
    }

    pub fn set(&self, nova: Nova) {
        *self.nova.lock().unwrap() = nova;
    }

    pub fn heard(&self) -> Vec<Value> {
        self.heard.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, url: &str, nova: &Mutex<Nova>, heard: &Mutex<Vec<Value>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        if path.is_empty() {
            path = line.split(' ').nth(1)?.to_owned();
        } else if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut body: Value = serde_json::from_slice(&body).ok()?;
    let mut now = *nova.lock().unwrap();
    let (status, answer) = if path == "/v3/auth/tokens" {
        if now == Nova::IsNotReached {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return None;
        }
        let endpoints = json!([{"interface": "public", "region": "R", "url": format!("{url}/v2.1")}]);
        (201, json!({"token": {"catalog": [{"type": "compute", "endpoints": endpoints}]}}))
    } else {
        match body["events"].as_array_mut() {
            Some(events) => {
                heard.lock().unwrap().push(json!(events));
                for event in events {
                    event["code"] = json!(200);
                }
            }
            None => heard.lock().unwrap().push(json!([path, body["volumeAttachment"]["volumeId"]])),
        }
        let first = heard.lock().unwrap().len() == 1;
        now = match now {
            Nova::TakesOne | Nova::RefusesMore if first => Nova::Takes,
            Nova::TakesOne => Nova::Hangs,
            Nova::RefusesMore => Nova::Refuses,
            other => other,
        };
        match now {
            Nova::Takes => (200, body),
            Nova::Refuses => (409, json!({"conflictingRequest": {"message": "not in this state"}})),
            Nova::Fails => (500, json!({"computeFault": {"message": "no"}})),
            Nova::Hangs | Nova::IsNotReached | Nova::TakesOne | Nova::RefusesMore => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return None;
            }
        }
    };
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 {status} x\r\nx-subject-token: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    );
    stream.write_all(format!("{head}{answer}").as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

/// A volume with two attachments: one of a server, one of a host.
async fn attached(stage: &Stage) -> (String, String) {
    let volume = seed::volume(&stage.test, 1, "extending", ", attach_status='attached'").await;
    stage.image(&volume).await;
    let server = seed::id(7, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, instance_uuid, attached_host, attach_status, deleted)
             VALUES ('{}', '{volume}', '{server}', NULL, 'attached', 0),
                    ('{}', '{volume}', NULL, 'host', 'attached', 0),
                    ('{}', '{volume}', '{}', NULL, 'detached', 1);
             INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
             VALUES ('{PROJECT}', 'gigabytes', 2, 3, 1, 0);
             INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
             SELECT 'r', id, project_id, resource, 3, '2099-01-01', 0 FROM quota_usages",
            seed::id(6, 1),
            seed::id(6, 2),
            seed::id(6, 3),
            seed::id(7, 2),
        ))
        .await;
    (volume, server)
}

async fn run(stage: &Stage, operation: &Operation, volume: &str) {
    let request = Extend { volume_id: volume.to_owned(), new_size: 5, reservations: vec!["r".into()] };
    extend::extend(&stage.backend, &stage.context, operation, request).await.unwrap();
}

/// The service dies while it waits for nova.
async fn die_at_nova(stage: &Stage, operation: &Operation, volume: &str, control: &Control) {
    let heard = async {
        while control.heard().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = run(stage, operation, volume) => panic!("nova hangs, and so must this"),
        () = heard => {}
    }
}

async fn is_extended(stage: &Stage, volume: &str) {
    assert_eq!(stage.status("volumes", volume).await, "in-use");
    assert_eq!(stage.column("volumes", "size", volume).await, "5");
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 5 << 30);
    assert_eq!(stage.test.row("SELECT in_use, reserved FROM quota_usages").await, ["5", "0"]);
}

fn event(volume: &str, server: &str) -> Value {
    json!([{"name": "volume-extended", "server_uuid": server, "tag": volume}])
}

#[tokio::test]
async fn nova_hears_of_the_servers_that_have_the_volume() {
    let control = Control::start(Nova::Takes).await;
    let stage = Stage::with(&control.options()).await;
    let (volume, server) = attached(&stage).await;
    let operation = stage.operation("extend_volume", Some(("Volume", &volume))).await;
    run(&stage, &operation, &volume).await;
    is_extended(&stage, &volume).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(control.heard(), [event(&volume, &server)]);
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn a_nova_that_cannot_be_told_leaves_a_message_and_the_volume_extended() {
    let control = Control::start(Nova::Fails).await;
    let stage = Stage::with(&control.options()).await;
    let (volume, _) = attached(&stage).await;
    let operation = stage.operation("extend_volume", Some(("Volume", &volume))).await;
    run(&stage, &operation, &volume).await;
    is_extended(&stage, &volume).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.messages().await, [["VOLUME", volume.as_str(), "007", "009"]]);
}

#[tokio::test]
async fn without_a_nova_the_volume_is_extended_all_the_same() {
    let stage = Stage::new().await;
    let (volume, _) = attached(&stage).await;
    let operation = stage.operation("extend_volume", Some(("Volume", &volume))).await;
    run(&stage, &operation, &volume).await;
    is_extended(&stage, &volume).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn after_a_crash_nova_is_told_and_nothing_else_done_again() {
    let control = Control::start(Nova::Hangs).await;
    let mut stage = Stage::with(&control.options()).await;
    let (volume, server) = attached(&stage).await;
    let operation = stage.operation("extend_volume", Some(("Volume", &volume))).await;
    die_at_nova(&stage, &operation, &volume, &control).await;
    is_extended(&stage, &volume).await;
    assert_eq!(stage.ended(&operation).await[0], "open");
    control.set(Nova::Takes);
    // Somebody has begun something else with it meanwhile.
    stage.test.sql("UPDATE volumes SET status='detaching'").await;
    stage.restart();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    run(&stage, &operation, &volume).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.status("volumes", &volume).await, "detaching");
    assert_eq!(stage.test.row("SELECT in_use, reserved FROM quota_usages").await, ["5", "0"]);
    assert_eq!(control.heard(), [event(&volume, &server), event(&volume, &server)]);
}

#[tokio::test]
async fn a_defect_after_the_extension_does_not_undo_it() {
    let control = Control::start(Nova::Hangs).await;
    let mut stage = Stage::with(&control.options()).await;
    let (volume, _) = attached(&stage).await;
    let operation = stage.operation("extend_volume", Some(("Volume", &volume))).await;
    die_at_nova(&stage, &operation, &volume, &control).await;
    stage.restart();
    let operation = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
    let request = Extend { volume_id: volume.clone(), new_size: 5, reservations: vec!["r".into()] };
    let defect = scoria::error::Error::internal("a defect");
    extend::give_up(&stage.backend, &stage.context, &operation, request, defect).await.unwrap();
    is_extended(&stage, &volume).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(stage.messages().await, [["VOLUME", volume.as_str(), "007", "009"]]);
}
