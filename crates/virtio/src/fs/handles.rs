//! Files and directories that the guest has open, by number.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// Open files and directories at a time.
const MOST: usize = 64 << 10;

pub enum Handle {
    File {
        fd: OwnedFd,
        /// Writes go to the end, wherever it is by then.
        append: bool,
    },
    Directory {
        fd: OwnedFd,
        /// Where the next entries are read from, as the file system counts.
        position: Mutex<u64>,
    },
}

impl Handle {
    pub fn fd(&self) -> &OwnedFd {
        match self {
            Handle::File { fd, .. } | Handle::Directory { fd, .. } => fd,
        }
    }

    /// Its descriptor, if it is a file's.
    pub fn file(&self) -> Result<&OwnedFd, Errno> {
        match self {
            Handle::File { fd, .. } => Ok(fd),
            Handle::Directory { .. } => Err(Errno::ISDIR),
        }
    }
}

#[derive(Default)]
pub struct Handles(Mutex<Table>);

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Handle>>,
    next: u64,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, handle: Handle) -> Result<u64, Errno> {
        let mut table = self.lock();
        if table.open.len() >= MOST {
            return Err(Errno::NFILE);
        }
        table.next += 1;
        let number = table.next;
        table.open.insert(number, Arc::new(handle));
        Ok(number)
    }

    pub fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.lock().open.get(&number).cloned().ok_or(Errno::BADF)
    }

    pub fn remove(&self, number: u64) {
        self.lock().open.remove(&number);
    }

    pub fn clear(&self) {
        self.lock().open.clear();
    }
}
