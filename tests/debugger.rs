//! The distribution's gdb at machines of the real binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::support::{Boot, PATIENCE, Running, alone, have, kvm, lines, not_run};
use guise_engine_kvm::probe;
use guise_testkit::assets::Kernel;
use guise_testkit::baremetal::Program;
use guise_testkit::initramfs;

/// A kernel's code is above this.
const KERNEL: u64 = 0xffff_ffff_8000_0000;

/// A machine that waits for gdb at a socket in a directory of its own.
struct Debugged {
    guest: Running,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

fn start(boot: Boot, option: &str) -> Debugged {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("gdb");
    let guest = boot.args(["--gdb", &format!("{}{option}", socket.display())]).start();
    let begin = Instant::now();
    while !socket.exists() {
        assert!(begin.elapsed() < PATIENCE, "there is no socket");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Debugged { guest, socket, _directory: directory }
}

/// Has gdb do this at the machine and returns what it says.
fn gdb(socket: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.arg("-sKILL").arg(PATIENCE.as_secs().to_string());
    gdb.args(["gdb", "-nx", "-batch", "-ex", "set architecture i386:x86-64"]);
    gdb.args(["-ex", "set remotetimeout 60"]);
    gdb.arg("-ex").arg(format!("target remote {}", socket.display()));
    commands.iter().for_each(|command| {
        gdb.args(["-ex", command]);
    });
    let output = gdb.stdin(std::process::Stdio::null()).output().expect("gdb is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    println!("{said}\n{complained}");
    assert!(output.status.success(), "{said}\n{complained}");
    said
}

/// The number behind `text` in what gdb said.
#[track_caller]
fn number(said: &str, text: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix(text));
    let line = line.unwrap_or_else(|| panic!("{text:?} is not in {said}"));
    let digits = line.trim().trim_start_matches("0x");
    u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{line:?} is no number"))
}

/// What a kernel says of its symbols. (Debian keeps the System.map of a kernel in a package
/// of debugging symbols, of some gigabytes.)
fn symbols<const N: usize>(kernel: &Path, names: [&str; N]) -> [u64; N] {
    let mut guest = Boot::kernel(kernel)
        .initrd(&have(initramfs::shell()))
        .args(["--engine", "soft", "--append", "console=ttyS0 quiet"])
        .start();
    guest.wait_for("guest# ");
    guest.type_line(&format!("grep -E ' ({})$' /proc/kallsyms", names.join("|")));
    guest.wait_for("guest# ");
    guest.type_line("exit");
    let ended = guest.finish();
    names.map(|name| {
        let line =
            lines(&ended.output).into_iter().find(|line| line.ends_with(&format!(" {name}")));
        let address = line.and_then(|line| line.split(' ').next());
        let address = address.unwrap_or_else(|| panic!("no {name} in {}", ended.output));
        u64::from_str_radix(address, 16).expect("an address")
    })
}

/// Breaks at a function of a kernel that has not even begun, steps into it, reads
/// registers and memory, lets it go on, and comes back for another look.
fn gdb_at_a_booting_kernel(engine: &str) {
    // Unpacked, it stays at the addresses that it was linked for.
    let kernel = have(Kernel::unpacked_cloud());
    let [start_kernel, banner] = symbols(&kernel, ["start_kernel", "linux_banner"]);
    let boot = Boot::kernel(&kernel)
        .initrd(&have(initramfs::shell()))
        .args(["--engine", engine, "--cpus", "2"]);
    let mut machine = start(boot, ",wait");
    let said = gdb(
        &machine.socket,
        &[
            &format!("break *{start_kernel:#x}"),
            "continue",
            r#"printf "at %lx\n", $rip"#,
            "stepi",
            "stepi",
            r#"printf "then %lx\n", $rip"#,
            &format!("x/s {banner:#x}"),
            "info threads",
            "delete",
            "detach",
        ],
    );
    assert_eq!(number(&said, "at "), start_kernel);
    let then = number(&said, "then ");
    // Where it is depends on what the function begins with: a call, when it can be traced.
    assert!(then != start_kernel && then > KERNEL, "{then:#x}");
    assert!(said.contains("Linux version 6.1"), "{said}");
    assert!(said.contains("Thread 1.2") || said.contains("Thread 2"), "{said}");

    machine.guest.wait_for("guest# ");
    // It idles now; gdb finds it somewhere in the kernel.
    let said = gdb(&machine.socket, &[r#"printf "now %lx\n", $rip"#, "detach"]);
    assert!(number(&said, "now ") > KERNEL, "{said}");
    machine.guest.type_line("exit");
    machine.guest.finish().expect_code(0).expect_clean_log();
}

#[test]
fn gdb_breaks_into_a_booting_kernel() {
    let _turn = alone();
    gdb_at_a_booting_kernel("interp");
    gdb_at_a_booting_kernel("soft");
}

/// Where a function or variable of a bare-metal guest is.
fn guest_symbol(program: &Path, name: &str) -> u64 {
    let output = Command::new("nm").arg(program).output().expect("binutils are there");
    let symbols = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = symbols.lines().find(|line| line.ends_with(&format!(" {name}")));
    let address = line.and_then(|line| line.split(' ').next()).expect("the symbol is there");
    u64::from_str_radix(address, 16).expect("an address")
}

/// A breakpoint, a step and a watchpoint, on four vCPUs.
fn gdb_at_a_bare_metal_guest(engine: &str, watches: bool) {
    let program = have(Program::Smp.image());
    let [main, go] = ["main", "go"].map(|name| guest_symbol(&program, name));
    let boot = Boot::kernel(&program).args([
        "--memory",
        "64M",
        "--testdev",
        "--timeout",
        "120",
        "--cpus",
        "4",
        "--engine",
        engine,
    ]);
    let machine = start(boot, ",wait");
    let [hbreak, watch, show] = [
        format!("hbreak *{main:#x}"),
        format!("watch *(unsigned int *){go:#x}"),
        format!(r#"printf "go %x\n", *(unsigned int *){go:#x}"#),
    ];
    let mut commands = vec![
        &*hbreak,
        "continue",
        r#"printf "at %lx\n", $rip"#,
        "stepi",
        r#"printf "then %lx\n", $rip"#,
        "delete",
    ];
    if watches {
        commands.extend([&*watch, "continue", &*show, "delete"]);
    }
    commands.push("continue");
    let said = gdb(&machine.socket, &commands);
    assert_eq!(number(&said, "at "), main, "{engine}");
    assert_ne!(number(&said, "then "), main, "{engine}");
    if watches {
        assert_eq!(number(&said, "go "), 1, "{engine}");
    }
    assert!(said.contains("exited with code 01"), "{engine}: {said}");
    let ended = machine.guest.finish();
    ended.expect_code(1);
    let expected = Program::Smp.expected().expect("it ends through the port");
    assert_eq!(ended.output.replace('\r', ""), expected, "{engine}");
}

#[test]
fn gdb_at_bare_metal_guests() {
    let _turn = alone();
    gdb_at_a_bare_metal_guest("interp", true);
    gdb_at_a_bare_metal_guest("soft", true);
    let Some(kvm) = kvm() else { return };
    let usable = probe::run(&kvm).is_ok_and(|verdict| verdict.usable());
    if !usable {
        not_run("watchpoints on kvm", "this host's KVM emulates, and watches nothing then");
    }
    gdb_at_a_bare_metal_guest("kvm", usable);
}

/// A debugger that sits at a machine keeps nobody from ending it.
#[test]
fn the_time_runs_out_under_a_debugger_too() {
    let _turn = alone();
    let boot = Boot::kernel(&have(Program::Spin.image())).args(["--timeout", "5"]);
    let mut machine = start(boot, "");
    machine.guest.wait_for("spinning");
    let silent = std::os::unix::net::UnixStream::connect(&machine.socket).expect("it listens");
    machine.guest.finish().expect_code(124);
    drop(silent);
    assert!(!machine.socket.exists());
}
