//! What could not be done as it was asked for is said before the program says anything.

use std::process::{Command, Stdio};

use crate::home::{BOX, GUISE, Guise, Home, Said, not_run};
use crate::terminal::Terminal;

const NO_LIMIT: &str = "this container's disk space has no limit: ";
/// What is asked for and cannot be had here.
const ASKED: [&str; 2] = ["--disk-size", "64M"];

/// A home whose daemon finds no loop devices, whatever the host has. They are hidden in a mount
/// namespace that only it is in: a command in there starts it.
fn without_loop_devices(test: &str) -> Option<Home> {
    if !rustix::process::geteuid().is_root() {
        not_run(test, "needs root");
        return None;
    }
    let home = Home::without_daemon(test, Guise::Container)?;
    let script = "l=/dev/loop-control; [ ! -e $l ] || mount --bind /dev/null $l; exec \"$0\" ps";
    let started = Command::new("unshare")
        .args(["-m", "sh", "-c", script, GUISE.as_str()])
        .envs(home.places())
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    Some(home)
}

/// What was said as errors, but for what any instance is told on a host that lacks something.
fn errors(said: &Said) -> Vec<&str> {
    said.err.lines().filter(|line| !line.contains("this host lacks")).collect()
}

/// Whether this is one warning of this instance, and nothing else.
fn is_the_warning(line: &str, name: &str) -> bool {
    line.starts_with(&format!("guise: {name}: {NO_LIMIT}")) && line.matches(NO_LIMIT).count() == 1
}

#[test]
fn whoever_begins_a_life_hears_what_was_left_out() {
    let Some(home) = without_loop_devices("warned") else { return };
    let run = |options: &[&str], script: &str| {
        let command = [BOX, "sh", "-c", script];
        home.guise(&[&["run"], options, &ASKED[..], &command[..]].concat())
    };
    let script = "echo out; echo err >&2; exit 3";
    let said = run(&["--rm", "--name", "it"], script);
    assert_eq!((said.code, said.out.as_str()), (3, "out\n"), "{said:?}");
    let before_err =
        |said: &Said| matches!(errors(said)[..], [warning, "err"] if is_the_warning(warning, "it"));
    let alone =
        |said: &Said| matches!(errors(said)[..], [warning] if is_the_warning(warning, "it"));
    assert!(before_err(&said), "{said:?}");
    // However soon it ends.
    for _ in 0..10 {
        let said = run(&["--rm", "--name", "it"], ":");
        assert!(said.code == 0 && said.out.is_empty() && alone(&said), "{said:?}");
    }
    let said = run(&["-d", "--name", "it"], script);
    assert!(said.code == 0 && alone(&said), "{said:?}");
    home.until_phase("it", "exited");
    // Each life has its own, and it is no part of what the program has said.
    let said = home.guise(&["start", "-a", "it"]);
    assert_eq!((said.code, said.out.as_str()), (3, "out\n"), "{said:?}");
    assert!(before_err(&said), "{said:?}");
    for again in ["start", "restart"] {
        let said = home.guise(&[again, "it"]);
        assert_eq!((said.code, said.out.as_str()), (0, "it\n"), "{said:?}");
        assert!(alone(&said), "{said:?}");
        home.until_phase("it", "exited");
    }
    let logs = home.guise(&["logs", "it"]);
    assert!(!(logs.out + &logs.err).contains("no limit"));
    home.good(&["rm", "it"]);
    // Who is not listened to runs all the same.
    let mut unheard =
        home.command(["run", "--rm", "--disk-size", "64M", BOX, "sh", "-c", "exit 4"]);
    let mut unheard = unheard.stderr(Stdio::piped()).spawn().unwrap();
    drop(unheard.stderr.take());
    assert_eq!(unheard.wait().unwrap().code(), Some(4));
    // Who can have what he asked for hears nothing.
    let said = home.guise(&["run", "--rm", BOX, "echo", "out"]);
    assert!(!said.err.contains(NO_LIMIT), "{said:?}");
}

#[test]
fn on_a_terminal_each_is_a_line() {
    let Some(home) = without_loop_devices("warned-t") else { return };
    let asked = ASKED.join(" ");
    let line = format!("run --as container --rm -it --name it {asked} {BOX} sh");
    let mut terminal = Terminal::open(&home, &line);
    terminal.until(&home, "#");
    let shown = terminal.shown();
    let lines: Vec<&str> = shown.split("\r\n").collect();
    assert!(!lines.iter().any(|line| line.contains('\n')), "{shown:?}");
    assert_eq!(lines.iter().filter(|line| is_the_warning(line, "it")).count(), 1, "{shown:?}");
    // From then on the terminal is the program's.
    terminal.type_in("sh -c 'echo began-$((6*8)); exec sleep 1000'\n");
    terminal.until(&home, "began-48");
    terminal.type_in("\x03");
    terminal.type_in("exit 3\n");
    assert_eq!(terminal.end(), 3);
}
