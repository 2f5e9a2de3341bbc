//! Programs in the foreground: what goes in, what comes out, how they end.

use std::process::Stdio;

use crate::home::{BOX, Guise, Home, in_every_guise};

in_every_guise!(
    exit_codes_are_the_programs_own_or_say_what_failed,
    streams_stay_apart_and_lose_nothing,
    user_directory_environment_and_host_name,
    signals_reach_the_program,
    programs_beside_the_workload,
);

fn exit_codes_are_the_programs_own_or_say_what_failed(guise: Guise) {
    let Some(home) = Home::new("codes", guise) else { return };
    for (args, code) in [
        (vec!["run", "--rm", BOX, "true"], 0),
        (vec!["run", "--rm", BOX, "sh", "-c", "exit 7"], 7),
        (vec!["run", "--rm", BOX, "sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], 143),
        (vec!["run", "--rm", BOX, "no-such-program"], 127),
        (vec!["run", "--rm", BOX, "/etc/not-a-program"], 126),
        (vec!["run", "--rm", "--pull", "never", "nothing:1", "true"], 125),
        (vec!["run", "--rm", "--user", "nobody-here", BOX, "true"], 125),
        (vec!["run", "--no-such-option", BOX], 2),
        (vec!["run", "-v", "nonsense", BOX], 2),
    ] {
        let said = home.guise(&args);
        assert_eq!(said.code, code, "{args:?}: {}\n{}", said.err, home.daemon_log());
        if code > 124 && code < 128 || code == 2 {
            assert_eq!(said.err.lines().count(), 1, "one line: {}", said.err);
        }
    }
    assert_eq!(home.good(&["ps", "-aq"]), "", "--rm leaves nothing");
    home.expect_nothing_left();
}

fn streams_stay_apart_and_lose_nothing(guise: Guise) {
    let Some(home) = Home::new("streams", guise) else { return };
    let said = home.guise(&["run", "--rm", BOX, "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out\n", "err\n"));
    let input: Vec<u8> =
        (0..3 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sum = home.guise_with(&["run", "--rm", "-i", BOX, "sha256sum"], &input);
    let expected = guise_image::Digest::of(&input);
    assert!(expected.to_string().ends_with(sum.out.split(' ').next().unwrap()), "{sum:?}");
    // Both ways at once, with more than all that is in between can hold.
    let through = home.guise_with(&["run", "--rm", "-i", BOX, "od", "-v", "-An", "-tx1"], &input);
    assert_eq!(through.out.split_whitespace().count(), input.len(), "{}", through.err);
    let many = home.guise(&["run", "--rm", BOX, "seq", "1", "200000"]);
    assert_eq!(many.out.lines().count(), 200_000, "{}", many.err);
    assert!(many.out.ends_with("199999\n200000\n"));
    // Without -i there is nothing to read.
    let said = home.guise_with(&["run", "--rm", BOX, "cat"], b"unheard");
    assert_eq!((said.code, said.out.as_str()), (0, ""));
}

fn user_directory_environment_and_host_name(guise: Guise) {
    let Some(home) = Home::new("who", guise) else { return };
    let script = "id; pwd; echo $A-$B-$HOME; hostname; cat /etc/hosts";
    let said = home.guise(&[
        "run",
        "--rm",
        "-u",
        "web",
        "-w",
        "/tmp",
        "-e",
        "A=1",
        "-e",
        "B=two words",
        "--hostname",
        "here",
        BOX,
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(said.code, 0, "{}", said.err);
    let lines: Vec<&str> = said.out.lines().collect();
    assert!(lines[0].starts_with("uid=33(web) gid=34(www)"), "{}", said.out);
    assert!(lines[0].contains("4(log)"), "{}", said.out);
    assert_eq!(lines[1..4], ["/tmp", "1-two words-/tmp", "here"]);
    let named = |line: &str| line.split_whitespace().nth(1) == Some("here");
    assert!(said.out.lines().any(named), "{}", said.out);
}

fn signals_reach_the_program(guise: Guise) {
    let Some(home) = Home::new("signals", guise) else { return };
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = home.command(["run", "--rm", "--name", "it", BOX, "sh", "-c", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    home.until("it is ready", || home.guise(&["logs", "it"]).out == "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ready\ncaught\n");
}

fn programs_beside_the_workload(guise: Guise) {
    let Some(home) = Home::new("exec", guise) else { return };
    home.good(&["run", "-d", "--name", "it", "-e", "A=1", BOX, "sleep", "1000"]);
    assert_eq!(home.good(&["exec", "-e", "B=2", "it", "sh", "-c", "echo $A$B"]), "12");
    assert_eq!(home.guise(&["exec", "it", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(home.guise(&["exec", "it", "nothing-here"]).code, 127);
    assert_eq!(home.guise(&["exec", "it", "/etc/not-a-program"]).code, 126);
    let said = home.guise_with(&["exec", "-i", "it", "cat"], b"through");
    assert_eq!(said.out, "through");
    assert_eq!(
        home.good(&["exec", "-u", "web", "-w", "/etc", "it", "sh", "-c", "id -u; pwd"]),
        "33\n/etc"
    );
    assert_eq!(home.guise(&["exec", "nobody", "true"]).code, 125);
    // What was started stays in the container and goes with it.
    home.good(&["exec", "-d", "it", "sleep", "999"]);
    assert!(home.good(&["exec", "it", "ps"]).contains("sleep 999"));
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}
