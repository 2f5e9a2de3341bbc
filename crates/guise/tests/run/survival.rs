//! Daemons and workers that are killed.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::home::{BOX, Guise, Home, in_every_guise, not_run};
use crate::small::Small;

in_every_guise!(
    instances_live_on_without_a_daemon,
    a_killed_worker_is_shown_cleaned_up_and_restarted_by_policy,
);

fn worker_of(home: &Home, name: &str) -> Pid {
    let pid = home.inspect(name)["status"]["pid"].as_i64().expect("it runs");
    Pid::from_raw(pid as i32).unwrap()
}

fn instances_live_on_without_a_daemon(guise: Guise) {
    let Some(mut home) = Home::new("live-on", guise) else { return };
    home.good(&[
        "run",
        "-d",
        "--name",
        "long",
        BOX,
        "sh",
        "-c",
        "while :; do date +%s%N; sleep 0.1; done",
    ]);
    home.good(&["run", "-d", "--name", "short", BOX, "sh", "-c", "sleep 1; exit 6"]);
    let short = home.inspect("short")["id"].as_str().unwrap().to_owned();
    home.kill_daemon();
    let end = home.path(format!("state/instances/{short}/worker/end.json"));
    home.until("one has ended meanwhile", || end.exists());
    home.start_daemon();
    home.until_phase("long", "running");
    assert_eq!(home.good(&["wait", "short"]), "6");
    let before = home.good(&["logs", "long"]).lines().count();
    home.until("it goes on", || home.good(&["logs", "long"]).lines().count() > before);
    assert_eq!(home.good(&["exec", "long", "echo", "here"]), "here");
    home.good(&["stop", "-t", "0", "long"]);
}

#[test]
fn a_second_daemon_is_refused_in_one_line() {
    let Some(home) = Home::new("second", Guise::Container) else { return };
    let said = home.guise(&["daemon"]);
    assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
    assert!(said.err.contains("another daemon"), "{said:?}");
    assert_eq!(home.guise(&["run", "--rm", BOX, "true"]).code, 0, "the first one serves on");
}

#[test]
fn a_damaged_or_read_only_state_is_said_and_left_alone() {
    let Some(mut home) = Home::new("damaged", Guise::Container) else { return };
    home.good(&["create", "--name", "it", BOX, "true"]);
    home.kill_daemon();
    let file = home.path("state/state.redb");
    let good = fs::read(&file).unwrap();
    fs::write(&file, b"this is no database").unwrap();
    let said = home.guise(&["daemon"]);
    assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
    assert!(said.err.contains("damaged"), "{said:?}");
    assert_eq!(fs::read(&file).unwrap(), b"this is no database");
    fs::write(&file, good).unwrap();
    home.start_daemon();
    assert_eq!(home.inspect("it")["status"]["phase"], "created");
}

#[test]
fn a_full_disk_and_a_read_only_one_are_said_and_lose_nothing() {
    if !rustix::process::geteuid().is_root() {
        return not_run("full and read-only disks", "needs root");
    }
    let Some(mut home) = Home::without_daemon("full", Guise::Container) else { return };
    let small = Small::mount(home.path("state"), 16);
    // With nothing kept, it can be full.
    home.start_daemon_with(|daemon| _ = daemon.env("GUISE_KEEP_DISK", "0"));
    home.good(&["create", "--name", "before", BOX, "true"]);
    let filler = home.path("state/filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
    for args in [
        &["create", "--name", "after", BOX, "true"][..],
        &["run", "-d", "--name", "after", BOX, "true"],
        &["start", "before"],
    ] {
        let said = home.guise(args);
        assert!(said.code != 0 && said.err.lines().count() == 1, "{args:?}: {said:?}");
        assert!(said.err.contains("No space left"), "{args:?}: {said:?}");
    }
    assert_eq!(home.good(&["ps", "-aq"]).lines().count(), 1);
    drop(file);
    fs::remove_file(&filler).unwrap();
    home.good(&["create", "--name", "after", BOX, "true"]);
    assert_eq!(home.guise(&["start", "-a", "before"]).code, 0);
    home.kill_daemon();
    home.until("nobody writes", || small.remount(rustix::mount::MountFlags::RDONLY));
    let said = home.guise(&["daemon"]);
    assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
    assert!(said.err.contains("Read-only file system"), "{said:?}");
    assert!(small.remount(rustix::mount::MountFlags::empty()));
    home.start_daemon();
    for name in ["before", "after"] {
        home.inspect(name);
    }
}

fn a_killed_worker_is_shown_cleaned_up_and_restarted_by_policy(guise: Guise) {
    let Some(home) = Home::new("worker", guise) else { return };
    home.good(&["run", "-d", "--name", "once", BOX, "sleep", "1000"]);
    kill_process(worker_of(&home, "once"), Signal::KILL).unwrap();
    home.until_phase("once", "failed");
    let error = home.inspect("once")["status"]["error"]["message"].clone();
    assert!(error.as_str().unwrap().contains("worker died"), "{error}");
    home.good(&["run", "-d", "--name", "again", "--restart", "always", BOX, "sleep", "1000"]);
    let first = worker_of(&home, "again");
    kill_process(first, Signal::KILL).unwrap();
    home.until("it runs again", || {
        let status = home.inspect("again")["status"].clone();
        status["phase"] == "running" && status["pid"] != first.as_raw_nonzero().get()
    });
    home.good(&["start", "once"]);
    assert_eq!(home.good(&["exec", "once", "echo", "back"]), "back");
}

/// Kills the daemon in the middle of whatever it does, again and again: afterwards every
/// object is consistent, what was made is there, and nothing runs twice.
#[test]
fn a_daemon_killed_anywhere_loses_nothing() {
    let rounds = std::env::var("GUISE_KILLS").ok().and_then(|n| n.parse::<usize>().ok());
    let rounds = rounds.unwrap_or(12);
    let Some(mut home) = Home::new("anywhere", Guise::Container) else { return };
    let disk = home.disk();
    let disk = disk.to_str().unwrap();
    home.good(&["run", "-d", "--name", "stays", BOX, "sleep", "1000"]);
    let stays = worker_of(&home, "stays");
    let mut made: Vec<String> = Vec::new();
    for round in 0..rounds {
        let name = format!("r{round}");
        let mut run = vec!["run", "-d", "--name", &name];
        // A few are systems of their own.
        match round % 4 {
            2 => run.extend(["--as", "vm", "--engine", "soft", "--disk", disk]),
            _ => run.push(BOX),
        }
        run.extend(["sleep", "1000"]);
        let commands: [Vec<&str>; 3] =
            [run, vec!["restart", "-t", "0", &name], vec!["rm", "-f", &name]];
        let upto = 1 + round % 3;
        let mut done = Vec::new();
        std::thread::scope(|scope| {
            let running = scope
                .spawn(|| commands[..upto].iter().map(|args| home.guise(args)).collect::<Vec<_>>());
            // Anywhere: it does not matter where.
            std::thread::sleep(std::time::Duration::from_millis(7 * round as u64 % 90));
            let pid = home.daemon_pid();
            kill_process(pid, Signal::KILL).unwrap();
            done = running.join().unwrap();
        });
        // Commands start a daemon of their own, and ask it for what the dead one owes them.
        for (said, args) in done.iter().zip(&commands) {
            assert_eq!(said.code, 0, "{args:?}: {}\n{}", said.err, home.daemon_log());
        }
        home.reap_daemon();
        home.adopt_daemon();
        if upto < 3 {
            made.push(name);
        }
    }
    assert_eq!(worker_of(&home, "stays"), stays);
    for name in &made {
        home.until_phase(name, "running");
    }
    assert_eq!(home.good(&["ps", "-aq"]).lines().count(), made.len() + 1);
    let mut workers = home.workers();
    workers.sort();
    let all = workers.len();
    workers.dedup();
    assert_eq!(workers.len(), all, "an instance runs twice");
    for id in home.good(&["ps", "-aq"]).lines() {
        home.good(&["rm", "-f", id]);
    }
    home.expect_nothing_left();
}

#[test]
fn many_lives_leave_nothing_behind() {
    let cycles = std::env::var("GUISE_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(50);
    let Some(mut home) = Home::new("cycles", Guise::Container) else { return };
    let disk = home.disk();
    let disk = disk.to_str().unwrap();
    let hello = guise_testkit::programs::hello().unwrap();
    let hello = hello.to_str().unwrap();
    home.good(&["run", "--rm", BOX, "true"]);
    let groups = || {
        let named = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        named.map(|entry| fs::read_dir(entry.path()).map_or(0, Iterator::count)).sum::<usize>()
    };
    let before = groups();
    for cycle in 0..cycles {
        match cycle % 10 {
            6 => {
                let system = ["run", "--rm", "--as", "vm", "--engine", "soft", "--disk", disk];
                let said = home.guise(&[&system[..], &["sh", "-c", "exit 4"]].concat());
                assert_eq!(said.code, 4, "{said:?}");
            }
            0 | 3 => {
                assert_eq!(home.guise(&["run", "--rm", BOX, "sh", "-c", "exit 2"]).code, 2);
            }
            1 | 4 => assert_eq!(home.good(&["run", "--rm", "-t", BOX, "echo", "hi"]), "hi"),
            2 | 5 | 8 => {
                let said = home.good(&["run", "--rm", "--as", "wasm", hello, "all"]);
                assert_eq!(said, "A WebAssembly program says: hello, all");
            }
            7 => {
                let machine = ["run", "--rm", "--as", "microvm", "--engine", "soft", BOX];
                let said = home.guise(&[&machine[..], &["sh", "-c", "exit 5"]].concat());
                assert_eq!(said.code, 5, "{said:?}");
            }
            _ => {
                let id = home.good(&["run", "-d", BOX, "sleep", "1000"]);
                home.good(&["rm", "-f", &id]);
            }
        }
    }
    assert_eq!(home.good(&["ps", "-aq"]), "");
    home.expect_nothing_left();
    // Other tests make and remove some meanwhile.
    home.until("no cgroup is left", || groups() <= before + 8);
}
