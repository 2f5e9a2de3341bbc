//! Both ways with the distribution's `qemu-img`: what Guise writes, it checks
//! and finds equal; what it writes, Guise reads as equal. Without `qemu-img`
//! these tests fail, unless `GUISE_DISK_WITHOUT_QEMU=1` says that the machine
//! cannot have it; then a line says so.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Random;
use guise_disk::format::{FormatKind, Repair};
use guise_disk::graph::{BackingPolicy, Image, Node, OpenOptions};
use guise_disk::ops::{self, Comparison, CopyOptions, CreateRequest, Quiet};

/// Formats and options that both programs know.
const VARIANTS: &[(FormatKind, &str)] = &[
    (FormatKind::Qcow2, ""),
    (FormatKind::Qcow2, "compat=v2"),
    (FormatKind::Qcow2, "compat=0.10,cluster_size=4k"),
    (FormatKind::Qcow2, "cluster_size=512"),
    (FormatKind::Qcow2, "cluster_size=1k,refcount_bits=2"),
    (FormatKind::Qcow2, "cluster_size=2k,refcount_bits=4"),
    (FormatKind::Qcow2, "cluster_size=32k,refcount_bits=8"),
    (FormatKind::Qcow2, "cluster_size=512k,refcount_bits=32"),
    (FormatKind::Qcow2, "cluster_size=2M"),
    (FormatKind::Qcow2, "extended_l2=on"),
    (FormatKind::Qcow2, "extended_l2=on,cluster_size=16k"),
    (FormatKind::Qcow2, "refcount_bits=1"),
    (FormatKind::Qcow2, "refcount_bits=64"),
    (FormatKind::Qcow2, "lazy_refcounts=on"),
    (FormatKind::Qcow2, "preallocation=metadata"),
    (FormatKind::Qcow2, "preallocation=falloc,extended_l2=on"),
    (FormatKind::Qcow2, "preallocation=full"),
    (FormatKind::Qcow2, "data_file=external.raw"),
    (FormatKind::Qcow2, "data_file=external.raw,data_file_raw=on"),
    (FormatKind::Vdi, ""),
    (FormatKind::Vdi, "static=on"),
    (FormatKind::Parallels, ""),
    (FormatKind::Parallels, "cluster_size=64k"),
    (FormatKind::Vhd, ""),
    (FormatKind::Vhd, "subformat=fixed"),
    (FormatKind::Vhd, "force_size=on"),
    (FormatKind::Vhd, "force_size=on,subformat=fixed"),
    (FormatKind::Vhdx, ""),
    (FormatKind::Vhdx, "subformat=fixed"),
    (FormatKind::Vhdx, "block_size=1M"),
    (FormatKind::Vhdx, "block_size=256M,log_size=3M,block_state_zero=off"),
    (FormatKind::Vmdk, "subformat=monolithicSparse"),
    (FormatKind::Vmdk, "subformat=monolithicSparse,zeroed_grain=on"),
    (FormatKind::Vmdk, "adapter_type=lsilogic,hwversion=7"),
    (FormatKind::Vmdk, "compat6=on"),
    (FormatKind::Vmdk, "subformat=monolithicFlat"),
    (FormatKind::Vmdk, "subformat=monolithicFlat,preallocation=falloc"),
    (FormatKind::Vmdk, "subformat=twoGbMaxExtentSparse"),
    (FormatKind::Vmdk, "subformat=twoGbMaxExtentFlat"),
    (FormatKind::Vmdk, "subformat=streamOptimized"),
];

fn qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        let excused = std::env::var_os("GUISE_DISK_WITHOUT_QEMU").is_some();
        assert!(excused, "qemu-img is not installed: install qemu-utils");
        eprintln!("NOT RUN: comparison with qemu-img, which is not installed here");
    }
    found
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("guise-disk-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("make a directory");
        Self(dir)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn empty(&self) {
        for entry in std::fs::read_dir(&self.0).expect("list") {
            let path = entry.expect("entry").path();
            if path.file_name().is_some_and(|name| name != "source.raw") {
                std::fs::remove_file(path).expect("remove");
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("remove the directory");
    }
}

/// Runs qemu-img; gives its exit code.
fn run(program: &str, args: &[&str]) -> i32 {
    let output = Command::new(program).args(args).output().expect("start");
    let code = output.status.code().unwrap_or(-1);
    if code != 0 && code != 63 {
        eprintln!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    code
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Data, text, zeroes and holes, with an odd end.
fn source(path: &Path) {
    let mut random = Random::new(7);
    let size = (6 << 20) + 3584;
    let mut bytes = vec![0; size];
    for chunk in bytes.chunks_mut(32 << 10) {
        match random.below(4) {
            0 => chunk.iter_mut().for_each(|byte| *byte = random.next() as u8),
            1 => chunk.iter_mut().enumerate().for_each(|(at, byte)| *byte = b"some text "[at % 10]),
            _ => {}
        }
    }
    bytes[size - 100..].fill(3);
    std::fs::write(path, bytes).expect("write the source");
}

fn options(list: &str) -> BTreeMap<String, String> {
    list.split(',')
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn open(path: &Path, kind: FormatKind, write: bool) -> Image {
    let options = OpenOptions {
        format: Some(kind),
        write,
        backing: BackingPolicy::SameDirectory,
        ..OpenOptions::default()
    };
    Image::open(path, &options).unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

fn convert(from: &Path, to: &Path, kind: FormatKind, list: &str, compress: bool) {
    let source = open(from, FormatKind::Raw, false);
    let mut request = CreateRequest::new(to, kind, Some(source.size()));
    request.options = options(list);
    ops::create(&request).expect("create");
    let target = open(to, kind, true);
    let copy = CopyOptions {
        compress: compress || target.format().always_packed(),
        target_is_zero: true,
        ..CopyOptions::default()
    };
    ops::copy(&source, &target, &copy, &Quiet).expect("copy");
    target.close().expect("close");
}

fn check_with_both(path: &Path, kind: FormatKind, what: &str) {
    let code = run("qemu-img", &["check", "-q", "-f", kind.qemu_name(), text(path)]);
    assert!(code == 0 || code == 63, "{what}: qemu-img check says {code}");
    let report = open(path, kind, false).format().check(Repair::Nothing).expect("check");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{what}: {:?}", report.findings);
}

fn equal(source: &Path, path: &Path, kind: FormatKind, what: &str) {
    let outcome = ops::compare(
        &open(source, FormatKind::Raw, false),
        &open(path, kind, false),
        false,
        &Quiet,
    );
    match outcome.expect("compare") {
        Comparison::Equal => {}
        // Without force_size, qemu-img makes a disk of whole cylinders.
        Comparison::EqualButForSize if kind == FormatKind::Vhd => {}
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn every_format_both_ways() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("both-ways");
    let raw = dir.file("source.raw");
    source(&raw);
    for &(kind, list) in VARIANTS {
        let what = format!("{} {list}", kind.name());
        // qemu-img takes the paths of data files from its working directory.
        let list = &list.replace("external.raw", text(&dir.file("external.raw")));
        let ours = dir.file("ours.img");
        convert(&raw, &ours, kind, list, false);
        check_with_both(&ours, kind, &what);
        equal(&raw, &ours, kind, &what);
        let args = ["compare", "-q", "-f", "raw", "-F", kind.qemu_name(), text(&raw), text(&ours)];
        assert_eq!(run("qemu-img", &args), 0, "{what}: qemu-img finds it different");
        dir.empty();
        let theirs = dir.file("theirs.img");
        let mut args = vec!["convert", "-f", "raw", "-O", kind.qemu_name()];
        if !list.is_empty() {
            args.extend(["-o", list]);
        }
        args.extend([text(&raw), text(&theirs)]);
        assert_eq!(run("qemu-img", &args), 0, "{what}: qemu-img convert");
        equal(&raw, &theirs, kind, &format!("{what} of qemu-img"));
        check_with_both(&theirs, kind, &format!("{what} of qemu-img"));
        dir.empty();
    }
}

#[test]
fn compressed_both_ways() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("compressed");
    let raw = dir.file("source.raw");
    source(&raw);
    for list in [
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zlib,cluster_size=2M",
        "compression_type=zstd,cluster_size=4k",
        "compression_type=zlib,extended_l2=on",
        "refcount_bits=2",
    ] {
        let ours = dir.file("ours.qcow2");
        convert(&raw, &ours, FormatKind::Qcow2, list, true);
        check_with_both(&ours, FormatKind::Qcow2, list);
        equal(&raw, &ours, FormatKind::Qcow2, list);
        let args = ["compare", "-q", "-f", "raw", "-F", "qcow2", text(&raw), text(&ours)];
        assert_eq!(run("qemu-img", &args), 0, "{list}: qemu-img finds it different");
        let theirs = dir.file("theirs.qcow2");
        let args =
            ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", list, text(&raw), text(&theirs)];
        assert_eq!(run("qemu-img", &args), 0, "{list}: qemu-img convert");
        equal(&raw, &theirs, FormatKind::Qcow2, &format!("{list} of qemu-img"));
        dir.empty();
    }
}

#[test]
fn snapshots_and_bitmaps_of_the_other() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("snapshots");
    let raw = dir.file("source.raw");
    source(&raw);
    let image = dir.file("image.qcow2");
    convert(&raw, &image, FormatKind::Qcow2, "", false);
    let path = text(&image);
    assert_eq!(run("qemu-img", &["snapshot", "-c", "theirs", path]), 0);
    assert_eq!(run("qemu-img", &["bitmap", "--add", path, "bitmap"]), 0);
    {
        let image = open(&image, FormatKind::Qcow2, true);
        image.write(1 << 20, &[9; 70_000]).expect("write");
        let qcow2 = image.format().as_qcow2().expect("qcow2");
        qcow2.create_snapshot("ours", (1, 2)).expect("snapshot");
        image.write(0, &[8; 70_000]).expect("write");
        let dirty = qcow2.dirty_stretches("bitmap").expect("dirty");
        assert_eq!(dirty, [(0, 131_072), (1 << 20, 131_072)]);
        image.close().expect("close");
    }
    check_with_both(&image, FormatKind::Qcow2, "with snapshots and a bitmap");
    let kept = open(&image, FormatKind::Qcow2, false);
    let dirty = kept.format().as_qcow2().expect("qcow2").dirty_stretches("bitmap").expect("dirty");
    assert_eq!(dirty, [(0, 131_072), (1 << 20, 131_072)], "the bitmap is kept");
    drop(kept);
    // Applying a snapshot is what qemu-img refuses while there are bitmaps.
    assert_eq!(run("qemu-img", &["bitmap", "--remove", path, "bitmap"]), 0);
    assert_eq!(run("qemu-img", &["snapshot", "-a", "theirs", path]), 0);
    equal(&raw, &image, FormatKind::Qcow2, "after qemu-img applied its snapshot");
    for name in ["theirs", "ours"] {
        let image = open(&image, FormatKind::Qcow2, true);
        image.format().as_qcow2().expect("qcow2").delete_snapshot(name).expect("delete");
        image.close().expect("close");
    }
    check_with_both(&image, FormatKind::Qcow2, "after the snapshots are gone");
    equal(&raw, &image, FormatKind::Qcow2, "after the snapshots are gone");
}

#[test]
fn encrypted_both_ways() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("encrypted");
    let raw = dir.file("source.raw");
    source(&raw);
    let secret = "secret,id=s,data=passphrase";
    let theirs = dir.file("theirs.qcow2");
    let image_of =
        |path: &Path| format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", text(path));
    let create = [
        "create",
        "-q",
        "--object",
        secret,
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        text(&theirs),
        "8M",
    ];
    assert_eq!(run("qemu-img", &create), 0);
    let target = image_of(&theirs);
    let raw_image = format!("driver=raw,file.filename={}", text(&raw));
    let args = [
        "convert",
        "--object",
        secret,
        "--image-opts",
        "--target-image-opts",
        "-n",
        &raw_image,
        &target,
    ];
    assert_eq!(run("qemu-img", &args), 0);
    let options = OpenOptions {
        passphrases: guise_disk::graph::Passphrases::one("passphrase"),
        ..OpenOptions::write(FormatKind::Qcow2)
    };
    let image = Image::open(&theirs, &options).expect("open");
    let source = open(&raw, FormatKind::Raw, false);
    let outcome = ops::compare(&source, &image, false, &Quiet).expect("compare");
    assert_eq!(outcome, Comparison::EqualButForSize);
    image.write(100_000, &[7; 3000]).expect("write");
    image.close().expect("close");
    // The lock goes with the object.
    drop(image);
    let check = ["compare", "-q", "--object", secret, "--image-opts", &raw_image, &target];
    assert_eq!(run("qemu-img", &check), 1, "the write has changed something");
    let mut old = vec![0; 3000];
    source.read(100_000, &mut old).expect("read");
    let image = Image::open(&theirs, &options).expect("open");
    image.write(100_000, &old).expect("write back");
    image.close().expect("close");
    drop(image);
    assert_eq!(run("qemu-img", &check), 0, "and writing back has undone it");
    let wrong = OpenOptions {
        passphrases: guise_disk::graph::Passphrases::one("wrong"),
        ..OpenOptions::write(FormatKind::Qcow2)
    };
    assert!(Image::open(&theirs, &wrong).is_err());
}

/// `--object` and a name for it, as qemu-img wants passphrases.
const SECRET: [&str; 2] = ["--object", "secret,id=s,data=passphrase"];

fn passphrases() -> guise_disk::graph::Passphrases {
    guise_disk::graph::Passphrases::one("passphrase")
}

#[test]
fn encrypted_here_read_there() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("luks");
    let raw = dir.file("source.raw");
    source(&raw);
    let source = open(&raw, FormatKind::Raw, false);
    let raw_image = format!("driver=raw,file.filename={}", text(&raw));
    for (kind, list, opts) in [
        (FormatKind::Qcow2, "encrypt.format=luks", "driver=qcow2,encrypt.key-secret=s"),
        (
            FormatKind::Qcow2,
            "encrypt.format=luks,extended_l2=on,cluster_size=16k",
            "driver=qcow2,encrypt.key-secret=s",
        ),
        (FormatKind::Luks, "", "driver=luks,key-secret=s"),
    ] {
        let what = format!("{} {list}", kind.name());
        let path = dir.file("image");
        let mut request = CreateRequest::new(&path, kind, Some(source.size()));
        request.options = options(list);
        request.passphrases = passphrases();
        ops::create(&request).expect("create");
        let open = OpenOptions { passphrases: passphrases(), ..OpenOptions::write(kind) };
        let target = Image::open(&path, &open).expect("open");
        let copy = CopyOptions {
            target_is_zero: target.format().starts_zeroed(),
            ..CopyOptions::default()
        };
        ops::copy(&source, &target, &copy, &Quiet).expect("copy");
        target.close().expect("close");
        drop(target);
        let image = format!("{opts},file.filename={}", text(&path));
        let mut args = vec!["compare", "-q"];
        args.extend(SECRET);
        args.extend(["--image-opts", &raw_image, &image]);
        assert_eq!(run("qemu-img", &args), 0, "{what}: qemu-img finds it different");
        dir.empty();
    }
}

#[test]
fn luks_volumes_of_qemu_img_are_read() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("luks-volume");
    let raw = dir.file("source.raw");
    source(&raw);
    let path = dir.file("volume.luks");
    let mut args = vec!["convert"];
    args.extend(SECRET);
    args.extend(["-O", "luks", "-o", "key-secret=s,iter-time=10", "-f", "raw"]);
    args.extend([text(&raw), text(&path)]);
    assert_eq!(run("qemu-img", &args), 0);
    let options =
        OpenOptions { passphrases: passphrases(), ..OpenOptions::read(Some(FormatKind::Luks)) };
    let volume = Image::open(&path, &options).expect("open");
    let source = open(&raw, FormatKind::Raw, false);
    let outcome = ops::compare(&source, &volume, false, &Quiet).expect("compare");
    assert_eq!(outcome, Comparison::Equal);
}

#[test]
fn layers_both_ways() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("layers");
    let raw = dir.file("source.raw");
    source(&raw);
    for kind in [FormatKind::Qcow2, FormatKind::Vmdk] {
        let base = dir.file("base.img");
        convert(&raw, &base, kind, "", false);
        let name = kind.qemu_name();
        let [ours, theirs] = ["ours.img", "theirs.img"].map(|name| dir.file(name));
        let mut request = CreateRequest::new(&ours, kind, None);
        request.backing = Some(guise_disk::format::BackingReference {
            name: "base.img".to_owned(),
            format: Some(name.to_owned()),
        });
        ops::create(&request).expect("create");
        let args = ["create", "-q", "-f", name, "-b", "base.img", "-F", name, text(&theirs)];
        assert_eq!(run("qemu-img", &args), 0);
        let write = "write -P 7 1000k 200k";
        for path in [&ours, &theirs] {
            let image = open(path, kind, true);
            image.write(3 << 20, &[9; 5000]).expect("write");
            image.close().expect("close");
            drop(image);
            assert_eq!(run("qemu-io", &["-f", name, "-c", write, text(path)]), 0);
            check_with_both(path, kind, "a layer");
        }
        let args = ["compare", "-q", "-f", name, "-F", name, text(&ours), text(&theirs)];
        assert_eq!(run("qemu-img", &args), 0, "{name}: qemu-img finds the layers different");
        let outcome =
            ops::compare(&open(&ours, kind, false), &open(&theirs, kind, false), false, &Quiet);
        assert_eq!(outcome.expect("compare"), Comparison::Equal, "{name}");
        dir.empty();
    }
}

#[test]
fn grown_images_are_sound_there() {
    if !qemu() {
        return;
    }
    let dir = Scratch::new("grown");
    let raw = dir.file("source.raw");
    source(&raw);
    let size = 40 << 20;
    for (kind, list) in [
        (FormatKind::Qcow2, ""),
        (FormatKind::Vdi, ""),
        (FormatKind::Parallels, ""),
        (FormatKind::Vhdx, ""),
        (FormatKind::Vhd, ""),
        (FormatKind::Vhd, "force_size=on,subformat=fixed"),
        (FormatKind::Vmdk, ""),
        (FormatKind::Vmdk, "zeroed_grain=on"),
        (FormatKind::Vmdk, "subformat=monolithicFlat"),
        (FormatKind::Vmdk, "subformat=twoGbMaxExtentSparse"),
        (FormatKind::Vmdk, "subformat=twoGbMaxExtentFlat"),
    ] {
        let path = dir.file("image");
        convert(&raw, &path, kind, list, false);
        let image = open(&path, kind, true);
        image.resize(size, guise_disk::format::Preallocation::Off).expect("resize");
        image.write(size - 4096, &[5; 4096]).expect("write at the new end");
        image.write(size - 4096, &[0; 4096]).expect("and zeroes");
        image.close().expect("close");
        drop(image);
        check_with_both(&path, kind, "a grown image");
        let args = ["compare", "-q", "-f", "raw", "-F", kind.qemu_name(), text(&raw), text(&path)];
        assert_eq!(run("qemu-img", &args), 0, "{}: qemu-img finds it different", kind.name());
        let info = ["map", "-f", kind.qemu_name(), "--output", "json", text(&path)];
        assert_eq!(run("qemu-img", &info), 0);
        dir.empty();
    }
}
