use super::*;

#[test]
fn newer_versions_are_newer() {
    for (older, newer) in [
        ("6.1.0-9-amd64", "6.1.0-10-amd64"),
        ("6.1.0-10-amd64", "6.12.1-amd64"),
        ("6.1", "6.1.1"),
        ("6.1.0-amd64", "6.1.0-cloud"),
        ("99999999999999999999", "999999999999999999999"),
    ] {
        assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
        assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        assert_eq!(compare(newer, newer), Ordering::Equal);
    }
}

#[test]
fn grub_is_asked_no_more_than_needed() {
    let configuration = "menuentry 'one' {\n\
        \tlinux\t/boot/vmlinuz-6.1 root=UUID=abc ro console=tty0 console=ttyS0,115200 quiet $extra\n\
        }\nlinux /vmlinuz-6.2 root=$root\n linux\n linux16 /vmlinuz-6.3 root=/dev/vda1";
    assert_eq!(words_for(configuration, "vmlinuz-6.1").unwrap(), "root=UUID=abc ro quiet");
    assert_eq!(words_for(configuration, "vmlinuz-6.2"), None);
    assert_eq!(words_for(configuration, "vmlinuz-6.3").unwrap(), "root=/dev/vda1");
    assert_eq!(words_for(configuration, "vmlinuz-6"), None);
}

/// A disk of a folder, as one file system.
fn disk(tree: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    std::fs::create_dir(&root).unwrap();
    for (path, text) in tree {
        let place = root.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, text).unwrap();
    }
    let mut command = std::process::Command::new("mkfs.ext4");
    command.args(["-q", "-U", "01234567-89ab-4cde-8f01-23456789abcd", "-d"]).arg(root);
    let made = command.arg(&image).arg("1M").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::read(image).unwrap()
}

/// The same behind a table of partitions, in the second and the following.
fn partitioned(parts: &[&[u8]]) -> Vec<u8> {
    let mut disk = vec![0; 2 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut put = |index: usize, start: usize, length: usize| {
        let entry = &mut disk[446 + 16 * index..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&((start / 512) as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&((length / 512) as u32).to_le_bytes());
    };
    put(0, 1 << 20, 1 << 20);
    let mut start = 2 << 20;
    for (index, part) in (1..).zip(parts) {
        put(index, start, part.len());
        start += part.len();
    }
    parts.iter().for_each(|part| disk.extend_from_slice(part));
    disk
}

fn boots(bytes: &[u8]) -> Result<(String, Option<String>, String), BootableError> {
    let found = find(&disk_of(bytes))?;
    let read = |file: &OnDisk| {
        let mut text = Vec::new();
        file.copy(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    };
    Ok((read(&found.kernel), found.initrd.as_ref().map(read), found.command_line))
}

#[test]
fn the_newest_kernel_boots_with_its_ram_disk() {
    let bytes = disk(&[
        ("boot/vmlinuz-6.1.0-9-amd64", "old"),
        ("boot/vmlinuz-6.1.0-10-amd64", "new"),
        ("boot/vmlinuz-6.2\n", "none"),
        ("boot/initrd.img-6.1.0-9-amd64", "old disk"),
        ("boot/initrd.img-6.1.0-10-amd64", "new disk"),
        ("sbin/init", ""),
    ]);
    let root = "root=UUID=01234567-89ab-4cde-8f01-23456789abcd rw console=ttyS0";
    let expected = ("new".to_owned(), Some("new disk".to_owned()), root.to_owned());
    assert_eq!(boots(&bytes).unwrap(), expected);
    assert_eq!(boots(&partitioned(&[&bytes])).unwrap(), expected);
}

#[test]
fn boot_may_be_a_file_system_of_its_own() {
    let boot = disk(&[("vmlinuz-6.1", "kernel")]);
    let root = disk(&[("usr/lib/systemd/systemd", "")]);
    let both = partitioned(&[&boot, &root]);
    let words = "root=/dev/vda3 rw console=ttyS0";
    assert_eq!(boots(&both).unwrap(), ("kernel".to_owned(), None, words.to_owned()));
    let alone = boots(&partitioned(&[&boot])).unwrap_err();
    assert!(alone.to_string().contains("/sbin/init"), "{alone}");
    let configured = disk(&[
        ("vmlinuz-6.1", "kernel"),
        ("grub/grub.cfg", "linux /vmlinuz-6.1 root=/dev/mapper/vg-root ro quiet\n"),
    ]);
    let words = "root=/dev/mapper/vg-root ro quiet console=ttyS0";
    assert_eq!(boots(&partitioned(&[&configured])).unwrap().2, words);
}

#[test]
fn what_is_there_instead_is_told() {
    let told = |bytes: &[u8]| boots(bytes).unwrap_err().to_string();
    let mut lvm = vec![0; 1 << 20];
    lvm[512 + 24..][..8].copy_from_slice(b"LVM2 001");
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let cut = &disk(&[("sbin/init", "")])[..512 << 10];
    let said = told(&partitioned(&[&lvm, cut]));
    assert!(said.contains("nothing in partition 1, LVM in partition 2, ext4, but"), "{said}");
    assert!(said.contains("cut off"), "{said}");
    assert!(told(&xfs).contains("XFS"), "{}", told(&xfs));
    assert!(told(&disk(&[("sbin/init", "")])).contains("ext4 without a kernel"));
    assert!(told(b"").contains("nothing"));
}

#[test]
fn the_corpus_does_no_harm() {
    guise_testkit::corpus::run_all(env!("CARGO_MANIFEST_DIR"), "bootable", |pieces| {
        let _ = probe(pieces);
    });
    // All of an image is read; then it is no disk.
    let image = include_bytes!("../../fuzz/corpus/bootable/image");
    assert!(matches!(probe(image), Err(BootableError::NoKernel(what)) if what == "EROFS"));
}

/// The agent stands before an initial RAM disk that stays as it is; where there is none, or one
/// that nothing can be added to, everything is as on the disk.
#[test]
fn the_agent_comes_along_where_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let extracted = |initrd: Option<&str>, words: &str| {
        let grub = format!("linux /boot/vmlinuz-6.1 root=/dev/vda {words}\n");
        let mut tree = vec![("boot/vmlinuz-6.1", "kernel"), ("boot/grub/grub.cfg", &grub)];
        tree.extend(initrd.map(|text| ("boot/initrd.img-6.1", text)));
        let bootable = extract(&disk_of(&disk(&tree)), folder.path(), b"a secret").unwrap();
        let initrd = bootable.initrd.as_ref().map(|path| std::fs::read(path).unwrap());
        (bootable, initrd)
    };
    let (bootable, initrd) = extracted(Some("070701 and so on"), "quiet rdinit=/own ro");
    let words = "rdinit=/.guise/agent root=/dev/vda quiet ro console=ttyS0";
    assert_eq!((&*bootable.command_line, bootable.no_agent), (words, None));
    let initrd = initrd.unwrap();
    let archive = agent::archive("/own", b"a secret");
    assert_eq!(archive.len() % 512, 0);
    assert!(initrd.starts_with(&archive) && initrd.ends_with(b"070701 and so on"));
    assert_eq!(initrd.len(), archive.len() + 16);
    assert!(archive.windows(4).any(|window| window == b"/own"));

    let (bootable, initrd) = extracted(Some("a file system"), "rdinit=/own");
    assert_eq!(bootable.command_line, "root=/dev/vda rdinit=/own console=ttyS0");
    assert!(bootable.no_agent.unwrap().contains("nothing can be added"));
    assert_eq!(initrd.unwrap(), b"a file system");
    let (bootable, initrd) = extracted(None, "ro");
    assert!(bootable.no_agent.unwrap().contains("no initial RAM disk") && initrd.is_none());
}
