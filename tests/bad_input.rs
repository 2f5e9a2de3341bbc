//! What cannot be booted is refused with one clear line and exit code 1 or 2.

use std::path::{Path, PathBuf};

use crate::support::{Boot, have};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;

/// A file with this content that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("guise-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("room for a small file");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("it was written");
    }
}

#[track_caller]
fn refused(kernel: &Path, arguments: &[&str], code: i32, reason: &str) {
    // Not the default, which has a word to say about some hosts' KVM.
    let ended = Boot::kernel(kernel).args(["--engine", "soft"]).args(arguments).run();
    ended.expect_code(code);
    assert_eq!(ended.output, "");
    assert!(ended.errors.starts_with("guise: "), "{}", ended.errors);
    assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
    assert!(ended.errors.contains(reason), "{}", ended.errors);
}

#[test]
fn machines_that_nobody_can_have() {
    let kernel = have(Kernel::Debian12Cloud.image());
    refused(&kernel, &["--cpus", "0"], 2, "1 to 8 vCPUs");
    refused(&kernel, &["--cpus", "9"], 2, "1 to 8 vCPUs");
    refused(&kernel, &["--cpus", "many"], 2, "--cpus");
    refused(&kernel, &["--memory", "3T"], 2, "3072 GiB");
    refused(&kernel, &["--memory", "0"], 2, "2 MiB at least");
    refused(&kernel, &["--memory", "lots"], 2, "not a size");
    refused(&kernel, &["--cpu", "486"], 2, "no CPU model '486'");
    refused(&kernel, &["--board", "toaster"], 2, "toaster");
    refused(&kernel, &["--timeout", "-1"], 2, "");
    refused(&kernel, &["--no-such-option"], 2, "--no-such-option");
    refused(&kernel, &["--disk", "/nowhere.img,format=raw"], 1, "/nowhere.img");
    refused(&kernel, &["--disk", "/nowhere.img,colour=red"], 2, "colour");
    refused(&kernel, &["--share", ".,tag=t"], 2, "--share is not in this version");
    refused(&kernel, &["--net", "bridge"], 2, "'switch=SOCKET' and 'tap=NAME'");
    refused(&kernel, &["--net", "user,forward=22"], 2, "PORT-GUESTPORT");
}

#[test]
fn files_that_are_no_kernels() {
    let script = Scratch::new("script", b"#!/bin/sh\necho I am not a kernel\n");
    refused(&script.0, &[], 1, "is not a kernel");
    let empty = Scratch::new("empty", b"");
    refused(&empty.0, &[], 1, "is not a kernel");
    refused(Path::new("/nowhere/at/all"), &[], 1, "/nowhere/at/all: No such file");
    refused(Path::new("/"), &[], 1, "Is a directory");
    // This program is an ELF file, but not one that can be a guest.
    refused(Path::new(env!("CARGO_BIN_EXE_guise")), &[], 1, "not a fixed executable");
}

#[test]
fn a_truncated_kernel() {
    let whole = std::fs::read(have(Kernel::Debian12Cloud.image())).expect("it was fetched");
    for length in [0x210, 0x5000, whole.len() / 2, whole.len() - 100_000] {
        let cut = Scratch::new("cut", &whole[..length]);
        refused(&cut.0, &[], 1, "cannot be booted: it ");
    }
}

#[test]
fn an_initrd_larger_than_memory() {
    let kernel = have(Kernel::Debian12Cloud.image());
    let large = Scratch::new("large", b"");
    let file = std::fs::OpenOptions::new().write(true).open(&large.0).expect("it was written");
    file.set_len(1 << 30).expect("a sparse file");
    let path = large.0.to_str().expect("a plain path");
    refused(&kernel, &["--memory", "256M", "--initrd", path], 1, "--memory");
    refused(&kernel, &["--initrd", "/nowhere/at/all"], 1, "/nowhere/at/all: No such file");
    refused(&kernel, &["--initrd", "/dev/null"], 1, "not a regular file");
}

#[test]
fn too_little_memory_for_the_kernel() {
    let kernel = have(Kernel::Debian12Cloud.image());
    refused(&kernel, &["--memory", "8M"], 1, "give it more with --memory");
}

#[test]
fn a_statistics_file_that_cannot_be_written() {
    let kernel = have(Kernel::Debian12Cloud.image());
    let initrd = have(initramfs::shell());
    let initrd = initrd.to_str().expect("a plain path");
    refused(&kernel, &["--initrd", initrd, "--stats", "/nowhere/at/all"], 1, "/nowhere/at/all");
}
