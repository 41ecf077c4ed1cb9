//! The process in which librados and librbd live. Started by scoria-volume, which talks to it through
//! stdin and stdout; not for use by hand. Ends when its stdin closes.

use std::time::Duration;

use clap::Parser;
use scoria::rbd::worker::{Settings, run};

/// Carries out requests against Ceph for scoria-volume (started by it, not by hand).
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Seconds after which one operation of an OSD or a monitor has failed.
    #[arg(long, default_value_t = Settings::default().op_timeout.as_secs())]
    op_timeout: u64,
    /// Seconds that connecting may take, unless the site says otherwise.
    #[arg(long, default_value_t = Settings::default().connect_timeout.as_secs())]
    connect_timeout: u64,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    run(Settings {
        op_timeout: Duration::from_secs(arguments.op_timeout),
        connect_timeout: Duration::from_secs(arguments.connect_timeout),
    })
}
