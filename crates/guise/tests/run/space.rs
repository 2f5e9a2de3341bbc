//! Space on the file systems that the daemon uses: what is kept of it, and what waits for it.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::home::{BOX, Guise, Home, not_run};
use crate::small::Small;

const MIB: u64 = 1 << 20;

/// A home whose state is on a file system of so many MiB, of which so many are kept.
fn in_a_small_place(test: &str, guise: Guise, mebibytes: u64, kept: &str) -> Option<(Home, Small)> {
    if !rustix::process::geteuid().is_root() {
        not_run(test, "needs root");
        return None;
    }
    let mut home = Home::without_daemon(test, guise)?;
    let small = Small::mount(home.path("state"), mebibytes);
    home.start_daemon_with(|daemon| _ = daemon.env("GUISE_KEEP_DISK", kept));
    Some((home, small))
}

fn pools(home: &Home) -> Value {
    let info: Value = serde_json::from_str(&home.good(&["info", "-o", "json"])).unwrap();
    info["pools"].clone()
}

#[test]
fn before_a_pool_is_full_nothing_new_is_begun() {
    let Some((home, small)) = in_a_small_place("pool", Guise::Container, 64, "8") else { return };
    home.good(&["create", "--name", "before", BOX, "true"]);
    home.good(&["run", "-d", "--name", "runs", BOX, "sh", "-c", "while :; do sleep 0.1; done"]);
    let again = ["run", "-d", "--name", "again", "--restart", "always", BOX];
    home.good(&[&again[..], &["sh", "-c", "sleep 0.3; exit 1"]].concat());
    let before = pools(&home);
    assert_eq!(before[0]["holds"], serde_json::json!(["state", "instances", "volumes"]));
    assert_eq!(
        (before[0]["level"].as_str(), before[1]["name"].as_str()),
        (Some("has-room"), Some("images"))
    );
    assert_eq!(before[0]["kept_bytes"], 8 * MIB);

    let filler = small.fill("filler", 5 * MIB);
    for args in [
        &["create", "--name", "after", BOX, "true"][..],
        &["run", "--rm", "--name", "after", BOX, "true"],
        &["volume", "create", "after"],
        &["start", "before"],
    ] {
        let said = home.guise(args);
        // Commands about several say with another code that one was not done.
        let code = if matches!(args[0], "run" | "create") { 125 } else { 1 };
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert_eq!(said.err.lines().count(), 1, "{args:?}: {said:?}");
        let told = ["left of 64.0 MiB, and 8.0 MiB are kept", "guise rm", "GUISE_KEEP_DISK=MIB"];
        assert!(told.iter().all(|told| said.err.contains(told)), "{args:?}: {said:?}");
    }
    // What was to be restarted waits.
    home.until("it waits", || {
        let status = home.inspect("again")["status"].clone();
        let why = status["error"]["message"].as_str().unwrap_or_default().to_owned();
        status["phase"] == "waiting" && why.contains("again is not started")
    });
    // What runs goes on, and can be looked at and ended.
    assert_eq!(home.good(&["exec", "runs", "echo", "here"]), "here");
    assert_eq!(pools(&home)[0]["level"], "full");
    let metrics = home.ask("/v1/metrics");
    for told in [
        "guise_pool_size_bytes{pool=\"state\"} 67108864",
        "guise_pool_free_bytes{pool=\"state\"}",
        "guise_pool_kept_bytes{pool=\"state\"} 8388608",
        "guise_pool_free_bytes{pool=\"images\"}",
    ] {
        assert!(metrics.contains(told), "{told}: {metrics}");
    }
    let table = home.good(&["info", "-o", "table"]);
    assert!(table.contains("full") && table.lines().all(|line| line.len() <= 80), "{table}");
    assert!(home.good(&["events"]).contains("pool state full ("));

    fs::remove_file(filler).unwrap();
    home.until_phase("again", "running");
    home.good(&["start", "-a", "before"]);
    home.good(&["run", "--rm", "--name", "after", BOX, "true"]);
    home.good(&["volume", "create", "after"]);
    assert_eq!(pools(&home)[0]["level"], "has-room");
    assert!(home.good(&["events"]).contains("pool state has-room ("));
    home.good(&["rm", "-f", "runs", "again"]);
    home.until("its worker has ended", || home.workers().is_empty());
}

#[test]
fn images_are_not_added_to_a_store_without_room() {
    let Some(home) = Home::without_daemon("storeroom", Guise::Container) else { return };
    let tar = home.path("box.tar");
    let import = ["image", "import", "-q", tar.to_str().unwrap(), "box:2"];
    let said = |kept: &str| {
        let mut command = home.command(import);
        crate::home::said(command.env("GUISE_KEEP_DISK", kept).output().unwrap())
    };
    let refused = said("1000000000");
    assert_eq!((refused.code, refused.err.lines().count()), (125, 1), "{refused:?}");
    assert!(refused.err.contains("nothing is added to the images"), "{refused:?}");
    assert!(said("much").err.contains("GUISE_KEEP_DISK=much is no number of MiB"));
    assert_eq!(said("0").code, 0);
}

#[test]
fn more_can_be_promised_than_there_is_and_that_is_told() {
    let Some((home, _small)) = in_a_small_place("over", Guise::Microvm, 64, "0") else { return };
    home.good(&["create", "--name", "it", "--disk-size", "1G", BOX, "true"]);
    assert_eq!(pools(&home)[0]["promised_bytes"], 1 << 30);
    let events = home.good(&["events"]);
    let told = "pool state over-promised (disks of instances may grow by 1.0 GiB, and ";
    assert!(events.contains(told), "{events}");
    home.good(&["rm", "it"]);
    assert_eq!(pools(&home)[0]["promised_bytes"], 0);
}

/// A machine stands still when the host has no room for what it writes, loses nothing, and goes
/// on by itself.
fn a_machine_waits_for_space(guise: Guise) {
    let Some((home, small)) = in_a_small_place("waits", guise, 128, "0") else { return };
    let script = "echo up; while [ ! -e /go ]; do sleep 0.1; done; \
         head -c 12582912 /dev/zero | tr '\\0' x >/data && sync && echo written; \
         echo 3 >/proc/sys/vm/drop_caches; md5sum </data; exec sleep 1000";
    home.good(&["run", "-d", "--name", "it", BOX, "sh", "-c", script]);
    home.until("it is up", || home.good(&["logs", "it"]).contains("up"));
    let beside = "touch /begun; while [ ! -e /over ]; do sleep 0.1; done; echo over";
    let beside = home.command(["exec", "it", "sh", "-c", beside]).stdout(Stdio::piped()).spawn();
    home.until("another has begun", || {
        home.guise(&["exec", "it", "test", "-e", "/begun"]).code == 0
    });
    let filler = small.fill("filler", 3 * MIB);
    home.good(&["exec", "it", "touch", "/go"]);
    home.until("it has no space", || home.inspect("it")["status"]["without_space"] == true);
    assert!(home.good(&["ps"]).contains("no space"));
    assert!(home.good(&["events"]).contains("instance it out-of-space ("));
    // What is read is told without its help.
    home.good(&["stats", "it"]);
    // What would need that is refused at once, and nothing of it is made up for later.
    let file = home.path("box.tar");
    let file = file.to_str().unwrap();
    for (asked, code) in [
        (&["exec", "it", "touch", "/refused"][..], 125),
        (&["exec", "-d", "it", "touch", "/refused"], 125),
        (&["cp", "it:/go", "."], 1),
        (&["cp", file, "it:/refused"], 1),
    ] {
        let begun = Instant::now();
        let said = home.guise(asked);
        assert!(begun.elapsed() < Duration::from_secs(5), "{asked:?}: {:?}", begun.elapsed());
        assert_eq!((said.code, said.err.lines().count()), (code, 1), "{asked:?}: {said:?}");
        let told = ["stands still: the host has no space", "guise info -o table", "by itself"];
        assert!(told.iter().all(|told| said.err.contains(told)), "{asked:?}: {said:?}");
    }
    std::thread::sleep(Duration::from_secs(3));
    assert!(!home.good(&["logs", "it"]).contains("written"));
    assert_eq!(home.inspect("it")["status"]["without_space"], true);

    fs::remove_file(filler).unwrap();
    home.until("it has written", || home.good(&["logs", "it"]).lines().count() == 3);
    let logs = home.good(&["logs", "it"]);
    assert_eq!(logs, format!("up\nwritten\n{}  -", md5_of_letters()), "{logs}");
    assert!(home.inspect("it")["status"].get("without_space").is_none());
    assert!(home.good(&["events"]).contains("instance it has-space ("));
    // What ran beside it runs on.
    home.good(&["exec", "it", "touch", "/over"]);
    assert_eq!(home.guise(&["exec", "it", "test", "-e", "/refused"]).code, 1);
    let beside = crate::home::said(beside.unwrap().wait_with_output().unwrap());
    assert_eq!((beside.code, beside.out.as_str()), (0, "over\n"), "{beside:?}");

    // One that waits can be ended, too.
    small.fill("filler", 2 * MIB);
    let more = "head -c 12582912 /dev/zero | tr '\\0' y >/more; sync";
    let mut exec = home.command(["exec", "it", "sh", "-c", more]).spawn().unwrap();
    home.until("it has no space", || home.inspect("it")["status"]["without_space"] == true);
    assert_eq!(small.free(), 0);
    let begun = Instant::now();
    home.good(&["rm", "-f", "it"]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(!exec.wait().unwrap().success());
    home.until("its worker has ended", || home.workers().is_empty());
}

fn md5_of_letters() -> String {
    let script = "head -c 12582912 /dev/zero | tr '\\0' x | md5sum";
    let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_microvm_waits_for_space() {
    a_machine_waits_for_space(Guise::Microvm);
}

#[test]
fn a_vm_waits_for_space() {
    a_machine_waits_for_space(Guise::Vm);
}
