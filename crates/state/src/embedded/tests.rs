//! The conformance suite on the embedded store, and what is its own: files.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::conformance;

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("state.redb")
}

#[test]
fn conforms() {
    let directories = TempDir::new().unwrap();
    let count = std::cell::Cell::new(0);
    conformance::all(|| {
        count.set(count.get() + 1);
        let path = directories.path().join(format!("state-{}.redb", count.get()));
        EmbeddedStore::open(&path).unwrap()
    });
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory);
    let store = EmbeddedStore::open(&path).unwrap();
    let lease = store.grant_lease(Duration::from_secs(3600)).unwrap();
    let leased = Write::Put { key: "b".into(), value: b"2".to_vec(), lease: Some(lease) };
    store.commit(&[], &[Write::put("a", "1"), leased]).unwrap();
    let before = store.list(Page::all("")).unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.list(Page::all("")).unwrap(), before);
    store.keep_alive(lease).unwrap();
    let mut watch = store.watch("", 0).unwrap();
    assert_eq!(watch.next(Duration::ZERO).unwrap().unwrap().key, "a");
}

#[test]
fn a_second_daemon_is_told() {
    let directory = TempDir::new().unwrap();
    let _store = EmbeddedStore::open(&file(&directory)).unwrap();
    let second = EmbeddedStore::open(&file(&directory));
    assert!(matches!(second.err(), Some(StateError::InUse { .. })));
}

#[test]
fn a_damaged_file_is_reported_and_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory);
    fs::write(&path, vec![0x5a; 100_000]).unwrap();
    let error = EmbeddedStore::open(&path).err().expect("not a store");
    assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), vec![0x5a; 100_000]);
}

#[test]
fn flipped_bits_never_panic() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory);
    let store = EmbeddedStore::open(&path).unwrap();
    for n in 0..50 {
        store.commit(&[], &[Write::put(format!("k/{n}"), vec![n; 300])]).unwrap();
    }
    drop(store);
    let good = fs::read(&path).unwrap();
    for step in 0..60 {
        let mut bad = good.clone();
        let at = (step * 7919 + 13) * 97 % bad.len();
        bad[at] ^= 1 << (step % 8);
        fs::write(&path, &bad).unwrap();
        if let Ok(store) = EmbeddedStore::open(&path) {
            let _ = store.list(Page::all(""));
        }
    }
}

#[test]
fn old_history_is_forgotten_and_said_so() {
    let directory = TempDir::new().unwrap();
    let store = EmbeddedStore::open(&file(&directory)).unwrap();
    let many: Vec<Write> = (0..1000).map(|n| Write::put(format!("k/{n}"), "")).collect();
    let mut late = store.watch("", 0).unwrap();
    for _ in 0..12 {
        store.commit(&[], &many).unwrap();
    }
    assert!(matches!(store.watch("", 0).err(), Some(StateError::Compacted { .. })));
    assert!(matches!(late.next(Duration::ZERO), Err(StateError::Compacted { .. })));
}
