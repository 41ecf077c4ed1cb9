//! What the services' programs have in common: arguments, configuration, logging, the runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use futures::future::BoxFuture;

use super::logging::{self, LogHandle};
use crate::config::{Config, Severity, Sources};
use crate::error::Result;

/// Arguments of a service.
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

/// Runs a service until it is told to stop. `name` and `about` are what `--help` says of it.
pub fn main(
    name: &'static str,
    about: &'static str,
    run: impl FnOnce(Config, Sources, LogHandle) -> BoxFuture<'static, Result<()>>,
) -> ExitCode {
    let matches = <Arguments as clap::CommandFactory>::command().name(name).about(about).get_matches();
    let arguments = match <Arguments as clap::FromArgMatches>::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    if arguments.check_config {
        return check(&arguments);
    }
    let (config, warnings) =
        match Config::load(&arguments.config_file, &arguments.config_dir, std::env::vars()) {
            Ok(loaded) => loaded,
            Err(error) => {
                eprintln!("{name}: {error}");
                return ExitCode::FAILURE;
            }
        };
    let (log, guard) = match logging::init(&config.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        }
    };
    for warning in &warnings {
        warning.log();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let sources = Sources { files: arguments.config_file, dirs: arguments.config_dir };
    let outcome = runtime.block_on(run(config, sources, log));
    if let Err(error) = &outcome {
        tracing::error!(%error, "{name} cannot serve");
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
