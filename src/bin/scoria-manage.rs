//! The operator's tool. Parses, runs, prints; everything else is in `scoria::cli`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use scoria::cli::{Arguments, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("scoria-manage: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .init();
    let format = arguments.format;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let report = runtime.block_on(run(arguments))?;
    let text = report.render(format);
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader (`| head`) has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.context("could not write the report")?,
    }
    Ok(report.exit.code())
}
