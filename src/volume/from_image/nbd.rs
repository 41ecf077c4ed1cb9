//! Reads the disk inside an image file, through qemu-nbd and a socket.
//!
//! qemu knows the formats, and its network block device is the way to their content that needs neither a second
//! file nor the privileges of a block device. Of the protocol this is what a reader needs: a fixed-newstyle
//! handshake, structured replies (they leave holes out), one read at a time
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const CMD_READ: u16 = 0;
const CMD_DISC: u16 = 2;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_DONE: u16 = 1;

/// How long qemu-nbd may take to begin.
const START: Duration = Duration::from_secs(30);
/// How long one read may take.
const READ: Duration = Duration::from_secs(300);

/// A disk that is being read.
pub(super) struct Disk {
    stream: UnixStream,
    size: u64,
    cookie: u64,
    /// Ends with the value.
    server: Child,
}

/// A program that cannot be started.
pub(super) fn missing(program: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{program} cannot be started: {error}"))
}

impl Disk {
    /// Starts qemu-nbd for one reader.
    pub(super) async fn open(file: &Path, format: &str, socket: &Path) -> Result<Disk> {
        // What a killed service has left.
        let _ = tokio::fs::remove_file(socket).await;
        // A service that is killed takes it along.
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-nbd", "--read-only"])
            .arg(format!("--format={format}"))
            .arg("--socket")
            .arg(socket)
            .arg(file)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| missing("setpriv", &e))?;
        Disk::connect(server, socket).await
    }

    async fn connect(mut server: Child, socket: &Path) -> Result<Disk> {
        let end = Instant::now() + START;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > end => return Err(e),
                Err(_) => {}
            }
            if let Some(status) = server.try_wait()? {
                return Err(Error::other(format!("qemu-nbd has ended with {status}")));
            }
            sleep(Duration::from_millis(10)).await;
        };
        let mut disk = Disk { stream, size: 0, cookie: 0, server };
        match timeout(START, disk.shake_hands()).await {
            Ok(done) => done.map(|()| disk),
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    async fn shake_hands(&mut self) -> Result<()> {
        let greeting = (self.stream.read_u64().await?, self.stream.read_u64().await?);
        let flags = self.stream.read_u16().await?;
        if greeting != (NBDMAGIC, IHAVEOPT) || flags & 1 == 0 {
            return Err(garbage("another greeting than that of fixed newstyle"));
        }
        // Fixed newstyle, no padding.
        self.stream.write_u32(u32::from(flags & 3)).await?;
        self.option(OPT_STRUCTURED_REPLY, &[]).await?;
        // The export without a name, and no questions.
        self.option(OPT_GO, &[0; 6]).await
    }

    async fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        self.stream.write_u64(IHAVEOPT).await?;
        self.stream.write_u32(option).await?;
        self.stream.write_u32(u32::try_from(data.len()).unwrap_or(u32::MAX)).await?;
        self.stream.write_all(data).await?;
        loop {
            let magic = self.stream.read_u64().await?;
            let _option = self.stream.read_u32().await?;
            let kind = self.stream.read_u32().await?;
            let length = self.stream.read_u32().await?;
            if magic != OPTION_REPLY || length > 64 << 10 {
                return Err(garbage("no reply to an option"));
            }
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data).await?;
            match kind {
                REP_ACK => return Ok(()),
                REP_INFO => {
                    if data.get(..2) == Some(&INFO_EXPORT.to_be_bytes())
                        && let Some(size) = data.get(2..10).and_then(|b| <[u8; 8]>::try_from(b).ok())
                    {
                        self.size = u64::from_be_bytes(size);
                    }
                }
                other => {
                    let said = String::from_utf8_lossy(&data).into_owned();
                    return Err(Error::other(format!(
                        "qemu-nbd refuses option {option} ({other:#x}): {said}"
                    )));
                }
            }
        }
    }

    /// What is not a hole of the `length` bytes from `offset` on.
    pub(super) async fn read(&mut self, offset: u64, length: u64) -> Result<Vec<(u64, Bytes)>> {
        match timeout(READ, self.ask(offset, length)).await {
            Ok(data) => data,
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }

    async fn request(&mut self, command: u16, offset: u64, length: u32) -> Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28);
        request.extend(REQUEST.to_be_bytes());
        request.extend(0u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.stream.write_all(&request).await
    }

    async fn ask(&mut self, offset: u64, length: u64) -> Result<Vec<(u64, Bytes)>> {
        let wanted = u32::try_from(length).map_err(|_| garbage("a read of more than 4 GiB"))?;
        self.request(CMD_READ, offset, wanted).await?;
        let mut found = Vec::new();
        loop {
            match self.stream.read_u32().await? {
                STRUCTURED_REPLY => {}
                SIMPLE_REPLY => {
                    let error = self.stream.read_u32().await?;
                    return Err(Error::from_raw_os_error(error.min(4096) as i32));
                }
                _ => return Err(garbage("no reply")),
            }
            let flags = self.stream.read_u16().await?;
            let kind = self.stream.read_u16().await?;
            let cookie = self.stream.read_u64().await?;
            let size = self.stream.read_u32().await?;
            if cookie != self.cookie || u64::from(size) > length + 64 {
                return Err(garbage("a reply to something else"));
            }
            match kind {
                CHUNK_NONE => {}
                CHUNK_DATA if size >= 8 => {
                    let at = self.stream.read_u64().await?;
                    let mut data = vec![0; size as usize - 8];
                    self.stream.read_exact(&mut data).await?;
                    if at < offset || at + data.len() as u64 > offset + length {
                        return Err(garbage("data from elsewhere"));
                    }
                    found.push((at, Bytes::from(data)));
                }
                CHUNK_HOLE if size == 12 => {
                    self.stream.read_u64().await?;
                    self.stream.read_u32().await?;
                }
                _ => {
                    let mut data = vec![0; size as usize];
                    self.stream.read_exact(&mut data).await?;
                    let errno =
                        data.get(..4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map_or(0, u32::from_be_bytes);
                    return Err(Error::other(format!("qemu-nbd cannot read at {offset}: error {errno}")));
                }
            }
            if flags & CHUNK_DONE != 0 {
                return Ok(found);
            }
        }
    }

    /// Ends the server in order.
    pub(super) async fn close(mut self) {
        // It ends when nobody is connected any more.
        if self.request(CMD_DISC, 0, 0).await.is_ok() {
            drop(self.stream);
            let _ = timeout(START, self.server.wait()).await;
        }
    }
}

fn garbage(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("qemu-nbd speaks another protocol: {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn run(program: &str, arguments: &[&str]) {
        assert!(Command::new(program).args(arguments).status().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_disk_is_read_without_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, qcow2) = (dir.path().join("raw"), dir.path().join("qcow2"));
        let mut data = vec![0u8; 8 << 20];
        data[..5].copy_from_slice(b"begin");
        data[(5 << 20) + 7] = 9;
        std::fs::write(&raw, &data).unwrap();
        let (r, q) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", r, q]).await;
        let mut disk = Disk::open(&qcow2, "qcow2", &dir.path().join("s")).await.unwrap();
        assert_eq!(disk.size(), data.len() as u64);
        let mut read = vec![0u8; data.len()];
        let mut bytes = 0;
        for at in (0..disk.size()).step_by(2 << 20) {
            for (at, part) in disk.read(at, 2 << 20).await.unwrap() {
                bytes += part.len();
                read[at as usize..at as usize + part.len()].copy_from_slice(&part);
            }
        }
        assert!(read == data);
        assert!(bytes < data.len() / 2, "{bytes} bytes for two clusters");
        assert!(disk.read(disk.size(), 1).await.is_err());
        disk.close().await;
    }

    #[tokio::test]
    async fn a_file_of_another_format_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, vec![7; 1 << 20]).unwrap();
        assert!(Disk::open(&file, "qcow2", &dir.path().join("s")).await.is_err());
    }
}
