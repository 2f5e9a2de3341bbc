//! Names: looking them up, making them, moving them, removing them.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Statx, chmod, linkat, mkdirat,
    mknodat, openat2, readlinkat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::put_attributes;
use super::files::passed_flags;
use super::handles::Handle;
use super::inodes::{Inode, attributes_of, find, path_of};
use super::protocol::{Answer, Arguments, Header};
use super::server::Server;

const SET_GROUP_ID: u16 = 0o2000;
const PERMISSIONS: u32 = 0o7777;
const FORMAT: u32 = 0o170_000;

impl Server {
    /// A file that the guest is told of: number, how long all this is true, attributes.
    fn entry(
        &self,
        answer: Answer,
        parent: &Arc<Inode>,
        name: &CStr,
        found: (OwnedFd, Statx),
    ) -> Result<Answer, Errno> {
        let (fd, attributes) = found;
        let inode = self.inodes.remember(fd, &attributes, (parent, name))?;
        Ok(self.put_entry(answer, &inode, &attributes))
    }

    fn put_entry(&self, answer: Answer, inode: &Inode, attributes: &Statx) -> Answer {
        let (seconds, nanoseconds) = self.validity();
        let answer = answer.long(inode.id).long(0).long(seconds).long(seconds);
        let answer = answer.word(nanoseconds).word(nanoseconds);
        put_attributes(answer, attributes, self.number(inode), self.owners)
    }

    pub fn lookup(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let (parent, name) = (self.node(header)?, arguments.name()?);
        self.told(&parent, name)
    }

    /// The same, for a name in a list of names.
    pub fn told(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Answer, Errno> {
        let found = find(self.inodes.descriptor(parent)?, name)?;
        self.entry(Answer::default(), parent, name, found)
    }

    pub fn read_link(&self, header: &Header) -> Result<Answer, Errno> {
        let inode = self.node(header)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(self.inodes.descriptor(&inode)?, c"", Vec::new())?;
        Ok(Answer::default().bytes(target.to_bytes()))
    }

    /// Gives what was just made to its maker, and the permissions that it should have:
    /// the host's process has a mask of its own, and a change of owner takes bits away.
    fn settle(
        &self,
        header: &Header,
        parent: &OwnedFd,
        name: &CStr,
        mode: Option<u32>,
    ) -> Result<(OwnedFd, Statx), Errno> {
        let above = attributes_of(parent)?;
        let inherits = above.stx_mode & SET_GROUP_ID != 0;
        let (fd, _) = find(parent, name)?;
        self.owners.assign(&fd, header.uid, header.gid, inherits)?;
        let mut attributes = attributes_of(&fd)?;
        let kept = u32::from(if inherits { attributes.stx_mode & SET_GROUP_ID } else { 0 });
        if let Some(mode) = mode.map(|mode| mode & PERMISSIONS | kept)
            && u32::from(attributes.stx_mode) & PERMISSIONS != mode
        {
            chmod(path_of(&fd), Mode::from_raw_mode(mode))?;
            attributes = attributes_of(&fd)?;
        }
        Ok((fd, attributes))
    }

    pub fn make_link(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let (parent, name, target) = (self.node(header)?, arguments.name()?, arguments.text()?);
        let directory = self.inodes.descriptor(&parent)?;
        symlinkat(target, &directory, name)?;
        let made = self.settle(header, &directory, name, None)?;
        self.entry(Answer::default(), &parent, name, made)
    }

    /// Files, pipes and sockets. A device would be one of the host's; only the mark that
    /// overlay file systems leave for a removed file is harmless.
    pub fn make_node(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let parent = self.node(header)?;
        let (mode, device) = (arguments.word()?, arguments.word()?);
        arguments.skip(8)?;
        let name = arguments.name()?;
        let kind = FileType::from_raw_mode(mode & FORMAT);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice if device == 0 => {}
            _ => return Err(Errno::PERM),
        }
        let directory = self.inodes.descriptor(&parent)?;
        mknodat(&directory, name, kind, Mode::from_raw_mode(mode & PERMISSIONS), 0)?;
        let made = self.settle(header, &directory, name, Some(mode))?;
        self.entry(Answer::default(), &parent, name, made)
    }

    pub fn make_directory(
        &self,
        header: &Header,
        arguments: &mut Arguments,
    ) -> Result<Answer, Errno> {
        let parent = self.node(header)?;
        let mode = arguments.word()?;
        arguments.skip(4)?;
        let name = arguments.name()?;
        let directory = self.inodes.descriptor(&parent)?;
        mkdirat(&directory, name, Mode::from_raw_mode(mode & PERMISSIONS))?;
        let made = self.settle(header, &directory, name, Some(mode))?;
        self.entry(Answer::default(), &parent, name, made)
    }

    /// Makes a file, unless it is there, and opens it.
    pub fn create(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let parent = self.node(header)?;
        let (flags, mode) = (arguments.word()?, arguments.word()?);
        arguments.skip(8)?;
        let name = arguments.name()?;
        let directory = self.inodes.descriptor(&parent)?;
        // Opened as it is made: its permissions need not allow that a second time.
        let make = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = make | passed_flags(flags);
        let permissions = Mode::from_raw_mode(mode & PERMISSIONS);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let made = match openat2(&directory, name, make, permissions, resolve) {
            Ok(made) => Some(made),
            // Somebody was faster.
            Err(Errno::EXIST) if flags & OFlags::EXCL.bits() == 0 => None,
            Err(error) => return Err(error),
        };
        let (fd, attributes) = match &made {
            Some(_) => self.settle(header, &directory, name, Some(mode))?,
            None => find(&directory, name)?,
        };
        let inode = self.inodes.remember(fd, &attributes, (&parent, name))?;
        let opened = match made {
            Some(made) => self.keep_open(&inode, made, flags),
            None => self.open_file(&inode, flags),
        };
        match opened {
            Ok((handle, options)) => {
                // A file that was cut off in opening it has other attributes.
                let attributes = attributes_of(self.inodes.descriptor(&inode)?)?;
                let answer = self.put_entry(Answer::default(), &inode, &attributes);
                Ok(answer.long(handle).word(options).word(0))
            }
            Err(error) => {
                self.inodes.forget(inode.id, 1);
                Err(error)
            }
        }
    }

    pub fn link(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let parent = self.node(header)?;
        let inode = self.inodes.get(arguments.long()?)?;
        let name = arguments.name()?;
        let (file, directory) = (self.inodes.descriptor(&inode)?, self.inodes.descriptor(&parent)?);
        linkat(CWD, path_of(&file), &directory, name, AtFlags::SYMLINK_FOLLOW)?;
        let found = find(&directory, name)?;
        self.entry(Answer::default(), &parent, name, found)
    }

    pub fn remove(
        &self,
        header: &Header,
        arguments: &mut Arguments,
        directory: bool,
    ) -> Result<(), Errno> {
        let (parent, name) = (self.node(header)?, arguments.name()?);
        let above = self.inodes.descriptor(&parent)?;
        let found = find(&above, name).map(|(_, attributes)| attributes);
        if let Ok(attributes) = &found {
            self.inodes.pin(attributes);
        }
        let kind = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let result = unlinkat(above, name, kind);
        if let (Err(_), Ok(attributes)) = (result, &found) {
            self.inodes.moved(attributes, (&parent, name));
        }
        result
    }

    pub fn rename(
        &self,
        header: &Header,
        arguments: &mut Arguments,
        with_flags: bool,
    ) -> Result<(), Errno> {
        let from = self.node(header)?;
        let to = self.inodes.get(arguments.long()?)?;
        let mut flags = RenameFlags::empty();
        if with_flags {
            flags = RenameFlags::from_bits_retain(arguments.word()?);
            arguments.skip(4)?;
        }
        let known = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE | RenameFlags::WHITEOUT;
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let (name, new_name) = (arguments.name()?, arguments.name()?);
        let (source, target) = (self.inodes.descriptor(&from)?, self.inodes.descriptor(&to)?);
        // What is replaced loses its name, and what is moved must not get lost on the way.
        for (directory, name) in [(&source, name), (&target, new_name)] {
            if let Ok((_, attributes)) = find(directory, name) {
                self.inodes.pin(&attributes);
            }
        }
        let result = renameat_with(&source, name, &target, new_name, flags);
        for (inode, directory, name) in [(&from, &source, name), (&to, &target, new_name)] {
            if let Ok((_, attributes)) = find(directory, name) {
                self.inodes.moved(&attributes, (inode, name));
            }
        }
        result
    }

    pub fn open_directory(&self, header: &Header) -> Result<Answer, Errno> {
        let inode = self.node(header)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = self.inodes.descriptor(&inode)?;
        let fd = openat2(directory, c".", flags, Mode::empty(), ResolveFlags::BENEATH)?;
        let handle = Handle::Directory { fd, position: Default::default() };
        Ok(Answer::default().long(self.handles.add(handle)?).word(0).word(0))
    }
}
