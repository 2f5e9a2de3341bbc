//! Extended attributes.
//!
//! `user.` is everybody's, and a capability of a program belongs to the program. Others
//! mean something to the host's own kernel, so the guest has none of them.

use std::ffi::CStr;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::inodes::path_of;
use super::protocol::{Answer, Arguments, Header};
use super::server::Server;

/// The most bytes of a value, and of a list of names.
const MOST: usize = 64 << 10;

fn is_the_guests(name: &CStr) -> bool {
    let name = name.to_bytes();
    name.starts_with(b"user.") || name == b"security.capability"
}

fn checked<'a>(arguments: &mut Arguments<'a>) -> Result<&'a CStr, Errno> {
    let name = arguments.text()?;
    if is_the_guests(name) { Ok(name) } else { Err(Errno::OPNOTSUPP) }
}

/// What was asked for: how long it is, or all of it.
fn measured(value: &[u8], size: u32) -> Result<Answer, Errno> {
    match size as usize {
        0 => Ok(Answer::default().word(value.len() as u32).word(0)),
        size if size < value.len() => Err(Errno::RANGE),
        _ => Ok(Answer::default().bytes(value)),
    }
}

impl Server {
    fn xattr_path(&self, header: &Header) -> Result<(String, impl Sized), Errno> {
        let fd = self.inodes.descriptor(&self.node(header)?)?;
        Ok((path_of(&fd), fd))
    }

    pub fn get_xattr(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let size = arguments.word()?;
        arguments.skip(4)?;
        let name = checked(arguments)?;
        let (path, _held) = self.xattr_path(header)?;
        let mut value = vec![0; MOST];
        let length = getxattr(path, name, &mut value[..])?;
        measured(&value[..length], size)
    }

    pub fn list_xattrs(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let size = arguments.word()?;
        let (path, _held) = self.xattr_path(header)?;
        let mut names = vec![0; MOST];
        let length = listxattr(path, &mut names[..])?;
        let all = names[..length].split_inclusive(|byte| *byte == 0);
        let theirs = |name: &&[u8]| CStr::from_bytes_with_nul(name).is_ok_and(is_the_guests);
        let list: Vec<u8> = all.filter(theirs).flatten().copied().collect();
        measured(&list, size)
    }

    pub fn set_xattr(&self, header: &Header, arguments: &mut Arguments) -> Result<(), Errno> {
        let (size, flags) = (arguments.word()?, arguments.word()?);
        let name = checked(arguments)?;
        let value = arguments.bytes(size as usize)?;
        let (path, _held) = self.xattr_path(header)?;
        setxattr(path, name, value, XattrFlags::from_bits_retain(flags))
    }

    pub fn remove_xattr(&self, header: &Header, arguments: &mut Arguments) -> Result<(), Errno> {
        let name = checked(arguments)?;
        let (path, _held) = self.xattr_path(header)?;
        removexattr(path, name)
    }
}
