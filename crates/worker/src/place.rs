//! The files of an instance: where they are, and what keeps two workers apart.
//!
//! ```text
//! RUN/worker.lock          locked by the worker that holds the instance, as long as it lives
//! RUN/worker.err           its standard error: what it said when it died
//! RUN/worker/socket        its control socket
//! STATE/job.json           what the last worker was told to do
//! STATE/worker/log.N       what the workload printed
//! STATE/worker/end.json    how the last life ended; absent while one goes on
//! ```
//!
//! The lock is the truth about whether an instance runs: it ends with its holder,
//! however that ends, and no process id can be mistaken for it.
//!
//! When it is shut in, a worker sees of these two directories what is in `worker` and nothing else.
//! One that was taken over by its guest may live on for those who read its log, while the next
//! life's begins with more rights than it ever had: whatever that goes by is out of its reach. What
//! is in `worker` is a stranger's, and is opened as such ([`open_strangers`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guise_api::Ended;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::job::Job;
use crate::log::Position;

/// What an instance wrote, in its directory that lasts: as a folder, as a file system of its own.
pub const UPPER: &str = "upper";
pub const OWN_DISK: &str = "own.img";
/// And in its worker's: as a machine's file system, as a machine's disk.
pub const WRITES_DISK: &str = "writes.img";
pub const VM_DISK: &str = "disk.qcow2";

/// The folder of a worker's own, in both directories.
const WORKERS: &str = "worker";

/// An instance's two directories.
#[derive(Clone, Debug)]
pub struct Place {
    pub state: PathBuf,
    pub run: PathBuf,
}

/// How a life ended, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub life: u64,
    /// Where the log of that life begins.
    pub log: Position,
    pub ended: Ended,
    /// RFC 3339.
    pub finished: String,
}

/// Held by the worker of an instance.
#[derive(Debug)]
pub struct Hold {
    file: File,
}

impl Hold {
    /// Writes down who began which life.
    pub fn sign(&mut self, process: u32, life: u64) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(format!("{process} {life}\n").as_bytes())
    }
}

impl Place {
    /// What the worker writes itself, and stays.
    pub fn kept(&self) -> PathBuf {
        self.state.join(WORKERS)
    }

    /// What the worker writes itself, for this life.
    pub fn fleeting(&self) -> PathBuf {
        self.run.join(WORKERS)
    }

    pub fn socket(&self) -> PathBuf {
        self.fleeting().join("socket")
    }

    pub fn errors(&self) -> PathBuf {
        self.run.join("worker.err")
    }

    pub fn job(&self) -> PathBuf {
        self.state.join("job.json")
    }

    fn end(&self) -> PathBuf {
        self.kept().join("end.json")
    }

    /// Makes both directories, for nobody else to look into.
    pub fn create(&self) -> io::Result<()> {
        for directory in [self.kept(), self.fleeting()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(())
    }

    /// The lock's file, locked; none when another process has it.
    fn lock(&self) -> io::Result<Option<File>> {
        let path = self.run.join("worker.lock");
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the instance; none when another process has it. Who only looks whether it is
    /// held has it for a moment, too.
    pub fn hold(&self) -> io::Result<Option<Hold>> {
        const ATTEMPTS: u32 = 50;
        const MOMENT: Duration = Duration::from_millis(10);
        for _ in 1..ATTEMPTS {
            if let Some(file) = self.lock()? {
                return Ok(Some(Hold { file }));
            }
            std::thread::sleep(MOMENT);
        }
        Ok(self.lock()?.map(|file| Hold { file }))
    }

    /// Whether a worker holds the instance.
    pub fn is_held(&self) -> io::Result<bool> {
        match self.lock() {
            Ok(lock) => Ok(lock.is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the last worker left in its lock: its process id, and the life that it began.
    pub fn holder(&self) -> Option<(u32, u64)> {
        let text = fs::read_to_string(self.run.join("worker.lock")).ok()?;
        let (pid, life) = text.trim().split_once(' ')?;
        Some((pid.parse().ok()?, life.parse().ok()?))
    }

    pub fn write_job(&self, job: &Job) -> io::Result<()> {
        let text = serde_json::to_vec(job).map_err(io::Error::other)?;
        fs::write(self.job(), text)
    }

    /// What the last worker was told; none where there was none yet.
    pub fn read_job(&self) -> io::Result<Option<Job>> {
        read(File::open(self.job()))
    }

    /// Forgets how an earlier life ended.
    pub fn begin(&self) -> io::Result<()> {
        match fs::remove_file(self.end()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps how this life ended; `durable` makes it survive a power failure too.
    pub fn record_end(&self, end: &End, durable: bool) -> io::Result<()> {
        let text = serde_json::to_vec(end).map_err(io::Error::other)?;
        let fresh = self.kept().join("end.json.new");
        let mut file = File::create(&fresh)?;
        file.write_all(&text)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&fresh, self.end())?;
        if durable { sync_directory(&self.kept()) } else { Ok(()) }
    }

    /// How the last life ended, if it got to say so.
    pub fn read_end(&self) -> io::Result<Option<End>> {
        read(open_strangers(&self.end()))
    }
}

/// Opens a file of a worker's: one that was taken over may have left anything in its place.
pub fn open_strangers(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("{} is no file", path.display()))),
    }
}

fn read<T: serde::de::DeserializeOwned>(opened: io::Result<File>) -> io::Result<Option<T>> {
    const LARGEST: u64 = 1 << 20;
    let mut text = Vec::new();
    match opened.and_then(|file| file.take(LARGEST).read_to_end(&mut text)) {
        Ok(_) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
