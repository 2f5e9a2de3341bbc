//! What the kernel leaves to its first process, up to the connection to the host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use guise_agent::protocol::{Clock, MODULES_OF_ALL, VSOCK_PORT};
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec};

use super::channel::Channel;
use super::server::Server;
use super::{modules, sys};

pub fn run() -> io::Result<()> {
    mount_kernels_own()?;
    // As on a host with much memory: what a program asks for it gets, and who uses more than
    // there is is ended, as in a container. A kernel without the switch goes on without.
    let _ = fs::write("/proc/sys/vm/overcommit_memory", "1");
    modules::load(MODULES_OF_ALL)?;
    Server::new(connect()?)?.run().map(|_| ())
}

/// Mounts what the kernel tells of itself.
pub fn mount_kernels_own() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(target)?;
        let flags = if kind == "devtmpfs" {
            MountFlags::NOSUID
        } else {
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
        };
        mount(kind, target, kind, flags, None)
            .map_err(|error| io::Error::other(format!("mounting {target}: {error}")))?;
    }
    Ok(())
}

/// Switches the machine off, come what may.
pub fn switch_off() -> ExitCode {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        eprintln!("guise-agent: the machine cannot be switched off: {error}");
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn connect() -> io::Result<Channel> {
    let socket = sys::connect_to_host(VSOCK_PORT).map_err(|error| {
        io::Error::new(error.kind(), format!("the host does not answer: {error}"))
    })?;
    Channel::new(socket)
}

pub fn set_clock(clock: Clock) -> io::Result<()> {
    let time = Timespec { tv_sec: clock.seconds, tv_nsec: clock.nanoseconds.into() };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|error| io::Error::other(format!("setting the clock: {error}")))
}

/// Mixes random bytes into the kernel's. It has those of the processor anyway.
pub fn add_entropy(bytes: &[u8]) {
    let written =
        File::options().write(true).open("/dev/urandom").and_then(|mut file| file.write_all(bytes));
    if let Err(error) = written {
        eprintln!("guise-agent: /dev/urandom: {error}");
    }
}
