//! A call through which data flows, on the service's side: parts go to the worker, or come from it, at the pace of
//! the slower one.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::process::{Begun, Outcome, Process, lost};
use crate::rbd::frame::{self, Word};
use crate::rbd::protocol::{Connection, Request};
use crate::rbd::stream::{Feed, Flow, Part, WINDOW};

/// What a worker tells about a stream.
pub(super) enum Told {
    Part(Part),
    Taken,
}

/// Bytes on their way to a worker.
pub(super) struct Outgoing {
    pub(super) head: Vec<u8>,
    pub(super) data: Bytes,
}

impl From<Vec<u8>> for Outgoing {
    fn from(head: Vec<u8>) -> Outgoing {
        Outgoing { head, data: Bytes::new() }
    }
}

impl Process {
    /// Sends a request and lets data flow until its answer. While the worker owes something (the beginning, a part,
    /// the end), it has until `by`, and then `bound` each time that it moves on.
    pub(super) async fn stream(
        &self,
        connection: &Connection,
        request: &Request,
        mut by: Instant,
        bound: Duration,
        flow: &mut Flow,
    ) -> Outcome {
        let (tell, mut told) = mpsc::unbounded_channel();
        let call = match self.begin(connection, request, by, Some(tell)) {
            Ok(call) => call,
            Err(outcome) => return *outcome,
        };
        let mut under_way = 0usize;
        // It owes the end; or an export owes parts as long as there is room for them.
        let mut owes_end = matches!(flow, Flow::Out(_));
        let mut given_up = false;
        loop {
            let owed = owes_end || under_way > 0;
            let mut room = None;
            if let Flow::In(feed) = flow
                && under_way < WINDOW
                && !owes_end
            {
                room = Some(feed);
            }
            tokio::select! {
                biased;
                event = told.recv() => match event {
                    Some(Told::Taken) => {
                        under_way = under_way.saturating_sub(1);
                        by = Instant::now() + bound;
                    }
                    Some(Told::Part(part)) => {
                        // As long as it is not taken the worker goes on within its window only, and it is not
                        // its fault when that takes long.
                        if !given_up && !deliver(flow, part).await {
                            given_up = true;
                            self.say(Word::CallOff { id: call.id }, Bytes::new());
                        }
                        self.say(Word::Taken { id: call.id }, Bytes::new());
                        by = Instant::now() + bound;
                    }
                    // The sender goes with the call, whose answer is there.
                    None => return self.answered(call, connection, request).await,
                },
                () = call.progress.notified() => by = Instant::now() + bound,
                next = receive(&mut room), if room.is_some() => {
                    by = if owed { by } else { Instant::now() + bound };
                    match next {
                        Some(Feed::Part(part)) => {
                            under_way += 1;
                            self.say(Word::Part { id: call.id, offset: part.offset }, part.data);
                        }
                        Some(Feed::End) => {
                            owes_end = true;
                            self.say(Word::End { id: call.id }, Bytes::new());
                        }
                        None => {
                            owes_end = true;
                            self.say(Word::CallOff { id: call.id }, Bytes::new());
                        }
                    }
                }
                () = sleep_until(by), if owed => return self.overdue(call, connection, request).await,
            }
        }
    }

    /// Tells the worker something about a call. A worker that does not read any more ends its calls otherwise.
    fn say(&self, word: Word, data: Bytes) {
        if let Ok(head) = frame::encode_before_data(&word, data.len()) {
            self.send(Outgoing { head, data });
        }
    }

    async fn answered(&self, call: Begun, connection: &Connection, request: &Request) -> Outcome {
        Outcome::Done(call.answered.await.unwrap_or_else(|_| Err(lost(connection, request))))
    }
}

async fn receive(feed: &mut Option<&mut mpsc::Receiver<Feed>>) -> Option<Feed> {
    match feed {
        Some(feed) => feed.recv().await,
        None => std::future::pending().await,
    }
}

/// False when nobody wants it.
async fn deliver(flow: &Flow, part: Part) -> bool {
    match flow {
        Flow::Out(parts) => parts.send(part).await.is_ok(),
        Flow::In(_) => true,
    }
}
