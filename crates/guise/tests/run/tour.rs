//! The README's tour of instances, word for word. The image of the test's busybox stands
//! for Debian's, so that no network is needed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::home::{GUISE, Guise, Home, said};
use crate::terminal::Terminal;

/// The lines of the block that begins with a shell in Debian.
fn commands() -> Vec<String> {
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let tour = readme.split("## A tour").nth(1).expect("the README has a tour");
    let block = tour.lines().skip_while(|line| !line.starts_with("    "));
    block.map_while(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

#[test]
fn the_tour_is_as_the_readme_tells() {
    let Some(home) = Home::new("tour", Guise::Container) else { return };
    home.import("debian:12-slim");
    let commands = commands();
    assert_eq!(commands.len(), 10, "{commands:?}");
    let folder = std::path::Path::new(&*GUISE).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let shell = |line: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {line}")]).envs(home.places()).env("PATH", &path);
        shell.current_dir(home.path("")).stdin(Stdio::null()).stdout(Stdio::piped());
        shell.stderr(Stdio::piped());
        shell
    };
    for line in &commands {
        let arguments = line.strip_prefix("guise ").expect("it is a command of Guise");
        if arguments.starts_with("run -it ") {
            let mut terminal = Terminal::open(&home, arguments);
            terminal.until(&home, "#");
            terminal.type_in("cat /etc/debian_version\n");
            terminal.until(&home, "12.0");
            terminal.type_in("exit\n");
            assert_eq!(terminal.end(), 0);
        } else if arguments.contains("logs -f ") {
            let mut follow = shell(line).spawn().unwrap();
            let mut first = String::new();
            BufReader::new(follow.stdout.take().unwrap()).read_line(&mut first).unwrap();
            assert!(first.contains(':'), "a time: {first:?}");
            // As somebody who has seen enough.
            kill_process(Pid::from_child(&follow), Signal::INT).unwrap();
            follow.wait().unwrap();
        } else {
            let said = said(shell(line).output().unwrap());
            assert_eq!(said.code, 0, "{line}: {}\n{}", said.err, home.daemon_log());
            assert!(!said.out.is_empty() || arguments.starts_with("cp "), "{line}: {said:?}");
        }
    }
    let copied = std::fs::read_to_string(home.path("log")).unwrap();
    assert!(copied.contains(':'), "{copied:?}");
    // Only what the shell left is left.
    assert_eq!(home.good(&["ps", "-q"]), "");
    assert_eq!(home.good(&["volume", "ls", "-o", "json"]), "[]");
}
