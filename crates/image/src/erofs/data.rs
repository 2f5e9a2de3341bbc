//! The contents of files, written to the image as they stream by. The bytes
//! after a file's last whole block wait in a scratch file, to follow the
//! file's inode.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, INODE, xattr_bytes};
use crate::error::LayerError;
use crate::layer::source::Source;
use crate::tar::Entry;

/// Where a file's contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileData {
    pub size: u64,
    /// First of the file's blocks.
    pub block: u32,
    /// Offset in the scratch file of the bytes that go inline.
    pub tail: Option<u64>,
}

impl FileData {
    /// Whole blocks in the data area.
    pub fn blocks(&self) -> u64 {
        match self.tail {
            Some(_) => self.size / BLOCK,
            None => self.size.div_ceil(BLOCK),
        }
    }
}

pub struct DataArea {
    out: BufWriter<File>,
    next_block: u64,
    tails: BufWriter<File>,
    tails_length: u64,
    buffer: Vec<u8>,
}

impl DataArea {
    /// Data begins behind the superblock's block.
    pub fn new(mut file: File, tails: File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(BLOCK))?;
        Ok(Self {
            out: BufWriter::with_capacity(1 << 20, file),
            next_block: 1,
            tails: BufWriter::with_capacity(256 << 10, tails),
            tails_length: 0,
            buffer: vec![0; 256 << 10],
        })
    }

    /// Stores the data of the current entry of an archive.
    pub fn file<R: Read>(
        &mut self,
        source: &mut Source<R>,
        entry: &Entry,
    ) -> Result<FileData, LayerError> {
        let io = |e| LayerError::io("storing", &entry.path, e);
        let overhead = INODE + xattr_bytes(&entry.xattrs, &entry.path)?.len() as u64;
        let tail = entry.size % BLOCK;
        let inline = tail > 0 && overhead + tail <= BLOCK;
        let data = FileData {
            size: entry.size,
            block: u32::try_from(self.next_block).map_err(|_| {
                LayerError::hostile(&entry.path, "does not fit: the file system is full at 16 TiB")
            })?,
            tail: inline.then_some(self.tails_length),
        };
        let mut in_blocks = if inline { entry.size - tail } else { entry.size };
        loop {
            let n = source.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            let bytes = &self.buffer[..n];
            let split = n.min(usize::try_from(in_blocks).unwrap_or(usize::MAX));
            self.out.write_all(&bytes[..split]).map_err(io)?;
            in_blocks -= split as u64;
            self.tails.write_all(&bytes[split..]).map_err(io)?;
            self.tails_length += (n - split) as u64;
        }
        let blocks = data.blocks();
        if !inline && tail > 0 {
            self.out.write_all(&[0; BLOCK as usize][tail as usize..]).map_err(io)?;
        }
        self.next_block += blocks;
        Ok(data)
    }

    /// Ends the data: the image, the first free block, and the tails.
    pub fn finish(self) -> io::Result<(File, u64, Tails)> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let tails = self.tails.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, self.next_block, Tails(tails)))
    }
}

/// The bytes that go inline.
pub struct Tails(File);

impl Tails {
    pub fn read(&self, data: &FileData, into: &mut Vec<u8>) -> io::Result<()> {
        into.clear();
        if let Some(offset) = data.tail {
            into.resize((data.size % BLOCK) as usize, 0);
            self.0.read_exact_at(into, offset)?;
        }
        Ok(())
    }
}
