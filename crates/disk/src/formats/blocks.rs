//! What formats have in common that map a disk by a table of equal blocks:
//! VDI, Parallels, VHD, VHDX and the sparse extents of VMDK.
//!
//! The format brings its [`Table`]; looking up, filling, writing and zeroing
//! are here. Blocks are not given back to the file (none of these formats
//! counts references): zeroing punches a hole into them.

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Blame, Result};
use crate::format::{Below, Extent, Place, Preallocation, Run, State};
use crate::storage::{SharedStorage, Storage};

/// What a table says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Unallocated,
    /// Reads as zeroes.
    Zero,
    At(u64),
    /// Some sectors are here, others below: a bitmap tells which.
    Partial(u64),
    Packed(u64),
}

/// A new block.
pub(crate) struct NewBlock {
    pub offset: u64,
    /// The file ended before: it reads as zeroes.
    pub fresh: bool,
}

/// A format's own part. All methods are called under one lock.
pub(crate) trait Table: Send {
    fn get(&mut self, file: &dyn Storage, index: u64) -> Result<Slot>;

    /// Takes space for a block; nothing refers to it yet.
    fn allocate(&mut self, file: &dyn Storage, index: u64) -> Result<NewBlock>;

    /// Says in memory where a block is now.
    fn set(&mut self, file: &dyn Storage, index: u64, slot: Slot) -> Result<()>;

    /// Whether `Slot::Zero` can be said; otherwise a block has to be there.
    fn has_zero(&self) -> bool {
        false
    }

    /// Writes what changed. The data it refers to is stable. The caller
    /// flushes afterwards.
    fn commit(&mut self, file: &dyn Storage) -> Result<()>;

    fn is_dirty(&self) -> bool;

    /// For a partial block: whether `sector` of it is here.
    fn sectors(&mut self, _file: &dyn Storage, _index: u64) -> Result<Vec<bool>> {
        Ok(Vec::new())
    }

    /// Unpacks a packed block.
    fn unpack(&mut self, _file: &dyn Storage, _at: u64, _block: &mut [u8]) -> Result<()> {
        Ok(())
    }
}

/// A disk mapped by a table.
pub(crate) struct Blocks<T> {
    file: SharedStorage,
    /// Which of the image's files this is.
    number: u16,
    block: u64,
    table: Mutex<T>,
    writable: bool,
    blame: Blame,
}

const SECTOR: u64 = 512;

impl<T: Table> Blocks<T> {
    pub(crate) fn new(
        file: SharedStorage,
        number: u16,
        block: u64,
        table: T,
        writable: bool,
        blame: Blame,
    ) -> Self {
        Self { file, number, block, table: Mutex::new(table), writable, blame }
    }

    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    pub(crate) fn file(&self) -> &dyn Storage {
        &*self.file
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, T> {
        self.table.lock()
    }

    pub(crate) fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let mut table = self.table.lock();
        let mut state: Option<State> = None;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (index, within) = (at / self.block, at % self.block);
            let slot = table.get(self.file(), index)?;
            if let Slot::Partial(host) = slot {
                if state.is_some() {
                    break;
                }
                return self.map_partial(&mut table, index, within, host, len);
            }
            let here = match slot {
                Slot::Unallocated | Slot::Partial(_) => State::Unallocated,
                Slot::Zero => State::Zero { at: None },
                Slot::At(host) => State::Data { at: self.place(host + within) },
                Slot::Packed(_) => State::Packed { compressed: true },
            };
            match (state, here) {
                (None, _) => state = Some(here),
                (Some(State::Data { at: first }), State::Data { at })
                    if first.offset + done == at.offset => {}
                (Some(before), now) if before == now && !matches!(now, State::Data { .. }) => {}
                _ => break,
            }
            done += self.block - within;
            if matches!(slot, Slot::Packed(_)) {
                break;
            }
        }
        Ok(Extent { len: done.min(len), state: state.unwrap_or(State::Unallocated) })
    }

    fn place(&self, offset: u64) -> Place {
        Place { file: self.number, offset }
    }

    fn map_partial(
        &self,
        table: &mut T,
        index: u64,
        within: u64,
        host: u64,
        len: u64,
    ) -> Result<Extent> {
        let sectors = table.sectors(self.file(), index)?;
        let here = |sector: u64| sectors.get(sector as usize).copied().unwrap_or(false);
        let first = within / SECTOR;
        let mut last = first + 1;
        while last < self.block / SECTOR && here(last) == here(first) {
            last += 1;
        }
        let state = if here(first) {
            State::Data { at: self.place(host + within) }
        } else {
            State::Unallocated
        };
        Ok(Extent { len: (last * SECTOR - within).min(len), state })
    }

    /// Reads within one packed stretch.
    pub(crate) fn read_packed(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let (index, within) = (offset / self.block, offset % self.block);
            let len = buf.len().min((self.block - within) as usize);
            let (part, rest) = buf.split_at_mut(len);
            let mut table = self.table.lock();
            if let Slot::Packed(at) = table.get(self.file(), index)? {
                if len as u64 == self.block {
                    table.unpack(self.file(), at, part)?;
                } else {
                    let mut whole = vec![0; self.block as usize];
                    table.unpack(self.file(), at, &mut whole)?;
                    part.copy_from_slice(&whole[within as usize..within as usize + len]);
                }
            }
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    pub(crate) fn write(&self, mut offset: u64, mut data: &[u8], below: &dyn Below) -> Result<()> {
        if !self.writable {
            return Err(self.blame.read_only());
        }
        while !data.is_empty() {
            let (index, within) = (offset / self.block, offset % self.block);
            let len = data.len().min((self.block - within) as usize);
            let (part, rest) = data.split_at(len);
            let mut table = self.table.lock();
            match table.get(self.file(), index)? {
                Slot::At(host) => {
                    drop(table);
                    self.file.write_at(host + within, part)?;
                }
                // The lock is held until the block is filled: nobody else may
                // make the same one.
                _ => self.write_new(&mut table, index, within, part, below)?,
            }
            offset += len as u64;
            data = rest;
        }
        Ok(())
    }

    /// Makes a block of its own out of whatever the table says now.
    fn write_new(
        &self,
        table: &mut T,
        index: u64,
        within: u64,
        data: &[u8],
        below: &dyn Below,
    ) -> Result<()> {
        let old = table.get(self.file(), index)?;
        let whole = data.len() as u64 == self.block;
        let start = index * self.block;
        let known_zero = match old {
            Slot::Zero => true,
            Slot::Unallocated => whole || below.is_zero(start, self.block)?,
            _ => false,
        };
        let mut filled = Vec::new();
        if !known_zero && !whole {
            filled = self.old_content(table, index, old, below)?;
        }
        let (host, fresh) = match old {
            Slot::Partial(host) => (host, false),
            _ => {
                let new = table.allocate(self.file(), index)?;
                (new.offset, new.fresh)
            }
        };
        if whole || (known_zero && fresh) {
            self.file.write_at(host + within, data)?;
            let end = host + self.block;
            if self.file.len()? < end {
                self.file.set_len(end)?;
            }
        } else {
            filled.resize(self.block as usize, 0);
            filled[within as usize..within as usize + data.len()].copy_from_slice(data);
            self.file.write_at(host, &filled)?;
        }
        table.set(self.file(), index, Slot::At(host))
    }

    fn old_content(
        &self,
        table: &mut T,
        index: u64,
        old: Slot,
        below: &dyn Below,
    ) -> Result<Vec<u8>> {
        let mut content = vec![0; self.block as usize];
        match old {
            Slot::Unallocated => below.read(index * self.block, &mut content)?,
            Slot::Zero => {}
            Slot::At(host) => self.file.read_at(host, &mut content)?,
            Slot::Packed(at) => table.unpack(self.file(), at, &mut content)?,
            Slot::Partial(host) => {
                let sectors = table.sectors(self.file(), index)?;
                below.read(index * self.block, &mut content)?;
                for (number, sector) in content.chunks_mut(SECTOR as usize).enumerate() {
                    if sectors.get(number).copied().unwrap_or(false) {
                        self.file.read_at(host + number as u64 * SECTOR, sector)?;
                    }
                }
            }
        }
        Ok(content)
    }

    pub(crate) fn zero(
        &self,
        mut offset: u64,
        len: u64,
        unmap: bool,
        below: &dyn Below,
    ) -> Result<()> {
        if !self.writable {
            return Err(self.blame.read_only());
        }
        let end = offset + len;
        while offset < end {
            let (index, within) = (offset / self.block, offset % self.block);
            let step = (end - offset).min(self.block - within);
            let whole = step == self.block;
            let mut table = self.table.lock();
            match table.get(self.file(), index)? {
                Slot::Zero => {}
                Slot::At(host) => {
                    drop(table);
                    self.file.write_zeroes(host + within, step, unmap)?;
                }
                Slot::Unallocated if below.is_zero(offset, step)? => {}
                _ if whole && table.has_zero() => table.set(self.file(), index, Slot::Zero)?,
                _ => {
                    self.write_new(&mut table, index, within, &vec![0; step as usize], below)?;
                }
            }
            offset += step;
        }
        Ok(())
    }

    /// Makes what the last block has behind the disk's end read as zeroes, and
    /// everything stable, before the end moves.
    pub(crate) fn before_growth(&self, size: u64) -> Result<()> {
        let (index, within) = (size / self.block, size % self.block);
        if within > 0 {
            let mut table = self.table.lock();
            if let Slot::At(host) = table.get(self.file(), index)? {
                self.file.write_zeroes(host + within, self.block - within, false)?;
            }
        }
        self.flush()
    }

    /// The host place of a stretch whose blocks are all there, side by side
    /// or not.
    pub(crate) fn in_place(
        &self,
        mut offset: u64,
        mut len: u64,
        to: &mut Vec<Run>,
    ) -> Result<bool> {
        let mut table = self.table.lock();
        while len > 0 {
            let within = offset % self.block;
            let Slot::At(host) = table.get(self.file(), offset / self.block)? else {
                return Ok(false);
            };
            let step = len.min(self.block - within);
            to.push((self.place(host + within), step));
            offset += step;
            len -= step;
        }
        Ok(true)
    }

    /// Data first, then what refers to it.
    pub(crate) fn flush(&self) -> Result<()> {
        self.file.flush()?;
        let mut table = self.table.lock();
        if table.is_dirty() {
            table.commit(self.file())?;
            drop(table);
            self.file.flush()?;
        }
        Ok(())
    }
}

/// Refuses a new size that a table cannot take: less than there is, or more
/// than the room that the file has for it; and to reserve space, which these
/// formats take when it is written.
pub(crate) fn check_growth(
    blame: &Blame,
    old: u64,
    new: u64,
    room: u64,
    preallocation: Preallocation,
) -> Result<()> {
    if preallocation != Preallocation::Off {
        return Err(
            blame.cannot_resize("new space cannot be reserved in it: use preallocation off")
        );
    }
    if new < old {
        return Err(blame.cannot_resize("it can only grow: convert it into a smaller one"));
    }
    if new > room {
        return Err(blame.cannot_resize(&format!(
            "its table has room for {room} bytes: convert it into a larger one"
        )));
    }
    Ok(())
}

/// A table of little-endian 32-bit entries at a fixed place, as several
/// formats have it, with the range that the file does not have yet.
pub(crate) struct WordTable {
    pub words: Vec<u32>,
    offset: u64,
    dirty: Option<(usize, usize)>,
    big_endian: bool,
}

impl WordTable {
    pub(crate) fn read(
        file: &dyn Storage,
        offset: u64,
        entries: usize,
        big_endian: bool,
    ) -> Result<Self> {
        let bytes = crate::storage::read_vec(file, offset, entries * 4)?;
        let words = bytes
            .chunks_exact(4)
            .map(|word| {
                let word = [word[0], word[1], word[2], word[3]];
                if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
            })
            .collect();
        Ok(Self { words, offset, dirty: None, big_endian })
    }

    pub(crate) fn set(&mut self, index: usize, value: u32) {
        self.words[index] = value;
        self.dirty = Some(match self.dirty {
            Some((from, to)) => (from.min(index), to.max(index + 1)),
            None => (index, index + 1),
        });
    }

    /// More entries behind the others. The caller has seen that there is room.
    pub(crate) fn grow(&mut self, entries: usize, value: u32) {
        for index in self.words.len()..entries {
            self.words.push(value);
            self.set(index, value);
        }
    }

    /// Another place, to which all entries are still to be written.
    pub(crate) fn move_to(&mut self, offset: u64, entries: usize, value: u32) {
        self.grow(entries, value);
        self.offset = offset;
        self.dirty = Some((0, entries));
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.is_some()
    }

    pub(crate) fn commit(&mut self, file: &dyn Storage) -> Result<()> {
        if let Some((from, to)) = self.dirty {
            let bytes: Vec<u8> = self.words[from..to]
                .iter()
                .flat_map(
                    |word| {
                        if self.big_endian { word.to_be_bytes() } else { word.to_le_bytes() }
                    },
                )
                .collect();
            file.write_at(self.offset + from as u64 * 4, &bytes)?;
            self.dirty = None;
        }
        Ok(())
    }
}
