//! The data of an image on its way between the service and Ceph.
//!
//! A volume that is made of an image of 100 GiB, and a volume that becomes one, pass through the service in parts
//! of [`PART`] bytes, of which few are under way at a time: whoever is slower sets the pace, and memory stays
//! bounded. The image is open for as long as the session lasts; a session that is dropped lets go of it.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::protocol::{Class, Command, ImageExport, ImageImport};
use super::{RbdError, RbdErrorKind, Reply, Site};

/// Most bytes of one part. Half an object of the usual size: ten sessions at once, each with a few parts in both
/// processes, must not cost hundreds of megabytes.
pub const PART: usize = 2 << 20;
/// Parts of one session that are under way between the two processes.
pub(super) const WINDOW: usize = 2;

/// A run of bytes of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where they are, in the image.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

/// What goes into an image.
#[derive(Debug)]
pub enum Feed {
    /// To be written.
    Part(Part),
    /// That was all; without it, the session was given up.
    End,
}

/// One end of a session's data, for whoever carries it out.
#[derive(Debug)]
pub enum Flow {
    /// Into the image.
    In(mpsc::Receiver<Feed>),
    /// Out of it. Nobody listening means that the session was given up.
    Out(mpsc::Sender<Part>),
}

/// The error of a session that its user has given up.
pub(super) fn given_up(op: &str, site: &str) -> RbdError {
    RbdError {
        kind: RbdErrorKind::Other,
        op: op.to_owned(),
        site: site.to_owned(),
        errno: libc::ECANCELED,
        message: "the session was given up".to_owned(),
    }
}

/// A session that writes an image.
pub struct Import {
    parts: mpsc::Sender<Feed>,
    session: Session,
}

/// A session that reads an image.
pub struct Export {
    parts: mpsc::Receiver<Part>,
    session: Session,
}

struct Session {
    task: Option<JoinHandle<Result<Reply, RbdError>>>,
    op: &'static str,
    site: String,
}

impl Site {
    /// Begins to write an image; what is wrong with it is told by the first calls of the session.
    pub fn import(&self, command: ImageImport) -> Import {
        let (parts, feed) = mpsc::channel(1);
        Import { parts, session: self.session(command, Flow::In(feed)) }
    }

    /// Begins to read an image.
    pub fn export(&self, command: ImageExport) -> Export {
        let (sender, parts) = mpsc::channel(1);
        Export { parts, session: self.session(command, Flow::Out(sender)) }
    }

    fn session<C: Command>(&self, command: C, flow: Flow) -> Session {
        let site = self.clone();
        let request = command.into_request();
        let run = async move {
            site.admit(C::NAME, Class::Short.deadline()).await?;
            site.ceph.stream(&site.connection, request, C::CLASS.deadline(), flow).await
        };
        let task = tokio::spawn(run.in_current_span());
        Session { task: Some(task), op: C::NAME, site: self.name().to_owned() }
    }
}

impl Session {
    async fn end(&mut self) -> Result<Reply, RbdError> {
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|_| Err(given_up(self.op, &self.site))),
            None => Err(given_up(self.op, &self.site)),
        }
    }
}

impl Import {
    /// Sends data to be written at `offset`, in parts, when there is room for them. An error of an earlier part
    /// may come with a later one, or with [`Import::finish`].
    ///
    /// # Errors
    /// What ended the session.
    pub async fn write(&mut self, offset: u64, data: Bytes) -> Result<(), RbdError> {
        let (mut offset, mut data) = (offset, data);
        while !data.is_empty() {
            let part = data.split_to(PART.min(data.len()));
            let next = offset + part.len() as u64;
            if self.parts.send(Feed::Part(Part { offset, data: part })).await.is_err() {
                return Err(self.failure().await);
            }
            offset = next;
        }
        Ok(())
    }

    /// Waits until all is on disk and the image closed; answers the bytes written.
    ///
    /// # Errors
    /// What ended the session.
    pub async fn finish(mut self) -> Result<u64, RbdError> {
        // Whoever does not listen any more has said why.
        let _ = self.parts.send(Feed::End).await;
        ImageImport::from_reply(self.session.end().await?)
    }

    /// Gives up, and waits until the image is closed.
    pub async fn abandon(self) {
        let Import { parts, mut session } = self;
        drop(parts);
        // It says that it was given up, or what else went wrong; nobody wants to know.
        let _ = session.end().await;
    }

    async fn failure(&mut self) -> RbdError {
        match self.session.end().await {
            Err(error) => error,
            Ok(_) => given_up(self.session.op, &self.session.site),
        }
    }
}

impl Export {
    /// The next part that is not zero, in order; `None` when there are no more.
    ///
    /// # Errors
    /// What ended the session: what was read until then is not all.
    pub async fn next(&mut self) -> Result<Option<Part>, RbdError> {
        if let Some(part) = self.parts.recv().await {
            return Ok(Some(part));
        }
        if self.session.task.is_none() {
            return Ok(None);
        }
        ImageExport::from_reply(self.session.end().await?).map(|_| None)
    }
}
