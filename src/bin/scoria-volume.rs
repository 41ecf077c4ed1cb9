//! The volume service: takes the place of cinder-volume for Ceph RBD backends.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use scoria::config::{Config, Severity, Sources};
use scoria::service::{logging, volume};

/// Serves Cinder volumes on Ceph RBD, with replication, in place of cinder-volume.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file in oslo's INI syntax; may be given several times, later files win.
    #[arg(long, value_name = "PATH", default_value = "/etc/cinder/cinder.conf")]
    config_file: Vec<PathBuf>,
    /// Directory whose *.conf files are read after the files, in order of their names.
    #[arg(long, value_name = "DIR")]
    config_dir: Vec<PathBuf>,
    /// Read and check the configuration, say what is wrong with it, and exit.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_config {
        return check(&arguments);
    }
    let (config, warnings) =
        match Config::load(&arguments.config_file, &arguments.config_dir, std::env::vars()) {
            Ok(loaded) => loaded,
            Err(error) => {
                eprintln!("scoria-volume: {error}");
                return ExitCode::FAILURE;
            }
        };
    let (log, guard) = match logging::init(&config.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("scoria-volume: {error}");
            return ExitCode::FAILURE;
        }
    };
    for warning in &warnings {
        warning.log();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("scoria-volume: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let sources = Sources { files: arguments.config_file, dirs: arguments.config_dir };
    let outcome = runtime.block_on(volume::run(config, sources, log));
    if let Err(error) = &outcome {
        tracing::error!(%error, "scoria-volume cannot serve");
    }
    drop(guard);
    // Tasks that are still blocked must not keep a stopped service alive.
    runtime.shutdown_background();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(arguments: &Arguments) -> ExitCode {
    let report = Config::check(&arguments.config_file, &arguments.config_dir, std::env::vars());
    for problem in report.at_least(Severity::Warning) {
        eprintln!("{problem}");
    }
    if report.is_clean() {
        println!("configuration is good");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
