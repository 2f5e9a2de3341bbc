//! A directory of the host in the guest: virtio-fs, which is FUSE over queues.
//!
//! What the guest knows of a file is a number, which stands for a descriptor of this
//! process ([`inodes`]). Names are only ever looked up one at a time below such a
//! descriptor, without following links, so that no path, link or rename leads out of the
//! directory. Files are opened from their descriptor and not from a name, and only
//! regular files and directories are: a device node, pipe or socket in the directory is
//! the guest's own affair.
//!
//! | module | what it holds |
//! |---|---|
//! | `protocol` | the bytes of requests and answers |
//! | `worker` | the thread of a queue |
//! | `server` | what a request does: one method for each kind, by subject in `names`, `files`, `directories`, `attributes`, `xattrs`, `locks` |
//! | `inodes`, `handles` | what the guest has a number for |
//! | `owners` | whose files the guest's are on the host |

mod attributes;
mod directories;
mod files;
mod handles;
mod inodes;
mod locks;
mod names;
mod owners;
mod protocol;
mod server;
mod worker;
mod xattrs;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::server::Server;
use self::worker::{Requests, Urgent};
use crate::device::{Session, StartError, VirtioDevice};
use crate::queue::Queue;
use crate::worker::{Kick, Worker, Workers};

const KIND: u16 = 26;
const CLASS: u32 = 0x01_8000;
const QUEUE_SIZE: u16 = 128;
/// The queue for what must not wait.
const URGENT: usize = 0;
/// The longest name of a share.
pub const LONGEST_TAG: usize = 36;

/// How long the guest believes what it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// A second; and a file that has not changed since it was last opened keeps its pages.
    #[default]
    Auto,
    /// For good: nobody else changes the directory.
    Always,
    /// Not at all.
    Never,
}

/// What is shared, and how.
#[derive(Clone, Debug)]
pub struct ShareOptions {
    /// What the guest mounts it by, at most [`LONGEST_TAG`] bytes.
    pub tag: String,
    pub read_only: bool,
    pub cache: Cache,
    /// Descriptors that may be kept open for files that the guest knows.
    pub most_files: usize,
    pub queues: u16,
}

/// A shared directory.
pub struct Share {
    server: Arc<Server>,
    tag: [u8; LONGEST_TAG],
    queues: u16,
    workers: Mutex<Workers>,
}

impl Share {
    pub fn new(directory: &Path, options: &ShareOptions) -> io::Result<Arc<Self>> {
        let mut tag = [0; LONGEST_TAG];
        let bytes = options.tag.as_bytes();
        let room = tag.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(bytes);
        let queues = options.queues.clamp(1, 16);
        let server = Arc::new(Server::new(directory, options)?);
        Ok(Arc::new(Self { server, tag, queues, workers: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Share {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 1 + usize::from(self.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let queues = u32::from(self.queues).to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            let told = self.tag.get(at).or_else(|| queues.get(at.wrapping_sub(LONGEST_TAG)));
            *byte = told.copied().unwrap_or(0);
        }
    }

    fn begin(&self, _: u64) {
        self.server.forget_all();
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let mut workers = Workers::default();
        for (index, queue) in session.queues.into_iter().enumerate() {
            let Some(queue) = queue else {
                // Further queues are the driver's choice.
                if index <= 1 {
                    return Err(StartError::MissingQueue(index));
                }
                workers.add(None);
                continue;
            };
            let (server, interrupt) = (self.server.clone(), session.interrupt.clone());
            let (name, number) = (format!("share {index}"), index as u16);
            let kick = Kick::new()?;
            let worker = if index == URGENT {
                Worker::serving(name, kick, number, queue, interrupt, Urgent(server))?
            } else {
                Worker::serving(name, kick, number, queue, interrupt, Requests::new(server, index))?
            };
            workers.add(Some(worker));
        }
        *self.lock() = workers;
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        self.lock().stop()
    }

    fn notify(&self, queue: u16) {
        self.lock().ring(queue);
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        self.lock().doorbell(queue)
    }
}

#[cfg(test)]
mod tests;
