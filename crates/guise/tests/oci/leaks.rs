//! Nothing is left: after many containers the machine is as before.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::bundle::Bundle;

/// Mounts on this host that have to do with a bundle; other tests have mounts too.
fn mounts(bundle: &Bundle) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(&bundle.id)).count()
}

/// Children of this process that have ended and nobody waited for.
fn zombies() -> usize {
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| fs::read_to_string(e.path().join("stat")).ok())
        .filter(|stat| {
            let rest: Vec<&str> = match stat.rfind(')') {
                Some(at) => stat[at + 2..].split(' ').collect(),
                None => return false,
            };
            rest[0] == "Z" && rest[1] == own
        })
        .count()
}

/// `GUISE_CONTAINERS` says how many; `make soak` asks for 1,000.
#[test]
fn many_in_a_row_leave_nothing() {
    let Some(bundle) = Bundle::new("row", "exit 3") else { return };
    let many = std::env::var("GUISE_CONTAINERS").map_or(100, |n| n.parse().unwrap());
    for i in 0..many {
        let (status, _, err) = bundle.run();
        assert_eq!(status, 3, "round {i}: {err}");
    }
    assert_eq!(mounts(&bundle), 0);
    // Children of tests beside this one may have ended a moment ago.
    let deadline = Instant::now() + Duration::from_secs(60);
    while zombies() > 0 {
        assert!(Instant::now() < deadline, "zombies are left");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(bundle.cgroups().is_empty());
    assert_eq!(fs::read_dir(bundle.directory.join("state")).unwrap().count(), 0);
}

#[test]
fn fifty_at_once() {
    let Some(bundle) = Bundle::new("once", "exit 0") else { return };
    let start = |i: usize| -> Child {
        let id = format!("{}-{i}", bundle.id);
        let mut config = bundle.config.clone();
        config["linux"]["cgroupsPath"] = serde_json::json!(format!("/{id}"));
        let file = format!("config-{i}.json");
        fs::write(bundle.directory.join(&file), config.to_string()).unwrap();
        bundle.command(&["run", "-f", &file, &id]).spawn().unwrap()
    };
    let children: Vec<Child> = (0..50).map(start).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(mounts(&bundle), 0);
    assert_eq!(fs::read_dir(bundle.directory.join("state")).unwrap().count(), 0);
    let cgroups = bundle.cgroups_of(|name| name.starts_with(&bundle.id));
    assert!(cgroups.is_empty(), "{cgroups:?}");
}

/// A runtime that is killed in the middle leaves what `delete --force` finds.
#[test]
fn a_killed_runtime_leaves_what_can_be_deleted() {
    let Some(bundle) = Bundle::new("killed", "sleep 600") else { return };
    for delay in [0u64, 1, 2, 4, 8, 16] {
        let mut child = bundle.command(&["run", &bundle.id]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(bundle.oci(&["delete", "--force"]).status.success(), "after {delay} ms");
        assert!(bundle.cgroups().is_empty(), "after {delay} ms");
        assert!(bundle.state().is_null(), "after {delay} ms");
    }
}
