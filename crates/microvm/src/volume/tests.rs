use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use super::*;
use crate::bootable::disk_of;

/// A file system made by its own tools: of a folder with files of several shapes.
struct Made {
    folder: tempfile::TempDir,
}

const LONG: usize = 3 << 20;

fn long() -> Vec<u8> {
    (0..LONG as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

impl Made {
    fn new(options: &[&str]) -> Made {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        let many = tree.join("deep/many");
        std::fs::create_dir_all(&many).unwrap();
        std::fs::write(tree.join("short"), "short\n").unwrap();
        std::fs::write(tree.join("empty"), "").unwrap();
        std::fs::write(tree.join("long"), long()).unwrap();
        let sparse = File::create(tree.join("sparse")).unwrap();
        sparse.write_all_at(b"begin", 0).unwrap();
        sparse.write_all_at(b"middle", 1 << 20).unwrap();
        sparse.set_len(2 << 20).unwrap();
        for number in 0..600 {
            std::fs::write(many.join(format!("a-longer-name-{number}")), number.to_string())
                .unwrap();
        }
        let link = |target: &str, name: &str| symlink(target, tree.join(name)).unwrap();
        link("short", "relative");
        link("/deep/many", "absolute");
        link("../../short", "deep/up");
        link(&"./".repeat(200), "slow");
        link("circle", "circle");
        link("nowhere", "broken");
        let made = Made { folder };
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-d"]).arg(tree).args(options).arg(made.image()).arg("24M");
        run(&mut command);
        made
    }

    fn image(&self) -> std::path::PathBuf {
        self.folder.path().join("image")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.image()).unwrap()
    }

    fn volume(&self) -> Volume {
        open(&self.bytes()).unwrap().unwrap()
    }

    /// What `debugfs` does and says.
    fn debugfs(&self, lines: &str) -> String {
        let list = self.folder.path().join("list");
        std::fs::write(&list, lines).unwrap();
        run(Command::new("debugfs").arg("-w").arg("-f").arg(list).arg(self.image()))
    }

    /// The number of a file's first block.
    fn first_block(&self, path: &str) -> u64 {
        let said = self.debugfs(&format!("blocks {path}\n"));
        let numbers = said.lines().find(|line| !line.starts_with("debugfs")).unwrap();
        numbers.split_whitespace().next().unwrap().parse().unwrap()
    }
}

fn run(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn open(bytes: &[u8]) -> Result<Option<Volume>> {
    Volume::open(Stretch::whole(disk_of(bytes)))
}

fn content(volume: &Volume, path: &str) -> Option<Vec<u8>> {
    let inode = volume.find(path).unwrap()?;
    Some(volume.read(&inode, path, 64 << 20).unwrap())
}

#[track_caller]
fn check_tree(volume: &Volume) {
    for path in ["/short", "short", "//deep/../short", "/relative", "/deep/up", "/slow/short"] {
        assert_eq!(content(volume, path).as_deref(), Some(&b"short\n"[..]), "{path}");
    }
    for path in ["/none", "/short/none", "/broken", "/deep/none", "/deep/many/none"] {
        assert!(content(volume, path).is_none(), "{path}");
    }
    assert_eq!(content(volume, "/empty").unwrap(), b"");
    assert!(content(volume, "/long").unwrap() == long());
    let sparse = content(volume, "/sparse").unwrap();
    assert_eq!(
        (sparse.len(), &sparse[..5], &sparse[1 << 20..][..6]),
        (2 << 20, &b"begin"[..], &b"middle"[..])
    );
    assert_eq!(sparse.iter().filter(|byte| **byte != 0).count(), 11);
    for number in [0, 1, 299, 599] {
        let path = format!("/absolute/a-longer-name-{number}");
        assert_eq!(content(volume, &path).unwrap(), number.to_string().into_bytes());
    }
    let names = volume.names("/deep/many").unwrap();
    assert_eq!(names.iter().filter(|name| name.starts_with(b"a-longer-name-")).count(), 600);
    assert!(matches!(volume.find("/circle"), Err(VolumeError::Damaged(_))));
    assert_eq!(volume.names("/short").unwrap(), Vec::<Vec<u8>>::new());
}

#[test]
fn file_systems_of_all_kinds_are_read() {
    for options in [
        &["-b", "4096"][..],
        &["-b", "1024"],
        &["-b", "2048", "-O", "^64bit"],
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext3", "-I", "128"],
        &["-b", "1024", "-g", "1024"],
        &["-O", "^metadata_csum,^flex_bg"],
    ] {
        println!("{options:?}");
        let made = Made::new(options);
        check_tree(&made.volume());
        // With an index in the large directory.
        let done = Command::new("e2fsck").args(["-fyD"]).arg(made.image()).output().unwrap();
        assert!(done.status.code().is_some_and(|code| code <= 1), "{done:?}");
        check_tree(&made.volume());
    }
}

#[test]
fn it_is_called_as_its_tools_call_it() {
    let made = Made::new(&["-U", "01234567-89ab-4cde-8f01-23456789abcd"]);
    assert_eq!(made.volume().uuid(), "01234567-89ab-4cde-8f01-23456789abcd");
}

#[test]
fn the_journal_has_the_last_word() {
    for (options, opened) in [
        (&["-b", "1024"][..], "jo"),
        (&["-b", "1024", "-O", "^64bit,^metadata_csum"], "jo"),
        (&["-b", "4096"], "jo -c"),
    ] {
        println!("{options:?} {opened}");
        let made = Made::new(options);
        let (short, sparse) = (made.first_block("/short"), made.first_block("/sparse"));
        let size = made.volume().block_size as usize;
        // One that looks like the journal's own blocks is kept without that.
        let mut newer = vec![b'n'; size];
        newer[..4].copy_from_slice(&journal::MAGIC.to_be_bytes());
        let place = made.folder.path().join("newer");
        std::fs::write(&place, &newer).unwrap();
        let place = place.display();
        made.debugfs(&format!(
            "{opened}\njw -b {short} {place}\njc\n{opened}\njw -b {sparse} {place}\njc\n\
             {opened}\njw -r {sparse}\njc\n"
        ));
        let volume = made.volume();
        assert_eq!(content(&volume, "/short").unwrap(), &newer[..6], "it is replayed");
        assert_eq!(&content(&volume, "/sparse").unwrap()[..5], b"begin", "it is revoked");
        assert!(content(&volume, "/long").unwrap() == long());
    }
}

#[test]
fn what_is_cut_off_is_told() {
    let made = Made::new(&[]);
    let bytes = made.bytes();
    let cut = open(&bytes[..bytes.len() - 1]).err().unwrap();
    assert!(matches!(cut, VolumeError::CutOff { claimed: 24, there: 23 }), "{cut}");
    assert!(open(&bytes[..2047]).unwrap().is_none());
    assert!(open(&vec![0; 1 << 20]).unwrap().is_none());
}

#[test]
fn what_is_too_large_is_not_read() {
    let volume = Made::new(&[]).volume();
    let inode = volume.find("/long").unwrap().unwrap();
    let refused = volume.read(&inode, "/long", LONG as u64 - 1).unwrap_err();
    assert_eq!(refused.to_string(), "/long is larger than 2 MiB");
}

#[test]
fn reading_without_end_ends() {
    let made = Made::new(&[]);
    let volume = made.volume();
    let inode = volume.find("/sparse").unwrap().unwrap();
    let mut copies = 0;
    let refused = loop {
        match volume.copy(&inode, "/sparse", u64::MAX, &mut std::io::sink()) {
            Ok(()) => copies += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, VolumeError::Damaged(_)), "{refused}");
    assert!(copies >= Stretch::MOST / (2 << 20) - 10);
}

/// Every byte of what describes a file system, in turn, is another one.
#[test]
fn no_damage_does_harm() {
    let made = Made::new(&["-b", "1024", "-O", "^metadata_csum", "-N", "1024"]);
    made.debugfs("jo\njw -r 5\njc\n");
    let bytes = made.bytes();
    let places = (1024..1536).chain(2048..2112).chain((bytes.len() / 24..).take(512));
    let disk = disk_of(&bytes);
    for place in places {
        for flip in [0xff, 0x01, 0x80] {
            let was = bytes[place];
            disk.write(place as u64, &[was ^ flip]).unwrap();
            if let Ok(Some(volume)) = Volume::open(Stretch::whole(disk.clone())) {
                for path in ["/short", "/absolute/a-longer-name-7", "/slow", "/sparse"] {
                    if let Ok(Some(inode)) = volume.find(path) {
                        let _ = volume.copy(&inode, path, 8 << 20, &mut std::io::sink());
                    }
                }
            }
            disk.write(place as u64, &[was]).unwrap();
        }
    }
}
