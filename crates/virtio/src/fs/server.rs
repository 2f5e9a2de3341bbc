//! What the guest asks for, from a request to its answer.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_engine::GuestMemory;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::handles::Handles;
use super::inodes::{Inode, Inodes, attributes_of};
use super::owners::Owners;
use super::protocol::{self, Answer, Arguments, Header};
use super::worker::Held;
use super::{Cache, ShareOptions};
use crate::queue::chain::Segment;

/// Where a request's data are in guest memory: those to be written to a file, or the room
/// for those that are read.
pub struct Data<'a> {
    pub memory: &'a GuestMemory,
    pub segments: Vec<Segment>,
}

/// What a request came to, if it did not fail.
#[derive(Debug)]
pub enum Outcome {
    Answer(Answer),
    /// The answer lies in guest memory already, behind the place of its header.
    InPlace(u64),
    /// Somebody else has the lock.
    Wait,
}

pub struct Server {
    pub inodes: Inodes,
    pub handles: Handles,
    pub owners: Owners,
    pub cache: Cache,
    read_only: bool,
    /// Requests that wait for locks, by queue. They outlive the queues' threads.
    held: Mutex<HashMap<usize, Vec<Held>>>,
}

impl Server {
    pub fn new(directory: &Path, options: &ShareOptions) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, directory, flags, Mode::empty())?;
        let attributes = attributes_of(&root)?;
        Ok(Self {
            inodes: Inodes::new(root, &attributes, options.most_files),
            handles: Handles::default(),
            owners: Owners::of_this_process(),
            cache: options.cache,
            read_only: options.read_only,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<usize, Vec<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_held(&self, queue: usize) -> Vec<Held> {
        self.held().remove(&queue).unwrap_or_default()
    }

    pub fn keep_held(&self, queue: usize, held: Vec<Held>) {
        self.held().insert(queue, held);
    }

    /// A new driver knows nothing of what an earlier one did.
    pub fn forget_all(&self) {
        self.handles.clear();
        self.inodes.clear();
        self.held().clear();
    }

    pub fn node(&self, header: &Header) -> Result<Arc<Inode>, Errno> {
        self.inodes.get(header.node)
    }

    pub fn may_change(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Does what a request asks for. `room` is how many bytes an answer may have.
    pub fn perform(
        &self,
        header: &Header,
        arguments: &mut Arguments<'_>,
        data: &Data<'_>,
        room: usize,
    ) -> Result<Outcome, Errno> {
        let changes = matches!(
            header.operation,
            protocol::SETATTR
                | protocol::SYMLINK
                | protocol::MKNOD
                | protocol::MKDIR
                | protocol::UNLINK
                | protocol::RMDIR
                | protocol::RENAME
                | protocol::RENAME2
                | protocol::LINK
                | protocol::WRITE
                | protocol::CREATE
                | protocol::SETXATTR
                | protocol::REMOVEXATTR
                | protocol::FALLOCATE
                | protocol::COPY_FILE_RANGE
        );
        if changes {
            self.may_change()?;
        }
        let nothing = |()| Answer::default();
        let answer = match header.operation {
            protocol::INIT => {
                self.forget_all();
                protocol::init(arguments)?
            }
            protocol::DESTROY => {
                self.forget_all();
                Answer::default()
            }
            protocol::LOOKUP => self.lookup(header, arguments)?,
            protocol::GETATTR => self.attributes(header, arguments)?,
            protocol::SETATTR => self.set_attributes(header, arguments)?,
            protocol::STATX => self.extended_attributes(header, arguments)?,
            protocol::STATFS => self.file_system(header)?,
            protocol::READLINK => self.read_link(header)?,
            protocol::SYMLINK => self.make_link(header, arguments)?,
            protocol::MKNOD => self.make_node(header, arguments)?,
            protocol::MKDIR => self.make_directory(header, arguments)?,
            protocol::UNLINK => self.remove(header, arguments, false).map(nothing)?,
            protocol::RMDIR => self.remove(header, arguments, true).map(nothing)?,
            protocol::RENAME => self.rename(header, arguments, false).map(nothing)?,
            protocol::RENAME2 => self.rename(header, arguments, true).map(nothing)?,
            protocol::LINK => self.link(header, arguments)?,
            protocol::OPEN => self.open(header, arguments)?,
            protocol::CREATE => self.create(header, arguments)?,
            protocol::READ => return self.read(arguments, data).map(Outcome::InPlace),
            protocol::WRITE => self.write(header, arguments, data)?,
            protocol::RELEASE | protocol::RELEASEDIR => self.release(arguments).map(nothing)?,
            protocol::FLUSH => self.flush(header, arguments).map(nothing)?,
            protocol::FSYNC | protocol::FSYNCDIR => self.sync(arguments).map(nothing)?,
            protocol::SYNCFS => self.sync_all(header).map(nothing)?,
            protocol::FALLOCATE => self.allocate(arguments).map(nothing)?,
            protocol::LSEEK => self.seek(arguments)?,
            protocol::COPY_FILE_RANGE => self.copy(arguments)?,
            protocol::OPENDIR => self.open_directory(header)?,
            protocol::READDIR => self.read_directory(header, arguments, room, false)?,
            protocol::READDIRPLUS => self.read_directory(header, arguments, room, true)?,
            protocol::GETXATTR => self.get_xattr(header, arguments)?,
            protocol::LISTXATTR => self.list_xattrs(header, arguments)?,
            protocol::SETXATTR => self.set_xattr(header, arguments).map(nothing)?,
            protocol::REMOVEXATTR => self.remove_xattr(header, arguments).map(nothing)?,
            protocol::GETLK => self.test_lock(header, arguments)?,
            protocol::SETLK => return self.set_lock(header, arguments, false),
            protocol::SETLKW => return self.set_lock(header, arguments, true),
            // The guest's kernel does without.
            _ => return Err(Errno::NOSYS),
        };
        Ok(Outcome::Answer(answer))
    }

    /// FORGET and BATCH_FORGET, which have no answer.
    pub fn forget(&self, header: &Header, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        if header.operation == protocol::FORGET {
            self.inodes.forget(header.node, arguments.long()?);
            return Ok(());
        }
        let count = arguments.word()?;
        arguments.skip(4)?;
        for _ in 0..count {
            let (node, times) = (arguments.long()?, arguments.long()?);
            self.inodes.forget(node, times);
        }
        Ok(())
    }
}
