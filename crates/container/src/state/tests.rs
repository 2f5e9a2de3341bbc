use super::*;

#[test]
fn ids_are_plain_names() {
    for good in ["a", "web-1", "A_b+c.d", &"x".repeat(255)] {
        assert!(check_id(good).is_ok(), "{good}");
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", &"x".repeat(256)] {
        assert!(check_id(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn dates() {
    assert_eq!(format_time(0, 0), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(format_time(951_827_696, 5), "2000-02-29T12:34:56.000000005Z");
    assert_eq!(format_time(1_767_225_599, 0), "2025-12-31T23:59:59.000000000Z");
}

#[test]
fn a_name_is_taken_once_and_found_again() {
    let root = std::env::temp_dir().join(format!("guise-store-{}", std::process::id()));
    let store = Store::new(&root);
    let entry = store.create("one").unwrap();
    assert!(matches!(store.create("one"), Err(Error::Exists(_))));
    assert!(matches!(store.find("two"), Err(Error::NotFound(_))));
    assert!(entry.load().unwrap().is_none());
    let mut state = State {
        id: "one".into(),
        pid: std::process::id() as i32,
        start_time: process_start_time(std::process::id() as i32).unwrap(),
        bundle: "/b".into(),
        rootfs: "/b/r".into(),
        created: timestamp(),
        owner: 0,
        own_pid_namespace: true,
        annotations: BTreeMap::new(),
        cgroups: Vec::new(),
    };
    entry.plan(&state).unwrap();
    assert_eq!(entry.load().unwrap().unwrap().pid, state.pid);
    entry.prepare(&state).unwrap();
    entry.will_hold().unwrap().hold().unwrap();
    entry.forget_plan();
    assert_eq!(entry.status(&entry.state().unwrap()), Status::Running);
    state.start_time += 1;
    assert_eq!(entry.status(&state), Status::Stopped, "another process with the same id");
    assert_eq!(store.list().unwrap().len(), 1);
    entry.remove().unwrap();
    assert!(store.list().unwrap().is_empty());
    fs::remove_dir_all(&root).unwrap();
}
