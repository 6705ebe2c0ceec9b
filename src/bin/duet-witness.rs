//! The program `duet-witness`: `duet witness` and nothing else, so that what is in memory is small. It takes the same flags, variables and file.

use std::process::ExitCode;

fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let argv = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    duet::cli::run_witness(argv)
}
