//! Places and writes everything that is not the contents of files.
//!
//! The image is: superblock, file data (written already), the whole blocks of
//! directories and of links too long to be inline, then inodes in the order
//! of a walk through the sorted tree. Nothing depends on time or chance.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::data::DataArea;
use super::format::{
    BLOCK, DIRENT, INODE, Inode, Placement, SLOT, Superblock, device_number, file_type,
};
use super::tree::{Content, Node, NodeId, ROOT, Tree};
use crate::Digest;

/// An inode's place.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Offset in the metadata area; none if the node is unreachable.
    offset: Option<u64>,
    /// First block of a directory or a long link.
    block: u64,
    placement: Option<Placement>,
    /// Bytes of data, a directory's as much as a file's.
    size: u64,
    links: u32,
    number: u32,
}

struct Layout<'a> {
    tree: &'a Tree,
    places: Vec<Place>,
    /// Reachable nodes in the order of their inodes, each with its parent
    /// directory.
    order: Vec<(NodeId, NodeId)>,
    next_block: u64,
    next_offset: u64,
}

/// Writes the tree behind the data.
pub fn write(tree: &Tree, data: DataArea, chain: Digest) -> io::Result<File> {
    let (mut file, first_free, tails) = data.finish()?;
    let mut layout = Layout {
        tree,
        places: vec![Place::default(); tree.nodes().len()],
        order: Vec::new(),
        next_block: first_free,
        next_offset: 0,
    };
    layout.walk();
    layout.place();
    let meta_block = layout.next_block;
    let blocks = meta_block + layout.next_offset.div_ceil(BLOCK);
    let blocks32 = u32::try_from(blocks)
        .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "more than 16 TiB"))?;

    file.seek(SeekFrom::Start(first_free * BLOCK))?;
    let mut out = Out { inner: BufWriter::with_capacity(1 << 20, file), at: first_free * BLOCK };
    layout.write_blocks(&mut out)?;
    let meta = meta_block * BLOCK;
    let mut tail = Vec::new();
    for &(id, parent) in &layout.order {
        let node = tree.node(id);
        let place = layout.places[id as usize];
        let Some(offset) = place.offset else { continue };
        out.pad_to(meta + offset)?;
        out.write(&Layout::inode(node, place).encode())?;
        out.write(&node.xattrs)?;
        if place.placement == Some(Placement::Inline) {
            match &node.content {
                Content::File(data) => tails.read(data, &mut tail)?,
                Content::Symlink(target) => tail = target.to_vec(),
                _ => tail = layout.directory(id, parent).pop().unwrap_or_default(),
            }
            out.write(&tail)?;
        }
    }
    out.pad_to(blocks * BLOCK)?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;

    let chain: Vec<u8> = (0..16)
        .map(|i| u8::from_str_radix(&chain.hex()[2 * i..2 * i + 2], 16).unwrap_or(0))
        .collect();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&chain);
    // Version 8: a UUID of our own making, RFC 9562.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let superblock = Superblock {
        root_nid: 0,
        inodes: layout.order.len() as u64,
        blocks: blocks32,
        meta_block: meta_block as u32,
        uuid,
    };
    file.write_all_at(&superblock.encode(), 0)?;
    layout.punch_dead_data(&file);
    Ok(file)
}

impl Layout<'_> {
    /// Counts links and orders the inodes: a directory's files together, then
    /// its subdirectories, so that listing a directory reads few blocks.
    fn walk(&mut self) {
        let mut pending = vec![(ROOT, ROOT)];
        self.order.push((ROOT, ROOT));
        self.places[ROOT as usize].links = 2;
        while let Some((dir, _)) = pending.pop() {
            let Content::Directory(children) = &self.tree.node(dir).content else { continue };
            let mut below = Vec::new();
            for &child in children.values() {
                let place = &mut self.places[child as usize];
                if matches!(self.tree.node(child).content, Content::Directory(_)) {
                    place.links = 2;
                    self.places[dir as usize].links += 1;
                    below.push((child, dir));
                } else {
                    place.links += 1;
                    if place.links > 1 {
                        continue;
                    }
                }
                self.order.push((child, dir));
            }
            // The stack reverses.
            pending.extend(below.into_iter().rev());
        }
    }

    /// Gives every inode its place. The root comes first: its number must fit
    /// into 16 bits.
    fn place(&mut self) {
        for (index, &(id, parent)) in self.order.iter().enumerate() {
            let node = self.tree.node(id);
            let head = INODE + node.xattrs.len() as u64;
            let (size, tail_ready) = match &node.content {
                Content::File(data) => (data.size, data.tail.is_some()),
                Content::Symlink(target) => (target.len() as u64, true),
                Content::Directory(_) => (self.directory_size(id, parent), true),
                _ => (0, false),
            };
            let tail = size % BLOCK;
            let inline = tail_ready && tail > 0 && head + tail <= BLOCK;
            let place = &mut self.places[id as usize];
            if !matches!(node.content, Content::File(_)) {
                place.block = self.next_block;
                self.next_block += if inline { size / BLOCK } else { size.div_ceil(BLOCK) };
            }
            let whole = head + if inline { tail } else { 0 };
            let used = self.next_offset % BLOCK;
            // Inline data must not cross a block; nor should an inode that
            // could do without.
            let crosses = used + whole > BLOCK && (whole <= BLOCK || used + INODE > BLOCK);
            if crosses {
                self.next_offset = self.next_offset.next_multiple_of(BLOCK);
            }
            place.size = size;
            place.offset = Some(self.next_offset);
            place.placement = Some(if inline { Placement::Inline } else { Placement::Plain });
            place.number = index as u32 + 1;
            self.next_offset = (self.next_offset + whole).next_multiple_of(SLOT);
        }
    }

    fn inode(node: &Node, place: Place) -> Inode {
        let (kind, data) = match &node.content {
            Content::Directory(_) => (0o040_000, place.block as u32),
            Content::File(data) => (0o100_000, data.block),
            Content::Symlink(_) => (0o120_000, place.block as u32),
            Content::Character(device) => (0o020_000, device_number(*device)),
            Content::Block(device) => (0o060_000, device_number(*device)),
            Content::Fifo => (0o010_000, 0),
        };
        Inode {
            placement: place.placement.unwrap_or(Placement::Plain),
            xattr_size: node.xattrs.len(),
            mode: kind | node.mode as u16,
            size: place.size,
            data,
            number: place.number,
            uid: node.uid,
            gid: node.gid,
            seconds: node.mtime.seconds,
            nanoseconds: node.mtime.nanoseconds,
            links: place.links,
        }
    }

    fn directory_size(&self, id: NodeId, parent: NodeId) -> u64 {
        let blocks = self.directory(id, parent);
        let last = blocks.last().map_or(0, Vec::len) as u64;
        (blocks.len() as u64 - 1) * BLOCK + last
    }

    /// The blocks of a directory, the last one as long as it is used. Names
    /// are sorted, with `.` and `..` among them, for the kernel searches by
    /// halves.
    fn directory(&self, id: NodeId, parent: NodeId) -> Vec<Vec<u8>> {
        let Content::Directory(children) = &self.tree.node(id).content else { return Vec::new() };
        let mut entries: Vec<(&[u8], NodeId)> =
            children.iter().map(|(name, id)| (&name[..], *id)).collect();
        for dots in [(&b"."[..], id), (b"..", parent)] {
            let at = entries.partition_point(|(name, _)| *name < dots.0);
            entries.insert(at, dots);
        }
        let mut blocks = Vec::new();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let mut size = 0;
            let fit = rest
                .iter()
                .take_while(|(name, _)| {
                    size += DIRENT + name.len();
                    size <= BLOCK as usize
                })
                .count();
            let (now, later) = rest.split_at(fit);
            rest = later;
            let mut block = Vec::with_capacity(BLOCK as usize);
            let mut name_offset = now.len() * DIRENT;
            for (name, id) in now {
                let nid = self.places[*id as usize].offset.unwrap_or(0) / SLOT;
                block.extend(nid.to_le_bytes());
                block.extend((name_offset as u16).to_le_bytes());
                block.extend([self.entry_type(*id), 0]);
                name_offset += name.len();
            }
            for (name, _) in now {
                block.extend(*name);
            }
            blocks.push(block);
        }
        blocks
    }

    fn entry_type(&self, id: NodeId) -> u8 {
        match self.tree.node(id).content {
            Content::Directory(_) => file_type::DIRECTORY,
            Content::File(_) => file_type::REGULAR,
            Content::Symlink(_) => file_type::SYMLINK,
            Content::Character(_) => file_type::CHARACTER,
            Content::Block(_) => file_type::BLOCK,
            Content::Fifo => file_type::FIFO,
        }
    }

    /// Writes the blocks of directories and of long links.
    fn write_blocks(&self, out: &mut Out) -> io::Result<()> {
        for &(id, parent) in &self.order {
            let place = self.places[id as usize];
            let mut blocks = match &self.tree.node(id).content {
                Content::Directory(_) => self.directory(id, parent),
                Content::Symlink(target) => vec![target.to_vec()],
                _ => continue,
            };
            if place.placement == Some(Placement::Inline) {
                blocks.pop();
            }
            for (index, block) in blocks.iter().enumerate() {
                out.pad_to((place.block + index as u64) * BLOCK)?;
                out.write(block)?;
            }
        }
        out.pad_to(self.next_block * BLOCK)
    }

    /// Gives back the space of files that an upper layer replaced. A file
    /// system that cannot do that merely keeps them.
    fn punch_dead_data(&self, file: &File) {
        for (node, place) in self.tree.nodes().iter().zip(&self.places) {
            if let Content::File(data) = &node.content
                && place.offset.is_none()
                && data.blocks() > 0
            {
                use rustix::fs::FallocateFlags;
                let _ = rustix::fs::fallocate(
                    file,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    u64::from(data.block) * BLOCK,
                    data.blocks() * BLOCK,
                );
            }
        }
    }
}

/// A sequential writer that knows where it is.
struct Out {
    inner: BufWriter<File>,
    at: u64,
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        while self.at < offset {
            let n = (offset - self.at).min(BLOCK);
            self.write(&[0; BLOCK as usize][..n as usize])?;
        }
        Ok(())
    }
}
