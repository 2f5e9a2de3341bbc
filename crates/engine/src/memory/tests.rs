//! The marks on guest pages: dirty log and writes to code.

use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn tracker(memory: &GuestMemory) -> WriteTracker {
    memory.find_region(GuestAddress(0)).unwrap().bitmap()
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(usize, usize)>>>);

impl CodeWatcher for Seen {
    fn code_written(&self, offset: usize, length: usize) {
        self.0.lock().unwrap().push((offset, length));
    }
}

#[test]
fn writes_are_logged_only_while_asked_for() {
    let memory = memory();
    let tracker = tracker(&memory);
    memory.write_slice(&[1; 8], GuestAddress(0x3000)).unwrap();
    assert!(tracker.take_dirty().iter().all(|&word| word == 0));
    tracker.log_dirty(true);
    memory.write_slice(&[1; 8], GuestAddress(0x3ffc)).unwrap();
    assert_eq!(tracker.take_dirty()[0], 0b11000);
    assert_eq!(tracker.take_dirty()[0], 0);
}

#[test]
fn a_write_to_marked_code_is_told() {
    let memory = memory();
    let tracker = tracker(&memory);
    let seen = Seen::default();
    tracker.set_watcher(Box::new(seen.clone()));
    memory.write_slice(&[1; 8], GuestAddress(0x5000)).unwrap();
    assert!(seen.0.lock().unwrap().is_empty());
    tracker.set_code(5, true);
    memory.write_slice(&[1; 8], GuestAddress(0x4ffc)).unwrap();
    assert_eq!(*seen.0.lock().unwrap(), [(0x4ffc, 8)]);
    // Another engine takes over, and has read nothing.
    tracker.set_watcher(Box::new(Seen::default()));
    assert!(!tracker.holds_code(5));
}
