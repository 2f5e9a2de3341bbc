//! Lists of names.

use std::mem::MaybeUninit;
use std::sync::PoisonError;

use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::handles::Handle;
use super::inodes::Inode;
use super::protocol::{Answer, Arguments, Header};
use super::server::Server;

/// Bytes that the host's kernel is asked for at once.
const PIECE: usize = 16 << 10;
/// Lengths: of an entry without its name, and of what comes before it in a list that tells
/// of the files as well.
const ENTRY: usize = 24;
const FILE: usize = 128;

/// A kind of file as entries have it.
fn kind_number(kind: FileType) -> u32 {
    kind.as_raw_mode() >> 12 & 15
}

impl Server {
    /// As many entries as fit, from the position that the guest names.
    pub fn read_directory(
        &self,
        header: &Header,
        arguments: &mut Arguments,
        room: usize,
        with_files: bool,
    ) -> Result<Answer, Errno> {
        let directory = self.node(header)?;
        let handle = self.handles.get(arguments.long()?)?;
        let (offset, size) = (arguments.long()?, arguments.word()?);
        let Handle::Directory { fd, position } = &*handle else { return Err(Errno::NOTDIR) };
        let room = room.min(size as usize);
        let mut position = position.lock().unwrap_or_else(PoisonError::into_inner);
        if *position != offset {
            seek(fd, SeekFrom::Start(offset))?;
        }
        let mut answer = Vec::new();
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; PIECE];
        let mut entries = RawDir::new(fd, &mut buffer);
        let mut last = offset;
        let mut full = false;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if answer.is_empty() => return Err(error),
                Err(_) => break,
            };
            let name = entry.file_name();
            let before = if with_files { FILE } else { 0 };
            let length = before + (ENTRY + name.count_bytes()).next_multiple_of(8);
            if answer.len() + length > room {
                full = true;
                break;
            }
            let itself = matches!(name.to_bytes(), b"." | b"..");
            if with_files {
                // Without a number the guest takes only the name from it.
                let told = if itself { Err(Errno::INVAL) } else { self.told(&directory, name) };
                answer.extend(told.map_or(vec![0; FILE], |told| told.0));
            }
            let number = if itself { self.directory_number(&directory) } else { entry.ino() };
            let bytes = Answer::default()
                .long(number)
                .long(entry.next_entry_cookie())
                .word(name.count_bytes() as u32)
                .word(kind_number(entry.file_type()))
                .bytes(name.to_bytes());
            answer.extend(bytes.0);
            answer.resize(answer.len().next_multiple_of(8), 0);
            last = entry.next_entry_cookie();
        }
        // What was read ahead and did not fit is read again.
        if full {
            seek(fd, SeekFrom::Start(last))?;
            if answer.is_empty() {
                return Err(Errno::INVAL);
            }
        }
        *position = last;
        Ok(Answer(answer))
    }

    /// A directory's own number stands for the one above it too, which may be outside.
    fn directory_number(&self, directory: &Inode) -> u64 {
        self.number(directory)
    }
}
