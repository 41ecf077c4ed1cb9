//! rbd-mirror as an instance of the unit that Ceph's packages bring: `ceph-rbd-mirror@CLIENT`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::Action;
use crate::error::{Code, Error, Result};

/// systemctl waits for the daemon to start or to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a unit is, as systemd tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UnitState {
    /// `ceph-rbd-mirror@….service`.
    pub unit: String,
    /// `active`, `inactive`, `failed`, `activating` …
    pub active: String,
    /// `running`, `dead`, `auto-restart` …
    pub sub: String,
    /// Main process; 0 for none.
    pub pid: u32,
}

/// The unit of a client. Its name needs no escape: a client's has letters, digits, `.`, `_` and `-`.
pub(super) fn name(client: &str) -> String {
    format!("ceph-rbd-mirror@{client}.service")
}

/// The arguments of systemctl for an action. A start outlives the host's next boot, and so does a stop.
pub(super) fn arguments(action: Action, unit: &str) -> Vec<String> {
    let words: &[&str] = match action {
        Action::Start => &["enable", "--now", unit],
        Action::Stop => &["disable", "--now", unit],
        Action::Restart => &["restart", unit],
        Action::Status => &["show", "--property=LoadState,ActiveState,SubState,MainPID", unit],
    };
    std::iter::once("--no-ask-password").chain(words.iter().copied()).map(str::to_owned).collect()
}

async fn systemctl(program: &Path, words: &[String]) -> Result<String> {
    let shown = || format!("{} {}", program.display(), words.join(" "));
    let cannot = |e: std::io::Error| {
        Error::new(
            Code::Config,
            format!(
                "Cannot run {}: this host's systemd is out of reach ({e}). Does the service run in a container? Then \
                 let the orchestrator run the daemon, or the service itself (--by child)",
                shown()
            ),
        )
        .caused_by(e)
    };
    let run = Command::new(program).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, run)
        .await
        .map_err(|_| {
            Error::new(
                Code::DeadlineExceeded,
                format!("{} has not ended in {} s", shown(), PATIENCE.as_secs()),
            )
        })?
        .map_err(cannot)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(Error::new(
        Code::Invalid,
        format!(
            "{}: {said}. The service's user needs the right to manage this unit (a polkit rule for \
             org.freedesktop.systemd1.manage-units), and the package rbd-mirror must be there",
            shown()
        ),
    ))
}

/// Starts, stops or restarts a unit.
pub(in crate::site) async fn act(program: &Path, action: Action, unit: &str) -> Result<()> {
    systemctl(program, &arguments(action, unit)).await.map(drop)
}

/// How a unit is. One that systemd does not know is `inactive`.
pub(super) async fn state(program: &Path, unit: &str) -> Result<UnitState> {
    let text = systemctl(program, &arguments(Action::Status, unit)).await?;
    Ok(read(&text, unit))
}

fn read(text: &str, unit: &str) -> UnitState {
    let mut state = UnitState { unit: unit.to_owned(), ..UnitState::default() };
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match name {
            "ActiveState" => value.clone_into(&mut state.active),
            "SubState" => value.clone_into(&mut state.sub),
            "MainPID" => state.pid = value.parse().unwrap_or(0),
            "LoadState" if value == "not-found" => "not installed".clone_into(&mut state.sub),
            _ => {}
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_command_for_the_exact_unit() {
        let unit = name("rbd-mirror.node1");
        let line = |action| arguments(action, &unit).join(" ");
        assert_eq!(
            line(Action::Start),
            "--no-ask-password enable --now ceph-rbd-mirror@rbd-mirror.node1.service"
        );
        assert_eq!(
            line(Action::Stop),
            "--no-ask-password disable --now ceph-rbd-mirror@rbd-mirror.node1.service"
        );
        assert_eq!(
            line(Action::Restart),
            "--no-ask-password restart ceph-rbd-mirror@rbd-mirror.node1.service"
        );
    }

    #[test]
    fn what_systemd_shows_is_read() {
        let state = read("LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=42\n", "u");
        assert_eq!((state.active.as_str(), state.sub.as_str(), state.pid), ("active", "running", 42));
        assert_eq!(read("LoadState=not-found\nActiveState=inactive\n", "u").active, "inactive");
    }

    #[tokio::test]
    async fn a_refusal_says_what_was_run_and_what_is_missing() {
        let refused = act(Path::new("/bin/false"), Action::Start, "u.service").await.unwrap_err();
        assert!(refused.user().contains("/bin/false --no-ask-password enable --now u.service"), "{refused}");
        assert!(refused.user().contains("polkit"), "{refused}");
        let missing = act(Path::new("/no/such/systemctl"), Action::Stop, "u").await.unwrap_err();
        assert_eq!(missing.code(), Code::Config);
        let said = "Cannot run /no/such/systemctl --no-ask-password disable --now u: this host's systemd is out of reach";
        assert!(missing.user().contains(said), "{missing}");
    }
}
