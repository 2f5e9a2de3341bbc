//! Real guests: a stock Debian kernel on the software engine, with an image of busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use guise_engine::CpuModel;
use guise_engine_soft::{SoftEngine, Tier};
use guise_microvm::devices::UserMode;
use guise_microvm::machine::WritableLayer;
use guise_microvm::protocol::{Exit, Open, Resize, Task};
use guise_microvm::{Event, MicroVm, MicroVmConfig, PreparedKernel, Session};
use guise_testkit::assets::{self, Kernel};

const LONG: Duration = Duration::from_secs(120);

/// Made once, for all tests of this process.
struct Parts {
    kernel: PreparedKernel,
    root: PathBuf,
    _scratch: tempfile::TempDir,
}

fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("tree");
        for directory in ["bin", "etc", "root", "tmp", "home/web"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        fs::copy(assets::busybox().unwrap(), tree.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "echo", "id", "ls", "stty", "sleep", "true", "df", "mount", "ip", "touch",
            "date", "hostname", "dd", "sync", "nc", "wc", "kill", "rm",
        ] {
            symlink("busybox", tree.join("bin").join(name)).unwrap();
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/home/web:\n")
            .unwrap();
        fs::write(tree.join("etc/group"), "root:x:0:\nlogs:x:30:web\n").unwrap();
        let root = scratch.path().join("root.erofs");
        let made = Command::new("mkfs.erofs").arg("--all-root").arg(&root).arg(&tree).output();
        let made = made.expect("mkfs.erofs is part of erofs-utils, which the tests need");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let kernel = Kernel::Debian12Cloud;
        let kernel = PreparedKernel::make(
            &kernel.image().unwrap(),
            &kernel.modules().unwrap(),
            &scratch.path().join("kernel"),
        );
        Parts { kernel: kernel.unwrap(), root, _scratch: scratch }
    })
}

fn config() -> MicroVmConfig {
    let parts = parts();
    MicroVmConfig {
        kernel: parts.kernel.clone(),
        root: parts.root.clone(),
        writes: WritableLayer::Memory(32 << 20),
        read_only: false,
        memory: 256 << 20,
        vcpus: 1,
        model: CpuModel::Host,
        host_name: "box".to_owned(),
        processes: None,
        network: Some(UserMode::open(Default::default(), []).unwrap()),
        plug: None,
        shares: Vec::new(),
        mounts: Vec::new(),
        hosts: vec![("10.0.2.99".parse().unwrap(), "db".to_owned())],
    }
}

fn start(config: &MicroVmConfig) -> MicroVm {
    let engine = SoftEngine::new(Tier::Translator);
    MicroVm::start(&engine, config, Box::new(std::io::stderr())).unwrap()
}

fn shell(text: &str) -> Open {
    Open { arguments: vec!["sh".into(), "-c".into(), text.into()], input: true, ..Open::default() }
}

fn run(vm: &MicroVm, open: &Open) -> (String, Exit) {
    let (output, errors, exit) = vm.agent().open(open).unwrap().collect(16 << 20).unwrap();
    let mut text = String::from_utf8_lossy(&output).into_owned();
    text.push_str(&String::from_utf8_lossy(&errors));
    (text, exit)
}

fn says(vm: &MicroVm, text: &str) -> String {
    let (output, exit) = run(vm, &shell(text));
    assert_eq!(exit, Exit::Code(0), "{text}: {output}");
    output.trim_end().to_owned()
}

fn wait_for(session: &Session, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match session.next_within(LONG).unwrap() {
            Event::Output(_, bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Event::Exited(exit) => panic!("{exit:?} after {seen:?}"),
        }
    }
}

#[test]
fn a_guest_runs_programs_as_the_image_says() {
    let vm = start(&config());
    assert_eq!(run(&vm, &shell("exit 42")).1, Exit::Code(42));
    assert_eq!(run(&vm, &shell("kill -9 $$")).1, Exit::Signal(9));
    let missing = Open { arguments: vec!["no-such-program".into()], ..Open::default() };
    assert_eq!(run(&vm, &missing).1.code(), 127);
    let directory = Open { arguments: vec!["/etc/passwd".into()], ..Open::default() };
    assert_eq!(run(&vm, &directory).1.code(), 126);

    let web = Open {
        user: "web".into(),
        directory: "/home/web".into(),
        environment: vec!["A=b c".into()],
        ..shell("id -u; id -g; id -G; pwd; echo $A; echo $HOME")
    };
    assert_eq!(run(&vm, &web).0, "33\n34\n34 30\n/home/web\nb c\n/home/web\n");

    assert_eq!(says(&vm, "hostname"), "box");
    assert!(says(&vm, "cat /etc/hosts").contains("10.0.2.15 box\n10.0.2.99 db"));
    assert_eq!(says(&vm, "cat /etc/resolv.conf"), "nameserver 10.0.2.3");
    let addresses = says(&vm, "ip address; ip route; ip -6 route");
    for expected in ["10.0.2.15/24", "fd00:6775:6973:6500::f/64", "default via 10.0.2.2"] {
        assert!(addresses.contains(expected), "{expected}: {addresses}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let theirs: u64 = says(&vm, "date +%s").parse().unwrap();
    assert!(theirs.abs_diff(now.as_secs()) < 60, "{theirs}");

    // The root can be written up to its limit, and no further.
    says(&vm, "echo new > /new; echo changed >> /etc/group; rm /bin/touch; test ! -e /bin/touch");
    let (output, exit) = run(&vm, &shell("dd if=/dev/zero of=/big bs=1M count=64"));
    assert!(exit != Exit::Code(0) && output.contains("No space"), "{output}");
    says(&vm, "rm /big; test -c /dev/null; test -e /dev/fd/0; echo x | cat /dev/stdin");

    terminal(&vm);
    files(&vm);

    let statistics = vm.statistics().unwrap();
    assert!(statistics.memory_total > 128 << 20 && statistics.cpu_ms > 0, "{statistics:?}");
    assert_eq!(statistics.disk_total, 32 << 20);

    vm.pause().unwrap();
    vm.resume().unwrap();
    assert_eq!(says(&vm, "echo on"), "on");

    vm.shut_down(LONG).unwrap();
    assert!(vm.agent().open(&shell("true")).and_then(|session| session.next()).is_err());
}

fn terminal(vm: &MicroVm) {
    let size = Resize { rows: 30, columns: 90 };
    let text = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.1; done";
    let session = vm.agent().open(&Open { terminal: Some(size), ..shell(text) }).unwrap();
    wait_for(&session, "30 90");
    wait_for(&session, "ready");
    session.resize(Resize { rows: 40, columns: 100 }).unwrap();
    wait_for(&session, "40 100");
    assert_eq!(session.collect(1000).unwrap().2, Exit::Code(3));
    let session =
        vm.agent().open(&Open { terminal: Some(size), ..shell("echo ready; cat") }).unwrap();
    wait_for(&session, "ready");
    session.write(&[3]).unwrap();
    assert_eq!(session.collect(1000).unwrap().2.code(), 130);
}

/// Out of one directory and into another.
fn files(vm: &MicroVm) {
    says(vm, "cd /root; dd if=/dev/urandom of=data bs=64k count=40 2>/dev/null");
    let export = Open { task: Task::Export { path: "/root".into() }, ..Open::default() };
    let (archive, errors, exit) = vm.agent().open(&export).unwrap().collect(64 << 20).unwrap();
    assert_eq!(exit, Exit::Code(0), "{}", String::from_utf8_lossy(&errors));
    assert!(archive.len() > 40 << 16);
    let task = Task::Import { path: "/tmp".into() };
    let session = vm.agent().open(&Open { task, input: true, ..Open::default() }).unwrap();
    session.write(&archive).unwrap();
    session.close_input().unwrap();
    assert_eq!(session.collect(1000).unwrap().2, Exit::Code(0));
    assert_eq!(says(vm, "busybox=/bin/busybox; $busybox cmp /root/data /tmp/root/data"), "");
    says(vm, "rm -r /tmp/root /root/data");
}

/// What one life of an instance writes, the next one finds.
#[test]
fn a_disk_keeps_what_was_written() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = scratch.path().join("writes.img");
    guise_microvm::ext4::create(&disk, 64 << 20).unwrap();
    let config = MicroVmConfig {
        writes: WritableLayer::Disk { path: disk.clone(), kept: true },
        network: None,
        ..config()
    };
    let vm = start(&config);
    says(&vm, "echo kept > /home/file; rm /bin/df");
    vm.shut_down(LONG).unwrap();
    drop(vm);
    check(&disk);
    let config = MicroVmConfig { read_only: true, ..config };
    let vm = start(&config);
    assert_eq!(says(&vm, "cat /home/file; test ! -e /bin/df && echo gone"), "kept\ngone");
    let (output, exit) = run(&vm, &shell("touch /home/other"));
    assert!(exit != Exit::Code(0) && output.contains("Read-only"), "{output}");
    // A machine that is switched off without a word.
    drop(vm);
}

fn check(disk: &Path) {
    let output = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(disk).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
