//! Containers that may write so much and no more.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use crate::home::{BOX, Guise, Home, not_run};

const MIB: u64 = 1 << 20;

/// Whether somebody can have a loop device here.
fn has_loop_devices(test: &str) -> bool {
    let there = fs::metadata("/dev/loop-control").is_ok();
    if !there {
        not_run(test, "no loop devices here");
    }
    there
}

/// Loop devices that have a file of this home's, and where such files are mounted.
fn disks_in_use(home: &Home) -> Vec<String> {
    let here = home.path("").to_string_lossy().into_owned();
    let loops = fs::read_dir("/sys/block").unwrap().flatten();
    let files =
        loops.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(here.trim_end_matches('/'))).collect()
}

fn until_no_disk_is_in_use(home: &Home) {
    home.until("no disk is in use", || disks_in_use(home).is_empty());
}

fn disk_of(home: &Home, name: &str) -> PathBuf {
    let id = home.inspect(name)["id"].as_str().unwrap().to_owned();
    home.path("state/instances").join(id).join("own.img")
}

#[test]
fn a_container_writes_no_more_than_its_disk_has() {
    let test = "a container's disk";
    let Some(home) = Home::new("own-disk", Guise::Container) else { return };
    if !has_loop_devices(test) {
        return;
    }
    let script = "dd if=/dev/zero of=/big bs=1M count=200 2>&1; echo $?; stat -c 'size %s' /big";
    let limited = ["run", "--name", "it", "--disk-size", "64M", BOX, "sh", "-c", script];
    let said = home.guise(&limited);
    assert!(said.out.contains("No space left") && said.out.contains("\n1\n"), "{said:?}");
    assert!(said.err.is_empty() || !said.err.contains("no limit"), "{said:?}");
    let size = said.out.lines().find_map(|line| line.strip_prefix("size ")).unwrap();
    let size: u64 = size.parse().unwrap();
    assert!((48 * MIB..64 * MIB).contains(&size), "{said:?}");
    let disk = disk_of(&home, "it");
    let found = fs::metadata(&disk).unwrap();
    assert_eq!(found.len(), 64 * MIB);
    assert!(found.blocks() * 512 <= 64 * MIB);
    until_no_disk_is_in_use(&home);

    // What was written is there in the next life, and copies go both ways.
    let keeps =
        ["run", "-d", "--name", "keeps", "--disk-size", "64M", "-w", "/tmp", BOX, "sh", "-c"];
    let lives = "cat /kept 2>/dev/null; echo life >>/kept; chown 33:34 /tmp; chmod 2750 /tmp; \
         ln -sf /kept /link; sleep 1000";
    home.good(&[&keeps[..], &[lives]].concat());
    for life in 1..4 {
        home.until("it has begun", || {
            home.guise(&["exec", "keeps", "cat", "/link"]).out.lines().count() == life
        });
        let file = home.path("file");
        fs::write(&file, life.to_string()).unwrap();
        home.good(&["cp", file.to_str().unwrap(), "keeps:/etc/copied"]);
        let back = home.path("back");
        home.good(&["cp", "keeps:/etc/copied", back.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&back).unwrap(), life.to_string());
        assert_eq!(home.good(&["exec", "keeps", "stat", "-c", "%u:%g %a", "/tmp"]), "33:34 2750");
        assert_eq!(disks_in_use(&home).len(), 1);
        // Somebody who follows its log keeps nothing of it.
        home.good(&["restart", "-t", "0", "keeps"]);
    }
    // What is deleted is given back to the host.
    let disk = disk_of(&home, "keeps");
    let taken = || fs::metadata(&disk).unwrap().blocks() * 512;
    home.good(&["exec", "keeps", "sh", "-c", "head -c 30000000 /dev/urandom >/large; sync"]);
    let before = taken();
    assert!(before > 28 * MIB, "{before}");
    home.good(&["exec", "keeps", "sh", "-c", "rm /large; sync"]);
    home.until("the host has its space again", || taken() < before - 24 * MIB);

    // Whatever ends the worker.
    let worker = home.inspect("keeps")["status"]["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(worker as i32).unwrap(), Signal::KILL).unwrap();
    home.until_phase("keeps", "failed");
    until_no_disk_is_in_use(&home);
    home.good(&["start", "keeps"]);
    home.until("it runs again", || {
        home.good(&["exec", "keeps", "cat", "/kept"]).lines().count() == 5
    });
    home.good(&["rm", "-f", "keeps", "it"]);
    until_no_disk_is_in_use(&home);
    home.expect_nothing_left();

    let said = home.guise(&["run", "--rm", "--disk-size", "8M", BOX, "true"]);
    assert!(said.code != 0 && said.err.contains("32 MiB"), "{said:?}");
    // Without a limit there is none of this.
    home.good(&["run", "-d", "--name", "free", BOX, "sleep", "1000"]);
    assert!(disks_in_use(&home).is_empty() && !disk_of(&home, "free").exists());
}

#[test]
fn many_containers_with_disks_at_once_leave_none() {
    let test = "many containers' disks";
    let Some(home) = Home::new("own-disks", Guise::Container) else { return };
    if !has_loop_devices(test) {
        return;
    }
    std::thread::scope(|scope| {
        for number in 0..12 {
            let home = &home;
            scope.spawn(move || {
                let script = format!("echo {number} >/x; cat /x");
                let run = ["run", "--rm", "--disk-size", "32M", BOX, "sh", "-c", &script];
                assert_eq!(home.good(&run), number.to_string());
            });
        }
    });
    until_no_disk_is_in_use(&home);
    home.expect_nothing_left();
}

#[test]
fn a_project_that_limits_disks_takes_containers_that_have_one() {
    let test = "a project's disks";
    let Some(home) = Home::new("own-quota", Guise::Container) else { return };
    if !has_loop_devices(test) {
        return;
    }
    home.good(&["project", "create", "--disk", "150M", "lab"]);
    let lab = |command: &str, options: &[&str], script: &str| {
        let project = ["--project", "lab", command, "--as", "container"];
        home.guise(&[&project[..], options, &[BOX, "sh", "-c", script]].concat())
    };
    let taken = || {
        let all = home.good(&["project", "ls", "-o", "json"]);
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let lab = all.as_array().unwrap().iter().find(|one| one["name"] == "lab").unwrap();
        lab["reserved"]["disk_bytes"].as_u64().unwrap()
    };
    let unsaid = lab("run", &["--rm"], "true");
    assert_eq!((unsaid.code, unsaid.err.lines().count()), (125, 1), "{unsaid:?}");
    assert!(unsaid.err.contains("limits disk space") && unsaid.err.contains("--disk-size"));
    let fill = "dd if=/dev/zero of=/big bs=1M count=200 2>&1; echo $?";
    let limited = lab("run", &["--name", "it", "--disk-size", "64M"], fill);
    assert!(limited.out.contains("No space left") && limited.out.ends_with("\n1\n"), "{limited:?}");
    assert_eq!(taken(), 64 * MIB);
    let second = lab("create", &["--name", "second", "--disk-size", "64M"], "true");
    assert_eq!((second.code, taken()), (0, 128 * MIB), "{second:?}");
    let third = lab("run", &["--rm", "--disk-size", "32M"], "true");
    assert_eq!((third.code, third.err.lines().count()), (125, 1), "{third:?}");
    assert!(third.err.contains("may have 150 MiB of disk space, and would have 160"), "{third:?}");
    assert_eq!(taken(), 128 * MIB);
    // One that would run without its limit does not run. What was made before there were such
    // disks has a folder.
    let id = second.out.trim();
    fs::create_dir(home.path("state/instances").join(id).join("upper")).unwrap();
    let refused = home.guise(&["--project", "lab", "start", "second"]);
    assert_eq!((refused.code, refused.err.lines().count()), (1, 1), "{refused:?}");
    let told = ["limit of its disk space", "is in a folder", "--as microvm"];
    assert!(told.iter().all(|told| refused.err.contains(told)), "{refused:?}");
    for name in ["it", "second"] {
        home.good(&["--project", "lab", "rm", name]);
    }
    assert_eq!(taken(), 0);
    home.good(&["project", "rm", "lab"]);
    until_no_disk_is_in_use(&home);
}
