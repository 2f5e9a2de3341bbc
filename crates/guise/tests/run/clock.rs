//! The host's time of day jumps, as it does when it is first set, or set wrong. A test cannot
//! do that to a host, so the daemon and the workers are shown another time.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::home::{BOX, Guise, Home, in_every_guise};

in_every_guise!(nothing_minds_a_clock_that_jumps);

const YEAR: i64 = 31_556_952;

fn this_year() -> i64 {
    1970 + SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed() / YEAR
}

fn start_daemon(home: &mut Home) {
    let (library, jump) = (home.path("jump.so"), home.path("jump"));
    home.start_daemon_with(|daemon| {
        daemon.env("LD_PRELOAD", library).env("JUMP", jump);
    });
}

fn nothing_minds_a_clock_that_jumps(guise: Guise) {
    if !rustix::process::geteuid().is_root() {
        return crate::home::not_run("a clock that jumps", "needs root");
    }
    let Some(mut home) = Home::without_daemon("clock", guise) else { return };
    let source = home.path("jump.c");
    fs::write(&source, include_str!("clock/jump.c")).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(home.path("jump.so")).arg(&source);
    assert!(cc.status().unwrap().success());
    let jump = |home: &Home, years: i64| {
        fs::write(home.path("jump"), (years * YEAR).to_ne_bytes()).unwrap();
    };
    jump(&home, 0);
    start_daemon(&mut home);
    let tick = "while :; do echo .; sleep 0.1; done";
    home.good(&["run", "-d", "--name", "it", BOX, "sh", "-c", tick]);
    let mut lives = 0;
    for years in [10, -20, 0] {
        jump(&home, years);
        if years < 0 {
            home.kill_daemon();
            start_daemon(&mut home);
            home.until_phase("it", "running");
        }
        let name = format!("at{years}").replace('-', "minus");
        // Policies go by a clock that does not jump.
        let fails = ["--restart", "on-failure:1", BOX, "sh", "-c", "echo life; exit 3"];
        home.good(&[&["run", "-d", "--name", &name][..], &fails].concat());
        assert_eq!(home.good(&["wait", &name]), "3");
        assert_eq!(home.good(&["logs", &name]), "life\nlife");
        lives += 2;
        let status = home.inspect(&name);
        for time in [&status["created"], &status["status"]["finished"]] {
            let year: i64 = time.as_str().unwrap()[..4].parse().unwrap();
            assert!((year - this_year() - years).abs() <= 1, "{time} in {years} years");
        }
        let lines = home.good(&["logs", "it"]).lines().count();
        home.until("it goes on", || home.good(&["logs", "it"]).lines().count() > lines);
        home.good(&["pause", "it"]);
        home.good(&["unpause", "it"]);
    }
    home.good(&["stop", "-t", "1", "it"]);
    // A daemon that was killed has forgotten what it told of before.
    let events = home.good(&["events"]);
    let exits = events.lines().filter(|line| line.contains("exited")).count();
    assert!(exits >= lives - 2, "{events}");
    for name in ["it", "at10", "atminus20", "at0"] {
        home.good(&["rm", name]);
    }
    home.expect_nothing_left();
}
