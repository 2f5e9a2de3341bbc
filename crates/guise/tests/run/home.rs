//! A place of the test's own: a daemon, its state, an image.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use guise_image::tar::{Entry, Kind, Writer};
use guise_testkit::assets::Kernel;
use guise_testkit::debian_root;

/// The binary under test: this build's, or a copy for who may not enter its folder.
pub static GUISE: LazyLock<String> = LazyLock::new(|| {
    std::env::var("GUISE_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_guise").to_owned())
});
/// The image that every home has; in a home of VMs, a disk with the same programs.
pub const BOX: &str = "box:1";
/// What is waited for comes within this, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The form in which a home's instances run where a command does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guise {
    Container,
    Microvm,
    Vm,
    /// Its programs are not the image's: see `wasm`.
    Wasm,
}

impl Guise {
    /// What `run` and `create` are told. The engine is the one that every host has.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Guise::Container => &["--as", "container"],
            Guise::Microvm => &["--as", "microvm", "--engine", "soft"],
            Guise::Vm => &["--as", "vm", "--engine", "soft"],
            Guise::Wasm => &["--as", "wasm"],
        }
    }

    /// Tells homes of the same test apart.
    fn letter(self) -> char {
        match self {
            Guise::Container => 'c',
            Guise::Microvm => 'm',
            Guise::Vm => 'v',
            Guise::Wasm => 'w',
        }
    }
}

/// Makes a test for each guise of functions that take one.
macro_rules! in_every_guise {
    ($($test:ident),+ $(,)?) => {
        mod container {
            $(#[test]
            fn $test() {
                super::$test(crate::home::Guise::Container);
            })+
        }
        mod microvm {
            $(#[test]
            fn $test() {
                super::$test(crate::home::Guise::Microvm);
            })+
        }
        mod vm {
            $(#[test]
            fn $test() {
                super::$test(crate::home::Guise::Vm);
            })+
        }
    };
}
pub(crate) use in_every_guise;

pub struct Home {
    guise: Guise,
    directory: PathBuf,
    daemon: Option<Child>,
    /// What VMs boot.
    disk: Option<Arc<Disk>>,
}

/// A disk that boots by itself, into a system with a busybox. All homes that are there at a time
/// share one.
struct Disk {
    path: PathBuf,
    is_ours: bool,
}

impl Disk {
    fn get() -> Arc<Disk> {
        static DISK: Mutex<Weak<Disk>> = Mutex::new(Weak::new());
        let mut shared = DISK.lock().unwrap();
        if let Some(disk) = shared.upgrade() {
            return disk;
        }
        if let Some(made) = std::env::var_os("GUISE_TEST_DISK") {
            let disk = Arc::new(Disk { path: made.into(), is_ours: false });
            *shared = Arc::downgrade(&disk);
            return disk;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gr-{}-{number}.disk", std::process::id()));
        debian_root::small_bootable(Kernel::Debian12Cloud, &path).unwrap();
        let disk = Arc::new(Disk { path, is_ours: true });
        *shared = Arc::downgrade(&disk);
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a command printed and ended with.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

fn busybox() -> Option<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists())
}

/// A root file system with busybox, as a tar file; made once.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let busybox = busybox().expect("looked for before");
        let mut tar = Writer::new(Vec::new());
        for (folder, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700)] {
            tar.append(&Entry::new(folder, Kind::Directory, mode), std::io::empty()).unwrap();
        }
        let program = fs::read(busybox).unwrap();
        let mut entry = Entry::new("bin/busybox", Kind::File, 0o755);
        entry.size = program.len() as u64;
        tar.append(&entry, program.as_slice()).unwrap();
        let list = Command::new(busybox).arg("--list").output().unwrap();
        for name in String::from_utf8(list.stdout).unwrap().lines().filter(|n| *n != "busybox") {
            let link = Entry::new(format!("bin/{name}"), Kind::Symlink(b"busybox".to_vec()), 0o777);
            tar.append(&link, std::io::empty()).unwrap();
        }
        tar.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n").unwrap();
        tar.file("etc/group", b"root:x:0:\nwww:x:34:\nlog:x:4:web\n").unwrap();
        tar.file("etc/not-a-program", b"text\n").unwrap();
        tar.file("etc/debian_version", b"12.0\n").unwrap();
        tar.finish().unwrap()
    })
}

impl Home {
    /// A home with a running daemon; none, said aloud, where containers cannot be run.
    pub fn new(test: &str, guise: Guise) -> Option<Home> {
        Home::with_daemon(test, guise, |_| ())
    }

    /// The same with a daemon that is told more.
    pub fn with_daemon(
        test: &str,
        guise: Guise,
        prepare: impl FnOnce(&mut Command),
    ) -> Option<Home> {
        // `plain_user` has others run as well, and knows which.
        let is_chosen = std::env::var_os("GUISE_TEST_BINARY").is_some();
        if !rustix::process::geteuid().is_root() && !is_chosen {
            not_run(test, "needs root");
            return None;
        }
        let mut home = Home::without_daemon(test, guise)?;
        home.start_daemon_with(prepare);
        Some(home)
    }

    pub fn without_daemon(test: &str, guise: Guise) -> Option<Home> {
        if busybox().is_none() {
            not_run(test, "needs a static busybox (Debian: busybox-static)");
            return None;
        }
        let name = format!("gr-{test}-{}{}", guise.letter(), std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let disk = (guise == Guise::Vm).then(Disk::get);
        let home = Home { guise, directory, daemon: None, disk };
        fs::write(home.path("box.tar"), image()).unwrap();
        home.import(BOX);
        Some(home)
    }

    /// Puts the image into the store under a name.
    pub fn import(&self, name: &str) {
        self.import_from(&self.path("box.tar"), name);
    }

    /// The same with another one, from a file.
    pub fn import_from(&self, tar: &Path, name: &str) {
        let images = self.path("images");
        let mut import = Command::new(&*GUISE);
        import.args(["image", "--store"]).arg(&images).args(["import", "-q"]).arg(tar).arg(name);
        let import = import.output().unwrap();
        assert!(import.status.success(), "{import:?}");
    }

    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.directory.join(below)
    }

    /// What a command line of this home says for the image.
    pub fn image(&self) -> String {
        match &self.disk {
            Some(disk) => format!("--disk {}", disk.path.display()),
            None => BOX.to_owned(),
        }
    }

    /// A disk that boots by itself, in homes of all guises.
    pub fn disk(&mut self) -> PathBuf {
        self.disk.get_or_insert_with(Disk::get).path.clone()
    }

    /// The environment that makes commands use this home.
    pub fn places(&self) -> [(&'static str, PathBuf); 5] {
        [
            ("GUISE_STATE", self.path("state")),
            ("GUISE_RUN", self.path("run")),
            ("GUISE_IMAGES", self.path("images")),
            ("HOME", self.path("home")),
            ("GUISE_KERNEL", Kernel::Debian12Cloud.root().unwrap()),
        ]
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&*GUISE);
        let args: Vec<S> = args.into_iter().collect();
        let is = |arg: &S, text: &str| arg.as_ref() == text;
        if let [first, rest @ ..] = &args[..] {
            command.arg(first);
            let makes_one = is(first, "run") || is(first, "create");
            let is_ours = makes_one && !rest.iter().any(|arg| is(arg, "--as"));
            if is_ours {
                command.args(self.guise.options());
            }
            for arg in rest {
                match &self.disk {
                    Some(disk) if is_ours && self.guise == Guise::Vm && is(arg, BOX) => {
                        command.arg("--disk").arg(&disk.path);
                    }
                    _ => {
                        command.arg(arg);
                    }
                }
            }
        }
        command.envs(self.places()).stdin(Stdio::null());
        command
    }

    pub fn start_daemon(&mut self) {
        self.start_daemon_with(|_| ());
    }

    pub fn start_daemon_with(&mut self, prepare: impl FnOnce(&mut Command)) {
        let log = fs::File::options().create(true).append(true).open(self.path("daemon.log"));
        let mut command = self.command(["daemon"]);
        command.stdout(Stdio::null()).stderr(log.unwrap());
        prepare(&mut command);
        self.daemon = Some(command.spawn().unwrap());
        self.until("the daemon listens", || {
            std::os::unix::net::UnixStream::connect(self.path("run/guise.sock")).is_ok()
        });
    }

    /// Ends the daemon as a power failure would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// The daemon that runs here now, whoever started it.
    pub fn daemon_pid(&self) -> rustix::process::Pid {
        let text = fs::read_to_string(self.path("run/daemon.lock")).unwrap();
        rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    /// Takes note that the daemon that this home started may be dead.
    pub fn reap_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // One that lives is still this home's.
            if daemon.try_wait().unwrap().is_none() {
                self.daemon = Some(daemon);
            }
        }
    }

    /// Has a daemon run: one that a command started, or a new one.
    pub fn adopt_daemon(&mut self) {
        let answers = self.guise(&["ps", "-q"]);
        assert_eq!(answers.code, 0, "{answers:?}\n{}", self.daemon_log());
    }

    pub fn guise(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    /// What a command printed that has to succeed, byte by byte.
    #[track_caller]
    pub fn guise_raw(&self, args: &[&str]) -> Vec<u8> {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The same with something to read.
    pub fn guise_with(&self, args: &[&str], input: &[u8]) -> Said {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // The program may end before it has read everything.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        said(output)
    }

    /// What the API answers, in plain HTTP.
    #[track_caller]
    pub fn ask(&self, path: &str) -> String {
        let socket = self.path("run/guise.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A request at the daemon's own socket: the answer's status and value.
    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> (u16, serde_json::Value) {
        let stream = std::os::unix::net::UnixStream::connect(self.path("run/guise.sock")).unwrap();
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) =
            exchange(stream, &format!("{method} {path} HTTP/1.1"), text.as_bytes());
        (status, serde_json::from_str(&answer).unwrap_or(serde_json::Value::String(answer)))
    }

    /// Runs a command that has to succeed; what it printed.
    #[track_caller]
    pub fn good(&self, args: &[&str]) -> String {
        let said = self.guise(args);
        assert_eq!(said.code, 0, "{args:?}: {}\n{}", said.err, self.daemon_log());
        said.out.trim_end().to_owned()
    }

    /// An instance's part of `inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let text = self.good(&["inspect", name]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[0].clone()
    }

    #[track_caller]
    pub fn until_phase(&self, name: &str, phase: &str) {
        self.until(&format!("{name} is {phase}"), || {
            self.inspect(name)["status"]["phase"] == phase
        });
    }

    #[track_caller]
    pub fn until(&self, what: &str, so: impl FnMut() -> bool) {
        // A system takes its time to come up, and tests have several beside each other.
        let patience = if self.guise == Guise::Vm { 4 * PATIENCE } else { PATIENCE };
        self.until_within(patience, what, so);
    }

    #[track_caller]
    pub fn until_within(&self, patience: Duration, what: &str, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + patience;
        while !so() {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.daemon_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// Instances that were removed have left nothing: a worker that has told of its end has a
    /// moment to end.
    #[track_caller]
    pub fn expect_nothing_left(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let left = self.leftovers()
            && !left.is_empty()
        {
            assert!(Instant::now() < deadline, "left: {left:#?}\n{}", self.daemon_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Mounts, cgroups and directories that belong to this home's instances.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let marks = self.directory.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(&marks)).map(str::to_owned));
        for place in ["state/instances", "run/i"] {
            let entries = fs::read_dir(self.path(place)).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(" worker ") && command.contains(&marks) {
                found.push(command);
            }
        }
        found.extend(self.groups());
        found
    }

    /// The cgroups of this home's workers, as `ID-LIFE`.
    pub fn groups(&self) -> Vec<String> {
        let all = guise_worker::group::Left::all(&self.path("state/instances/any")).unwrap();
        all.into_iter().map(|(id, life)| format!("{id}-{life}")).collect()
    }
}

impl Home {
    /// The command lines of workers; one whose parent is the same worker is a part of it.
    pub fn workers(&self) -> Vec<String> {
        let line = |process: &Path| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).replace('\0', " ")
        };
        let parent = |process: &Path| {
            let stat = fs::read_to_string(process.join("stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.to_owned();
            Some(Path::new("/proc").join(parent))
        };
        let marks = self.directory.to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        processes
            .filter_map(|process| {
                let own = line(&process);
                let is_part = parent(&process).is_some_and(|parent| line(&parent) == own);
                let worker = own.contains(" worker ") && own.contains(&marks);
                (worker && !is_part).then_some(own)
            })
            .collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Commands start a daemon if there is none.
        let all = self.guise(&["--project", "*", "ps", "-a", "-o", "json"]);
        let all: Vec<serde_json::Value> = serde_json::from_str(&all.out).unwrap_or_default();
        for instance in &all {
            let text = |field: &str| instance[field].as_str().unwrap_or_default();
            self.guise(&["--project", text("project"), "rm", "-f", text("id")]);
        }
        // No other daemon comes that would take away what this one still waits for.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.groups().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // A test that failed may have left some, whose switches would run on.
        let networks = fs::read_dir(self.path("state/networks")).into_iter().flatten().flatten();
        let names = networks
            .filter_map(|book| Some(book.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        for name in names {
            self.guise(&["network", "rm", &name]);
        }
        let pid = self.daemon_pid();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One request in plain HTTP: the answer's status and body.
pub fn exchange(
    mut stream: impl std::io::Read + std::io::Write,
    head: &str,
    body: &[u8],
) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\
         content-type: application/json\r\n\r\n"
    );
    // Who is refused early may not be listened to any more.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status, body.unwrap_or_default())
}

pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Says past the test runner what was not tested, and why.
pub fn not_run(what: &str, why: &str) {
    // Nobody can do anything about a closed standard error.
    let _ = writeln!(std::io::stderr(), "not run: {what}: {why}");
}
