//! An instance's life: start, stop, restart, names, logs, what `inspect` tells.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::home::{BOX, Guise, Home, in_every_guise};

in_every_guise!(
    stopping_is_asked_for_first,
    logs_follow_and_end_with_the_instance,
    policies_start_it_again,
    what_takes_too_long_is_ended,
    pause_holds_it_where_it_is,
    volumes_are_shared_and_outlive_instances,
    what_was_written_is_there_in_the_next_life,
);

#[test]
fn instances_are_made_listed_stopped_started_and_removed() {
    let Some(home) = Home::new("lives", Guise::Container) else { return };
    let id = home.good(&[
        "run",
        "-d",
        "--name",
        "one",
        BOX,
        "sh",
        "-c",
        "echo $((++n)) >> /n; wc -l < /n; exec sleep 1000",
    ]);
    assert_eq!(id.len(), 12, "{id}");
    assert!(home.good(&["ps"]).contains("one"));
    let taken = home.guise(&["run", "-d", "--name", "one", BOX]);
    assert!(taken.code == 125 && taken.err.contains("taken"), "{taken:?}");
    home.good(&["stop", "-t", "0", "one"]);
    assert_eq!(home.inspect("one")["status"]["exit_code"], 137);
    assert_eq!(home.good(&["ps", "-q"]), "");
    // What it wrote is still there in its next lives.
    home.good(&["start", &id[..6]]);
    home.good(&["restart", "-t", "0", "one"]);
    home.until("three lives", || home.good(&["logs", "one"]) == "1\n2\n3");
    home.good(&["rename", "one", "other"]);
    assert_eq!(home.inspect("other")["id"], id.as_str());
    assert_ne!(home.guise(&["inspect", "one"]).code, 0);
    let refused = home.guise(&["rm", "other"]);
    assert!(refused.code == 1 && refused.err.contains("rm -f"), "{refused:?}");
    home.good(&["rm", "-f", "other"]);
    assert_eq!(home.good(&["ps", "-aq"]), "");
    let events = home.good(&["events"]);
    for action in ["created", "started", "exited", "renamed", "removed"] {
        assert!(events.contains(action), "{action}: {events}");
    }
    home.expect_nothing_left();
}

/// However it ends, but for the machine's or the host's death.
fn what_was_written_is_there_in_the_next_life(guise: Guise) {
    let Some(home) = Home::new("written", guise) else { return };
    let script = "echo life >> /n; wc -l < /n; exec sleep 1000";
    home.good(&["run", "-d", "--name", "it", BOX, "sh", "-c", script]);
    let mut lines = Vec::new();
    for life in 1..=5 {
        lines.push(life.to_string());
        home.until(&format!("it has written in life {life}"), || {
            home.good(&["logs", "it"]) == lines.join("\n")
        });
        match life {
            1 | 2 => home.good(&["restart", "-t", "0", "it"]),
            3 => {
                home.good(&["pause", "it"]);
                home.good(&["stop", "-t", "0", "it"]);
                home.good(&["start", "it"])
            }
            4 => {
                home.good(&["kill", "it"]);
                home.good(&["wait", "it"]);
                home.good(&["start", "it"])
            }
            _ => home.good(&["rm", "-f", "it"]),
        };
    }
    home.expect_nothing_left();
}

fn stopping_is_asked_for_first(guise: Guise) {
    let Some(home) = Home::new("stop", guise) else { return };
    let script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    home.good(&["run", "-d", "--name", "it", BOX, "sh", "-c", script]);
    home.until("it is ready", || home.good(&["logs", "it"]) == "ready");
    home.good(&["stop", "it"]);
    assert_eq!(home.good(&["logs", "it"]), "ready\nasked");
    assert_eq!(home.good(&["wait", "it"]), "0");
}

fn logs_follow_and_end_with_the_instance(guise: Guise) {
    let Some(home) = Home::new("logs", guise) else { return };
    // Two pipes lead to the log: what comes out of one is there before the other is used.
    let script = "for i in 1 2 3; do echo line $i; done; cat /tmp/go; echo line 5; \
                  read end < /tmp/go; echo last >&2";
    home.good(&[
        "run",
        "-d",
        "--name",
        "it",
        BOX,
        "sh",
        "-c",
        &format!("mkfifo /tmp/go; {script}"),
    ]);
    home.until("it waits", || home.good(&["logs", "it"]).ends_with("line 3"));
    let follow =
        home.command(["logs", "-f", "it"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    home.good(&["exec", "it", "sh", "-c", "echo line 4 > /tmp/go"]);
    home.until("it waits again", || home.good(&["logs", "it"]).ends_with("line 5"));
    // The instance ends by it, and may be gone before that is told.
    home.guise(&["exec", "it", "sh", "-c", "echo end > /tmp/go"]);
    let output = follow.unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "last\n");
    assert_eq!(home.guise(&["logs", "-n", "2", "it"]).out, "line 5\n");
    let stamped = home.guise(&["logs", "-t", "-n", "1", "it"]);
    assert!(stamped.err.starts_with("20") && stamped.err.ends_with("Z last\n"), "{stamped:?}");
    assert_eq!(home.good(&["wait", "it"]), "0");
}

fn policies_start_it_again(guise: Guise) {
    let Some(home) = Home::new("policies", guise) else { return };
    home.good(&[
        "run",
        "-d",
        "--name",
        "it",
        "--restart",
        "on-failure:2",
        BOX,
        "sh",
        "-c",
        "echo life; exit 3",
    ]);
    assert_eq!(home.good(&["wait", "it"]), "3");
    assert_eq!(home.good(&["logs", "it"]), "life\nlife\nlife");
    assert_eq!(home.inspect("it")["status"]["restarts"], 2);
    home.good(&["run", "-d", "--name", "ok", "--restart", "on-failure", BOX, "true"]);
    assert_eq!(home.good(&["wait", "ok"]), "0");
    assert_eq!(home.inspect("ok")["status"]["restarts"], 0);
    home.good(&[
        "run",
        "-d",
        "--name",
        "always",
        "--restart",
        "always",
        BOX,
        "sh",
        "-c",
        "echo up; sleep 0.1",
    ]);
    home.until("it came back", || home.good(&["logs", "always"]).lines().count() > 2);
    home.good(&["stop", "always"]);
    let stopped = home.inspect("always")["status"].clone();
    assert_eq!(stopped["phase"], "exited");
    // As long as another one takes to be started again three times, nothing happens to it.
    home.good(&["run", "-d", "--name", "clock", "--restart", "on-failure:3", BOX, "false"]);
    assert_eq!(home.good(&["wait", "clock"]), "1");
    assert_eq!(home.inspect("always")["status"], stopped);
}

fn what_takes_too_long_is_ended(guise: Guise) {
    let Some(home) = Home::new("too-long", guise) else { return };
    let deaf = "trap '' TERM; echo began; while :; do sleep 1; done";
    let said = home.guise(&["run", "--rm", "--timeout", "3", BOX, "sh", "-c", deaf]);
    assert_eq!((said.code, said.err.lines().count()), (124, 1), "{said:?}");
    assert!(said.err.contains("ended after 3 s") && said.out == "began\n", "{said:?}");
    // Each life has its own time, and one that is paused has no more of it (if it still runs).
    let forever = ["-d", "--name", "it", "--timeout", "3", "--restart", "on-failure:1"];
    home.good(&[&["run"][..], &forever, &[BOX, "sh", "-c", "echo life; exec sleep 1000"]].concat());
    home.until("it lives", || home.good(&["logs", "it"]).starts_with("life"));
    home.guise(&["pause", "it"]);
    assert_eq!(home.good(&["wait", "it"]), "124");
    assert_eq!(home.good(&["logs", "it"]), "life\nlife");
    assert_eq!(home.guise(&["run", "--rm", "--timeout", "1000", BOX, "false"]).code, 1);
    assert_eq!(home.guise(&["run", "--rm", "--timeout", "0", BOX, "true"]).code, 125);
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

fn pause_holds_it_where_it_is(guise: Guise) {
    let Some(home) = Home::new("pause", guise) else { return };
    home.good(&[
        "run",
        "-d",
        "--name",
        "it",
        BOX,
        "sh",
        "-c",
        "while :; do echo .; sleep 0.05; done",
    ]);
    home.good(&["pause", "it"]);
    assert_eq!(home.inspect("it")["status"]["phase"], "paused");
    // What was printed before may still be on its way.
    let mut before = String::new();
    home.until("nothing is printed for half a second", || {
        before = home.good(&["logs", "it"]);
        home.good(&["run", "--rm", BOX, "sleep", "0.5"]);
        home.good(&["logs", "it"]) == before
    });
    // What it would have to answer is refused at once; a container's files are the host's.
    let begun = Instant::now();
    for (asked, code) in [
        (&["exec", "it", "true"][..], 125),
        (&["exec", "-d", "it", "true"], 125),
        (&["cp", "it:/etc/group", "-"], if guise == Guise::Container { 0 } else { 1 }),
    ] {
        let said = home.guise(asked);
        assert_eq!(said.code, code, "{asked:?}: {said:?}");
        let is_told = said.err.contains("it is paused") && said.err.contains("guise unpause it");
        assert!(code == 0 || is_told && said.err.lines().count() == 1, "{asked:?}: {said:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    home.good(&["unpause", "it"]);
    home.until("it goes on", || home.good(&["logs", "it"]).len() > before.len());
    home.good(&["pause", "it"]);
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}

fn volumes_are_shared_and_outlive_instances(guise: Guise) {
    let Some(home) = Home::new("volumes", guise) else { return };
    home.good(&["run", "--rm", "-v", "data:/srv", BOX, "sh", "-c", "echo shared > /srv/file"]);
    let folder = home.path("folder");
    std::fs::create_dir(&folder).unwrap();
    let own = format!("{}:/own:ro", folder.display());
    let said = home.guise(&[
        "run",
        "--name",
        "it",
        "-v",
        "data:/else",
        "-v",
        &own,
        BOX,
        "sh",
        "-c",
        "cat /else/file; touch /own/x",
    ]);
    assert_eq!((said.code, said.out.as_str()), (1, "shared\n"), "{}", said.err);
    assert!(said.err.contains("Read-only"), "{}", said.err);
    let refused = home.guise(&["volume", "rm", "data"]);
    assert!(refused.code == 1 && refused.err.contains("it"), "{refused:?}");
    home.good(&["rm", "it"]);
    assert!(home.good(&["volume", "ls"]).contains("data"));
    home.good(&["volume", "rm", "data"]);
    assert_eq!(home.good(&["volume", "ls", "-o", "json"]), "[]");
    let missing = home.guise(&["run", "--rm", "-v", "/no/such/place:/x", BOX, "true"]);
    assert_eq!(missing.code, 125, "{missing:?}");
}

#[test]
fn who_has_less_patience_ends_it_sooner() {
    let Some(home) = Home::new("patience", Guise::Container) else { return };
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 1; done";
    home.good(&["run", "-d", "--name", "it", "--stop-timeout", "1", BOX, "sh", "-c", deaf]);
    home.until("it hears nothing", || home.good(&["logs", "it"]) == "deaf");
    let mut patient = home.command(["stop", "-t", "80000", "it"]).spawn().unwrap();
    home.until_phase("it", "stopping");
    let refused = home.guise(&["pause", "it"]);
    assert!(refused.code == 1 && refused.err.contains("being stopped"), "{refused:?}");
    home.good(&["stop", "-t", "0", "it"]);
    assert!(patient.wait().unwrap().success());
    assert_eq!(home.inspect("it")["status"]["exit_code"], 137);
    let refused = home.guise(&["stop", "-t", "4000000000", "it"]);
    assert!(refused.code == 1 && refused.err.contains("more than a day"), "{refused:?}");
    // The same by its usual patience, which the others have not changed.
    home.good(&["start", "it"]);
    home.until("it hears nothing again", || home.good(&["logs", "it"]) == "deaf\ndeaf");
    let mut patient = home.command(["stop", "-t", "80000", "it"]).spawn().unwrap();
    home.until_phase("it", "stopping");
    home.good(&["stop", "it"]);
    assert!(patient.wait().unwrap().success());
    // And by removal.
    home.good(&["start", "it"]);
    home.until("it hears nothing once more", || {
        home.good(&["logs", "it"]).ends_with("\ndeaf\ndeaf")
    });
    let mut patient = home.command(["stop", "-t", "80000", "it"]).spawn().unwrap();
    home.until_phase("it", "stopping");
    home.good(&["rm", "-f", "it"]);
    patient.wait().unwrap();
    home.expect_nothing_left();
}
