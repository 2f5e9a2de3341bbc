//! Storage that remembers what was done to it, for crash tests: from the list
//! of operations a test builds what a disk may hold after the power failed,
//! with any subset of the writes since the last flush.

use parking_lot::Mutex;

use super::{MemoryStorage, Storage, StorageRun};
use crate::error::Result;

/// One change to the storage, in the order in which it was asked for.
#[derive(Clone, Debug)]
pub enum Operation {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
    Discard { offset: u64, len: u64 },
    SetLen(u64),
    Flush,
}

impl Operation {
    /// Does it again, to another storage.
    pub fn replay(&self, to: &dyn Storage) -> Result<()> {
        match self {
            Self::Write { offset, bytes } => to.write_at(*offset, bytes),
            Self::Zero { offset, len } => to.write_zeroes(*offset, *len, true),
            Self::Discard { offset, len } => to.discard(*offset, *len),
            Self::SetLen(len) => to.set_len(*len),
            Self::Flush => to.flush(),
        }
    }
}

/// Memory that keeps a list of all changes.
pub struct RecordingStorage {
    memory: MemoryStorage,
    log: Mutex<Vec<Operation>>,
}

impl RecordingStorage {
    /// Starts recording over this content.
    pub fn new(memory: MemoryStorage) -> Self {
        Self { memory, log: Mutex::default() }
    }

    /// How many operations there are so far.
    pub fn recorded(&self) -> usize {
        self.log.lock().len()
    }

    /// All operations so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.log.lock().clone()
    }

    fn note(&self, operation: Operation) {
        self.log.lock().push(operation);
    }
}

impl Storage for RecordingStorage {
    fn name(&self) -> &str {
        self.memory.name()
    }

    fn len(&self) -> Result<u64> {
        self.memory.len()
    }

    fn writable(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.memory.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.note(Operation::Write { offset, bytes: buf.to_vec() });
        self.memory.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.note(Operation::Zero { offset, len });
        self.memory.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.note(Operation::Discard { offset, len });
        self.memory.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.note(Operation::Flush);
        self.memory.flush()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.note(Operation::SetLen(len));
        self.memory.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.memory.allocate(offset, len)
    }

    fn run_at(&self, offset: u64) -> Result<StorageRun> {
        self.memory.run_at(offset)
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.memory.allocated_bytes()
    }
}
