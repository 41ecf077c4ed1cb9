//! What the worker process asks of the operating system and std has no safe call for.

use std::io;
use std::os::fd::AsRawFd;

/// Ends the process at once: no destructors, no `atexit` handlers, no waiting for a thread that hangs
/// in librbd.
///
/// Implements:
/// ```c
/// void _exit(int status);
/// ```
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: never returns; takes nothing from us.
    unsafe { libc::_exit(status) }
}

/// Makes descriptor 1 a copy of descriptor 2, so that whatever prints to stdout goes to the log.
///
/// Implements:
/// ```c
/// int dup2(int oldfd, int newfd);
/// ```
pub(crate) fn stdout_to_stderr() -> io::Result<()> {
    // SAFETY: both descriptors belong to the process from its start; std's stdout keeps using 1.
    let result = unsafe { libc::dup2(io::stderr().as_raw_fd(), io::stdout().as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bounds the number of heaps among which malloc spreads threads. By default there are up to eight for each
/// processor, and what one of them has freed the others cannot use: a worker with some dozens of threads
/// that are busy in turn would keep a multiple of what it ever needs at once. Does nothing where the C library
/// is another one.
///
/// Implements:
/// ```c
/// int mallopt(int param, int value);
/// ```
pub(crate) fn share_heaps(most: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number; a value that it does not like is ignored.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, most);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

/// Ignores the signals that ask a whole process group or control group to end: a worker ends when the
/// service closes its pipe, so that a draining service can still finish its calls.
///
/// Implements:
/// ```c
/// void (*signal(int sig, void (*func)(int)))(int);
/// ```
pub(crate) fn ignore_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: SIG_IGN is a valid disposition of these signals and no handler is involved.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
