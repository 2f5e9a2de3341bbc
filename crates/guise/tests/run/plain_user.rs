//! The same as a plain user, and without a daemon that somebody started.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::home::{BOX, GUISE, Guise, Home, Said, not_run, said};

const NOBODY: u32 = 65534;

#[test]
fn a_plain_user_runs_containers_with_a_daemon_that_starts_by_itself() {
    if fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|n| n.trim() == "0") {
        not_run("containers of a plain user", "user namespaces are switched off");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        not_run("containers of another user", "needs root to become one");
        return;
    }
    let Some(mut home) = Home::without_daemon("plain", Guise::Container) else { return };
    // The binary under test may lie in a directory that only root may enter.
    let binary = home.path("guise");
    fs::copy(GUISE, &binary).unwrap();
    fs::set_permissions(home.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let own = home.path("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let command = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(args).uid(NOBODY).gid(NOBODY).current_dir("/");
        command.env("GUISE_STATE", own.join("state")).env("GUISE_RUN", own.join("run"));
        command.env("GUISE_IMAGES", own.join("images")).env("HOME", &own);
        command
    };
    let guise = |args: &[&str]| -> Said { said(command(args).output().unwrap()) };
    let tar = home.path("box.tar").to_string_lossy().into_owned();
    let images = own.join("images").to_string_lossy().into_owned();
    let imported = guise(&["image", "--store", &images, "import", "-q", &tar, BOX]);
    assert_eq!(imported.code, 0, "{imported:?}");
    let ran = guise(&["run", "--rm", BOX, "sh", "-c", "id -u; echo made > /file; cat /file"]);
    let log = || fs::read_to_string(own.join("run/daemon.log")).unwrap_or_default();
    assert_eq!((ran.code, ran.out.as_str()), (0, "0\nmade\n"), "{}\n{}", ran.err, log());
    // What cannot be is said, and left out.
    let limited = guise(&["run", "-d", "--name", "free", "--disk-size", "64M", BOX, "true"]);
    let why = "this container's disk space has no limit: only root can";
    assert!(limited.code == 0 && limited.err.contains(why), "{limited:?}");
    assert_eq!(guise(&["rm", "-f", "free"]).code, 0);
    // What takes a cgroup is said to be left out; processors are chosen without one.
    let limits = ["--cpuset", "0", "--cpu-weight", "50", "--cpus", "0.5", "-m", "64M"];
    let run = [&["run", "-d", "--name", "it"][..], &limits, &[BOX, "sleep", "1000"]].concat();
    assert_eq!(guise(&run).code, 0, "{}", log());
    let warnings = guise(&["inspect", "it"]).out;
    let warnings = warnings.split("\"warnings\"").nth(1).unwrap();
    for left_out in ["the memory limit", "the CPU shares", "the CPU quota", "could go to others"] {
        assert!(warnings.contains(left_out), "{left_out}: {warnings}");
    }
    let allowed = guise(&["exec", "it", "grep", "Cpus_allowed_list", "/proc/1/status"]);
    assert!(allowed.out.ends_with("\t0\n"), "{allowed:?}");
    assert_eq!(guise(&["exec", "it", "sh", "-c", "exit 8"]).code, 8);
    // Root does not see it.
    home.start_daemon();
    assert_eq!(home.good(&["ps", "-aq"]), "");
    assert_eq!(guise(&["rm", "-f", "it"]).code, 0);
    let pid: i32 = fs::read_to_string(own.join("run/daemon.lock")).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    home.until("the daemon has ended", || rustix::process::test_kill_process(pid).is_err());
}
