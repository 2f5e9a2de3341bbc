//! What a file is: size, times, owner, permissions.

use rustix::fs::{
    FileType, Mode, Statx, StatxTimestamp, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chmod,
    fstatvfs, ftruncate, makedev, utimensat,
};
use rustix::io::Errno;

use super::Cache;
use super::inodes::{Inode, attributes_of, path_of};
use super::owners::Owners;
use super::protocol::{Answer, Arguments, Header};
use super::server::Server;

/// What is to be changed.
const MODE: u32 = 1 << 0;
const UID: u32 = 1 << 1;
const GID: u32 = 1 << 2;
const SIZE: u32 = 1 << 3;
const ACCESSED: u32 = 1 << 4;
const MODIFIED: u32 = 1 << 5;
const HANDLE: u32 = 1 << 6;
const ACCESSED_NOW: u32 = 1 << 7;
const MODIFIED_NOW: u32 = 1 << 8;

/// The question is about an open file.
const OF_HANDLE: u32 = 1;

/// Numbers of files on other file systems below the directory, which could be the same
/// as others', come from here.
const OTHER_DEVICES: u64 = 1 << 62;

/// A device's number as FUSE has it.
fn device(major: u32, minor: u32) -> u32 {
    makedev(major, minor) as u32
}

pub fn put_attributes(answer: Answer, it: &Statx, number: u64, owners: Owners) -> Answer {
    let (uid, gid) = owners.shown(it.stx_uid, it.stx_gid);
    answer
        .long(number)
        .long(it.stx_size)
        .long(it.stx_blocks)
        .long(it.stx_atime.tv_sec as u64)
        .long(it.stx_mtime.tv_sec as u64)
        .long(it.stx_ctime.tv_sec as u64)
        .word(it.stx_atime.tv_nsec)
        .word(it.stx_mtime.tv_nsec)
        .word(it.stx_ctime.tv_nsec)
        .word(it.stx_mode.into())
        .word(it.stx_nlink)
        .word(uid)
        .word(gid)
        .word(device(it.stx_rdev_major, it.stx_rdev_minor))
        .word(it.stx_blksize)
        .word(0)
}

fn put_time(answer: Answer, time: StatxTimestamp) -> Answer {
    answer.long(time.tv_sec as u64).word(time.tv_nsec).word(0)
}

impl Server {
    /// How long the guest may believe what it is told: seconds and nanoseconds.
    pub fn validity(&self) -> (u64, u32) {
        match self.cache {
            Cache::Auto => (1, 0),
            Cache::Always => (86_400, 0),
            Cache::Never => (0, 0),
        }
    }

    /// A file's number in the guest.
    pub fn number(&self, inode: &Inode) -> u64 {
        if inode.key.same_device(self.inodes.root().key) {
            return inode.key.number;
        }
        OTHER_DEVICES + inode.id
    }

    fn attributes_answer(&self, inode: &Inode, attributes: &Statx) -> Answer {
        let (seconds, nanoseconds) = self.validity();
        let answer = Answer::default().long(seconds).word(nanoseconds).word(0);
        put_attributes(answer, attributes, self.number(inode), self.owners)
    }

    pub fn attributes(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let inode = self.node(header)?;
        let flags = arguments.word()?;
        arguments.skip(4)?;
        let handle = arguments.long()?;
        let attributes = if flags & OF_HANDLE != 0 {
            attributes_of(self.handles.get(handle)?.fd())?
        } else {
            attributes_of(self.inodes.descriptor(&inode)?)?
        };
        Ok(self.attributes_answer(&inode, &attributes))
    }

    pub fn extended_attributes(
        &self,
        header: &Header,
        arguments: &mut Arguments,
    ) -> Result<Answer, Errno> {
        let inode = self.node(header)?;
        arguments.skip(16)?;
        let it = attributes_of(self.inodes.descriptor(&inode)?)?;
        let (seconds, nanoseconds) = self.validity();
        let (uid, gid) = self.owners.shown(it.stx_uid, it.stx_gid);
        let answer = Answer::default()
            .long(seconds)
            .word(nanoseconds)
            .zeros(20)
            // All basic ones, and the birth if the file system knows it.
            .word(it.stx_mask & 0xfff)
            .word(it.stx_blksize)
            .long(0)
            .word(it.stx_nlink)
            .word(uid)
            .word(gid)
            .half(it.stx_mode)
            .half(0)
            .long(self.number(&inode))
            .long(it.stx_size)
            .long(it.stx_blocks)
            .long(0);
        let times = [it.stx_atime, it.stx_btime, it.stx_ctime, it.stx_mtime];
        let answer = times.into_iter().fold(answer, put_time);
        Ok(answer.word(it.stx_rdev_major).word(it.stx_rdev_minor).zeros(8 + 112))
    }

    pub fn set_attributes(
        &self,
        header: &Header,
        arguments: &mut Arguments,
    ) -> Result<Answer, Errno> {
        let inode = self.node(header)?;
        let valid = arguments.word()?;
        arguments.skip(4)?;
        let (handle, size) = (arguments.long()?, arguments.long()?);
        arguments.skip(8)?;
        let seconds = [arguments.long()?, arguments.long()?];
        arguments.skip(8)?;
        let nanoseconds = [arguments.word()?, arguments.word()?];
        arguments.skip(4)?;
        let mode = arguments.word()?;
        arguments.skip(4)?;
        let (uid, gid) = (arguments.word()?, arguments.word()?);

        let fd = self.inodes.descriptor(&inode)?;
        let path = path_of(&fd);
        if valid & MODE != 0 {
            if inode.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            chmod(&path, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if valid & (UID | GID) != 0 {
            let given = |bit, id| (valid & bit != 0).then_some(id);
            self.owners.change(&fd, given(UID, uid), given(GID, gid))?;
        }
        if valid & SIZE != 0 {
            let size = if i64::try_from(size).is_ok() { size } else { return Err(Errno::FBIG) };
            if valid & HANDLE != 0 {
                ftruncate(self.handles.get(handle)?.file()?, size)?;
            } else {
                ftruncate(self.reopen(&inode, rustix::fs::OFlags::WRONLY)?, size)?;
            }
        }
        if valid & (ACCESSED | MODIFIED) != 0 {
            let time = |set, now, at: usize| Timespec {
                tv_sec: seconds[at] as i64,
                tv_nsec: match () {
                    () if valid & now != 0 => UTIME_NOW,
                    () if valid & set != 0 => nanoseconds[at].into(),
                    () => UTIME_OMIT,
                },
            };
            let times = Timestamps {
                last_access: time(ACCESSED, ACCESSED_NOW, 0),
                last_modification: time(MODIFIED, MODIFIED_NOW, 1),
            };
            utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty())?;
        }
        let attributes = attributes_of(&fd)?;
        Ok(self.attributes_answer(&inode, &attributes))
    }

    pub fn file_system(&self, header: &Header) -> Result<Answer, Errno> {
        let it = fstatvfs(self.inodes.descriptor(&self.node(header)?)?)?;
        let answer = Answer::default().long(it.f_blocks).long(it.f_bfree).long(it.f_bavail);
        let answer = answer.long(it.f_files).long(it.f_ffree).word(it.f_bsize as u32);
        Ok(answer.word(it.f_namemax as u32).word(it.f_frsize as u32).zeros(28))
    }
}
