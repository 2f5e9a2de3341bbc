//! The guest's end.
//!
//! One thread does everything: it waits with `poll` for the host, for signals and for the
//! processes' output, so nothing needs a lock. What would block (copying files) is done by
//! further processes of the same program.
//!
//! - `init`: what the kernel leaves to do: `/dev`, the connection to the host; `modules`;
//! - `beside`: the way into a system that boots by itself; `system`: what is asked of it;
//! - `root`: the root file system and what is mounted in it; `files` writes names and
//!   resolvers into its `/etc`;
//! - `network`: addresses and routes; `statistics`;
//! - `server`: the loop; `session`: a process; `user`: as whom it runs; `cgroup`: how
//!   many there may be;
//! - `archive`: files as tar;
//! - `sys`: system calls that need unsafe code.

pub mod archive;
pub mod beside;
mod cgroup;
mod channel;
mod files;
mod init;
mod modules;
mod network;
mod root;
mod server;
mod session;
mod statistics;
mod sys;
pub mod system;
mod user;

use std::process::ExitCode;

use channel::Channel;
use server::Server;

/// The machine's first process. Returning from it would be a kernel panic.
pub fn init() -> ExitCode {
    if let Err(error) = init::run() {
        eprintln!("guise-agent: {error}");
    }
    init::switch_off()
}

/// Serves sessions on standard input, a socket, until it is closed.
pub fn serve_standard_input() -> std::io::Result<()> {
    let channel = Channel::standard_input()?;
    Server::new(channel)?.run().map(|_| ())
}
