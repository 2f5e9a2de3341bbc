//! Which of the host's processors instances get, how much of them, and what their workers are
//! held to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::home::{BOX, Guise, Home, Said, in_every_guise, not_run};
use crate::wasm;

const BUSY: &str = "while :; do :; done";

/// Where a controller's cgroups are, and whether they are v1's; none, said aloud, where it has
/// none that can be written.
fn controller(test: &str, name: &str) -> Option<(PathBuf, bool)> {
    let root = Path::new("/sys/fs/cgroup");
    let unified = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let found = match root.join(name) {
        v1 if v1.join("tasks").exists() => Some((v1, true)),
        _ if unified.split_whitespace().any(|other| other == name) => Some((root.into(), false)),
        _ => None,
    };
    let probe = |place: &Path| {
        let probe = place.join(format!("guise-test-{}", std::process::id()));
        fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).is_ok()
    };
    let found = found.filter(|(place, _)| probe(place));
    if found.is_none() {
        not_run(test, &format!("there are no cgroups with the controller {name} here"));
    }
    found
}

/// The last of the processors that this test may use, and whether there are others.
fn last_processor() -> (usize, bool) {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    let all = (0..rustix::thread::CpuSet::MAX_CPU).filter(|number| set.is_set(*number));
    let all: Vec<usize> = all.collect();
    (*all.last().unwrap(), all.len() > 1)
}

fn worker_of(home: &Home, name: &str) -> i32 {
    home.inspect(name)["status"]["pid"].as_i64().expect("it runs") as i32
}

/// A process and all that came of it.
fn family(first: i32) -> Vec<i32> {
    let mut all = vec![first];
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        next += 1;
    }
    all
}

/// What each thread of a worker's processes may run on.
fn allowed(worker: i32) -> Vec<String> {
    let mut lists = Vec::new();
    for process in family(worker) {
        for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            lists.extend(list.map(|list| list.trim().to_owned()));
        }
    }
    lists
}

fn processor_seconds(home: &Home, name: &str) -> f64 {
    let stats = home.good(&["stats", "-o", "json", name]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats[0]["cpu_nanoseconds"].as_u64().unwrap() as f64 / 1e9
}

/// The cgroups of an instance's worker.
fn groups_of(home: &Home, id: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let places = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        words[2].starts_with("cgroup").then(|| PathBuf::from(words[1]))
    });
    let lives: Vec<String> = home.groups();
    let names = lives.iter().filter(|life| life.starts_with(id));
    let names: Vec<&String> = names.collect();
    let entries = places.filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("guise-") && names.iter().any(|life| name.ends_with(&***life))
        })
        .collect()
}

fn refused(said: &Said, code: i32, about: &str) {
    assert_eq!((said.code, said.err.lines().count()), (code, 1), "{said:?}");
    assert!(said.err.contains(about), "{about}: {said:?}");
}

in_every_guise!(an_instance_stays_on_its_processors);

fn an_instance_stays_on_its_processors(guise: Guise) {
    let Some(home) = Home::new("bound", guise) else { return };
    let (last, are_more) = last_processor();
    if !are_more {
        not_run("that others are not used", "there is one processor");
    }
    let list = last.to_string();
    home.good(&["run", "-d", "--name", "it", "--cpuset", &list, BOX, "sleep", "1000"]);
    // For a container, that is its program too.
    let lists = allowed(worker_of(&home, "it"));
    assert!(lists.len() > 2 && lists.iter().all(|other| *other == list), "{lists:?}");
    assert_eq!(home.inspect("it")["spec"]["resources"]["cpuset"], *list);
    if guise == Guise::Container {
        let inside = ["exec", "it", "grep", "Cpus_allowed_list", "/proc/self/status"];
        assert!(home.good(&inside).ends_with(&format!("\t{list}")));
    }
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}

#[test]
fn a_program_stays_on_its_processors() {
    let Some((home, tool)) = wasm::home("w-bound") else { return };
    let list = last_processor().0.to_string();
    home.good(&["run", "-d", "--name", "it", "--cpuset", &list, &tool, "s"]);
    let lists = allowed(worker_of(&home, "it"));
    assert!(lists.len() > 2 && lists.iter().all(|other| *other == list), "{lists:?}");
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}

#[test]
fn who_weighs_three_times_as_much_gets_three_times_as_much() {
    for guise in [Guise::Container, Guise::Microvm] {
        if controller("weights of processors", "cpu").is_none() {
            return;
        }
        let Some(home) = Home::new("weights", guise) else { return };
        let list = last_processor().0.to_string();
        for (name, weight) in [("light", "100"), ("heavy", "300")] {
            let limits = ["--cpuset", &list, "--cpu-weight", weight];
            let run = [&["run", "-d", "--name", name][..], &limits, &[BOX, "sh", "-c", BUSY]];
            home.good(&run.concat());
            assert_eq!(home.inspect(name)["status"]["warnings"].as_array().unwrap().len(), 0);
        }
        let used = || ["light", "heavy"].map(|name| processor_seconds(&home, name));
        let ratio = || {
            let before = used();
            std::thread::sleep(Duration::from_secs(3));
            let after = used();
            (after[1] - before[1]) / (after[0] - before[0]).max(0.001)
        };
        // The machines that run tests are not always quiet in just these seconds.
        let ratios: Vec<f64> = std::iter::repeat_with(ratio).take(4).collect();
        let fair = ratios.iter().any(|ratio| (2.2..4.0).contains(ratio));
        assert!(fair, "{guise:?}: {ratios:?}");
    }
}

#[test]
fn a_machine_is_held_to_its_part_of_a_processor() {
    if controller("a machine's part of a processor", "cpu").is_none() {
        return;
    }
    let Some(home) = Home::new("half", Guise::Microvm) else { return };
    home.good(&["run", "-d", "--name", "it", "--cpus", "0.5", BOX, "sh", "-c", BUSY]);
    let warnings = home.inspect("it")["status"]["warnings"].to_string();
    assert!(!warnings.contains("whole"), "{warnings}");
    let (begun, before) = (Instant::now(), processor_seconds(&home, "it"));
    std::thread::sleep(Duration::from_secs(4));
    let took = processor_seconds(&home, "it") - before;
    let share = took / begun.elapsed().as_secs_f64();
    assert!(share < 0.6, "{share} of a processor");
    home.good(&["rm", "-f", "it"]);
    // Two of them share what is left of a processor.
    let (_, are_two) = last_processor();
    if are_two {
        let count = ["grep", "-c", "^processor", "/proc/cpuinfo"];
        let said = home.guise(&[&["run", "--rm", "--cpus", "1.5", BOX][..], &count].concat());
        assert_eq!((said.out.trim(), said.err.as_str()), ("2", ""), "{said:?}");
    }
}

/// A worker has a cgroup, which goes with it in every way that it can end.
#[test]
fn a_workers_cgroup_goes_with_it() {
    let Some((memory, is_v1)) = controller("cgroups of workers", "memory") else { return };
    let Some((mut home, tool)) = wasm::home("w-groups") else { return };
    let machine = ["--as", "microvm", "--engine", "soft", BOX, "sleep", "1000"];
    let container = ["--as", "container", BOX, "sleep", "1000"];
    let forms: [&[&str]; 3] = [&machine, &[&tool, "s"], &container];
    let begin = |home: &Home, form: &[&str]| {
        let limits = ["run", "-d", "--name", "it", "-m", "128M"];
        let id = home.good(&[&limits[..], form].concat());
        let worker = worker_of(home, "it");
        let groups = groups_of(home, &id);
        let group = groups.iter().find(|group| group.starts_with(&memory)).expect("it has one");
        let limit = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        let limit: u64 = fs::read_to_string(group.join(limit)).unwrap().trim().parse().unwrap();
        assert!(limit > 128 << 20 && limit < 4 << 30, "{limit}");
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        let inside = family(worker).into_iter();
        // On v2 the first of its processes only waits for the others, outside.
        let inside = inside.filter(|pid| members.lines().any(|line| line == pid.to_string()));
        // Of a container these are its worker and its keeper.
        let count = if form[1] == "container" { 2 } else { family(worker).len() };
        assert!(inside.count() >= if is_v1 { count } else { count - 1 }, "{members}");
        (id, worker)
    };
    let kill = |pid: i32| kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let gone = |home: &Home, id: &str| {
        home.until("its cgroup is gone", || groups_of(home, id).is_empty());
    };
    for form in forms {
        let (id, _) = begin(&home, form);
        home.good(&["stop", "-t", "0", "it"]);
        gone(&home, &id);
        home.good(&["rm", "it"]);
        let (id, worker) = begin(&home, form);
        kill(worker);
        home.until_phase("it", "failed");
        gone(&home, &id);
        home.good(&["rm", "it"]);
        // One that outlives a daemon, and one that ends when there is none.
        let (id, _) = begin(&home, form);
        home.kill_daemon();
        home.start_daemon();
        home.until_phase("it", "running");
        home.good(&["rm", "-f", "it"]);
        gone(&home, &id);
        let (id, worker) = begin(&home, form);
        home.kill_daemon();
        kill(worker);
        home.start_daemon();
        home.until_phase("it", "failed");
        gone(&home, &id);
        home.good(&["rm", "it"]);
    }
    home.expect_nothing_left();
}

#[test]
fn a_worker_without_memory_is_shown_as_such() {
    let Some((memory, is_v1)) = controller("workers without memory", "memory") else { return };
    let Some(home) = Home::new("w-oom", Guise::Microvm) else { return };
    let id = home.good(&["run", "-d", "--name", "it", "-m", "256M", BOX, "sleep", "1000"]);
    let groups = groups_of(&home, &id);
    let group = groups.iter().find(|group| group.starts_with(&memory)).expect("it has one");
    let (used, limit) = match is_v1 {
        true => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        false => ("memory.current", "memory.max"),
    };
    let used: u64 = fs::read_to_string(group.join(used)).unwrap().trim().parse().unwrap();
    fs::write(group.join(limit), (used + (8 << 20)).to_string()).unwrap();
    // The guest has this much, its worker no more.
    home.guise(&["exec", "it", "tail", "-c", "99999999", "/dev/zero"]);
    home.until_phase("it", "failed");
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["out_of_memory"], true, "{status}");
    assert!(status["error"]["message"].as_str().unwrap().contains("memory"), "{status}");
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

#[test]
fn what_no_host_has_is_refused_in_one_line() {
    let Some(home) = Home::new("no-such", Guise::Container) else { return };
    let (last, _) = last_processor();
    let missing = (last + 1).to_string();
    for (options, about) in [
        (&["--cpuset", "8000"][..], "processor 8000"),
        (&["--cpuset", &missing], "this host has"),
        (&["--cpuset", "two"], "no list of processors"),
        (&["--cpuset", ""], "no list of processors"),
        (&["--cpuset", "1-0"], "no list of processors"),
        (&["--cpu-weight", "0"], "no weight"),
        (&["--cpu-weight", "10001"], "no weight"),
        (&["--cpus", "100000"], "processors were asked for"),
        (&["--cpus", "2", "--cpuset", &last.to_string()], "has 1"),
    ] {
        for (command, code) in [(&["run", "--rm"][..], 125), (&["create"], 1)] {
            refused(&home.guise(&[command, options, &[BOX, "true"]].concat()), code, about);
        }
    }
    // The API refuses the same by itself.
    let spec =
        |cpus: f64| serde_json::json!({ "spec": { "image": BOX, "resources": { "cpus": cpus } } });
    let (status, answer) = home.request("POST", "/v1/instances", &spec(1e5));
    assert!((400..500).contains(&status), "{status} {answer}");
    assert_eq!(home.good(&["ps", "-aq"]), "");
}
