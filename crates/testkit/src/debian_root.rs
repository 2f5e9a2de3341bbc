//! A Debian that lives on a disk: ext4, systemd, a login on the serial port, and a package
//! of a few thousand files that waits to be installed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TestkitError;
use crate::assets::{self, Kernel, apt_source};
use crate::error::run;
use crate::initramfs::Initramfs;
use crate::modules;

const IMAGE: &str = "images/debian-12.ext4";
/// Of disks, of the power button, and of a seed's file system.
const DRIVERS: [&str; 8] =
    ["virtio_pci", "virtio_blk", "button", "evdev", "vfat", "nls_cp437", "nls_ascii", "nls_utf8"];
/// Of what else a system that boots by itself is given, and has no modules for: networks, the
/// host's agent, folders of the host.
const MORE_DRIVERS: [&str; 3] = ["virtio_net", "vmw_vsock_virtio_transport", "virtiofs"];
/// Sparse; what is in it takes less than a third.
const SIZE: &str = "640M";
const PACKAGES: &str = "systemd-sysv,udev,login,dbus";
/// Makes a bootable system and an image of what mmdebstrap has unpacked.
const FINISH: &str = include_str!("../guests/root-finish.sh");
/// Reads a seed as `cloud-init` does, whose Python would take minutes where guests are executed
/// in software.
pub(crate) const SEED: [&str; 2] = ["seed.sh", "seed.service"];
/// The first program of the small disk, and what it does with a lease.
pub(crate) const SMALL_INIT: &str = "small-init.sh";
pub(crate) const SMALL_LEASE: &str = "small-udhcpc.sh";
/// Users of the small disk, as those of an image for tests.
pub(crate) const SMALL_FILES: [(&str, &str); 4] = [
    ("passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n"),
    ("group", "root:x:0:\nwww:x:34:\nlog:x:4:web\n"),
    ("not-a-program", "text\n"),
    ("debian_version", "12.0\n"),
];
/// The first program of the RAM disk.
const INIT: &str = include_str!("../guests/root-init.sh");

/// The image of the disk. Tests work on copies of it.
pub fn image() -> Result<PathBuf, TestkitError> {
    // The hook below runs in a directory of its own.
    let root = assets::directory();
    let root = std::path::absolute(&root).map_err(TestkitError::file("finding", &root))?;
    let image = root.join(IMAGE);
    if image.is_file() {
        return Ok(image);
    }
    let parent = image.parent().unwrap_or(&root);
    fs::create_dir_all(parent).map_err(TestkitError::file("making", parent))?;
    let _lock = assets::lock(&root)?;
    if image.is_file() {
        return Ok(image);
    }
    let partial = image.with_extension("partial");
    // Where this is not root, it is the root of a user namespace that fills the image.
    fs::write(&partial, b"").map_err(TestkitError::file("making", &partial))?;
    fs::set_permissions(&partial, Permissions::from_mode(0o666))
        .map_err(TestkitError::file("opening up", &partial))?;
    let script = image.with_extension("sh");
    fs::write(&script, FINISH).map_err(TestkitError::file("writing", &script))?;
    let hook = format!("sh '{}' \"$1\" '{}' {SIZE}", script.display(), partial.display());
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--format=null"]);
    command.arg(format!("--include={PACKAGES}"));
    for excluded in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
    }
    command.arg(format!("--customize-hook={hook}"));
    command.args(["bookworm", "-"]).arg(apt_source("bookworm"));
    run(&mut command)?;
    fs::rename(&partial, &image).map_err(TestkitError::file("renaming", &partial))?;
    Ok(image)
}

/// A RAM disk that loads the disk's driver and goes on from `/dev/vda`.
pub fn ram_disk(kernel: Kernel) -> Result<PathBuf, TestkitError> {
    loading(kernel, &DRIVERS)?.store(&format!("root-{}", kernel.name()))
}

fn loading(kernel: Kernel, drivers: &[&str]) -> Result<Initramfs, TestkitError> {
    let mut archive = Initramfs::new();
    for directory in ["bin", "dev", "modules", "proc", "root"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file_from(&assets::busybox()?, "bin/busybox")?;
    archive.symlink("bin/sh", "busybox");
    archive.file("init", 0o755, INIT.as_bytes());
    let drivers = modules::with_needs(kernel, drivers)?;
    for (number, (name, content)) in drivers.into_iter().enumerate() {
        archive.file(&format!("modules/{number:02}-{name}.ko"), 0o644, &content);
    }
    Ok(archive)
}

/// Makes a disk that boots by itself, and reads a seed: the image with a kernel and a RAM disk in
/// its `/boot`.
pub fn bootable(kernel: Kernel, disk: &Path) -> Result<(), TestkitError> {
    // A copy keeps the holes: a disk that is mostly empty is mostly not there.
    run(Command::new("cp").arg("--sparse=always").args([&image()?, disk]))?;
    let [script, unit] = SEED;
    let mut commands = boot_files(kernel, disk)?;
    commands += "cd /etc\n";
    commands += &write(script);
    commands += "cd /etc/systemd/system\n";
    commands += &write(unit);
    // It may be there already.
    commands += "mkdir multi-user.target.wants\ncd multi-user.target.wants\n";
    commands += &format!("symlink {unit} ../{unit}\n");
    debugfs(disk, &commands)
}

/// Makes a small disk that boots by itself: a busybox whose first program reads a seed, counts
/// its starts on the disk, and is a shell on the console until that ends or the power button is
/// pressed.
pub fn small_bootable(kernel: Kernel, disk: &Path) -> Result<(), TestkitError> {
    fs::write(disk, b"").map_err(TestkitError::file("making", disk))?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk).arg("64M"))?;
    let mut commands = String::new();
    for directory in ["bin", "boot", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"] {
        commands += &format!("mkdir {directory}\n");
    }
    commands += "sif tmp mode 041777\n";
    commands += &boot_files(kernel, disk)?;
    commands += &format!("cd /bin\nwrite {} busybox\n", assets::busybox()?.display());
    commands += "sif busybox mode 0100755\nsymlink sh busybox\ncd /etc\n";
    commands += &write(SEED[0]);
    commands += &write(SMALL_LEASE).replace(" small-udhcpc.sh\n", " udhcpc.sh\n");
    commands += "sif udhcpc.sh mode 0100755\n";
    for (name, text) in SMALL_FILES {
        let file = disk.with_extension(name);
        fs::write(&file, text).map_err(TestkitError::file("writing", &file))?;
        commands += &format!("write {} {name}\n", file.display());
    }
    commands += "cd /sbin\n";
    commands += &write(SMALL_INIT);
    commands += &format!("sif {SMALL_INIT} mode 0100755\nsymlink init {SMALL_INIT}\n");
    debugfs(disk, &commands)?;
    for (name, _) in SMALL_FILES {
        let file = disk.with_extension(name);
        fs::remove_file(&file).map_err(TestkitError::file("removing", &file))?;
    }
    Ok(())
}

/// A file of the guests.
pub(crate) fn guest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name)
}

/// What puts one where `debugfs` is.
fn write(name: &str) -> String {
    format!("write {} {name}\n", guest(name).display())
}

fn debugfs(disk: &Path, commands: &str) -> Result<(), TestkitError> {
    let list = disk.with_extension("debugfs");
    fs::write(&list, commands).map_err(TestkitError::file("writing", &list))?;
    run(Command::new("debugfs").arg("-w").arg("-f").arg(&list).arg(disk))?;
    for file in [list, disk.with_extension("initrd")] {
        fs::remove_file(&file).map_err(TestkitError::file("removing", &file))?;
    }
    Ok(())
}

/// What puts a kernel and a RAM disk for it into `/boot`.
fn boot_files(kernel: Kernel, disk: &Path) -> Result<String, TestkitError> {
    let drivers = [&DRIVERS[..], &MORE_DRIVERS].concat();
    let ram_disk = disk.with_extension("initrd");
    fs::write(&ram_disk, loading(kernel, &drivers)?.finish())
        .map_err(TestkitError::file("writing", &ram_disk))?;
    let vmlinuz = kernel.image()?;
    let name = vmlinuz.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let initrd = name.replace("vmlinuz-", "initrd.img-");
    let write = |from: &Path, to: &str| format!("write {} {to}\n", from.display());
    Ok(format!("cd /boot\n{}{}", write(&vmlinuz, &name), write(&ram_disk, &initrd)))
}
