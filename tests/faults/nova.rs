//! A nova that a test plays: what it is told, and that it takes it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Keystone and nova in one. It remembers the events, and of an exchange of volumes the path and the new volume. Its
/// threads end with the test process.
pub(crate) struct Control {
    url: String,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Control {
    pub(crate) fn start() -> Control {
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

    /// The service's account in nova.
    pub(crate) fn account(&self) -> [(&'static str, &str); 5] {
        [
            ("OS_NOVA__AUTH_TYPE", "password"),
            ("OS_NOVA__AUTH_URL", self.url.as_str()),
            ("OS_NOVA__USERNAME", "cinder"),
            ("OS_NOVA__PASSWORD", "p"),
            ("OS_NOVA__PROJECT_NAME", "service"),
        ]
    }

    /// What it was told, in order.
    pub(crate) fn heard(&self) -> Vec<Value> {
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
        let told = match &body["events"] {
            Value::Null => json!([path, body["volumeAttachment"]["volumeId"]]),
            events => events.clone(),
        };
        heard.lock().unwrap().push(told);
        for event in body["events"].as_array_mut().into_iter().flatten() {
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
