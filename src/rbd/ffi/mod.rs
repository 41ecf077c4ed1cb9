//! librados and librbd, made safe. The only `unsafe` of the crate, and used by the worker alone.
//!
//! The two libraries are loaded at run time ([`load`]), not linked: the service binary can then never
//! map them, building needs no Ceph package, and a host without Ceph's libraries gets a typed error
//! that says what to install. One topic per file. Each file declares the C functions that it uses in
//! one [`functions!`] table, and each safe wrapper quotes the C prototype that it implements;
//! `tools/check-ffi` compiles both against the installed headers.
//!
//! Rules that every wrapper follows: a name with a NUL byte is EINVAL before Ceph sees it; what librbd
//! allocates is released by librbd's own cleanup function on every path; nothing of an [`Image`]
//! outlives its [`IoCtx`], and nothing of that its [`Cluster`] (lifetimes and `Arc` say so).

#![allow(unsafe_code)]

mod daemons;
mod errno;
mod image;
mod io;
mod journal;
mod layer;
mod link;
mod lock;
mod metadata;
mod migration;
mod mirror;
mod mirror_snapshot;
mod objects;
mod peers;
pub(crate) mod process;
mod quiesce;
mod rados;
mod rollback;
mod snapshot;
mod trash;

pub(crate) use errno::Failure;
pub(crate) use image::Image;
pub(crate) use layer::{clone_image, clone_replica};
pub(crate) use quiesce::Answerer;
pub(crate) use rados::{Cluster, Identity, IoCtx};

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use errno::check;

/// Declares C functions by their Rust types and makes a table of pointers that is filled from a
/// library. `tools/check-ffi` reads these lines: keep one function per `fn …;`.
macro_rules! functions {
    ($table:ident { $( fn $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? ; )* }) => {
        /// The C functions that this file uses.
        #[allow(clippy::type_complexity)]
        pub(super) struct $table { $( $name: unsafe extern "C" fn($($ty),*) $(-> $ret)?, )* }

        impl $table {
            /// Looks all of them up.
            pub(super) fn load(library: &libloading::Library) -> Result<Self, libloading::Error> {
                Ok(Self { $(
                    // SAFETY: the type given here is the C prototype of that name; tools/check-ffi
                    // proves it against the header. The pointer stays valid because the library is
                    // never unloaded (`Api` keeps it for ever).
                    $name: unsafe {
                        *library.get::<unsafe extern "C" fn($($ty),*) $(-> $ret)?>(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )?
                    },
                )* })
            }
        }
    };
}
use functions;

/// Both libraries and all functions of them that are used.
pub(crate) struct Api {
    rados: rados::Functions,
    daemons: daemons::Functions,
    image: image::Functions,
    io: io::Functions,
    layer: layer::Functions,
    link: link::Functions,
    lock: lock::Functions,
    metadata: metadata::Functions,
    migration: migration::Functions,
    mirror: mirror::Functions,
    mirror_snapshot: mirror_snapshot::Functions,
    objects: objects::Functions,
    peers: peers::Functions,
    quiesce: quiesce::Functions,
    rollback: rollback::Functions,
    snapshot: snapshot::Functions,
    trash: trash::Functions,
    /// Never dropped: the tables above point into them.
    _libraries: (Library, Library),
}

static API: OnceLock<Result<Api, String>> = OnceLock::new();

/// Loads the libraries on the first call.
///
/// # Errors
/// A sentence for the operator, when a library or a function is missing. It stays: the process must be
/// restarted after an installation (the pool does that by itself when idle workers are replaced).
pub(crate) fn load() -> Result<&'static Api, &'static str> {
    API.get_or_init(|| {
        let open = |name: &str| {
            // SAFETY: loading runs the initialisers of Ceph's own libraries, which are made to be
            // loaded (python3-rados does the same). It happens once, before any other use.
            unsafe { Library::new(name) }.map_err(|e| {
                format!("{name} cannot be loaded ({e}): install Ceph's client libraries (librados2, librbd1)")
            })
        };
        let rados = open("librados.so.2")?;
        let rbd = open("librbd.so.1")?;
        let missing = |e: libloading::Error| format!("Ceph's client libraries are older than Ceph 16: {e}");
        Ok(Api {
            rados: rados::Functions::load(&rados).map_err(missing)?,
            daemons: daemons::Functions::load(&rados).map_err(missing)?,
            image: image::Functions::load(&rbd).map_err(missing)?,
            io: io::Functions::load(&rbd).map_err(missing)?,
            layer: layer::Functions::load(&rbd).map_err(missing)?,
            link: link::Functions::load(&rbd).map_err(missing)?,
            lock: lock::Functions::load(&rbd).map_err(missing)?,
            metadata: metadata::Functions::load(&rbd).map_err(missing)?,
            migration: migration::Functions::load(&rbd).map_err(missing)?,
            mirror: mirror::Functions::load(&rbd).map_err(missing)?,
            mirror_snapshot: mirror_snapshot::Functions::load(&rbd).map_err(missing)?,
            objects: objects::Functions::load(&rados).map_err(missing)?,
            peers: peers::Functions::load(&rbd).map_err(missing)?,
            quiesce: quiesce::Functions::load(&rbd).map_err(missing)?,
            rollback: rollback::Functions::load(&rbd).map_err(missing)?,
            snapshot: snapshot::Functions::load(&rbd).map_err(missing)?,
            trash: trash::Functions::load(&rbd).map_err(missing)?,
            _libraries: (rados, rbd),
        })
    })
    .as_ref()
    .map_err(String::as_str)
}

/// C handles, by their C names.
#[allow(non_camel_case_types)]
mod c {
    use std::ffi::c_void;

    pub(super) type rados_t = *mut c_void;
    pub(super) type rados_ioctx_t = *mut c_void;
    pub(super) type rbd_image_t = *mut c_void;
    pub(super) type rbd_image_options_t = *mut c_void;
    pub(super) type librbd_progress_fn_t =
        Option<unsafe extern "C" fn(offset: u64, total: u64, ptr: *mut c_void) -> std::ffi::c_int>;
    pub(super) type rbd_update_callback_t = Option<unsafe extern "C" fn(arg: *mut c_void)>;
}

/// A name for C.
fn text(call: &'static str, value: &str) -> Result<CString, Failure> {
    CString::new(value)
        .map_err(|_| Failure::new(call, format!("{value:?} has a NUL byte"), -i64::from(libc::EINVAL)))
}

/// A string that Ceph allocated and still owns; empty for NULL.
///
/// # Safety
/// NULL, or a valid NUL-terminated string.
unsafe fn owned(value: *const c_char) -> String {
    if value.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned()
}

/// Reports how far a long call is: (done, total).
pub(crate) type Progress<'a> = &'a dyn Fn(u64, u64);

/// Passes librbd's progress on to the [`Progress`] that `ptr` points to.
///
/// # Safety
/// `ptr` points to a `Progress` that lives until the call it was given to returns.
unsafe extern "C" fn on_progress(offset: u64, total: u64, ptr: *mut c_void) -> c_int {
    // SAFETY: the caller's promise; `progress_arg` is the only source of `ptr`.
    let progress = unsafe { &*ptr.cast::<Progress<'_>>() };
    progress(offset, total);
    0
}

/// The `cbdata` that goes with [`on_progress`].
fn progress_arg(progress: &mut Progress<'_>) -> *mut c_void {
    std::ptr::from_mut(progress).cast()
}

/// Repeats a listing that answers -ERANGE together with the capacity it needs, until it fits.
///
/// `list` gets an array of zeroed elements and its capacity; it leaves the number of elements filled
/// (or needed) in the capacity. Answers the array cut to what was filled.
///
/// # Safety
/// All-zero bytes are a valid `T`, and `list` sets the capacity to what it filled when it succeeds.
unsafe fn listing<T: Copy>(
    call: &'static str,
    what: &dyn Fn() -> String,
    mut list: impl FnMut(*mut T, &mut usize) -> c_int,
) -> Result<Vec<T>, Failure> {
    let mut capacity = 64;
    loop {
        // SAFETY: the caller's promise.
        let empty: T = unsafe { std::mem::zeroed() };
        let mut entries = vec![empty; capacity];
        let mut filled = capacity;
        let result = list(entries.as_mut_ptr(), &mut filled);
        if result == -libc::ERANGE {
            // Entries may be added between two attempts; and never loop on an unchanged capacity.
            capacity = filled.max(capacity + 1) + 16;
            continue;
        }
        check(call, what, result)?;
        entries.truncate(filled);
        return Ok(entries);
    }
}
