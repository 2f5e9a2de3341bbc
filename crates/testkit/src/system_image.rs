//! Images that boot by themselves: root file systems with a kernel, its modules and a system, as
//! archives that an image store takes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TestkitError;
use crate::assets::{self, Kernel, apt_source};
use crate::debian_root::{SEED, SMALL_FILES, SMALL_INIT, SMALL_LEASE, guest};
use crate::error::run;
use crate::modules;

/// What leads to an image's root, and what a system on it wants.
const DRIVERS: [&str; 14] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "erofs",
    "overlay",
    "ext4",
    "button",
    "evdev",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
];
const WITH_CLOUD_INIT: &str = "images/debian-12-cloud-init.tar";
const PACKAGES: &str = "systemd-sysv,udev,dbus,kmod,cloud-init";

type Result<T> = std::result::Result<T, TestkitError>;

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(TestkitError::file("making", folder))
}

fn put(text: &str, file: &Path, mode: u32) -> Result<()> {
    fs::write(file, text)
        .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(mode)))
        .map_err(TestkitError::file("writing", file))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(TestkitError::file("writing", to))
}

fn link(target: &str, file: &Path) -> Result<()> {
    symlink(target, file).map_err(TestkitError::file("making", file))
}

/// Puts a kernel into a tree, with those of its modules that its guests need.
fn install(kernel: Kernel, tree: &Path) -> Result<()> {
    let (image, modules) = (kernel.image()?, kernel.modules()?);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
    let (boot, folder) = (tree.join("boot"), tree.join("usr/lib/modules").join(name(&modules)));
    make(&boot)?;
    make(&folder.join("kernel"))?;
    copy(&image, &boot.join(name(&image)))?;
    for list in ["modules.builtin", "modules.order"] {
        copy(&modules.join(list), &folder.join(list))?;
    }
    for (name, content) in modules::with_needs(kernel, &DRIVERS)? {
        let file = folder.join(format!("kernel/{name}.ko"));
        fs::write(&file, content).map_err(TestkitError::file("writing", &file))?;
    }
    Ok(())
}

/// Makes an archive of a small system: a busybox whose first program reads a seed, counts its
/// starts, and is a shell on the console until that ends or the power button is pressed.
pub fn small(kernel: Kernel, archive: &Path) -> Result<()> {
    let tree = archive.with_extension("tree");
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"] {
        make(&tree.join(folder))?;
    }
    install(kernel, &tree)?;
    copy(&assets::busybox()?, &tree.join("bin/busybox"))?;
    link("busybox", &tree.join("bin/sh"))?;
    let read = |name: &str| {
        let file = guest(name);
        fs::read_to_string(&file).map_err(TestkitError::file("reading", &file))
    };
    put(&read(SMALL_INIT)?, &tree.join("sbin").join(SMALL_INIT), 0o755)?;
    link(SMALL_INIT, &tree.join("sbin/init"))?;
    put(&read(SEED[0])?, &tree.join("etc").join(SEED[0]), 0o644)?;
    put(&read(SMALL_LEASE)?, &tree.join("etc/udhcpc.sh"), 0o755)?;
    for (name, text) in SMALL_FILES {
        put(text, &tree.join("etc").join(name), 0o644)?;
    }
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--create", "--file"]).arg(archive);
    run(tar.arg("--directory").arg(&tree).arg("."))?;
    fs::remove_dir_all(&tree).map_err(TestkitError::file("removing", &tree))
}

/// An archive of a Debian with systemd and the real `cloud-init`.
pub fn with_cloud_init(kernel: Kernel) -> Result<PathBuf> {
    let root = assets::directory();
    let root = std::path::absolute(&root).map_err(TestkitError::file("finding", &root))?;
    let archive = root.join(WITH_CLOUD_INIT);
    if archive.is_file() {
        return Ok(archive);
    }
    // The kernel comes from the packages, which have a lock of their own.
    let tree = archive.with_extension("tree");
    let _lock = assets::lock_for(&root, "cloud-init")?;
    if archive.is_file() {
        return Ok(archive);
    }
    install(kernel, &tree)?;
    let partial = archive.with_extension("partial");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--format=tar", "--skip=output/dev"]);
    command.arg(format!("--include={PACKAGES}"));
    for excluded in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
    }
    let install = format!("cp -r '{}'/. \"$1\"", tree.display());
    let index =
        "for kernel in \"$1\"/usr/lib/modules/*; do chroot \"$1\" depmod ${kernel##*/}; done";
    // Addresses are asked for by systemd itself, and nothing waits for the archive's timers.
    let settle = "rm -f \"$1/etc/hostname\" \"$1/etc/resolv.conf\"; \
        rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*; \
        chroot \"$1\" systemctl enable systemd-networkd; \
        for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
        e2scrub_all.timer fstrim.timer systemd-networkd-wait-online.service; do \
        ln -sf /dev/null \"$1/etc/systemd/system/$unit\"; done";
    for hook in [&*install, index, settle] {
        command.arg(format!("--customize-hook={hook}"));
    }
    command.arg("bookworm").arg(&partial).arg(apt_source("bookworm"));
    run(&mut command)?;
    fs::remove_dir_all(&tree).map_err(TestkitError::file("removing", &tree))?;
    fs::rename(&partial, &archive).map_err(TestkitError::file("renaming", &partial))?;
    Ok(archive)
}
