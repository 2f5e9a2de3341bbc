//! The judge is the kernel: what it shows of an EROFS image must be what its
//! overlayfs shows of the same layers as directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, unmount};

use crate::limits::Limits;
use crate::progress::Silent;
use crate::store::Store;
use crate::tar::{Device, Kind, Time};
use crate::testing::{Layer, Random, directory, file, hard_link, image_of, other, symlink};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

/// Whether this machine can mount EROFS files; says so if not.
fn can_mount() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\terofs");
    let root = rustix::process::geteuid().is_root();
    if !known || !root {
        println!("not run: mounting EROFS images (root: {root}, kernel has EROFS: {known})");
    }
    known && root
}

/// Runs in a thread with mounts of its own.
fn with_own_mounts<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread's file-system context changes; no other
            // thread shares descriptors or directories with it that matter.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            run()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// All of a tree that can be seen from outside.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let kind = m.file_type();
        let mut line = format!("{:o} {}:{}", m.mode(), m.uid(), m.gid());
        if kind.is_file() {
            let data = fs::read(&path).unwrap();
            assert_eq!(data.len() as u64, m.size());
            line += &format!(" {} {}", m.size(), crate::Digest::of(&data).short());
        } else if kind.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        } else if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            line += &format!(" {:x}", m.rdev());
        }
        line += &format!(" {}.{:09}", m.mtime(), m.mtime_nsec());
        let mut names = vec![0; 4096];
        let n = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let mut xattrs: Vec<String> = names[..n]
            .split(|&c| c == 0)
            .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
            .map(|name| {
                let mut value = vec![0; 65_536];
                let key = std::ffi::OsStr::from_bytes(name);
                let n = rustix::fs::lgetxattr(&path, key, &mut value[..]).unwrap();
                format!(" {}={}", key.display(), crate::Digest::of(&value[..n]).short())
            })
            .collect();
        xattrs.sort();
        line += &xattrs.concat();
        all.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    all
}

fn mounted_listing(erofs: &Path, at: &Path) -> BTreeMap<PathBuf, String> {
    mount(erofs, at, "erofs", MountFlags::RDONLY, None).unwrap();
    let all = listing(at);
    unmount(at, rustix::mount::UnmountFlags::empty()).unwrap();
    all
}

fn overlay_listing(dirs: &[PathBuf], at: &Path) -> BTreeMap<PathBuf, String> {
    // Two layers at least, or overlayfs refuses a mount without an upper one.
    let empty = at.with_extension("empty");
    fs::create_dir_all(&empty).unwrap();
    let lower: Vec<String> = dirs.iter().rev().map(|dir| dir.display().to_string()).collect();
    // Mount options have at most a page; the file-system context has no limit.
    let fs = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::empty()).unwrap();
    for dir in lower.iter().map(String::as_str).chain([empty.to_str().unwrap()]) {
        rustix::mount::fsconfig_set_string(&fs, "lowerdir+", dir).unwrap();
    }
    rustix::mount::fsconfig_create(&fs).unwrap();
    let mounted = rustix::mount::fsmount(
        &fs,
        rustix::mount::FsMountFlags::empty(),
        rustix::mount::MountAttrFlags::empty(),
    )
    .unwrap();
    rustix::mount::move_mount(
        &mounted,
        "",
        rustix::fs::CWD,
        at,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .unwrap();
    drop(mounted);
    let all = listing(at);
    unmount(at, rustix::mount::UnmountFlags::empty()).unwrap();
    all
}

fn fsck(image: &Path) {
    match Command::new("fsck.erofs").arg("--extract").arg(image).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            assert!(out.status.success(), "{said}");
        }
        Err(e) => println!("not run: fsck.erofs ({e}; apt install erofs-utils)"),
    }
}

/// Everything that a file system can hold, in sizes around the block's.
fn rich() -> Vec<Layer> {
    let mut layer = vec![directory("."), directory("many"), directory("sizes")];
    layer[0].0.mode = 0o711;
    for size in [0, 1, 100, 3967, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 100_000] {
        let data: Vec<u8> = (0..size).map(|i: usize| (i * 7 + size) as u8).collect();
        layer.push(file(&format!("sizes/{size}"), &data));
    }
    for i in 0..1500 {
        layer.push(file(&format!("many/a-name-that-is-not-short-{i:05}"), b""));
    }
    let mut odd = file("odd", b"owner and time");
    odd.0.uid = 70_000;
    odd.0.gid = 4_294_967_000;
    odd.0.mode = 0o6751;
    odd.0.mtime = Time { seconds: -5, nanoseconds: 0 };
    odd.0.xattrs = vec![
        (b"user.z".to_vec(), vec![b'v'; 3000]),
        (b"user.a".to_vec(), Vec::new()),
        (b"trusted.t".to_vec(), b"1".to_vec()),
        // cap_net_raw+ep, version 2.
        (
            b"security.capability".to_vec(),
            vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    layer.push(odd);
    let mut big = file("big-attributes", &[5; 5000]);
    big.0.xattrs = vec![(b"user.big".to_vec(), vec![b'b'; 3500])];
    layer.push(big);
    layer.push(hard_link("many/again", "sizes/4097"));
    layer.push(symlink("link", "sizes/1"));
    layer.push(symlink("long-link", &"x/".repeat(2000)));
    layer.push(other("null", Kind::Character(Device { major: 1, minor: 3 })));
    layer.push(other("far", Kind::Block(Device { major: 259, minor: 70_000 })));
    layer.push(other("pipe", Kind::Fifo));
    layer.push(file(".-sorts-before-dot-dot", b"1"));
    layer.push(file("...", b"1"));
    layer.push(file("-", b"1"));
    let deep = vec!["d"; 200].join("/");
    layer.push(file(&format!("{deep}/bottom"), b"1"));
    vec![layer]
}

#[test]
fn the_kernel_sees_what_went_in() {
    let (dir, store) = store();
    let session = store.session().unwrap();
    let image = image_of(&session, &rich());
    let erofs = session.erofs(&image, Limits::default(), &Silent).unwrap();
    fsck(&erofs);
    if !can_mount() {
        return;
    }
    let layers = session.layer_dirs(&image, Limits::default(), &Silent).unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    with_own_mounts(|| {
        let shown = mounted_listing(&erofs, &at);
        assert_eq!(shown, listing(&layers[0]));
        assert!(shown.len() > 1700);
        mount(&erofs, &at, "erofs", MountFlags::RDONLY, None).unwrap();
        let one = fs::metadata(at.join("many/again")).unwrap();
        let two = fs::metadata(at.join("sizes/4097")).unwrap();
        assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
        assert_eq!(fs::metadata(at.join("sizes")).unwrap().nlink(), 2);
        // Looking up by name is a search by halves in sorted blocks.
        for i in 0..1500 {
            assert!(at.join(format!("many/a-name-that-is-not-short-{i:05}")).exists());
        }
        assert!(!at.join("many/a-name-that-is-not-short-1500").exists());
        unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let bytes: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let (_dir, store) = store();
            let session = store.session().unwrap();
            let image = image_of(&session, &rich());
            fs::read(session.erofs(&image, Limits::default(), &Silent).unwrap()).unwrap()
        })
        .collect();
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let (dir, store) = store();
    let session = store.session().unwrap();
    let image = image_of(&session, &[]);
    let erofs = session.erofs(&image, Limits::default(), &Silent).unwrap();
    fsck(&erofs);
    if can_mount() {
        let at = dir.path().join("mnt");
        fs::create_dir(&at).unwrap();
        let shown = with_own_mounts(|| mounted_listing(&erofs, &at));
        assert_eq!(shown.len(), 1);
    }
}

/// A layer of random changes in a small tree, so that they meet often.
fn random_layer(random: &mut Random) -> Layer {
    fn path(random: &mut Random) -> String {
        let depth = 1 + random.below(3);
        let parts: Vec<&str> = (0..depth).map(|_| ["a", "b", "c", "d"][random.below(4)]).collect();
        parts.join("/")
    }
    let mut layer = Layer::new();
    for _ in 0..1 + random.below(10) {
        let path_here = path(random);
        let mut entry = match random.below(12) {
            0..=3 => {
                let size = [0, 10, 4096, 5000][random.below(4)];
                file(&path_here, &vec![random.below(256) as u8; size])
            }
            4..=6 => directory(&path_here),
            7 => symlink(&path_here, "somewhere/else"),
            8 => hard_link(&path_here, &path(random)),
            9 => other(&path_here, Kind::Fifo),
            10 => {
                let (dir, name) = path_here.rsplit_once('/').unwrap_or((".", &path_here));
                file(&format!("{dir}/.wh.{name}"), b"")
            }
            _ => file(&format!("{path_here}/.wh..wh..opq"), b""),
        };
        let is_link = matches!(entry.0.kind, Kind::Hardlink(_) | Kind::Symlink(_));
        if !is_link {
            entry.0.mode = [0o755, 0o700, 0o644][random.below(3)];
        }
        entry.0.mtime = Time { seconds: random.below(1000) as i64, nanoseconds: 0 };
        layer.push(entry);
    }
    layer
}

/// `GUISE_LAYER_STACKS` says how many.
#[test]
fn merged_layers_are_what_overlayfs_makes_of_them() {
    if !can_mount() {
        return;
    }
    let mut compared = 0;
    let stacks = std::env::var("GUISE_LAYER_STACKS").map_or(300, |n| n.parse().unwrap());
    with_own_mounts(|| {
        // Most stacks are refused, by both in the same way.
        for seed in 1..=stacks {
            let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
            let layers: Vec<Layer> =
                (0..1 + random.below(4)).map(|_| random_layer(&mut random)).collect();
            let (dir, store) = store();
            let session = store.session().unwrap();
            let image = image_of(&session, &layers);
            let erofs = session.erofs(&image, Limits::default(), &Silent);
            let dirs = session.layer_dirs(&image, Limits::default(), &Silent);
            let (erofs, dirs) = match (erofs, dirs) {
                (Ok(erofs), Ok(dirs)) => (erofs, dirs),
                (Err(_), Err(_)) => continue,
                (one, two) => panic!("seed {seed}: {one:?} but {two:?} of {layers:#?}"),
            };
            let at = dir.path().join("mnt");
            fs::create_dir(&at).unwrap();
            let shown = mounted_listing(&erofs, &at);
            let expected = overlay_listing(&dirs, &at);
            assert_eq!(shown, expected, "seed {seed}: {layers:#?}");
            compared += 1;
        }
    });
    println!("{compared} stacks compared");
    assert!(compared >= 20, "only {compared} stacks were compared");
}
