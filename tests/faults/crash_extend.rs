//! An attached volume is extended, and the service dies between the row and nova: after a restart nova has
//! heard of it, and the volume is extended once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::common::{Lab, connector, wait_until};
use crate::crash::{WHY, wait_death, wait_quiet};

const SERVER: &str = "8935016b-fde4-4085-b496-7ed3396873bc";

/// Keystone and nova in one, which remembers the events. Its threads end with the test process.
struct Control {
    url: String,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Control {
    fn start() -> Control {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
        let control = Control { url: url.clone(), heard: heard.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &url, &heard);
            }
        });
        control
    }

    fn heard(&self) -> Vec<Value> {
        self.heard.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, url: &str, heard: &Mutex<Vec<Value>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if path.is_empty() {
            path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        } else if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let mut body: Value = serde_json::from_slice(&body)?;
    let (status, answer) = if path == "/v3/auth/tokens" {
        let endpoints = json!([{"interface": "public", "region": "R", "url": format!("{url}/v2.1")}]);
        (201, json!({"token": {"catalog": [{"type": "compute", "endpoints": endpoints}]}}))
    } else {
        heard.lock().unwrap().push(body["events"].clone());
        for event in body["events"].as_array_mut().unwrap() {
            event["code"] = json!(200);
        }
        (200, body)
    };
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 {status} x\r\nx-subject-token: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    );
    stream.get_mut().write_all(format!("{head}{answer}").as_bytes())
}

#[test]
fn an_extension_in_use_dies_before_and_after_nova_is_told() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    // How often nova hears of it: a death after the telling cannot be told from one before it.
    for (point, times) in
        [("extend_volume:image_resized", 1), ("extend_volume:recorded", 1), ("extend_volume:told", 2)]
    {
        let control = Control::start();
        let account = [
            ("OS_NOVA__AUTH_TYPE", "password"),
            ("OS_NOVA__AUTH_URL", control.url.as_str()),
            ("OS_NOVA__USERNAME", "cinder"),
            ("OS_NOVA__PASSWORD", "p"),
            ("OS_NOVA__PROJECT_NAME", "service"),
        ];
        let id = lab.volume_of_type("ceph");
        let made =
            lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({"mode": "rw"}));
        let attachment = made["id"].as_str().unwrap();
        lab.api("attachments.complete", json!([attachment]), json!({}));
        let mut dying = account.to_vec();
        dying.push(("SCORIA_CRASH_AT", point));
        lab.stop_service();
        lab.start_service_with(&[], &dying);
        lab.api("volumes.extend", json!([id, 2]), json!({}));
        wait_death(&lab, point);
        lab.start_service_with(&[], &account);
        wait_quiet(&lab, point);
        wait_until(&format!("{point}: nova has heard of it"), 60, || control.heard().len() == times);
        let event = json!([{"name": "volume-extended", "server_uuid": SERVER, "tag": id}]);
        assert_eq!(control.heard(), vec![event; times], "{point}");
        let row = lab.volume(&id);
        assert_eq!((&row["status"], &row["size"]), (&json!("in-use"), &json!(2)), "{point}");
        assert_eq!(lab.image("a", &id)["size"], 2u64 << 30, "{point}");
        assert_eq!(lab.quota()["gigabytes"], json!([2, 0]), "{point}");
        assert!(lab.messages(&id).is_empty(), "{point}");
        lab.api("attachments.delete", json!([attachment]), json!({}));
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
    lab.stop_service();
    lab.start_service();
}
