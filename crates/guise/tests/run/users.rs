//! Users inside containers: root's have all, and a plain user's those of its ranges, which
//! `plain_user` gives to one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use guise_image::tar::Reader;

use crate::home::{BOX, GUISE, Guise, Home};

mod container {
    use crate::home::Guise::Container;

    #[test]
    fn a_program_runs_as_who_was_asked_for() {
        super::a_program_runs_as_who_was_asked_for(Container);
    }

    #[test]
    fn programs_of_others_end_as_roots_do() {
        super::programs_of_others_end_as_roots_do(Container);
    }

    #[test]
    fn all_read_who_and_where_they_are() {
        super::all_read_who_and_where_they_are(Container);
    }

    #[test]
    fn what_belongs_to_others_stays_theirs_and_goes_with_the_instance() {
        super::what_belongs_to_others_stays_theirs_and_goes_with_the_instance(Container);
    }

    #[test]
    fn what_is_left_of_others_is_found_and_removed() {
        super::what_is_left_of_others_is_found_and_removed(Container);
    }
}

fn a_program_runs_as_who_was_asked_for(guise: Guise) {
    let Some(home) = Home::new("asked-for", guise) else { return };
    home.good(&["run", "-d", "--name", "it", BOX, "sleep", "1000"]);
    let who = "echo $(id -u) $(id -g) $(id -G)";
    for (user, is) in [
        ("web", "33 34 34 4"),
        ("33", "33 34 34 4"),
        ("web:root", "33 0 0"),
        ("4000:5000", "4000 5000 5000"),
        ("65534:65534", "65534 65534 65534"),
        ("0", "0 0 0"),
    ] {
        let sorted = |ids: &str| {
            let mut ids: Vec<_> = ids.split_whitespace().map(str::to_owned).collect();
            ids[2..].sort();
            ids.dedup();
            ids
        };
        let ran = home.good(&["run", "--rm", "-u", user, BOX, "sh", "-c", who]);
        assert_eq!(sorted(&ran), sorted(is), "run -u {user}");
        let beside = home.good(&["exec", "-u", user, "it", "sh", "-c", who]);
        assert_eq!(sorted(&beside), sorted(is), "exec -u {user}");
    }
    // As apt does, and daemons: root becomes another, with its groups.
    let becomes =
        "cd /; su web -s /bin/sh -c 'id -u; id -G; touch /tmp/hers; stat -c %u /tmp/hers'";
    assert_eq!(home.good(&["exec", "it", "sh", "-c", becomes]), "33\n34 4\n33");
    // It owns its streams and its terminal, and nothing of root's.
    let streams = "echo one > /dev/stdout; echo two > /dev/stderr; ! echo no > /etc/passwd";
    let said = home.guise(&["run", "--rm", "-u", "web", BOX, "sh", "-c", streams]);
    assert_eq!((said.code, said.out.as_str()), (0, "one\n"), "{said:?}");
    assert!(said.err.starts_with("two\n"), "{said:?}");
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}

fn programs_of_others_end_as_roots_do(guise: Guise) {
    let Some(home) = Home::new("end", guise) else { return };
    let script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done";
    home.good(&["run", "-d", "--name", "asked", "-u", "web", BOX, "sh", "-c", script]);
    home.until("it is up", || home.guise(&["logs", "asked"]).out == "up\n");
    home.good(&["stop", "asked"]);
    assert_eq!(home.inspect("asked")["status"]["exit_code"], 7);
    // Nobody is asked when the worker is gone.
    let seconds = format!("{}", 2_000_000 + std::process::id());
    home.good(&["run", "-d", "--name", "it", "-u", "4000:1", BOX, "sleep", &seconds]);
    home.good(&["exec", "-d", "-u", "web", "it", "sleep", &seconds]);
    let running = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        let program = format!("sleep\0{seconds}\0");
        lines.filter(|line| *line == program.as_bytes()).count()
    };
    home.until("both run", || running() == 2);
    let worker = home.inspect("it")["status"]["pid"].as_i64().unwrap();
    let worker = rustix::process::Pid::from_raw(worker as i32).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    home.until_phase("it", "failed");
    home.until("nothing of it runs", || running() == 0);
    home.good(&["rm", "asked", "it"]);
    home.expect_nothing_left();
}

/// Whatever the daemon keeps from others.
fn all_read_who_and_where_they_are(guise: Guise) {
    let Some(home) = Home::without_daemon("umask", guise) else { return };
    let started = Command::new("sh")
        .args(["-c", "umask 077; exec \"$0\" ps", GUISE.as_str()])
        .envs(home.places())
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    let read = "cat /etc/hostname /etc/hosts /etc/resolv.conf >/dev/null && echo read";
    assert_eq!(home.good(&["run", "--rm", "-u", "web", BOX, "sh", "-c", read]), "read");
}

/// Folders that only their owner may open, deeper than a process can have files open.
const WRITE: &str = "mkdir -p /own/closed /vol/closed && echo text > /own/closed/file && \
                     echo text > /vol/closed/file && (cd /own && for i in $(seq 1500); do \
                     mkdir d && cd d; done; touch last) && chown -R 33:34 /own /vol/closed && \
                     chmod 700 /own/closed /vol/closed && chmod 4750 /own/closed/file && \
                     chown 4000:5000 /vol/closed && touch /mark";

fn what_belongs_to_others_stays_theirs_and_goes_with_the_instance(guise: Guise) {
    let Some(home) = Home::new("belongs", guise) else { return };
    let keep = format!("[ -e /mark ] || {{ {WRITE}; }}; exec sleep 1000");
    home.good(&["run", "-d", "--name", "it", "-v", "vol:/vol", BOX, "sh", "-c", &keep]);
    let written = || {
        home.until("it is written", || {
            home.guise(&["exec", "it", "test", "-e", "/mark"]).code == 0
        });
        let list = "stat -c '%n %u:%g %a' /own /own/closed /own/closed/file /vol/closed \
                    /vol/closed/file";
        home.good(&["exec", "it", "sh", "-c", list])
    };
    let before = written();
    assert!(before.contains("/own/closed/file 33:34 4750"), "{before}");
    assert!(before.contains("/vol/closed 4000:5000 700"), "{before}");
    assert_eq!(home.good(&["exec", "-u", "web", "it", "cat", "/own/closed/file"]), "text");
    let refused = home.guise(&["exec", "-u", "4000:1", "it", "cat", "/own/closed/file"]);
    assert!(refused.code == 1 && refused.err.contains("Permission denied"), "{refused:?}");
    home.good(&["stop", "-t", "0", "it"]);
    home.good(&["start", "it"]);
    assert_eq!(written(), before, "the next life finds it so");
    // Out of the container with their numbers, also what is closed to others.
    let archive = home.guise_raw(&["cp", "it:/own/closed", "-"]);
    let mut reader = Reader::new(&archive[..]);
    let mut owners = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        owners.push((String::from_utf8(entry.path).unwrap(), entry.uid, entry.gid));
    }
    assert!(owners.contains(&("closed/file".to_owned(), 33, 34)), "{owners:?}");
    // And in, over what is another's.
    let file = home.path("file");
    fs::write(&file, "copied\n").unwrap();
    home.good(&["cp", &file.to_string_lossy(), "it:/own/closed/file"]);
    assert_eq!(home.good(&["exec", "it", "cat", "/own/closed/file"]), "copied");
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
    home.good(&["volume", "rm", "vol"]);
    let left: Vec<_> = fs::read_dir(home.path("state/volumes")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let write = format!("mkdir -p /vol; {WRITE}");
    for _ in 0..3 {
        home.good(&["run", "--rm", BOX, "sh", "-c", &write]);
    }
    home.expect_nothing_left();
}

/// A daemon that died while it removed an instance leaves a folder that nobody knows.
fn what_is_left_of_others_is_found_and_removed(guise: Guise) {
    let Some(mut home) = Home::new("orphans", guise) else { return };
    let write = format!("mkdir -p /vol; {WRITE}");
    home.good(&["run", "--name", "it", BOX, "sh", "-c", &write]);
    let id = home.inspect("it")["id"].as_str().unwrap().to_owned();
    let folder = home.path("state/instances");
    let file = folder.join(&id).join("upper/vol/closed");
    if !rustix::process::geteuid().is_root() {
        assert_ne!(fs::metadata(&file).unwrap().uid(), rustix::process::geteuid().as_raw());
    }
    home.kill_daemon();
    fs::rename(folder.join(&id), folder.join("0123456789ab")).unwrap();
    home.start_daemon();
    home.until("the orphan is gone", || !folder.join("0123456789ab").exists());
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}
