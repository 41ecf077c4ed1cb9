//! The volume service: takes the place of cinder-volume for Ceph RBD backends.

use std::process::ExitCode;

use scoria::service::{program, volume};

fn main() -> ExitCode {
    program::main(
        "scoria-volume",
        "Serves Cinder volumes on Ceph RBD, with replication, in place of cinder-volume",
        |config, sources, log| Box::pin(volume::run(config, sources, log)),
    )
}
