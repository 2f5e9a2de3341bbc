//! What every backend of the store must do. A backend's tests call [`all`] with a
//! function that makes an empty store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Check, Event, MAX_VALUE, Outcome, Page, Revision, StateError, Store, Watch, Write};

/// A moment that is long enough for anything local.
const SOON: Duration = Duration::from_secs(20);
const NOT_AT_ALL: Duration = Duration::from_millis(20);

/// Runs the whole suite, each part on a store of its own.
pub fn all<S: Store + 'static>(make: impl Fn() -> S) {
    reads_what_was_written(&make());
    commits_are_all_or_nothing(&make());
    checks_see_other_writers(&make());
    lists_are_ordered_and_paged(&make());
    watches_miss_nothing(&make());
    a_watch_from_the_past_is_complete_or_refused(&make());
    leases_take_their_keys_along(&make());
    increments_from_many_threads_all_count(Arc::new(make()));
    snapshots_bring_everything_back(&make(), &make());
    bad_input_is_refused(&make());
}

fn committed(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed(revision) => revision,
        conflict => panic!("unexpected {conflict:?}"),
    }
}

fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    committed(store.commit(&[], &[Write::put(key, value)]).unwrap())
}

fn next(watch: &mut dyn Watch) -> Event {
    watch.next(SOON).unwrap().expect("a change in time")
}

fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(store.get("a").unwrap(), None);
    let first = put(store, "a", "1");
    let entry = store.get("a").unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"1"[..], first, first));
    let second = put(store, "a", "2");
    assert!(second > first);
    let entry = store.get("a").unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"2"[..], first, second));
    committed(store.commit(&[], &[Write::delete("a"), Write::delete("never")]).unwrap());
    assert_eq!(store.get("a").unwrap(), None);
    let third = put(store, "a", "");
    assert_eq!(store.get("a").unwrap().unwrap().created, third);
}

fn commits_are_all_or_nothing(store: &dyn Store) {
    put(store, "there", "1");
    let outcome = store
        .commit(
            &[Check::Absent("new".into()), Check::Absent("there".into())],
            &[Write::put("new", "1"), Write::delete("there")],
        )
        .unwrap();
    let current = store.get("there").unwrap();
    assert_eq!(outcome, Outcome::Conflict { key: "there".into(), current });
    assert_eq!(store.get("new").unwrap(), None);
    let before = store.list(Page::all("")).unwrap().revision;
    let after =
        committed(store.commit(&[], &[Write::put("new", "1"), Write::delete("there")]).unwrap());
    assert_eq!(after, before + 1);
    assert!(store.get("new").unwrap().is_some() && store.get("there").unwrap().is_none());
}

fn checks_see_other_writers(store: &dyn Store) {
    let mine = put(store, "key", "mine");
    let theirs = put(store, "key", "theirs");
    let stale = [Check::Modified("key".into(), mine)];
    let outcome = store.commit(&stale, &[Write::put("key", "again")]).unwrap();
    assert!(matches!(outcome, Outcome::Conflict { current: Some(e), .. } if e.value == b"theirs"));
    let fresh = [Check::Modified("key".into(), theirs)];
    committed(store.commit(&fresh, &[Write::put("key", "again")]).unwrap());
    let gone = [Check::Modified("gone".into(), theirs)];
    let outcome = store.commit(&gone, &[Write::put("gone", "")]).unwrap();
    assert_eq!(outcome, Outcome::Conflict { key: "gone".into(), current: None });
}

fn lists_are_ordered_and_paged(store: &dyn Store) {
    for key in ["b/2", "a/1", "b/10", "b/1", "c/1", "b"] {
        put(store, key, key);
    }
    let keys = |page: Page<'_>| {
        let listing = store.list(page).unwrap();
        let keys: Vec<String> = listing.entries.into_iter().map(|entry| entry.key).collect();
        (keys, listing.more)
    };
    let (all, more) = keys(Page::all("b/"));
    assert_eq!((all, more), (vec!["b/1".into(), "b/10".into(), "b/2".into()], false));
    let (some, more) = keys(Page { prefix: "b/", after: Some("b/1"), limit: Some(1) });
    assert_eq!((some, more), (vec!["b/10".to_owned()], true));
    let (rest, more) = keys(Page { prefix: "b/", after: Some("b/10"), limit: Some(1) });
    assert_eq!((rest, more), (vec!["b/2".to_owned()], false));
    assert_eq!(keys(Page { prefix: "b/", after: Some("a"), limit: Some(0) }), (vec![], true));
    assert_eq!(keys(Page::all("nothing")), (vec![], false));
}

fn watches_miss_nothing(store: &dyn Store) {
    let start = put(store, "w/before", "0");
    let mut watch = store.watch("w/", start).unwrap();
    assert_eq!(watch.next(NOT_AT_ALL).unwrap(), None);
    let mut expected: Vec<(Revision, String, Option<String>)> = Vec::new();
    for n in 0..700u32 {
        let key = format!("w/{}", n % 7);
        let other = format!("x/{n}");
        if n % 5 == 4 && store.get(&key).unwrap().is_some() {
            let writes = [Write::put(other, "x"), Write::delete(&key)];
            let revision = committed(store.commit(&[], &writes).unwrap());
            expected.push((revision, key, None));
        } else {
            let writes = [Write::put(&key, n.to_string()), Write::put(other, "x")];
            let revision = committed(store.commit(&[], &writes).unwrap());
            expected.push((revision, key, Some(n.to_string())));
        }
    }
    for (revision, key, value) in expected {
        let event = next(watch.as_mut());
        assert_eq!((event.revision, event.key), (revision, key));
        let seen = event.entry.map(|entry| String::from_utf8(entry.value).unwrap());
        assert_eq!(seen, value);
    }
    assert_eq!(watch.next(NOT_AT_ALL).unwrap(), None);
}

fn a_watch_from_the_past_is_complete_or_refused(store: &dyn Store) {
    let start = put(store, "p/0", "0");
    for n in 1..30 {
        put(store, &format!("p/{n}"), "");
    }
    let mut watch = store.watch("p/", start).unwrap();
    for n in 1..30 {
        assert_eq!(next(watch.as_mut()).key, format!("p/{n}"));
    }
    let mut everything = store.watch("p/", 0).unwrap();
    assert_eq!(next(everything.as_mut()).key, "p/0");
}

fn leases_take_their_keys_along(store: &dyn Store) {
    let short = store.grant_lease(Duration::from_millis(100)).unwrap();
    let long = store.grant_lease(Duration::from_secs(3600)).unwrap();
    let leased =
        |key: &str, lease| Write::Put { key: key.into(), value: vec![], lease: Some(lease) };
    let revision = committed(
        store
            .commit(&[], &[leased("l/1", short), leased("l/2", short), leased("l/3", long)])
            .unwrap(),
    );
    let mut watch = store.watch("l/", revision).unwrap();
    let (first, second) = (next(watch.as_mut()), next(watch.as_mut()));
    assert_eq!((first.key.as_str(), second.key.as_str()), ("l/1", "l/2"));
    assert!(first.entry.is_none() && second.entry.is_none());
    assert_eq!(first.revision, second.revision);
    assert!(store.get("l/3").unwrap().is_some());

    let deadline = Instant::now() + SOON;
    while store.keep_alive(short).is_ok() {
        assert!(Instant::now() < deadline, "a lease that has run out can be kept alive");
        std::thread::yield_now();
    }
    let late = store.commit(&[], &[leased("l/4", short)]);
    assert!(matches!(late, Err(StateError::NoLease(_))), "{late:?}");

    store.keep_alive(long).unwrap();
    store.revoke_lease(long).unwrap();
    assert_eq!(store.get("l/3").unwrap(), None);
    assert!(matches!(store.revoke_lease(long), Err(StateError::NoLease(_))));

    // A key that is written again without the lease outlives it.
    let lease = store.grant_lease(Duration::from_secs(3600)).unwrap();
    committed(store.commit(&[], &[leased("l/5", lease)]).unwrap());
    put(store, "l/5", "kept");
    store.revoke_lease(lease).unwrap();
    assert!(store.get("l/5").unwrap().is_some());
}

fn increments_from_many_threads_all_count(store: Arc<dyn Store>) {
    const THREADS: usize = 4;
    const EACH: usize = 25;
    put(store.as_ref(), "count", "0");
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    increment(store.as_ref());
                }
            });
        }
    });
    let count = store.get("count").unwrap().unwrap();
    assert_eq!(count.value, (THREADS * EACH).to_string().into_bytes());
}

fn increment(store: &dyn Store) {
    loop {
        let entry = store.get("count").unwrap().unwrap();
        let count: usize = String::from_utf8(entry.value).unwrap().parse().unwrap();
        let check = [Check::Modified("count".into(), entry.modified)];
        let write = [Write::put("count", (count + 1).to_string())];
        if let Outcome::Committed(_) = store.commit(&check, &write).unwrap() {
            return;
        }
    }
}

fn snapshots_bring_everything_back(store: &dyn Store, other: &dyn Store) {
    for n in 0..50 {
        put(store, &format!("s/{n}"), &"v".repeat(n * 10));
    }
    let mut bytes = Vec::new();
    store.snapshot(&mut bytes).unwrap();
    put(other, "s/7", "stale");
    put(other, "t/1", "not in the snapshot");
    let before = other.list(Page::all("")).unwrap().revision;
    let mut watch = other.watch("", before).unwrap();

    for cut in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        assert!(matches!(other.restore(&mut &bytes[..cut]), Err(StateError::Snapshot(_))));
    }
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 0x40;
    assert!(other.restore(&mut flipped.as_slice()).is_err());
    assert_eq!(other.list(Page::all("")).unwrap().revision, before);

    other.restore(&mut bytes.as_slice()).unwrap();
    let values = |store: &dyn Store| -> BTreeMap<String, Vec<u8>> {
        let entries = store.list(Page::all("")).unwrap().entries;
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
    };
    assert_eq!(values(store), values(other));
    let seen: Vec<Event> = (0..51).map(|_| next(watch.as_mut())).collect();
    assert!(seen.iter().any(|event| event.key == "t/1" && event.entry.is_none()));
}

fn bad_input_is_refused(store: &dyn Store) {
    for key in ["", "a b", "a\n", "ä", "a\0b", &"k".repeat(2000)] {
        assert!(store.commit(&[], &[Write::put(key, "")]).is_err(), "{key:?}");
    }
    let large = vec![0; MAX_VALUE + 1];
    assert!(matches!(
        store.commit(&[], &[Write::put("large", large)]),
        Err(StateError::TooLarge { .. })
    ));
    let many: Vec<Write> = (0..2000).map(|n| Write::put(format!("k/{n}"), "")).collect();
    assert!(matches!(store.commit(&[], &many), Err(StateError::TooLarge { .. })));
    assert_eq!(store.list(Page::all("")).unwrap().entries, []);
}
