use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::limits::Limits;
use crate::progress::Silent;
use crate::store::Store;
use crate::tar::{Device, Entry, Kind, Time};
use crate::testing::{
    Layer, directory, file, hard_link, image_of, image_of_tars, other, symlink, tar,
};
use crate::{Error, Result};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

fn unpack(store: &Store, layers: &[Layer]) -> Result<Vec<std::path::PathBuf>> {
    let session = store.session().unwrap();
    let image = image_of(&session, layers);
    session.layer_dirs(&image, Limits::default(), &Silent)
}

fn error(layers: &[Layer]) -> String {
    let (_dir, store) = store();
    let error = unpack(&store, layers).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    assert_eq!(fs::read_dir(store.path("layers")).unwrap().count(), 0, "nothing may stay");
    assert_eq!(fs::read_dir(store.path("tmp")).unwrap().count(), 0, "nothing may stay");
    error
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn files_come_out_as_they_went_in() {
    let (_dir, store) = store();
    let mut script = file("usr/bin/script", b"#!/bin/sh\n");
    script.0.mode = 0o4755;
    script.0.mtime = Time { seconds: 1_000_000_000, nanoseconds: 0 };
    script.0.xattrs = vec![(b"user.origin".to_vec(), b"here".to_vec())];
    let mut closed = directory("closed");
    closed.0.mode = 0o500;
    closed.0.mtime = Time { seconds: 5, nanoseconds: 0 };
    let layers = [vec![
        closed,
        file("closed/inside", b"x"),
        directory("usr"),
        script,
        symlink("bin", "usr/bin"),
        hard_link("usr/second", "usr/bin/script"),
        other("pipe", Kind::Fifo),
    ]];
    let dirs = unpack(&store, &layers).unwrap();
    let root = &dirs[0];
    let script = fs::metadata(root.join("usr/bin/script")).unwrap();
    assert_eq!(script.mode() & 0o7777, 0o4755);
    assert_eq!(script.mtime(), 1_000_000_000);
    assert_eq!(script.nlink(), 2);
    assert_eq!(script.ino(), fs::metadata(root.join("usr/second")).unwrap().ino());
    assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
    assert!(fs::symlink_metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    let mut value = [0; 16];
    let n = rustix::fs::getxattr(root.join("usr/bin/script"), "user.origin", &mut value[..]);
    assert_eq!(&value[..n.unwrap()], b"here");
    let closed = fs::metadata(root.join("closed")).unwrap();
    assert_eq!((closed.mode() & 0o7777, closed.mtime()), (0o500, 5));
}

#[test]
fn a_second_image_shares_the_layers_below() {
    let (_dir, store) = store();
    let base = vec![file("base", b"1")];
    let one = unpack(&store, &[base.clone(), vec![file("a", b"1")]]).unwrap();
    let two = unpack(&store, &[base, vec![file("b", b"1")]]).unwrap();
    assert_eq!(one[0], two[0]);
    assert_ne!(one[1], two[1]);
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    let (_dir, store) = store();
    let layers = [
        vec![file("gone", b"1"), directory("d"), file("d/old", b"1"), file("e/old", b"1")],
        vec![
            file(".wh.gone", b""),
            file("d/.wh..wh..opq", b""),
            file("d/new", b"2"),
            // Hidden and made again: opaque.
            file(".wh.e", b""),
            file("e/new", b"2"),
            // Book-keeping of AUFS.
            file(".wh..wh.aufs", b""),
        ],
    ];
    let top = unpack(&store, &layers).unwrap().pop().unwrap();
    let gone = fs::symlink_metadata(top.join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let attribute = if is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    for dir in ["d", "e"] {
        let mut value = [0; 1];
        rustix::fs::getxattr(top.join(dir), attribute, &mut value[..]).unwrap();
        assert_eq!(&value, b"y", "{dir}");
        assert!(top.join(dir).join("new").exists());
    }
    assert!(!top.join(".wh..wh.aufs").exists());
}

#[test]
fn links_and_directories_of_lower_layers_are_copied_up() {
    let (_dir, store) = store();
    let mut closed = directory("secret");
    closed.0.mode = 0o700;
    closed.0.mtime = Time { seconds: 7, nanoseconds: 0 };
    let layers = [
        vec![closed, file("secret/data", b"payload")],
        vec![hard_link("copy", "secret/data"), hard_link("copy2", "secret/data")],
        // A directory that this archive goes through without describing.
        vec![file("secret/more", b"2")],
    ];
    let dirs = unpack(&store, &layers).unwrap();
    let copy = fs::metadata(dirs[1].join("copy")).unwrap();
    assert_eq!(fs::read(dirs[1].join("copy")).unwrap(), b"payload");
    assert_eq!(copy.nlink(), 3);
    for dir in &dirs {
        let secret = fs::metadata(dir.join("secret")).unwrap();
        assert_eq!((secret.mode() & 0o7777, secret.mtime()), (0o700, 7), "{}", dir.display());
    }
}

/// CVE-2018-15664, CVE-2019-18466 and their kind: paths that lead out.
#[test]
fn nothing_leaves_the_root() {
    for path in ["../evil", "a/../../evil", "a/..", ".."] {
        let message = error(&[vec![file(path, b"x")]]);
        assert!(message.contains("leads out of the layer"), "{message}");
    }
    let message = error(&[vec![file("a", b""), hard_link("b", "../../../etc/passwd")]]);
    assert!(message.contains("leads out"), "{message}");
    for whiteout in [".wh..", ".wh.", ".wh...", "d/.wh.."] {
        let message = error(&[vec![file(whiteout, b"")]]);
        assert!(message.contains("whiteout outside"), "{message}");
    }
    let message = error(&[vec![symlink("/", "/etc")]]);
    assert!(message.contains("replace the root"), "{message}");
}

/// Symbolic links in a layer that point at the host must end inside the root.
#[test]
fn links_are_resolved_inside_the_root() {
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside_text = outside.to_str().unwrap().to_owned();
    let layers = [vec![
        directory(&outside_text),
        symlink("absolute", &outside_text),
        symlink("up", &format!("{}{}", "../".repeat(40), outside_text)),
        file("absolute/one", b"1"),
        file("up/two", b"2"),
        // Through a link, then replaced: the classic race in one archive.
        directory("swap"),
        file("swap/first", b"1"),
        symlink("swap", &outside_text),
        file("swap/second", b"2"),
        hard_link("stolen", "absolute/one"),
    ]];
    let dirs = unpack(&store, &layers).unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "the host was written to");
    let inside = dirs[0].join(outside_text.trim_start_matches('/'));
    for name in ["one", "two", "second"] {
        assert!(inside.join(name).is_file(), "{name}");
    }
}

#[test]
fn absolute_paths_are_relative_to_the_root() {
    let (_dir, store) = store();
    let dirs = unpack(&store, &[vec![file("/etc/absolute", b"x")]]).unwrap();
    assert!(dirs[0].join("etc/absolute").is_file());
    assert!(!Path::new("/etc/absolute").exists());
}

#[test]
fn what_would_steer_overlayfs_is_refused() {
    for key in ["trusted.overlay.redirect", "user.overlay.metacopy"] {
        let mut entry = file("f", b"");
        entry.0.xattrs = vec![(key.into(), b"/x".to_vec())];
        let message = error(&[vec![entry]]);
        assert!(message.contains("controls overlayfs"), "{message}");
    }
    let device = Kind::Character(Device { major: 0, minor: 0 });
    let message = error(&[vec![other("gone", device)]]);
    assert!(message.contains("whiteout"), "{message}");
}

#[test]
fn other_malformed_layers_are_refused_with_one_line() {
    let message = error(&[vec![hard_link("a", "nowhere")]]);
    assert!(message.contains("nowhere"), "{message}");
    let message = error(&[vec![directory("d"), hard_link("a", "d")]]);
    assert!(message.contains("hard link to a directory"), "{message}");
    let message = error(&[vec![file("f", b""), file("f/g", b"")]]);
    assert!(message.contains("no directory"), "{message}");
    let message = error(&[vec![(Entry::new("l", Kind::Symlink(Vec::new()), 0o777), Vec::new())]]);
    assert!(message.contains("link to nowhere"), "{message}");
    let message = error(&[vec![file(&"n".repeat(256), b"")]]);
    assert!(message.contains("255"), "{message}");
}

#[test]
fn bombs_meet_the_limits() {
    let (_dir, store) = store();
    let session = store.session().unwrap();
    let image = image_of(&session, &[vec![file("zeros", &vec![0; 3 << 20])]]);
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let message = session.layer_dirs(&image, limits, &Silent).unwrap_err().to_string();
    assert!(message.contains("more than 1048576 bytes"), "{message}");
    let limits = Limits { entries: 2, ..Limits::default() };
    let many: Layer = (0..3).map(|i| file(&format!("f{i}"), b"")).collect();
    let image = image_of(&session, &[many]);
    let message = session.layer_dirs(&image, limits, &Silent).unwrap_err().to_string();
    assert!(message.contains("more than 2 files"), "{message}");
    assert_eq!(fs::read_dir(store.path("tmp")).unwrap().count(), 0);
}

#[test]
fn a_layer_that_is_not_what_the_configuration_promised_is_refused() {
    use crate::spec::{Config, Manifest, RootFs, media};
    let (_dir, store) = store();
    let session = store.session().unwrap();
    let layer = session.add_bytes(media::OCI_LAYER, &tar(&vec![file("a", b"1")])).unwrap();
    let config = Config {
        created: None,
        author: None,
        architecture: "amd64".into(),
        os: "linux".into(),
        variant: None,
        config: None,
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![crate::Digest::of(b"other")] },
        history: Vec::new(),
    };
    let config = session.add_json(media::OCI_CONFIG, &config).unwrap();
    let target =
        session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, vec![layer])).unwrap();
    let image = session.image_of(&target, "test", None).unwrap();
    for result in [
        session.layer_dirs(&image, Limits::default(), &Silent).map(drop),
        session.erofs(&image, Limits::default(), &Silent).map(drop),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("the configuration says"), "{message}");
    }
    assert_eq!(fs::read_dir(store.path("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(store.path("erofs")).unwrap().count(), 0);
}

/// Without privilege devices cannot be made: the pull must say so.
#[test]
fn devices_need_root() {
    let layers = [vec![other("null", Kind::Character(Device { major: 1, minor: 3 }))]];
    if is_root() {
        let (_dir, store) = store();
        let dirs = unpack(&store, &layers).unwrap();
        let null = fs::symlink_metadata(dirs[0].join("null")).unwrap();
        assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
        println!("as root: that plain users are refused is tested by the rootless tests");
    } else {
        let message = error(&layers);
        assert!(message.contains("only root can make"), "{message}");
    }
}

#[test]
fn garbage_is_an_error() {
    let (_dir, store) = store();
    let session = store.session().unwrap();
    let good = tar(&vec![file("a", &[1; 5000])]);
    for bytes in [b"garbage".to_vec(), vec![7; 2048], good[..3000].to_vec()] {
        let image = image_of_tars(&session, &[bytes]);
        let error = session.layer_dirs(&image, Limits::default(), &Silent).unwrap_err();
        assert!(matches!(error, Error::Layer { .. }), "{error}");
    }
}
