//! What else of the kernel instances are made of: taps, file systems, rings.

use std::path::Path;

use super::{open_device, read};
use crate::{Finding, Group};

pub fn examine() -> Group {
    let findings = vec![version(), tun(), overlayfs(), fuse(), io_uring(), seccomp()];
    Group { name: "Kernel", findings }
}

fn version() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    Finding::found("version", format!("Linux {release}"), "Guise wants 5.10 or newer")
}

fn tun() -> Finding {
    match open_device("/dev/net/tun") {
        Ok(_) => Finding::found(
            "TUN",
            "/dev/net/tun opens",
            "Guests can be on the host's networks through taps",
        ),
        Err(error) => Finding::missing(
            "TUN",
            format!("/dev/net/tun: {error}"),
            "Guests reach the network through Guise's user-mode network",
            "modprobe tun, or pass the device into this container",
        ),
    }
}

fn overlayfs() -> Finding {
    let known = read("/proc/filesystems").unwrap_or_default();
    let built = known.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    if built {
        return Finding::found("overlayfs", "The kernel has it", "Images are shared, not copied");
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let module = format!("/lib/modules/{release}/kernel/fs/overlayfs");
    match Path::new(&module).is_dir() {
        true => Finding::limited(
            "overlayfs",
            "It is a module that is not loaded",
            "Images are copied for each container until it is",
            "modprobe overlay",
        ),
        false => Finding::missing(
            "overlayfs",
            "The kernel does not list it",
            "Images are copied for each container",
            "a kernel with CONFIG_OVERLAY_FS",
        ),
    }
}

fn fuse() -> Finding {
    match open_device("/dev/fuse") {
        Ok(_) => {
            Finding::found("FUSE", "/dev/fuse opens", "File systems in user space can be mounted")
        }
        Err(error) => Finding::missing(
            "FUSE",
            format!("/dev/fuse: {error}"),
            "File systems in user space cannot be mounted; nothing of Guise depends on it",
            "modprobe fuse, or pass the device into this container",
        ),
    }
}

fn io_uring() -> Finding {
    match io_uring::IoUring::new(2) {
        Ok(_) => Finding::found(
            "io_uring",
            "A ring can be made",
            "Disks are read and written in batches",
        ),
        Err(error) => Finding::missing(
            "io_uring",
            format!("The kernel refuses: {error}"),
            "Disks are read and written by threads, a little slower",
            "sysctl kernel.io_uring_disabled=0, or a container profile that permits it",
        ),
    }
}

fn seccomp() -> Finding {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.contains("kill_process") {
        true => Finding::found(
            "seccomp",
            "The kernel has filters",
            "Workers and containers are kept to the system calls that they need",
        ),
        false => Finding::missing(
            "seccomp",
            "The kernel has no filters",
            "Workers and containers may use every system call",
            "a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}
