//! Debian's drivers on the virtio devices of the real binary.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Boot, Ended, PATIENCE, Running, alone, have, not_run};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;

/// A guest with all drivers that does one command.
fn guest_of(kernel: Kernel, cpus: &str, command: &str) -> Boot {
    let line = format!("console=ttyS0 -- \"{command}\"");
    Boot::kernel(&have(kernel.image()))
        .initrd(&have(initramfs::with_virtio(kernel)))
        .args(["--cpus", cpus, "--append", &line])
}

fn said<'a>(ended: &'a Ended, start: &str) -> &'a str {
    let line = ended.output.lines().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("no line {start:?} in:\n{}", ended.output)).trim_end()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The sum that the host's and the guest's `cksum` both print.
fn sum(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().write_all_at(bytes, 0).expect("written");
    let output = std::process::Command::new("md5sum").arg(file.path()).output().expect("md5sum");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(' ').next().expect("a sum").to_owned()
}

#[test]
fn a_disk_is_read_and_written() {
    let _turn = alone();
    const MIB: usize = 1 << 20;
    for (kernel, cpus) in [(Kernel::Debian12Cloud, "1"), (Kernel::Debian13Cloud, "4")] {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        let content = pattern(2 * MIB);
        disk.as_file().write_all_at(&content, 0).expect("written");
        disk.as_file().set_len(16 * MIB as u64).expect("a size");
        let option = format!("{},format=raw,serial=first", disk.path().display());
        let command = "echo serial $(cat /sys/block/vda/serial); \
            echo queues $(ls /sys/block/vda/mq | wc -l); \
            echo sum $(head -c 2097152 /dev/vda | md5sum); \
            dd if=/dev/vda of=/dev/vda bs=64k count=32 seek=128 conv=fsync; \
            dd if=/dev/zero of=/dev/vda bs=64k count=1 seek=1 conv=fsync; \
            blkdiscard -o 131072 -l 65536 /dev/vda; \
            echo random $(head -c 8 /dev/hwrng | wc -c)";
        let ended = guest_of(kernel, cpus, command).args(["--rng", "--disk", &option]).run();
        ended.expect_code(0).expect_clean_log();
        assert_eq!(said(&ended, "serial "), "first");
        assert_eq!(said(&ended, "queues "), cpus);
        assert_eq!(said(&ended, "sum ").split(' ').next(), Some(&*sum(&content)));
        assert_eq!(said(&ended, "random "), "8");
        let mut now = vec![0; 16 * MIB];
        disk.as_file().read_exact_at(&mut now, 0).expect("read");
        assert!(now[8 * MIB..10 * MIB] == content, "what the guest wrote is not there");
        let zeroed = if ended.output.contains("blkdiscard: not found") { 2 } else { 3 };
        assert!(now[65536..zeroed * 65536].iter().all(|byte| *byte == 0));
        assert!(
            now[..65536] == content[..65536] && now[3 * 65536..2 * MIB] == content[3 * 65536..]
        );
    }
}

/// The kernel remaps all interrupts and translates what is to be translated, and nothing is
/// refused.
#[test]
fn an_iommu_is_used_and_finds_nothing_wrong() {
    let _turn = alone();
    const MIB: usize = 1 << 20;
    for (kernel, cpus) in [(Kernel::Debian12Cloud, "2"), (Kernel::Debian13Cloud, "1")] {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        let content = pattern(MIB);
        disk.as_file().write_all_at(&content, 0).expect("written");
        let command = "echo sum $(md5sum </dev/vda); grep -c IR-IO-APIC /proc/interrupts; \
            echo messages $(grep -c IR-PCI-MSI /proc/interrupts); \
            echo functions $(ls /sys/bus/pci/devices | wc -l); \
            echo groups $(ls /sys/kernel/iommu_groups | wc -l)";
        let line = format!("console=ttyS0 intel_iommu=on -- \"{command}\"");
        let option = format!("{},format=raw", disk.path().display());
        let ended = Boot::kernel(&have(kernel.image()))
            .initrd(&have(initramfs::with_virtio(kernel)))
            .args(["--engine", "soft", "--cpus", cpus, "--iommu", "--append", &line])
            .args(["--rng", "--disk", &option])
            .run();
        ended.expect_code(0).expect_clean_log();
        assert_eq!(said(&ended, "sum ").split(' ').next(), Some(&*sum(&content)));
        assert_ne!(said(&ended, "messages "), "0");
        assert_eq!(said(&ended, "groups "), said(&ended, "functions "));
        for message in [
            "DMAR: IOMMU enabled",
            "DMAR: Intel(R) Virtualization Technology for Directed I/O",
            "DMAR-IR: Enabled IRQ remapping in xapic mode",
        ] {
            assert!(ended.output.contains(message), "{message:?} is not in:\n{}", ended.output);
        }
        for message in ["fault", "Firmware Bug", "DMAR: DRHD: handling"] {
            let bad =
                ended.output.lines().find(|line| line.contains("DMAR") && line.contains(message));
            assert_eq!(bad, None, "{}", ended.output);
        }
    }
}

/// A port of the host that nobody uses now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// What the guest answers on a forwarded port, as soon as it does.
fn ask(running: &mut Running, port: u16) -> String {
    running.wait_for("listening\r\n");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port))
            && stream.write_all(b"ping\n").is_ok()
            && BufReader::new(stream).read_line(&mut answer).is_ok()
            && !answer.is_empty()
        {
            return answer;
        }
        assert!(Instant::now() < deadline, "the guest does not answer");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_network_reaches_out_and_is_reached() {
    let _turn = alone();
    for (kernel, cpus) in [(Kernel::Debian12Cloud, "4"), (Kernel::Debian13Cloud, "1")] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let out = listener.local_addr().expect("an address").port();
        let content = pattern(3_000_000);
        let expected = sum(&content);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the guest connects");
            stream.write_all(&content).expect("the guest reads");
            drop(stream);
            let (mut stream, _) = listener.accept().expect("the guest connects again");
            // Busybox's nc stays until the other end goes.
            let mut got = vec![0; content.len()];
            stream.read_exact(&mut got).expect("the guest writes");
            got == content
        });
        let port = free_port();
        let net = format!("user,host,forward={port}-7");
        let command = format!(
            "ifconfig eth0 up; udhcpc -i eth0 -s /etc/udhcpc.sh -n -q; \
             nc 10.0.2.2 {out} </dev/null >/tmp/got; echo sum $(md5sum </tmp/got); \
             nc 10.0.2.2 {out} </tmp/got; \
             echo listening; (read l; echo pong $l) </tmp/f | nc -l -p 7 >/tmp/f"
        );
        let command = command.replace("echo listening", "mkfifo /tmp/f; echo listening");
        let mut running = guest_of(kernel, cpus, &command).args(["--net", &net]).start();
        let answer = ask(&mut running, port);
        assert_eq!(answer.trim(), "pong ping");
        let ended = running.finish();
        ended.expect_code(0).expect_clean_log();
        assert_eq!(said(&ended, "lease: "), "10.0.2.15 by 10.0.2.2");
        assert_eq!(said(&ended, "sum ").split(' ').next(), Some(&*expected));
        assert!(server.join().expect("the server"), "what the guest sent is not what it got");
    }
}

/// What a process at the Unix socket and a program at a port of the guest say to each
/// other: a line each.
fn meet(socket: &Path, port: u32, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("the socket is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    writeln!(stream, "CONNECT {port}").expect("it listens");
    let mut reader = BufReader::new(stream.try_clone().expect("the same stream"));
    let mut answer = String::new();
    reader.read_line(&mut answer).expect("it answers");
    assert!(answer.starts_with("OK "), "{answer:?}");
    writeln!(stream, "{line}").expect("the guest reads");
    stream.shutdown(Shutdown::Write).expect("the stream stands");
    let mut answer = String::new();
    reader.read_to_string(&mut answer).expect("the guest closes");
    answer
}

#[test]
fn sockets_lead_both_ways() {
    let _turn = alone();
    for (kernel, cpus) in [(Kernel::Debian12Cloud, "1"), (Kernel::Debian13Cloud, "4")] {
        let scratch = tempfile::tempdir().expect("a directory");
        let socket = scratch.path().join("socket");
        let listener = UnixListener::bind(scratch.path().join("socket_1234")).expect("bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the guest connects");
            let mut content = Vec::new();
            stream.read_to_end(&mut content).expect("the guest writes");
            stream.write_all(&content).expect("the guest reads");
            content.len()
        });
        let command = "echo there $(md5sum </bin/busybox); \
            echo back $(vsock connect 1234 </bin/busybox | md5sum); \
            vsock connect 99; echo refused $?; \
            echo from the guest | vsock listen 52";
        let options = format!("{},cid=42", socket.display());
        let mut running = guest_of(kernel, cpus, command).args(["--vsock", &options]).start();
        running.wait_for("listening");
        assert_eq!(meet(&socket, 52, "from the host"), "from the guest\n");
        let ended = running.finish();
        ended.expect_code(0).expect_clean_log();
        assert_eq!(said(&ended, "there "), said(&ended, "back "));
        assert_eq!(said(&ended, "refused "), "1");
        assert!(ended.output.contains("from the host"), "{}", ended.output);
        assert!(server.join().expect("the server") > 100_000);
        assert!(!socket.exists(), "the socket stays behind");
    }
}

/// The checks of `files` that went wrong, or did not happen.
fn expect_files(ended: &Ended) {
    let good = ended.output.matches(" ok").count();
    assert_eq!(said(ended, "files said "), "0", "{}", ended.output);
    assert!(good >= 11, "{}", ended.output);
}

#[test]
fn a_directory_is_shared() {
    let _turn = alone();
    for (kernel, cpus) in [(Kernel::Debian12Cloud, "1"), (Kernel::Debian13Cloud, "4")] {
        let scratch = tempfile::tempdir().expect("a directory");
        let (ours, outside) = (scratch.path().join("shared"), scratch.path().join("outside"));
        std::fs::create_dir(&ours).expect("made");
        std::fs::create_dir(ours.join("checks")).expect("made");
        std::fs::write(&outside, "a secret").expect("written");
        std::fs::write(ours.join("hello"), "from the host").expect("written");
        std::os::unix::fs::symlink("../outside", ours.join("relative")).expect("linked");
        std::os::unix::fs::symlink(&outside, ours.join("absolute")).expect("linked");
        let command = "mount -t virtiofs t /mnt; mount -t virtiofs r /root; \
            echo said $(cat /mnt/hello); \
            files /mnt/checks 1000; echo files said $?; \
            cat /mnt/relative /mnt/absolute /mnt/../outside; \
            echo here $(ls /mnt/.. | grep -c outside); \
            mknod /mnt/disk b 8 0 || echo no device; \
            echo x >/root/x || echo read only; \
            head -c 3000000 /dev/urandom >/mnt/big; echo big $(md5sum </mnt/big)";
        let ended = guest_of(kernel, cpus, command)
            .args(["--share", &format!("{},tag=t", ours.display())])
            .args(["--share", &format!("{},tag=r,readonly", ours.display())])
            .run();
        ended.expect_code(0).expect_clean_log();
        assert_eq!(said(&ended, "said "), "from the host");
        expect_files(&ended);
        assert!(!ended.output.contains("a secret"), "{}", ended.output);
        assert_eq!(said(&ended, "here "), "0");
        said(&ended, "no device");
        said(&ended, "read only");
        let big = std::fs::read(ours.join("big")).expect("the guest wrote it");
        assert_eq!(said(&ended, "big ").split(' ').next(), Some(&*sum(&big)));
    }
}

#[test]
fn a_plain_user_shares_a_directory() {
    let _turn = alone();
    let namespace = ["--user", "--map-root-user"];
    let possible = std::process::Command::new("unshare").args(namespace).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        not_run("a share in a user namespace", "this host lets nobody have one");
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let outside = scratch.path().join("outside");
    let ours = scratch.path().join("shared");
    std::fs::create_dir(&ours).expect("made");
    std::fs::write(&outside, "a secret").expect("written");
    std::os::unix::fs::symlink(&outside, ours.join("absolute")).expect("linked");
    let command = "mount -t virtiofs t /mnt; mkdir /mnt/checks; chmod 777 /mnt; \
        files /mnt/checks 300; echo files said $?; cat /mnt/absolute; \
        echo nobody:x:99:99::/:/bin/sh >/etc/passwd; su nobody -c 'echo mine >/mnt/by-nobody'; \
        chown 99 /mnt/by-nobody || echo no owners; echo owner $(stat -c %u /mnt/by-nobody)";
    let ended = guest_of(Kernel::Debian12Cloud, "1", command)
        .args(["--share", &format!("{},tag=t", ours.display())])
        .through("unshare", &namespace)
        .run();
    ended.expect_code(0).expect_clean_log();
    expect_files(&ended);
    said(&ended, "no owners");
    assert_eq!(said(&ended, "owner "), "0");
    assert!(!ended.output.contains("a secret"), "{}", ended.output);
    assert_eq!(std::fs::read(ours.join("by-nobody")).expect("it is there"), b"mine\n");
}

#[test]
fn a_virtio_console_takes_and_gives() {
    let _turn = alone();
    // Its driver is a module, so it is not there yet when the kernel looks for consoles.
    let command = "exec </dev/hvc0 >/dev/hvc0; echo $((40 + 2)) ready; read line; echo got $line";
    let kernel = Kernel::Debian12Cloud;
    let mut running = guest_of(kernel, "2", command).args(["--console", "virtio"]).start();
    running.wait_for("42 ready");
    running.type_line("something");
    running.wait_for("got something");
    running.finish().expect_code(0);
}

#[test]
fn a_port_leads_to_a_socket() {
    let _turn = alone();
    for (kernel, cpus) in [(Kernel::Debian12Cloud, "4"), (Kernel::Debian13Cloud, "1")] {
        let scratch = tempfile::tempdir().expect("a directory");
        let socket = scratch.path().join("port");
        // Whoever reads before somebody is connected finds the end.
        let command = "cd /sys/class/virtio-ports; \
            echo named $(grep -l org.guise.test */name); \
            until [ -s /tmp/got ]; do cat <$(echo /dev/vport*p1) >/tmp/got; done; \
            echo got $(md5sum </tmp/got); \
            cat /bin/busybox >$(echo /dev/vport*p1); echo sent $(md5sum </bin/busybox)";
        let port = format!("{},name=org.guise.test", socket.display());
        let mut running = guest_of(kernel, cpus, command).args(["--port", &port]).start();
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            assert!(Instant::now() < deadline, "nobody listens at the socket");
            std::thread::sleep(Duration::from_millis(20));
        };
        let content = pattern(1_000_000);
        stream.write_all(&content).expect("the guest reads");
        drop(stream);
        // Linux forgets the end of one connection when the next is told before it has read.
        running.wait_for(&format!("got {}", sum(&content)));
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("the guest writes, and closes");
        let ended = running.finish();
        ended.expect_code(0).expect_clean_log();
        assert!(said(&ended, "named ").starts_with("vport"), "{}", ended.output);
        assert_eq!(said(&ended, "sent ").split(' ').next(), Some(&*sum(&back)));
        assert!(!socket.exists(), "the socket stays behind");
    }
}

#[test]
fn a_window_that_changes_is_told() {
    let _turn = alone();
    for kernel in [Kernel::Debian12Cloud, Kernel::Debian13Cloud] {
        let command = "exec </dev/hvc0 >/dev/hvc0; \
            until stty size | grep -q '40 100'; do sleep 1; done; echo first $(stty size); \
            until stty size | grep -q '33 132'; do sleep 1; done; echo then $(stty size)";
        let scratch = tempfile::tempdir().expect("a directory");
        let line = scratch.path().join("line");
        std::fs::write(&line, format!("console=ttyS0 -- \"{command}\"")).expect("written");
        // `script` gives what it starts a terminal of its own.
        let shell = format!(
            "echo terminal $(tty) here; stty cols 100 rows 40; exec {} boot --kernel {} --initrd {} \
             --console virtio --append \"$(cat {})\"",
            env!("CARGO_BIN_EXE_guise"),
            have(kernel.image()).display(),
            have(initramfs::with_virtio(kernel)).display(),
            line.display()
        );
        let mut running =
            Boot::by("script", &["--quiet", "--return", "--command", &shell, "/dev/null"]).start();
        running.wait_for("terminal ");
        running.wait_for(" here");
        let terminal = running.output.split("terminal ").nth(1);
        let terminal = terminal.and_then(|rest| rest.split(' ').next()).expect("its name");
        let terminal = terminal.to_owned();
        running.wait_for("first 40 100");
        let resized = std::process::Command::new("stty")
            .args(["-F", &terminal, "cols", "132", "rows", "33"])
            .status();
        assert!(resized.expect("stty").success());
        running.wait_for("then 33 132");
        running.finish().expect_code(0);
    }
}
