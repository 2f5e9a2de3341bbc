//! `guise disk` as a program: its own commands, its errors in one line, and what
//! it prints under the names of QEMU's tools beside what these print. Without
//! `qemu-img` the comparisons fail, unless `GUISE_DISK_WITHOUT_QEMU=1` says that
//! the machine cannot have it; then a line says so.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory in which programs run, with links to Guise under other names.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().expect("a directory"));
        std::fs::create_dir(place.path().join("bin")).expect("make a directory");
        for name in ["qemu-img", "qemu-io"] {
            let link = place.path().join("bin").join(name);
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_guise"), link).expect("link");
        }
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, program: impl AsRef<std::ffi::OsStr>, line: &str) -> Output {
        // Words with spaces in them stand in single quotes.
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        Command::new(program).args(words).current_dir(self.path()).output().expect("start")
    }

    fn guise(&self, line: &str) -> Output {
        self.run(env!("CARGO_BIN_EXE_guise"), &format!("disk {line}"))
    }

    /// Guise under another name.
    fn ours(&self, name: &str, line: &str) -> Output {
        self.run(self.path().join("bin").join(name), line)
    }

    fn done(&self, line: &str) -> String {
        let output = self.guise(line);
        assert!(output.status.success(), "{line}: {}", errors(&output));
        text(&output)
    }

    /// The line that a failing command tells.
    fn refused(&self, line: &str) -> String {
        let output = self.guise(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        let told = errors(&output);
        assert_eq!(told.lines().count(), 1, "{line}: {told}");
        told.trim_end().to_owned()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        let excused = std::env::var_os("GUISE_DISK_WITHOUT_QEMU").is_some();
        assert!(excused, "qemu-img is not installed: install qemu-utils");
        eprintln!("NOT RUN: comparison with qemu-img, which is not installed here");
    }
    found
}

/// What takes time is told differently each time.
fn without_times(text: &str) -> String {
    text.lines().filter(|line| !line.contains(" ops; ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn prints_what_qemus_tools_print() {
    if !qemu() {
        return;
    }
    // In both directories the same; the second program reads what its twin wrote.
    let (here, there) = (Place::new(), Place::new());
    for (program, line) in [
        ("qemu-img", "create -f qcow2 a.qcow2 64M"),
        ("qemu-img", "create -f raw a.raw 10M"),
        (
            "qemu-io",
            "-f qcow2 -c 'write -P 7 0 128k' -c 'write -z 1M 64k' -c 'read -v 0 32' a.qcow2",
        ),
        ("qemu-io", "-f raw -c 'write -P 9 1M 4k' -c 'read -P 9 -s 512 -l 512 1M 4k' a.raw"),
        ("qemu-img", "create -f qcow2 -b a.qcow2 -F qcow2 b.qcow2"),
        ("qemu-img", "map -f qcow2 a.qcow2"),
        ("qemu-img", "check -f qcow2 a.qcow2"),
        ("qemu-img", "check -f raw a.raw"),
        ("qemu-img", "check --output json -f qcow2 a.qcow2"),
        ("qemu-img", "compare a.qcow2 b.qcow2"),
        ("qemu-img", "compare a.qcow2 a.raw"),
        ("qemu-img", "compare -s a.qcow2 a.raw"),
        ("qemu-img", "measure --size 1G -O qcow2 --output json"),
        ("qemu-img", "measure --size 1G -O raw"),
        ("qemu-img", "resize -f qcow2 b.qcow2 +64M"),
        ("qemu-img", "resize -f qcow2 b.qcow2 1M"),
        ("qemu-img", "snapshot -c one a.qcow2"),
        ("qemu-img", "snapshot -d none a.qcow2"),
        ("qemu-img", "rebase -u -b '' b.qcow2"),
        ("qemu-img", "convert -f qcow2 -O raw b.qcow2 c.raw"),
        ("qemu-img", "compare b.qcow2 c.raw"),
        ("qemu-img", "bitmap --add a.qcow2 marks"),
    ] {
        let (ours, theirs) = (here.ours(program, line), there.run(program, line));
        let both = |output: &Output| {
            (output.status.code(), without_times(&text(output)), errors(output).is_empty())
        };
        assert_eq!(both(&ours), both(&theirs), "{program} {line}\n{}", errors(&ours));
    }
    let one = std::fs::read(here.path().join("c.raw")).expect("read");
    assert!(one == std::fs::read(there.path().join("c.raw")).expect("read"));
}

/// What both programs' maps say, in words that do not depend on their versions.
fn stretches(output: &Output) -> Vec<serde_json::Value> {
    let told: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let facts = ["start", "length", "depth", "present", "zero", "data", "offset"];
    told.into_iter().map(|map| facts.iter().map(|fact| map[fact].clone()).collect()).collect()
}

#[test]
fn maps_tell_zeroes_as_qemus_do() {
    if !qemu() {
        return;
    }
    let (here, there) = (Place::new(), Place::new());
    let twins = |program: &str, line: &str| {
        let (ours, theirs) = (here.ours(program, line), there.run(program, line));
        assert!(ours.status.success(), "{program} {line}: {}", errors(&ours));
        assert!(theirs.status.success(), "{program} {line}: {}", errors(&theirs));
        (ours, theirs)
    };
    for options in ["cluster_size=64k", "extended_l2=on", "compat=v2", "cluster_size=4k"] {
        twins("qemu-img", &format!("create -q -f qcow2 -o {options} a.qcow2 8M"));
        twins("qemu-img", "create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 9M");
        for (file, commands) in [
            ("a.qcow2", "-c 'write -P 7 0 256k' -c 'write -z 1M 64k' -c 'write -z 2052k 4k'"),
            ("a.qcow2", "-c 'write -z 3000k 200k' -c 'discard 64k 64k' -c 'discard 4M 64k'"),
            ("a.qcow2", "-c 'write -z -u 128k 64k' -c 'write -z 8000k 192k'"),
            ("b.qcow2", "-c 'write -z 0 64k' -c 'discard 192k 64k' -c 'discard 1M 64k'"),
            ("b.qcow2", "-c 'write -P 5 5M 4k' -c 'write -z 5124k 60k' -c 'write -z 7M 2M'"),
        ] {
            twins("qemu-io", &format!("-f qcow2 {commands} {file}"));
            let (ours, theirs) = twins("qemu-img", &format!("map --output json {file}"));
            assert_eq!(stretches(&ours), stretches(&theirs), "{options}: {file} {commands}");
        }
    }
}

/// The options that a list names, with what they take.
fn listed(output: &Output) -> Vec<String> {
    let lines = text(output);
    let options = lines.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(" - "));
    options.map(|(named, _)| named.trim_end().to_owned()).collect()
}

#[test]
fn lists_the_options_that_qemus_tools_have() {
    if !qemu() {
        return;
    }
    let place = Place::new();
    // What is not here: hints for file systems, what is deprecated there, and LUKS headers in
    // files of their own, which QEMU has since 9.0.
    let missing = [
        "extent_size_hint=<size>",
        "encryption=<bool (on/off)>",
        "detached-header=<bool (on/off)>",
    ];
    for format in ["raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi", "parallels", "luks"] {
        let line = format!("create -f {format} -o help disk");
        let ours = place.ours("qemu-img", &line);
        assert!(ours.status.success(), "{}", errors(&ours));
        let (ours, theirs) = (listed(&ours), listed(&place.run("qemu-img", &line)));
        assert!(theirs.len() > 2, "{theirs:?}");
        for option in theirs.iter().filter(|option| !missing.contains(&option.as_str())) {
            assert!(ours.contains(option), "{format} has no {option}: {ours:?}");
        }
    }
    for line in ["create -f qcow2 -o help", "convert -O vmdk -o help", "amend -f qcow2 -o help"] {
        let ours = place.ours("qemu-img", line);
        let theirs = place.run("qemu-img", line);
        assert_eq!(text(&ours).lines().next(), text(&theirs).lines().next(), "{line}");
        assert!(listed(&ours).contains(&"size=<size>".to_owned()), "{line}");
    }
    let told = place.refused("amend -f raw -o help disk");
    assert!(told.contains("no options that can be amended"), "{told}");
}

#[test]
fn encryption_is_chosen_as_with_qemus_tools() {
    if !qemu() {
        return;
    }
    let place = Place::new();
    std::fs::write(place.path().join("pw"), "secret").expect("write");
    std::fs::write(place.path().join("source.raw"), vec![7; 1 << 20]).expect("write");
    let secret = "--object secret,id=s,data=secret";
    for (format, prefix, choices) in [
        ("luks", "", "cipher-alg=aes-128,hash-alg=sha1"),
        ("luks", "", "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512"),
        ("qcow2", "encrypt.", "encrypt.format=luks,encrypt.cipher-mode=cbc"),
    ] {
        let options = format!("{prefix}iter-time=10,{choices},{prefix}key-secret=s");
        place.done(&format!(
            "convert {secret} -f raw -O {format} -o {options} source.raw disk.{format}"
        ));
        let disk = format!("driver={format},{prefix}key-secret=s,file.filename=disk.{format}");
        let line =
            format!("compare {secret} --image-opts driver=raw,file.filename=source.raw {disk}");
        let same = place.run("qemu-img", &line);
        assert!(same.status.success(), "{options}: {}", errors(&same));
    }
    let told =
        place.refused(&format!("create {secret} -f luks -o cipher-alg=serpent-256 other.luks 1M"));
    assert!(told.contains("cipher-alg") && told.contains("serpent-256"), "{told}");
}

/// A disk with two partitions of a GPT-less kind and something in the second.
fn partitioned(path: &Path) {
    let mut disk = vec![0; 4 << 20];
    for (index, start, sectors) in [(0, 64, 1000), (1, 2048, 100)] {
        let at = 446 + index * 16;
        disk[at + 4] = 0x83;
        disk[at + 8..at + 12].copy_from_slice(&u32::to_le_bytes(start));
        disk[at + 12..at + 16].copy_from_slice(&u32::to_le_bytes(sectors));
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[2048 * 512..2148 * 512].fill(7);
    std::fs::write(path, disk).expect("write");
}

#[test]
fn partitions_are_listed_and_extracted() {
    let place = Place::new();
    partitioned(&place.path().join("disk.raw"));
    place.done("convert -f raw -O qcow2 -c disk.raw disk.qcow2");
    let listed = place.done("ls disk.qcow2");
    assert!(listed.starts_with("MBR 00000000\n"), "{listed}");
    let lines: Vec<Vec<&str>> =
        listed.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..2], ["2", "1048576"]);
    let part = place.guise("cat disk.qcow2 2");
    assert_eq!(part.stdout, [7; 100 * 512]);
    let whole = place.guise("cat disk.qcow2").stdout;
    assert!(whole == std::fs::read(place.path().join("disk.raw")).expect("read"));
    assert_eq!(
        place.refused("cat disk.qcow2 3"),
        "guise disk: 'disk.qcow2' has no partition 3; `guise disk ls` lists those that it has"
    );
    place.done("create -q -f raw empty.raw 1M");
    assert_eq!(place.done("ls empty.raw"), "'empty.raw' has no partition table\n");
    assert_eq!(place.done("ls --output json empty.raw"), "null\n");
}

#[test]
fn output_that_nobody_reads_ends_a_command_in_silence() {
    let place = Place::new();
    place.done("create -q -f raw empty.img 1M");
    for line in ["info empty.img", "map empty.img", "cat empty.img"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_guise"));
        command.arg("disk").args(line.split(' ')).current_dir(place.path());
        let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{line}: {}", errors(&output));
        assert_eq!(errors(&output), "", "{line}");
    }
}

#[test]
fn what_cannot_be_is_told_in_one_line() {
    let place = Place::new();
    place.done("create -q -f qcow2 disk.qcow2 1M");
    assert_eq!(
        place.refused("resize disk.qcow2 +1M"),
        "guise disk: say which format 'disk.qcow2' has (it looks like -f qcow2): \
         formats are not guessed for writing"
    );
    assert!(place.refused("resize -f qcow2 disk.qcow2 512K").contains("--shrink"));
    assert!(place.refused("info none.qcow2").contains("No such file or directory"));
    assert!(place.refused("check -f vdi disk.qcow2").contains("not in vdi format"));
    place.done("create -q -f vdi disk.vdi 4M");
    place.done("resize -q -f vdi disk.vdi 8M");
    place.done("create -q -f vhd disk.vhd 4M");
    place.done("resize -q -f vhd disk.vhd 8M");
    place.done("create -q -f vmdk disk.vmdk 4M");
    place.done("resize -q -f vmdk disk.vmdk 8M");
    place.done("create -q -f vmdk -o subformat=streamOptimized stream.vmdk 4M");
    assert!(place.refused("resize -f vmdk stream.vmdk 8M").contains("convert it into a larger"));
    assert!(place.refused("resize --preallocation full -f vdi disk.vdi 9M").contains("reserved"));
    assert!(place.refused("resize --shrink -f vdi disk.vdi 4M").contains("convert it into"));
    let cut = place.path().join("disk.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(&cut).expect("open");
    file.set_len(70_000).expect("cut");
    let told = place.refused("convert -f qcow2 -O raw disk.qcow2 out.raw");
    assert!(told.starts_with("guise disk: 'disk.qcow2' is not a sound qcow2 image:"), "{told}");
}

#[test]
fn read_only_files_are_refused_for_writing_only() {
    let place = Place::new();
    place.done("create -q -f qcow2 disk.qcow2 1M");
    let path = place.path().join("disk.qcow2");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).expect("chmod");
    place.done("info disk.qcow2");
    if rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: writing a read-only file, as the superuser may");
        return;
    }
    assert_eq!(
        place.refused("resize -f qcow2 disk.qcow2 2M"),
        "guise disk: open 'disk.qcow2': Permission denied"
    );
}
