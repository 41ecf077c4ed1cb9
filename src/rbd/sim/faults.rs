//! What can go wrong on demand: sites that are away, calls that fail, a service killed at any call.

use std::time::Duration;

use crate::rbd::error::RbdErrorKind;
use crate::rbd::protocol::{Class, Connection, Request};

use super::state::{Refusal, World};
use super::subject::Subject;

/// How a site is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Everything answers.
    Alive,
    /// All daemons are gone. A new connection is `Unreachable`, an established one times out.
    Dead,
    /// All daemons are stopped (SIGSTOP): every call, a connection too, takes its whole deadline.
    Hung,
    /// The monitors answer, the OSDs do not.
    MonOnly,
    /// The OSDs answer established connections, the monitors do not.
    OsdOnly,
    /// Everything answers, later by so much. A call whose deadline passes has its effect nevertheless.
    Slow(Duration),
    /// The key or the caps are wrong: connecting fails with `Permission`.
    Denied,
}

impl Health {
    /// Whether data flows, so that a rbd-mirror can replay from and to it.
    pub(super) fn data_flows(self) -> bool {
        matches!(self, Health::Alive | Health::Slow(_) | Health::Denied)
    }
}

/// On which side of its effect a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing was done.
    Before,
    /// It was begun: of what librbd makes or removes object by object, half is there (`tear.rs`). Other
    /// requests are one operation of an OSD, and done.
    Midway,
    /// It was done, but the caller does not learn it.
    After,
}

/// What happens to a call that a [`Fault`] meets.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Harm {
    Fail(When, RbdErrorKind),
    Stick,
    Delay(Duration),
}

/// A rule that harms some of the calls.
///
/// Made by [`Fault::on`] or [`Fault::any`], narrowed by [`site`](Fault::site) and
/// [`image`](Fault::image), timed by [`nth`](Fault::nth) and [`times`](Fault::times), ended by what it does.
#[derive(Debug, Clone)]
pub struct Fault {
    request: Option<String>,
    site: Option<String>,
    image: Option<String>,
    skip: usize,
    times: usize,
    harm: Harm,
}

impl Fault {
    /// Meets the command of this name, e.g. `MirrorPromote`.
    pub fn on(request: &str) -> Fault {
        Fault { request: Some(request.to_owned()), ..Fault::any() }
    }

    /// Meets every command.
    pub fn any() -> Fault {
        Fault { request: None, site: None, image: None, skip: 0, times: 1, harm: Harm::Stick }
    }

    /// Only on this site of the simulator.
    #[must_use]
    pub fn site(mut self, site: &str) -> Fault {
        self.site = Some(site.to_owned());
        self
    }

    /// Only on this image.
    #[must_use]
    pub fn image(mut self, image: &str) -> Fault {
        self.image = Some(image.to_owned());
        self
    }

    /// Begins with the `n`-th call that fits, 1 being the first.
    #[must_use]
    pub fn nth(mut self, n: usize) -> Fault {
        self.skip = n.saturating_sub(1);
        self
    }

    /// Meets so many calls, not just one.
    #[must_use]
    pub fn times(mut self, times: usize) -> Fault {
        self.times = times;
        self
    }

    /// Meets every call that fits, until [`clear_faults`](super::Sim::clear_faults).
    #[must_use]
    pub fn always(self) -> Fault {
        self.times(usize::MAX)
    }

    /// Fails with this kind.
    #[must_use]
    pub fn fails(mut self, when: When, kind: RbdErrorKind) -> Fault {
        self.harm = Harm::Fail(when, kind);
        self
    }

    /// Never answers: takes the whole deadline, does nothing.
    #[must_use]
    pub fn sticks(mut self) -> Fault {
        self.harm = Harm::Stick;
        self
    }

    /// Answers later.
    #[must_use]
    pub fn delays(mut self, by: Duration) -> Fault {
        self.harm = Harm::Delay(by);
        self
    }

    fn fits(&self, site: &str, request: &Request, subject: &Subject) -> bool {
        // A question about many images suffers with each of them.
        let among = |image: &str| match request {
            Request::MirrorInfoMany(r) => r.images.iter().any(|i| i == image),
            Request::MirrorStatusMany(r) => r.images.iter().any(|i| i == image),
            _ => subject.image.as_deref() == Some(image),
        };
        self.request.as_deref().is_none_or(|r| r == request.name())
            && self.site.as_deref().is_none_or(|s| s == site)
            && self.image.as_deref().is_none_or(among)
    }
}

/// Who dies at a crash point, and what its calls do from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fells {
    /// The worker of that call: later calls work.
    #[default]
    Worker,
    /// The service: every call fails until the restart.
    Service,
    /// The service, and its calls never return: what waits for them is as good as dead.
    ServiceForGood,
}

/// Where the service or its worker is to be killed.
#[derive(Debug, Clone, Default)]
pub(super) struct CrashPoint {
    /// Calls still to go, and on which side of the effect; `None`: not armed.
    pub(super) armed: Option<(usize, When)>,
    pub(super) fells: Fells,
    /// The crash has happened.
    pub(super) happened: bool,
    /// Until `restart`: nothing answers.
    pub(super) down: bool,
}

/// What is to become of a call, decided when it arrives.
#[derive(Debug, Clone)]
pub(super) struct Fate {
    /// Time until the outcome.
    pub(super) wait: Duration,
    /// Whether Ceph carries it out.
    pub(super) effect: bool,
    /// Whether it is cut short in the midst of that.
    pub(super) half: bool,
    /// Reported instead of what Ceph answered.
    pub(super) error: Option<Refusal>,
    /// This call is the crash point.
    pub(super) crash: bool,
    /// The caller is dead: it gets no answer at all.
    pub(super) silent: bool,
}

impl World {
    /// Decides what becomes of a call, by crash point, site and fault rules, in that order.
    pub(super) fn decide(
        &mut self,
        site: &str,
        client: u64,
        connection: &Connection,
        request: &Request,
        deadline: Duration,
    ) -> Fate {
        let lost = || Refusal::new(RbdErrorKind::WorkerLost, "the worker died under the call");
        let silent = self.crash.fells == Fells::ServiceForGood;
        if self.crash.down {
            return Fate {
                wait: Duration::ZERO,
                effect: false,
                half: false,
                error: Some(lost()),
                crash: false,
                silent,
            };
        }
        if let Some((left, when)) = self.crash.armed {
            if left <= 1 {
                self.crash.armed = None;
                return Fate {
                    wait: self.config.timing.call,
                    effect: when != When::Before,
                    half: when == When::Midway,
                    error: Some(lost()),
                    crash: true,
                    silent,
                };
            }
            self.crash.armed = Some((left - 1, when));
        }
        let mut fate = self.by_health(site, client, connection, request, deadline);
        if fate.error.is_some() {
            return fate;
        }
        let subject = Subject::of(request);
        for fault in &mut self.faults {
            if !fault.fits(site, request, &subject) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if fault.times == 0 {
                continue;
            }
            fault.times = fault.times.saturating_sub(usize::from(fault.times != usize::MAX));
            match &fault.harm {
                Harm::Delay(by) => fate.wait += *by,
                Harm::Stick => {
                    fate.wait = deadline;
                    fate.effect = false;
                    fate.error = Some(overdue(deadline));
                    break;
                }
                Harm::Fail(when, kind) => {
                    fate.effect = *when != When::Before;
                    fate.half = *when == When::Midway;
                    fate.error = Some(Refusal::new(*kind, "injected"));
                    if *kind == RbdErrorKind::TimedOut {
                        fate.wait = deadline;
                    }
                    break;
                }
            }
        }
        self.faults.retain(|f| f.times > 0);
        if fate.error.is_none() && fate.wait > deadline {
            fate.wait = deadline;
            fate.error = Some(overdue(deadline));
        }
        fate
    }

    fn by_health(
        &mut self,
        site: &str,
        client: u64,
        connection: &Connection,
        request: &Request,
        deadline: Duration,
    ) -> Fate {
        let base = match request {
            Request::MirrorEnable(_)
            | Request::MirrorDisable(_)
            | Request::MirrorPromote(_)
            | Request::MirrorDemote(_)
            | Request::MirrorSnapshot(_)
            | Request::ImageRemove(_)
            | Request::TrashRemove(_) => self.config.timing.mirror_call,
            _ => self.config.timing.call,
        };
        let good = Fate { wait: base, effect: true, half: false, error: None, crash: false, silent: false };
        let address = self.address_of(client);
        let now = self.epoch();
        let Some(state) = self.sites.get_mut(site) else { return good };
        if state.blocklisted(&address, now) {
            let error = Refusal::new(RbdErrorKind::Blocklisted, "this client has been blocklisted");
            return Fate { effect: false, error: Some(error), ..good };
        }
        let patience = self.config.timing.silence;
        let connected = state.connected.contains(&client);
        let connect =
            connection.connect_timeout.map_or(Duration::from_secs(5), |s| Duration::from_secs(s.into()));
        let away = |kind: RbdErrorKind, wait: Duration, text: &str| Fate {
            wait: wait.min(deadline).min(patience),
            effect: false,
            half: false,
            error: Some(Refusal::new(kind, text)),
            crash: false,
            silent: false,
        };
        let silent = away(RbdErrorKind::TimedOut, deadline, "no answer by the deadline");
        let no_mon = away(RbdErrorKind::Unreachable, connect, "no monitor answered");
        let (fate, connects) = match state.health {
            Health::Alive => (good, true),
            Health::Slow(by) => (Fate { wait: good.wait + by, ..good }, true),
            Health::Denied if connected => (good, true),
            Health::Denied => {
                (away(RbdErrorKind::Permission, good.wait, "the monitors refuse the key"), false)
            }
            Health::Dead | Health::Hung if connected => (silent, false),
            Health::Dead | Health::Hung => (no_mon, false),
            Health::MonOnly if asks_monitor(request) => (good, true),
            Health::MonOnly => (silent, true),
            Health::OsdOnly if !connected => (no_mon, false),
            Health::OsdOnly if asks_monitor(request) => (silent, false),
            Health::OsdOnly => (good, false),
        };
        if connects {
            state.connected.insert(client);
        }
        fate
    }
}

fn overdue(deadline: Duration) -> Refusal {
    Refusal::new(RbdErrorKind::TimedOut, format!("no answer within {} ms", deadline.as_millis()))
}

/// Commands that the monitors answer, or the client from what the monitors told it.
fn asks_monitor(request: &Request) -> bool {
    match request {
        Request::ProbeMon(_)
        | Request::Fsid(_)
        | Request::MonDump(_)
        | Request::PoolStats(_)
        | Request::ClientAddress(_)
        | Request::BlocklistAdd(_)
        | Request::BlocklistRemove(_)
        | Request::BlocklistList(_)
        | Request::ScheduleList(_)
        | Request::ScheduleAdd(_)
        | Request::ScheduleRemove(_)
        | Request::BlocklistEntries(_)
        | Request::ClusterStatus(_)
        | Request::ClientRights(_)
        | Request::OsdPlaces(_)
        | Request::ErasureProfileSet(_)
        | Request::PoolEnsure(_)
        | Request::SiteName(_)
        | Request::SiteNameSet(_)
        | Request::ClientExists(_)
        | Request::ClientRemove(_)
        | Request::ClientPools(_)
        | Request::LevelSchedules(_)
        | Request::LevelScheduleAdd(_)
        | Request::LevelScheduleRemove(_)
        | Request::LevelDue(_)
        | Request::MirrorServices(_)
        | Request::OrchestratorApply(_)
        | Request::OrchestratorAct(_)
        | Request::ConfGet(_) => true,
        other => {
            debug_assert!(other.class() != Class::Probe || matches!(other, Request::ProbeOsd(_)));
            false
        }
    }
}
