//! What the prisoner tries.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use guise_container::jail::Entered;
use guise_container::process::landlock;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat, symlinkat};

use super::{Kind, Outside, USER};

/// What has been tried, and how it went.
#[derive(Default)]
struct Record {
    tried: usize,
    failed: usize,
}

impl Record {
    fn refused<T>(&mut self, what: &str, result: io::Result<T>) {
        self.note(what, result.is_err(), "was possible");
    }

    fn works<T>(&mut self, what: &str, result: io::Result<T>) {
        let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.note(what, result.is_ok(), &why);
    }

    fn note(&mut self, what: &str, good: bool, why: &str) {
        self.tried += 1;
        if !good {
            self.failed += 1;
            println!("FAILED {what}: {why}");
        }
    }
}

/// `root` is whether root's prisoner it is.
pub fn all(outside: &Outside, entered: &Entered, root: bool) -> ExitCode {
    let mut record = Record::default();
    own_work(outside, root, &mut record);
    if root && entered.kept_its_id.is_none() {
        identity(&mut record);
    }
    if entered.missing.is_none() {
        host_files(outside, &mut record);
        processes_of_the_host(outside, &mut record);
    }
    next_life(outside, &mut record);
    other_workers(outside, &mut record);
    devices(outside, &mut record);
    privileges(outside.kind, &mut record);
    sockets(outside, &mut record);
    println!("{} attempts, {} went wrong", record.tried, record.failed);
    if record.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The outcome of a raw system call.
fn call(number: libc::c_long, arguments: [i64; 5]) -> io::Result<i64> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: what is called here takes numbers, or pointers to strings that outlive the call,
    // or fails before it looks at its arguments.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pointer(text: &CString) -> i64 {
    text.as_ptr() as i64
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A jail in which nothing works would pass all of the rest.
fn own_work(outside: &Outside, root: bool, record: &mut Record) {
    let state = outside.path("own/state/worker");
    record.works("write its own files", fs::write(state.join("log"), "x"));
    record.works("rename them", fs::rename(state.join("log"), state.join("log.1")));
    record.works("remove them", fs::remove_file(state.join("log.1")));
    record.works("leave a mark", fs::write(state.join("mark"), "x"));
    let socket = UnixListener::bind(outside.path("own/run/worker/socket"));
    if outside.kind == Kind::Container {
        record.refused("make a socket", socket);
        record.refused("make a file for its keeper", fs::write(outside.path("own/run/oci/x"), "x"));
        record.refused("read the image", fs::read(outside.path("image")));
        // Also where the namespace has one.
        let user = Some(Uid::from_raw(USER));
        let given = chownat(CWD, state.join("mark"), user, None, AtFlags::empty());
        record.refused("give a file to another user", given.map_err(io::Error::from));
    } else {
        record.works("make its socket", socket);
        record.works("read its image", fs::read(outside.path("image")));
    }
    record.works("see its descriptors", fs::read_dir("/proc/self/fd"));
    record.works("see its memory", fs::read("/proc/self/statm"));
    let thread = std::thread::Builder::new().name("a thread".into()).spawn(|| ());
    record.works("start a thread", thread.map(|thread| thread.join().unwrap()));
    record.works("listen", TcpListener::bind("127.0.0.1:0"));
    let share = outside.path("share");
    if outside.shares {
        record.works("make files that it shares", fs::write(share.join("new"), "x"));
        if root {
            let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
            let given = chownat(CWD, share.join("new"), Some(user), Some(group), AtFlags::empty());
            record.works("give them to users", given.map_err(io::Error::from));
        }
        let link = symlinkat("/etc/shadow", CWD, share.join("link"));
        record.works("make links where a guest may", link.map_err(io::Error::from));
    } else {
        record.refused("see what is shared with others", fs::read(share.join("file")));
    }
}

/// To the host it is nobody that anybody knows, whatever it calls itself.
fn identity(record: &mut Record) {
    for (what, file) in [("user", "/proc/self/uid_map"), ("group", "/proc/self/gid_map")] {
        let map = fs::read_to_string(file).unwrap_or_default();
        let host = map.split_whitespace().nth(1).and_then(|id| id.parse::<u32>().ok());
        let stranger = host.is_some_and(|id| id >= 0x7000_0000);
        record.note(&format!("be a {what} of the host"), stranger, &map);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    record.note("have other groups", groups.is_some_and(|all| all.trim().is_empty()), &status);
}

fn host_files(outside: &Outside, record: &mut Record) {
    for path in ["/etc/passwd", "/etc/shadow", "/root", "/home", "/usr", "/tmp", "/var/lib"] {
        // Parents of what it may see are there, and empty but for that.
        let seen = fs::metadata(path).and_then(|found| match found.is_dir() {
            true => fs::read_dir(path).map(|entries| entries.flatten().count()),
            false => Ok(2),
        });
        record.note(&format!("look at {path}"), !seen.is_ok_and(|count| count > 1), "it is there");
    }
    for path in ["/proc/sys/kernel/core_pattern", "/proc/kcore", "/proc/kallsyms", "/sys/kernel"] {
        record.refused(path, fs::metadata(path));
    }
    for path in ["/proc/1/root/etc/passwd", "/proc/self/root/../../etc/passwd", "/../etc/passwd"] {
        record.refused(path, File::open(path));
    }
    record.refused("read a file beside its own", fs::read(outside.path("secret")));
    if matches!(outside.kind, Kind::Vm | Kind::Container) {
        record.refused("read the kernel of others", fs::read(outside.path("kernel")));
    }
    record.refused("write to the root", fs::write("/file", "x"));
    record.refused("write about itself", fs::write("/proc/self/oom_score_adj", "-1000"));
}

/// What the next life's worker goes by, and the daemon, who may do more than this one.
fn next_life(outside: &Outside, record: &mut Record) {
    for name in ["own/state/job.json", "own/state/own.img", "own/run/worker.lock"] {
        let path = outside.path(name);
        record.refused(&format!("write {name}"), OpenOptions::new().write(true).open(&path));
        record.refused(&format!("remove {name}"), fs::remove_file(&path));
        let own = outside.path("own/state/worker/forged");
        record.works("make a file of its own", fs::write(&own, "x"));
        record.refused(&format!("put its own in place of {name}"), fs::rename(&own, &path));
        record.refused(&format!("link to {name}"), fs::hard_link(&own, path.with_extension("new")));
    }
    let upper = outside.path("own/state/upper");
    record.refused("put a folder of its own in place of what was written", fs::remove_dir(&upper));
    record.refused("forge its container", fs::write(outside.path("own/run/oci/state"), "x"));
    let errors = outside.path("own/run/worker.err");
    record.refused("forge what it said last", fs::write(errors, "x"));
}

fn other_workers(outside: &Outside, record: &mut Record) {
    let disk = outside.path("other/state/worker/writes.img");
    // Files that a mount hides, and without namespaces those that Landlock closes.
    record.refused("read another's disk", File::open(&disk));
    record.refused("write another's disk", OpenOptions::new().write(true).open(&disk));
    for name in ["image", "kernel", "initrd"] {
        let file = OpenOptions::new().write(true).open(outside.path(name));
        record.refused(&format!("write its {name}, which is others' too"), file);
    }
    if outside.shares && landlock::version() == 0 {
        println!("not run: links for the daemon: this kernel is without Landlock");
        return;
    }
    let link = symlinkat("/etc/shadow", CWD, outside.path("own/state/worker/log.9"));
    record.refused("leave a link for the daemon", link.map_err(io::Error::from));
    let fifo = c_path(&outside.path("own/state/worker/end.json"));
    let made = call(
        libc::SYS_mknodat,
        [libc::AT_FDCWD.into(), pointer(&fifo), (libc::S_IFIFO | 0o600).into(), 0, 0],
    );
    record.refused("leave a pipe for the daemon", made);
}

fn processes_of_the_host(outside: &Outside, record: &mut Record) {
    let victim = i64::from(outside.victim);
    record.refused("see another process", fs::metadata(format!("/proc/{victim}/status")));
    let numbers = fs::read_dir("/proc").map(|entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .count()
    });
    record.note("list processes", numbers.is_ok_and(|count| count <= 1), "there are others");
    for (what, number, arguments) in [
        ("signal it", libc::SYS_kill, [victim, 9, 0, 0, 0]),
        ("signal everybody", libc::SYS_kill, [-1, 9, 0, 0, 0]),
        ("signal its thread", libc::SYS_tgkill, [victim, victim, 9, 0, 0]),
        ("get a descriptor of it", libc::SYS_pidfd_open, [victim, 0, 0, 0, 0]),
        ("trace it", libc::SYS_ptrace, [16, victim, 0, 0, 0]),
        ("read its memory", libc::SYS_process_vm_readv, [victim, 0, 0, 0, 0]),
        ("change its limits", libc::SYS_prlimit64, [victim, 7, 0, 0, 0]),
        ("compare with it", libc::SYS_kcmp, [victim, 1, 0, 0, 0]),
        ("change its priority", libc::SYS_setpriority, [0, victim, 19, 0, 0]),
    ] {
        record.refused(what, call(number, arguments));
    }
}

fn devices(outside: &Outside, record: &mut Record) {
    for path in ["/dev/mem", "/dev/null", "/dev/kvm", "/dev/net/tun", "/dev/fuse", "/dev/sda"] {
        record.refused(path, File::open(path));
    }
    for folder in ["own/state/worker", "share"] {
        let path = c_path(&outside.path(folder).join("device"));
        let zero = libc::makedev(1, 5).cast_signed();
        let made = call(
            libc::SYS_mknodat,
            [libc::AT_FDCWD.into(), pointer(&path), (libc::S_IFCHR | 0o666).into(), zero, 0],
        );
        record.refused("make a device", made);
    }
}

fn privileges(kind: Kind, record: &mut Record) {
    let (root, proc, own) = (c"/".to_owned(), c"proc".to_owned(), c"/proc/self/exe".to_owned());
    for (name, flag) in [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("network", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
    ] {
        let what = format!("make a {name} namespace");
        record.refused(&what, call(libc::SYS_unshare, [flag.into(), 0, 0, 0, 0]));
        record.refused(&what, call(libc::SYS_clone, [i64::from(flag | libc::SIGCHLD), 0, 0, 0, 0]));
    }
    for (what, number, arguments) in [
        ("fork", libc::SYS_fork, [0; 5]),
        ("fork by clone", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 88, 0, 0, 0]),
        ("execute", libc::SYS_execve, [pointer(&own), 0, 0, 0, 0]),
        ("join a namespace", libc::SYS_setns, [0, 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [pointer(&proc), pointer(&root), pointer(&proc), 0, 0]),
        ("unmount", libc::SYS_umount2, [pointer(&root), 2, 0, 0, 0]),
        ("open a file system", libc::SYS_fsopen, [pointer(&proc), 0, 0, 0, 0]),
        ("clone a tree", libc::SYS_open_tree, [-100, pointer(&root), 1, 0, 0]),
        ("change the root", libc::SYS_pivot_root, [pointer(&root), pointer(&root), 0, 0, 0]),
        ("chroot", libc::SYS_chroot, [pointer(&root), 0, 0, 0, 0]),
        ("become another user", libc::SYS_setuid, [1, 0, 0, 0, 0]),
        ("become another group", libc::SYS_setgid, [1, 0, 0, 0, 0]),
        ("leave its groups", libc::SYS_setgroups, [0; 5]),
        ("load a program into the kernel", libc::SYS_bpf, [0; 5]),
        ("watch performance", libc::SYS_perf_event_open, [0; 5]),
        ("handle page faults", libc::SYS_userfaultfd, [0; 5]),
        ("use keys", libc::SYS_keyctl, [0, -3, 0, 0, 0]),
        ("load a module", libc::SYS_init_module, [0; 5]),
        ("load another kernel", libc::SYS_kexec_load, [0; 5]),
        ("restart the host", libc::SYS_reboot, [0; 5]),
        ("set the host's name", libc::SYS_sethostname, [pointer(&root), 1, 0, 0, 0]),
        ("set the clock", libc::SYS_clock_settime, [0; 5]),
        ("use a file's handle", libc::SYS_open_by_handle_at, [0; 5]),
        ("get a descriptor of another process", libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0]),
        ("use ports", libc::SYS_ioperm, [0, 1, 1, 0, 0]),
        ("watch files", libc::SYS_inotify_init1, [0; 5]),
    ] {
        record.refused(what, call(number, arguments));
    }
    if matches!(kind, Kind::Program | Kind::Container) {
        record.refused("use rings", call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]));
    }
    let core = rustix::process::getrlimit(rustix::process::Resource::Core);
    record.note("leave its memory behind", core.maximum == Some(0), "it may dump core");
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found.map(|rest| rest.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
    };
    record.note("gain privileges", line("NoNewPrivs") == "1", "no_new_privs is not set");
    record.note("call what it likes", line("Seccomp") == "2", "there is no filter");
    let held = u64::from_str_radix(&line("CapEff"), 16).unwrap_or(u64::MAX);
    let bounding = u64::from_str_radix(&line("CapBnd"), 16).unwrap_or(u64::MAX);
    const OF_SHARES: u64 = 0b1_1011;
    let known = if kind == Kind::Container { 0 } else { OF_SHARES };
    record.note("use capabilities", held & !known == 0, &format!("it has {held:x}"));
    if rustix::process::geteuid().is_root() {
        record.note("get capabilities", bounding & !known == 0, &format!("{bounding:x}"));
    }
}

fn sockets(outside: &Outside, record: &mut Record) {
    let socket = |family: i32, kind: i32, protocol: i32| {
        call(libc::SYS_socket, [family.into(), kind.into(), protocol.into(), 0, 0])
    };
    record.refused("a raw socket", socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP));
    let hidden = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    record.refused("a raw socket, with flags", socket(libc::AF_INET6, hidden, 58));
    record.refused("frames", socket(libc::AF_PACKET, libc::SOCK_RAW, 0));
    record.refused("netlink", socket(libc::AF_NETLINK, libc::SOCK_RAW, 0));
    record.refused("the host's vsock", socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0));
    record.refused("the kernel's ciphers", socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0));
    let other = UnixStream::connect(outside.path("other/run/worker/socket"));
    // Without namespaces the kernel has nothing that would refuse it.
    if fs::metadata(outside.path("other")).is_err() {
        record.refused("another worker's socket", other);
    }
    let named = UnixStream::connect_addr(&outside.abstract_name());
    if !outside.networked || landlock::version() >= 6 {
        record.refused("a socket without a file", named);
    } else {
        println!("not run: sockets without files: this kernel's Landlock does not know them");
    }
    let server = TcpStream::connect(("127.0.0.1", outside.port));
    match outside.networked {
        true => record.works("the network, where there is one", server),
        false => record.refused("the host's network", server),
    }
    // What it says is said to its own.
    let _ = io::stdout().flush();
}
