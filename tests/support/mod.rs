//! Runs the real binary as a user would, with a limit on time, and keeps what it
//! printed.

pub mod control;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use guise_engine_kvm::KvmEngine;

/// The limit for one guest. Far more than it needs, because CI machines are slow and
/// busy, and far less than a hang costs.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A `guise boot` command line under construction.
pub struct Boot {
    command: Command,
}

/// One that runs.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    chunks: Receiver<Vec<u8>>,
    /// All of its output so far.
    pub output: String,
    seen: usize,
    started: Instant,
    patience: Duration,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

impl Boot {
    pub fn kernel(path: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guise"));
        command.arg("boot").arg("--kernel").arg(path);
        Boot { command }
    }

    /// Another program, which starts it.
    pub fn by(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Boot { command }
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// The same, started by a program that ends in running what follows its arguments.
    pub fn within(mut self, mut outer: Command) -> Self {
        outer.arg(self.command.get_program()).args(self.command.get_args());
        self.command = outer;
        self
    }

    pub fn initrd(self, path: &Path) -> Self {
        self.args([Path::new("--initrd"), path])
    }

    /// Has another program start it.
    pub fn through(self, program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).arg(self.command.get_program()).args(self.command.get_args());
        Boot { command }
    }

    /// Starts it with its standard input held open.
    pub fn start(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stdout = child.stdout.take().expect("it is piped");
        let (sender, chunks) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = stdout.read(&mut buffer) {
                if length == 0 || sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Running {
            child,
            stdin,
            chunks,
            output: String::new(),
            seen: 0,
            started: Instant::now(),
            patience: PATIENCE,
        }
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        self.start().finish()
    }
}

impl Running {
    /// Gives the guest another limit.
    pub fn with_patience(mut self, patience: Duration) -> Running {
        self.patience = patience;
        self
    }

    /// The host's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A command of the guest's shell, and what it prints, which the command must not have
    /// in it as it is typed.
    pub fn says(&mut self, command: &str, text: &str) {
        assert!(!command.contains(text), "{command:?} shows when it is typed");
        self.type_line(command);
        self.wait_for(text);
    }

    /// Waits until the guest has printed this, after what was waited for before.
    pub fn wait_for(&mut self, text: &str) {
        loop {
            if let Some(at) = self.output[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            if !self.more() {
                panic!("the guest never printed {text:?}; it printed:\n{}", self.output);
            }
        }
    }

    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the guest runs");
        writeln!(stdin, "{line}").expect("the guest reads");
    }

    /// Takes in some output; false when there will be no more.
    fn more(&mut self) -> bool {
        let left = self.patience.saturating_sub(self.started.elapsed());
        match self.chunks.recv_timeout(left) {
            Ok(chunk) => {
                self.output.push_str(&String::from_utf8_lossy(&chunk));
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                let limit = self.patience;
                panic!("the guest took longer than {limit:?}; it printed:\n{}", self.output);
            }
        }
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn finish(mut self) -> Ended {
        while self.more() {}
        self.stdin = None;
        let status = self.child.wait().expect("it was started");
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut errors).expect("errors are text");
        }
        Ended { code: status.code(), output: std::mem::take(&mut self.output), errors }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Ended {
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.code,
            Some(code),
            "errors: {}\nthe guest printed:\n{}",
            self.errors,
            self.output
        );
        self
    }

    /// The kernel's log has nothing in it that a kernel's developer would want to see.
    #[track_caller]
    pub fn expect_clean_log(&self) -> &Self {
        const BAD: [&str; 12] = [
            "WARNING:",
            "BUG:",
            "Oops",
            "Call Trace",
            "Kernel panic",
            "general protection",
            "soft lockup",
            "rcu_sched self-detected",
            "rcu: INFO",
            "unhandled",
            "segfault",
            "clocksource: timekeeping watchdog",
        ];
        // What a kernel thinks of the host's processor is not the engine's doing.
        let told = |line: &&str| !line.contains("/hw-vuln/");
        for line in self.output.lines().filter(told) {
            let bad = BAD.iter().find(|bad| line.contains(**bad));
            assert!(bad.is_none(), "the guest's log has {line:?}:\n{}", self.output);
        }
        self
    }
}

/// What the guest printed, without the carriage returns of a terminal.
pub fn lines(output: &str) -> Vec<&str> {
    output.lines().map(|line| line.trim_end_matches('\r')).collect()
}

/// A kernel, or a failed test that says why there is none.
#[track_caller]
pub fn have<E: std::fmt::Display>(asset: Result<PathBuf, E>) -> PathBuf {
    asset.unwrap_or_else(|error| panic!("a test asset cannot be had: {error}"))
}

/// Says past the test runner, which keeps what passing tests print to itself, that
/// something was not tested here, and why.
pub fn not_run(what: &str, why: impl std::fmt::Display) {
    // Nobody can do anything about a closed standard error.
    let _ = writeln!(std::io::stderr(), "not run: {what}: {why}");
}

/// This host's KVM, whatever it is worth; none, said aloud, where there is none.
pub fn kvm() -> Option<KvmEngine> {
    KvmEngine::new().inspect_err(|error| not_run("guests on kvm", error)).ok()
}

/// Takes one test of this process at a time: guests have as many threads as CI
/// machines have processors.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
