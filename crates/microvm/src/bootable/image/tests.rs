use std::process::Command;

use guise_agent::protocol::{Root, Writes};

use super::super::disk_of;
use super::*;

type Files<'f> = &'f [(&'f str, &'f str)];

fn tree(place: &Path, files: Files<'_>) {
    fs::create_dir(place).unwrap();
    for (path, text) in files {
        let path = place.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn run(command: &mut Command) {
    let said = command.output().unwrap();
    assert!(said.status.success(), "{said:?}");
}

/// What boots of an image and of what was written over it: the kernel, and the RAM disk.
fn boots(image: Files<'_>, written: Files<'_>) -> Result<(Bootable, String, Vec<u8>), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    tree(&path("image"), image);
    tree(&path("written"), written);
    run(Command::new("mkfs.erofs").args([path("image.erofs"), path("image")]));
    let mut make = Command::new("mkfs.ext4");
    run(make.args(["-q", "-d"]).args([path("written"), path("written.img")]).arg("1M"));
    let disk = |name: &str| disk_of(&fs::read(path(name)).unwrap());
    let root = Root { image: "i".into(), writes: Writes::Disk("w".into()), ..Root::default() };
    let own = OwnRoot { root, host_name: "called-so".into() };
    let (image, written) = (disk("image.erofs"), disk("written.img"));
    let bootable = extract(&image, &written, &own, folder.path(), b"a secret")
        .map_err(|error| error.to_string())?;
    let kernel = fs::read_to_string(&bootable.kernel).unwrap();
    let initrd = fs::read(bootable.initrd.as_ref().unwrap()).unwrap();
    Ok((bootable, kernel, initrd))
}

fn has(initrd: &[u8], text: &str) -> bool {
    initrd.windows(text.len()).any(|window| window == text.as_bytes())
}

const BUILTIN: &str = "kernel/fs/erofs.ko\nkernel/fs/overlayfs/overlay.ko\nkernel/fs/ext4.ko\n";
const SYSTEM: [(&str, &str); 6] = [
    ("boot/vmlinuz-6.1.0-9-amd64", "nine"),
    ("boot/vmlinuz-6.1.0-9-amd64.old\u{7f}", "none"),
    ("usr/lib/modules/6.1.0-9-amd64/modules.builtin", BUILTIN),
    ("usr/lib/modules/6.1.0-9-amd64/kernel/virtio-pci.ko", "\0depends=virtio\0"),
    ("usr/lib/modules/6.1.0-9-amd64/kernel/virtio.ko", "the ring"),
    ("usr/lib/modules/6.1.0-9-amd64/kernel/virtio_blk.ko", "the disk"),
];

#[test]
fn an_images_own_kernel_boots_with_its_own_modules() {
    let first = [("usr/sbin/init", "")];
    let driver =
        [("usr/lib/modules/6.1.0-9-amd64/kernel/vmw_vsock_virtio_transport.ko", "the way")];
    let whole = [&SYSTEM[..], &first, &driver].concat();
    let (bootable, kernel, initrd) = boots(&whole, &[]).unwrap();
    assert_eq!((&*kernel, bootable.no_agent), ("nine", None));
    assert_eq!(bootable.command_line, "rdinit=/.guise/agent rw console=ttyS0");
    assert!(has(&initrd, "virtio.ko\nvirtio_pci.ko\nvirtio_blk.ko\nvmw_vsock"));
    for text in ["the ring", "the disk", "the way", "/usr/sbin/init", "a secret", "called-so"] {
        assert!(has(&initrd, text), "{text}");
    }
    let (bootable, ..) = boots(&[&SYSTEM[..], &first].concat(), &[]).unwrap();
    assert!(bootable.no_agent.unwrap().contains("virtio sockets"));
}

#[test]
fn a_kernel_that_the_guest_installed_boots_next() {
    let image = [&SYSTEM[..], &[("sbin/init", "")]].concat();
    let newer = [
        ("data/usr/lib/modules/6.1.0-10-amd64/vmlinuz", "ten"),
        ("data/usr/lib/modules/6.1.0-10-amd64/modules.builtin", BUILTIN),
        ("data/usr/lib/modules/6.1.0-10-amd64/virtio_pci.ko", "newer ring"),
        ("data/usr/lib/modules/6.1.0-10-amd64/virtio_blk.ko", "newer disk"),
    ];
    let (_, kernel, initrd) = boots(&image, &newer).unwrap();
    assert!(kernel == "ten" && has(&initrd, "newer disk") && !has(&initrd, "the disk"));
    // An older one does not, and one of the same version takes the image's place.
    let (_, kernel, _) = boots(&image, &[("data/boot/vmlinuz-6.0", "old")]).unwrap();
    assert_eq!(kernel, "nine");
    let (_, kernel, initrd) =
        boots(&image, &[("data/boot/vmlinuz-6.1.0-9-amd64", "another nine")]).unwrap();
    assert!(kernel == "another nine" && has(&initrd, "the disk"));
}

#[test]
fn what_an_image_lacks_is_told() {
    let refused = |files: Files<'_>| boots(files, &[]).unwrap_err();
    let said = refused(&[("etc/passwd", "")]);
    for text in ["no kernel", "no system", "--include linux-image-cloud-amd64", "--as microvm"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let said = refused(&SYSTEM);
    assert!(said.contains("/sbin/init") && !said.contains("no kernel"), "{said}");
    let said = refused(&[SYSTEM[0], ("sbin/init", "")]);
    assert!(said.contains("no modules") && said.contains("6.1.0-9-amd64"), "{said}");
    let fewer: Vec<_> = SYSTEM[..5].iter().copied().chain([("sbin/init", "")]).collect();
    let said = refused(&fewer);
    assert!(said.contains("virtio_blk"), "{said}");
    assert_eq!(said.lines().count(), 1);
}
