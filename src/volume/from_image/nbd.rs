//! Reads and writes the disk inside a file, through qemu-nbd and a socket.
//!
//! qemu knows the formats, and its network block device is the way to their content that needs neither a second
//! file nor the privileges of a block device. Of the protocol this is what is needed for that: a fixed-newstyle
//! handshake, structured replies (they leave holes out), one request at a time
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use std::ffi::{OsStr, OsString};
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
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
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_DONE: u16 = 1;

/// How long qemu-nbd may take to begin: a passphrase costs it seconds of CPU.
const START: Duration = Duration::from_secs(120);
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(300);

/// A disk that is being used.
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
        let format = OsString::from(format!("--format={format}"));
        let server =
            serve(socket, &["--read-only".as_ref(), &format, file.as_os_str()], Stdio::null()).await?;
        Disk::connect(server, socket).await
    }

    /// Starts qemu-nbd for one writer of what lies behind a LUKS header.
    pub(super) async fn open_luks(file: &Path, passphrase: &SecretString, socket: &Path) -> Result<Disk> {
        // In a list of options a comma is written twice.
        let name = file.to_str().ok_or(ErrorKind::InvalidFilename)?.replace(',', ",,");
        let options = OsString::from(format!(
            "driver=luks,key-secret=luks_sec,file.driver=file,file.locking=off,file.filename={name}"
        ));
        let secret = "secret,id=luks_sec,format=raw,file=/dev/stdin";
        let more: [&OsStr; 4] = ["--object".as_ref(), secret.as_ref(), "--image-opts".as_ref(), &options];
        let mut server = serve(socket, &more, Stdio::piped()).await?;
        if let Some(mut stdin) = server.stdin.take() {
            // One that ends without reading is found out below.
            let _ = stdin.write_all(passphrase.expose_secret().as_bytes()).await;
        }
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
        match timeout(REQUEST_LIMIT, self.ask(offset, length)).await {
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
                    let errno = errno_of(&data);
                    return Err(Error::other(format!("qemu-nbd cannot read at {offset}: error {errno}")));
                }
            }
            if flags & CHUNK_DONE != 0 {
                return Ok(found);
            }
        }
    }

    /// Writes `data` at `offset`; whoever reads the file then reads it.
    pub(super) async fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        match timeout(REQUEST_LIMIT, self.put(offset, data)).await {
            Ok(done) => done,
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }

    async fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| garbage("a write of more than 4 GiB"))?;
        self.request(CMD_WRITE, offset, length).await?;
        self.stream.write_all(data).await?;
        let errno = match self.stream.read_u32().await? {
            SIMPLE_REPLY => {
                let errno = self.stream.read_u32().await?;
                self.expect_cookie().await?;
                errno
            }
            STRUCTURED_REPLY => {
                let _flags = self.stream.read_u16().await?;
                let kind = self.stream.read_u16().await?;
                self.expect_cookie().await?;
                let size = self.stream.read_u32().await?;
                if size > 64 << 10 {
                    return Err(garbage("a long reply to a write"));
                }
                let mut data = vec![0; size as usize];
                self.stream.read_exact(&mut data).await?;
                if kind == CHUNK_NONE { 0 } else { errno_of(&data) }
            }
            _ => return Err(garbage("no reply")),
        };
        match errno {
            0 => Ok(()),
            errno => Err(Error::other(format!("qemu-nbd cannot write at {offset}: error {errno}"))),
        }
    }

    async fn expect_cookie(&mut self) -> Result<()> {
        match self.stream.read_u64().await? == self.cookie {
            true => Ok(()),
            false => Err(garbage("a reply to something else")),
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

/// Starts a server on a socket; with the service it is killed, too.
async fn serve(socket: &Path, more: &[&OsStr], stdin: Stdio) -> Result<Child> {
    // What a killed service has left.
    let _ = tokio::fs::remove_file(socket).await;
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-nbd", "--socket"])
        .arg(socket)
        .args(more)
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| missing("setpriv", &e))
}

/// The number at the beginning of an error's data; never 0.
fn errno_of(data: &[u8]) -> u32 {
    data.get(..4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map_or(u32::MAX, u32::from_be_bytes).max(1)
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
