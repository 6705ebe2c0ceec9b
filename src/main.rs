//! The program `duet`; also `etcd`, when its file is called that.

use std::process::ExitCode;

/// Values come and go in all sizes: jemalloc fragments less under that than the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings, which it reads from this symbol. A list is one allocation of many megabytes; by default jemalloc gives those above
/// 8 MiB back to the kernel at once, which has to zero their pages again for the next list (docs/performance.md).
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 21] = b"oversize_threshold:0\0";

fn main() -> ExitCode {
    // Every TLS connection of this process, to clients and to PostgreSQL, uses one provider. An error says that there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let argv = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    duet::cli::run(argv)
}
