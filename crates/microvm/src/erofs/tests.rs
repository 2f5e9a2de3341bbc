use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::bootable::disk_of;
use crate::files::{Below, Source, find};

fn made(tree: &Path) -> Vec<u8> {
    let image = tree.with_extension("erofs");
    let mut command = Command::new("mkfs.erofs");
    // Extended inodes and plain files, as the store makes them.
    let made = command.args(["--all-root", "-Enoinline_data,force-inode-extended"]);
    let made = made.arg(&image).arg(tree).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::read(image).unwrap()
}

fn compact(tree: &Path) -> Vec<u8> {
    let image = tree.with_extension("compact");
    let mut command = Command::new("mkfs.erofs");
    let made = command.args(["--all-root", "-Eforce-inode-compact"]).arg(&image).arg(tree).output();
    assert!(made.as_ref().unwrap().status.success(), "{made:?}");
    std::fs::read(image).unwrap()
}

fn open(bytes: &[u8]) -> Option<Erofs> {
    Erofs::open(disk_of(bytes)).unwrap()
}

#[test]
fn files_are_found_and_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let many = tree.join("deep/many");
    std::fs::create_dir_all(&many).unwrap();
    let long: Vec<u8> = (0..3_000_001_u32).map(|at| (at.wrapping_mul(40_503) >> 8) as u8).collect();
    std::fs::write(tree.join("long"), &long).unwrap();
    std::fs::write(tree.join("short"), "short\n").unwrap();
    std::fs::write(tree.join("empty"), "").unwrap();
    for number in 0..600 {
        std::fs::write(many.join(format!("a-longer-name-{number}")), number.to_string()).unwrap();
    }
    symlink("/deep/many", tree.join("absolute")).unwrap();
    symlink("../short", tree.join("deep/up")).unwrap();
    symlink("circle", tree.join("circle")).unwrap();
    for bytes in [made(&tree), compact(&tree)] {
        let files = Below { files: open(&bytes).unwrap(), top: "" };
        let read = |path: &str| files.read(path, 4 << 20).unwrap();
        assert_eq!(read("/long").unwrap(), long);
        assert_eq!(read("/empty").unwrap(), b"");
        assert_eq!(read("/deep/up").unwrap(), b"short\n");
        assert_eq!(read("/absolute/a-longer-name-599").unwrap(), b"599");
        assert_eq!(read("/deep/many/../../short").unwrap(), b"short\n");
        assert!(read("/deep").is_none() && read("/none").is_none() && read("/short/x").is_none());
        assert!(files.is_file("/short") && !files.is_file("/circle") && !files.is_file("/deep"));
        assert!(find(&files.files, "/circle").is_err());
        assert!(files.read("/long", 1 << 20).is_err());
        assert_eq!(files.list("/deep/many").unwrap().len(), 600);
        let mut top = files.list("/").unwrap();
        top.sort_by(|one, other| one.0.cmp(&other.0));
        let names: Vec<&str> = top.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["absolute", "circle", "deep", "empty", "long", "short"]);
        assert_eq!((top[0].1, top[2].1, top[3].1), (Kind::Link, Kind::Folder, Kind::File));
        assert!(files.list("/short").unwrap().is_empty());
    }
}

/// Whatever a byte is changed to, reading ends, and without a panic.
#[test]
fn what_is_damaged_is_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("boot")).unwrap();
    std::fs::write(tree.join("boot/vmlinuz-6.1"), vec![7; 5000]).unwrap();
    symlink("boot", tree.join("link")).unwrap();
    let good = made(&tree);
    for at in (1024..1152).chain(4096..good.len()) {
        for change in [0xff, 0x80, 1] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            let Ok(Some(files)) = Erofs::open(disk_of(&bytes)) else { continue };
            let files = Below { files, top: "" };
            for path in ["/", "/boot", "/link"] {
                let _ = files.list(path);
            }
            let _ = files.read("/link/vmlinuz-6.1", 1 << 20);
        }
    }
    assert!(open(b"").is_none() && open(&[0; 8192]).is_none());
    assert!(Erofs::open(disk_of(&good[..1152])).unwrap().unwrap().root().is_err());
}
