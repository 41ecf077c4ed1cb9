//! The backup service: takes the place of cinder-backup with its driver for Ceph.

use std::process::ExitCode;

use scoria::service::{backup, program};

fn main() -> ExitCode {
    program::main(
        "scoria-backup",
        "Makes and restores backups of Cinder volumes on Ceph RBD, in place of cinder-backup",
        |config, sources, log| Box::pin(backup::run(config, sources, log)),
    )
}
