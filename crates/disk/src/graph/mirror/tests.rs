use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::formats::raw::Raw;
use crate::storage::{FailingStorage, MemoryStorage, SharedStorage, Storage};

const SIZE: u64 = 8 << 20;

fn image(size: u64, writable: bool) -> (Arc<FailingStorage>, Image) {
    let memory: SharedStorage = Arc::new(MemoryStorage::new("memory"));
    memory.set_len(size).expect("size");
    let storage = Arc::new(FailingStorage::new(memory));
    let format = Raw::open(storage.clone()).expect("open");
    (storage, Image::new(Box::new(format), None, Path::new("memory"), writable))
}

fn wait_for_the_end(mirror: &Mirror) -> MirrorState {
    let begin = Instant::now();
    loop {
        match mirror.state() {
            MirrorState::Copying { .. } if begin.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            state => return state,
        }
    }
}

fn contents(storage: &FailingStorage) -> Vec<u8> {
    let mut all = vec![0; SIZE as usize];
    storage.read_at(0, &mut all).expect("read");
    all
}

#[test]
fn writes_while_it_copies_end_in_both() {
    let (first, source) = image(SIZE, true);
    let (second, target) = image(SIZE, true);
    for at in (0..SIZE).step_by(8192) {
        source.write(at, &[at as u8 | 1; 5000]).expect("fill");
    }
    target.write(100_000, &[9; 3000]).expect("something else was there");
    let mirror = Arc::new(Mirror::start(Arc::new(source), target).expect("start"));
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let mirror = &mirror;
            scope.spawn(move || {
                let mut state = thread + 1;
                for _ in 0..300 {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    let offset = (state >> 20) % (SIZE - 70_000);
                    let len = 1 + (state >> 50) % 65_536;
                    match state % 5 {
                        0 => mirror.write_zeroes(offset, len, true).expect("zero"),
                        1 => mirror.discard(offset, len).expect("discard"),
                        _ => mirror.write(offset, &vec![state as u8; len as usize]).expect("write"),
                    }
                }
            });
        }
    });
    assert_eq!(wait_for_the_end(&mirror), MirrorState::Same);
    mirror.write(5, b"and after").expect("write");
    mirror.flush().expect("flush");
    assert!(contents(&first) == contents(&second), "both have the same");
}

#[test]
fn a_copy_that_fails_does_not_hurt_the_disk() {
    let (first, source) = image(SIZE, true);
    let (second, target) = image(SIZE, true);
    let mirror = Mirror::start(Arc::new(source), target).expect("start");
    assert_eq!(wait_for_the_end(&mirror), MirrorState::Same);
    second.leave_room_for(0);
    mirror.write(0, &[1; 512]).expect("the disk takes it");
    mirror.write(512, &[2; 512]).expect("and goes on");
    assert!(matches!(mirror.state(), MirrorState::Failed(_)));
    assert_eq!(contents(&first)[600], 2);
}

#[test]
fn what_cannot_be_a_copy_is_refused() {
    let source = Arc::new(image(SIZE, true).1);
    let refused = |target| Mirror::start(Arc::clone(&source), target).err().map(|e| e.to_string());
    assert_eq!(
        refused(image(512, true).1).as_deref(),
        Some("mirror: 'memory' has 512 bytes, the disk 8388608")
    );
    assert!(refused(image(SIZE, false).1).is_some());
}
