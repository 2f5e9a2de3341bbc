//! Locks, which hold against processes of the host and other guests as well.
//!
//! POSIX locks belong to a process, of which the guest tells a number: each has a
//! description of the file of its own here, with locks of the kind that belong to a
//! description. `flock` belongs to a description in the first place.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::inodes::Inode;
use super::protocol::{Answer, Arguments, Header};
use super::server::{Outcome, Server};

/// Lock owners of one file.
const MOST_OWNERS: usize = 1024;
/// The lock is one of flock(2).
const OF_DESCRIPTION: u32 = 1;
/// The end of a lock that has none.
const NO_END: u64 = i64::MAX as u64;

/// A process of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// Descriptions of a file, by who holds locks through them.
#[derive(Default)]
pub struct LockOwners(Mutex<HashMap<Owner, Arc<OwnedFd>>>);

impl LockOwners {
    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Arc<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner's locks go with its description.
    pub fn release(&self, owner: Owner) {
        self.lock().remove(&owner);
    }
}

/// A lock as the guest describes it.
struct Wanted {
    handle: u64,
    owner: Owner,
    start: u64,
    end: u64,
    kind: i16,
    process: u32,
    of_description: bool,
}

impl Wanted {
    fn parse(arguments: &mut Arguments) -> Result<Self, Errno> {
        let (handle, owner) = (arguments.long()?, Owner(arguments.long()?));
        let (start, end) = (arguments.long()?, arguments.long()?);
        let (kind, process, flags) = (arguments.word()?, arguments.word()?, arguments.word()?);
        let kind = i16::try_from(kind).map_err(|_| Errno::INVAL)?;
        let known = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].contains(&i32::from(kind));
        if !known || start > end || start > NO_END {
            return Err(Errno::INVAL);
        }
        let of_description = flags & OF_DESCRIPTION != 0;
        Ok(Self { handle, owner, start, end, kind, process, of_description })
    }

    fn range(&self) -> libc::flock {
        let length = if self.end >= NO_END { 0 } else { self.end - self.start + 1 };
        libc::flock {
            l_type: self.kind,
            l_whence: libc::SEEK_SET as i16,
            l_start: self.start as i64,
            l_len: length as i64,
            // Locks of a description have none.
            l_pid: 0,
        }
    }
}

fn lock_call(file: &OwnedFd, command: i32, lock: &mut libc::flock) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and the structure is what these commands read and
    // write.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    match result {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

impl Server {
    /// The description that an owner's locks are on.
    fn description(&self, inode: &Arc<Inode>, owner: Owner) -> Result<Arc<OwnedFd>, Errno> {
        let mut owners = inode.lock_owners.lock();
        if let Some(file) = owners.get(&owner) {
            return Ok(file.clone());
        }
        if owners.len() >= MOST_OWNERS {
            return Err(Errno::NOLCK);
        }
        let file = match self.reopen(inode, OFlags::RDWR) {
            // A file that can only be read can still be locked for reading.
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => self.reopen(inode, OFlags::RDONLY),
            result => result,
        };
        let file = Arc::new(file?);
        owners.insert(owner, file.clone());
        Ok(file)
    }

    pub fn test_lock(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let inode = self.node(header)?;
        let wanted = Wanted::parse(arguments)?;
        let mut lock = wanted.range();
        let file = self.description(&inode, wanted.owner)?;
        lock_call(&file, libc::F_OFD_GETLK, &mut lock)?;
        let start = lock.l_start as u64;
        let end = if lock.l_len == 0 { NO_END } else { start + lock.l_len as u64 - 1 };
        // Whose lock it is cannot be said across machines.
        let process = if i32::from(lock.l_type) == libc::F_UNLCK { wanted.process } else { 0 };
        Ok(Answer::default().long(start).long(end).word(lock.l_type as u32).word(process))
    }

    /// Takes or gives up a lock. Whoever may wait for it does so outside.
    pub fn set_lock(
        &self,
        header: &Header,
        arguments: &mut Arguments,
        may_wait: bool,
    ) -> Result<Outcome, Errno> {
        let inode = self.node(header)?;
        let wanted = Wanted::parse(arguments)?;
        let result = if wanted.of_description {
            let operation = match i32::from(wanted.kind) {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingUnlock,
            };
            flock(self.handles.get(wanted.handle)?.fd(), operation)
        } else {
            let file = self.description(&inode, wanted.owner)?;
            lock_call(&file, libc::F_OFD_SETLK, &mut wanted.range())
        };
        match result {
            Err(Errno::AGAIN | Errno::ACCESS) if may_wait => Ok(Outcome::Wait),
            result => result.map(|()| Outcome::Answer(Answer::default())),
        }
    }
}
