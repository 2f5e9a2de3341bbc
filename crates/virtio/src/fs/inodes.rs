//! Files that the guest has a number for.
//!
//! Each is a descriptor that stands for the file without opening it, which keeps the file
//! from being mistaken for a later one. A process has only so many descriptors, so those
//! that were not used for long are closed; such a file is found again by its directory
//! and name, and must be the very same then (device, number, time of birth), or it is
//! stale. A file that may lose its name keeps its descriptor.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx,
};
use rustix::io::Errno;

use super::locks::LockOwners;
use super::protocol::ROOT;

/// Files that the guest may know.
const MOST_KNOWN: usize = 4 << 20;

/// Which file it is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    device: (u32, u32),
    pub number: u64,
    born: (i64, u32),
}

impl Key {
    pub fn of(attributes: &Statx) -> Self {
        let born = attributes.stx_btime;
        Self {
            device: (attributes.stx_dev_major, attributes.stx_dev_minor),
            number: attributes.stx_ino,
            born: (born.tv_sec, born.tv_nsec),
        }
    }

    pub fn same_device(self, other: Key) -> bool {
        self.device == other.device
    }
}

/// What changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub size: u64,
    pub changed: (i64, u32),
}

pub struct Inode {
    pub id: u64,
    pub kind: FileType,
    pub key: Key,
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
    /// Where it was last seen.
    place: Mutex<Option<(Arc<Inode>, CString)>>,
    /// Its descriptor must not be closed: it may not be found again.
    pinned: AtomicBool,
    used: AtomicBool,
    /// The content that the guest may have pages of.
    pub seen: Mutex<Option<Version>>,
    pub lock_owners: LockOwners,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds a name in a directory, and nowhere else.
pub fn find(directory: impl AsFd, name: &CStr) -> Result<(OwnedFd, Statx), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let fd = openat2(directory, name, flags, Mode::empty(), resolve)?;
    let attributes = attributes_of(&fd)?;
    Ok((fd, attributes))
}

pub fn attributes_of(file: impl AsFd) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, mask)
}

/// A path that leads to the very file behind a descriptor, whatever happens to its name.
pub fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl Inode {
    fn new(id: u64, fd: Arc<OwnedFd>, attributes: &Statx) -> Self {
        Self {
            id,
            kind: FileType::from_raw_mode(attributes.stx_mode.into()),
            key: Key::of(attributes),
            descriptor: Mutex::new(Some(fd)),
            place: Mutex::default(),
            pinned: AtomicBool::new(false),
            used: AtomicBool::new(true),
            seen: Mutex::default(),
            lock_owners: LockOwners::default(),
        }
    }
}

#[derive(Default)]
struct Table {
    /// With how often the guest has been told of each.
    files: HashMap<u64, (Arc<Inode>, u64)>,
    by_key: HashMap<Key, u64>,
    next: u64,
    /// Those that have descriptors, in the order in which they are looked at when there
    /// are too many.
    open: VecDeque<Arc<Inode>>,
}

pub struct Inodes {
    table: Mutex<Table>,
    root: Arc<Inode>,
    most_open: usize,
}

impl Inodes {
    /// Keeps about so many descriptors open.
    pub fn new(root: OwnedFd, attributes: &Statx, most_open: usize) -> Self {
        let root = Arc::new(Inode::new(ROOT, Arc::new(root), attributes));
        let table = Mutex::new(Table { next: ROOT + 1, ..Table::default() });
        Self { table, root, most_open: most_open.max(16) }
    }

    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    pub fn get(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        lock(&self.table).files.get(&id).map(|(inode, _)| inode.clone()).ok_or(Errno::STALE)
    }

    /// The guest is told of a file that was found under a name.
    pub fn remember(
        &self,
        fd: OwnedFd,
        attributes: &Statx,
        place: (&Arc<Inode>, &CStr),
    ) -> Result<Arc<Inode>, Errno> {
        let key = Key::of(attributes);
        if key == self.root.key {
            return Ok(self.root.clone());
        }
        let place = Some((place.0.clone(), place.1.to_owned()));
        let mut table = lock(&self.table);
        let table = &mut *table;
        let known = table.by_key.get(&key).and_then(|id| table.files.get_mut(id));
        if let Some((inode, count)) = known {
            *count = count.saturating_add(1);
            *lock(&inode.place) = place;
            return Ok(inode.clone());
        }
        if table.files.len() >= MOST_KNOWN {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        table.next += 1;
        let inode = Arc::new(Inode::new(id, Arc::new(fd), attributes));
        *lock(&inode.place) = place;
        table.files.insert(id, (inode.clone(), 1));
        table.by_key.insert(key, id);
        self.opened(table, &inode);
        Ok(inode)
    }

    /// A file has got a descriptor; another one may lose its own.
    fn opened(&self, table: &mut Table, inode: &Arc<Inode>) {
        table.open.push_back(inode.clone());
        // Each is looked at twice at most: once to mark it, once to close it.
        for _ in 0..2 * table.open.len() {
            if table.open.len() <= self.most_open {
                break;
            }
            let Some(oldest) = table.open.pop_front() else { break };
            if oldest.pinned.load(Ordering::SeqCst) || oldest.used.swap(false, Ordering::SeqCst) {
                table.open.push_back(oldest);
            } else {
                lock(&oldest.descriptor).take();
            }
        }
    }

    /// The descriptor of a file, which is looked for again if need be.
    pub fn descriptor(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>, Errno> {
        inode.used.store(true, Ordering::SeqCst);
        if let Some(fd) = &*lock(&inode.descriptor) {
            return Ok(fd.clone());
        }
        // Directories above it that have lost theirs come first. There are as many as the
        // path has names, which a file system limits.
        let mut above = vec![inode.clone()];
        let mut start = None;
        while start.is_none() {
            let last = above.last().ok_or(Errno::STALE)?;
            let (parent, _) = lock(&last.place).clone().ok_or(Errno::STALE)?;
            start = lock(&parent.descriptor).clone();
            if start.is_none() {
                if above.len() > 4096 {
                    return Err(Errno::STALE);
                }
                above.push(parent);
            }
        }
        let mut fd = start.ok_or(Errno::STALE)?;
        for inode in above.iter().rev() {
            let (_, name) = lock(&inode.place).clone().ok_or(Errno::STALE)?;
            let (found, attributes) = find(&fd, &name).map_err(|_| Errno::STALE)?;
            if Key::of(&attributes) != inode.key {
                return Err(Errno::STALE);
            }
            fd = Arc::new(found);
            *lock(&inode.descriptor) = Some(fd.clone());
            self.opened(&mut lock(&self.table), inode);
        }
        Ok(fd)
    }

    /// A name is about to go: the file behind it, if the guest knows it, is to be found
    /// without one.
    pub fn pin(&self, attributes: &Statx) {
        let key = Key::of(attributes);
        let known = {
            let table = lock(&self.table);
            let id = table.by_key.get(&key);
            id.and_then(|id| table.files.get(id)).map(|(inode, _)| inode.clone())
        };
        if let Some(inode) = known {
            inode.pinned.store(true, Ordering::SeqCst);
            if let Err(error) = self.descriptor(&inode) {
                tracing::debug!(%error, "a file of a share is lost");
            }
        }
    }

    /// A file that was pinned has this name now.
    pub fn moved(&self, attributes: &Statx, place: (&Arc<Inode>, &CStr)) {
        let table = lock(&self.table);
        let id = table.by_key.get(&Key::of(attributes));
        if let Some((inode, _)) = id.and_then(|id| table.files.get(id)) {
            *lock(&inode.place) = Some((place.0.clone(), place.1.to_owned()));
            inode.pinned.store(false, Ordering::SeqCst);
        }
    }

    /// The guest has forgotten so many of the times it was told of a file.
    pub fn forget(&self, id: u64, times: u64) {
        let mut table = lock(&self.table);
        let Some((inode, count)) = table.files.get_mut(&id) else { return };
        *count = count.saturating_sub(times);
        if *count > 0 {
            return;
        }
        let inode = inode.clone();
        table.by_key.remove(&inode.key);
        table.files.remove(&id);
        inode.pinned.store(false, Ordering::SeqCst);
        inode.used.store(false, Ordering::SeqCst);
        lock(&inode.descriptor).take();
        // Its place in the queue of open ones is left for later, unless those grow many.
        if table.open.len() > 2 * self.most_open.max(table.files.len()) {
            table.open.retain(|inode| lock(&inode.descriptor).is_some());
        }
    }

    pub fn clear(&self) {
        let mut table = lock(&self.table);
        table.files.clear();
        table.by_key.clear();
        table.open.clear();
    }
}
