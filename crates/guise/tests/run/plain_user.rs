//! The same as a plain user, and without a daemon that somebody started.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guise_testkit::assets::Kernel;

use crate::home::{BOX, GUISE, Guise, Home, Said, not_run, said};

const NOBODY: u32 = 65534;

/// Whether a test can become a plain user here, who may have what containers take.
fn can_be_tried(test: &str) -> bool {
    if fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|n| n.trim() == "0") {
        not_run(test, "user namespaces are switched off");
        return false;
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        not_run(test, "needs root to become another user");
    }
    is_root
}

#[test]
fn a_plain_user_runs_containers_with_a_daemon_that_starts_by_itself() {
    if !can_be_tried("containers of a plain user") {
        return;
    }
    let Some(mut home) = Home::without_daemon("plain", Guise::Container) else { return };
    // The binary under test may lie in a directory that only root may enter.
    let binary = home.path("guise");
    fs::copy(&*GUISE, &binary).unwrap();
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
    let limited =
        ["run", "--rm", "--name", "free", "--disk-size", "64M", "--cpu-weight", "50", BOX];
    let limited = guise(&[&limited[..], &["sh", "-c", "echo out; echo err >&2; exit 3"]].concat());
    assert_eq!((limited.code, limited.out.as_str()), (3, "out\n"), "{limited:?}");
    let lines = limited.err.lines().filter(|line| !line.contains("this host lacks"));
    let [disk, shares, "err"] = lines.collect::<Vec<_>>()[..] else { panic!("{limited:?}") };
    assert!(disk.starts_with(&format!("guise: free: {why}")), "{limited:?}");
    assert!(
        shares.starts_with("guise: free: ") && shares.contains("the CPU shares"),
        "{limited:?}"
    );
    // A project that limits disks takes none that cannot be limited, whatever it says.
    assert_eq!(guise(&["project", "create", "--disk", "1G", "lab"]).code, 0);
    for size in [&[][..], &["--disk-size", "64M"]] {
        let run = [&["--project", "lab", "run", "--rm"], size, &[BOX, "true"]].concat();
        let refused = guise(&run);
        assert_eq!((refused.code, refused.err.lines().count()), (125, 1), "{refused:?}");
        let told = ["project lab limits disk space", "only root can", "--as microvm"];
        assert!(told.iter().all(|told| refused.err.contains(told)), "{refused:?}");
    }
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
    // What cannot be done is said in one line.
    for (asked, told) in [
        (&["exec", "-u", "web", "it", "true"][..], "--as microvm, which has all users"),
        (&["run", "--rm", "-u", "33:34", BOX, "true"], "user 33 of group 34"),
    ] {
        let refused = guise(asked);
        assert!(refused.code == 125 && refused.err.contains(told), "{refused:?}");
        assert_eq!(refused.err.lines().count(), 1, "{refused:?}");
    }
    // Root does not see it.
    home.start_daemon();
    assert_eq!(home.good(&["ps", "-aq"]), "");
    assert_eq!(guise(&["rm", "-f", "it"]).code, 0);
    let pid: i32 = fs::read_to_string(own.join("run/daemon.lock")).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    home.until("the daemon has ended", || rustix::process::test_kill_process(pid).is_err());
}

/// The suite of all guises once more, by somebody who is not root.
#[test]
fn the_suite_of_all_guises_holds_for_a_plain_user() {
    if !can_be_tried("the suite as a plain user") {
        return;
    }
    let place = Place::new("suite");
    let mut skipped = vec![
        ("limits::container::", "limits of a plain user's containers need a cgroup of its own"),
        ("container::pause_holds_it", "pause of a plain user's containers needs a freezer"),
        ("container::what_was_written", "pause of a plain user's containers needs a freezer"),
    ];
    let users = "who has no range of ids has no users but root in containers";
    skipped.extend(NEED_USERS.map(|test| (test, users)));
    if !place.can("-w", Path::new("/dev/net/tun")) {
        let why = "networks of a plain user's containers need /dev/net/tun, which is root's here";
        skipped.extend([("container::ports_and", why), ("container::published", why)]);
    }
    let mut arguments = vec!["::container::", "::microvm::", "::vm::", "wasm::"];
    for (test, why) in &skipped {
        not_run(test, why);
        arguments.extend(["--skip", test]);
    }
    let disk = place.path("box.disk");
    guise_testkit::debian_root::small_bootable(KERNEL, &disk).unwrap();
    let mut suite = place.suite(None, &arguments);
    suite.env("GUISE_TEST_DISK", &disk);
    assert!(passed(suite) > 60);
}

/// What needs users besides root, by somebody who has a range of ids.
#[test]
fn a_plain_user_with_a_range_of_ids_has_all_users() {
    if !can_be_tried("users of a plain user's containers") {
        return;
    }
    let place = Place::new("users");
    let Some(ranges) = Ranges::new(&place) else { return };
    ranges.give(100_000);
    assert_eq!(passed(place.suite(Some(&ranges), &NEED_USERS)), NEED_USERS.len() + 4);
}

/// Names of tests of containers with other users than root, or the beginnings of some.
const NEED_USERS: [&str; 3] =
    ["container::programs_beside", "container::user_directory", "users::container::"];

/// Runs a suite; how many tests there were in it, all of which have passed.
fn passed(mut suite: Command) -> usize {
    let ran = suite.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    said.lines().filter(|line| line.ends_with("... ok")).count()
}

/// A range can be taken from a user who has containers.
#[test]
fn a_range_that_is_gone_is_missed_in_one_line() {
    if !can_be_tried("a range of ids that is gone") {
        return;
    }
    let place = Place::new("gone");
    let Some(ranges) = Ranges::new(&place) else { return };
    let Some(home) = Home::without_daemon("gone", Guise::Container) else { return };
    let binary = place.within_reach(Path::new(&*GUISE));
    let tar = place.path("box.tar");
    fs::copy(home.path("box.tar"), &tar).unwrap();
    let own = place.path("tmp");
    let guise = |args: &[&str]| -> Said {
        let mut command = ranges.command(&binary);
        command.args(args).current_dir("/").env_remove("XDG_RUNTIME_DIR");
        command.env("GUISE_STATE", own.join("state")).env("GUISE_RUN", own.join("run"));
        command.env("GUISE_IMAGES", own.join("images")).env("HOME", &own);
        said(command.output().unwrap())
    };
    let log = || fs::read_to_string(own.join("run/daemon.log")).unwrap_or_default();
    let good = |args: &[&str]| {
        let said = guise(args);
        assert_eq!(said.code, 0, "{args:?}: {}\n{}", said.err, log());
        said.out
    };
    let images = own.join("images").to_string_lossy().into_owned();
    good(&["image", "--store", &images, "import", "-q", &tar.to_string_lossy(), BOX]);
    let refused = |args: &[&str], told: &str| {
        let refused = guise(args);
        assert!(refused.code != 0 && refused.err.contains(told), "{refused:?}\n{}", log());
        assert_eq!(refused.err.lines().count(), 1, "{refused:?}");
    };
    // Before there is one.
    let asked = ["run", "--rm", "-u", "web", BOX, "id", "-u"];
    refused(&asked, "/etc/subuid has no range of ids for this user");
    let explain = ["run", "--explain", BOX];
    assert!(good(&explain).contains("there are no others: /etc/subuid has no range"));
    assert!(good(&["doctor"]).contains("/etc/subuid has no range"));
    ranges.give(100_000);
    assert_eq!(good(&asked), "33\n");
    assert!(good(&explain).contains("others are ids of this user's ranges"));
    assert!(good(&["doctor"]).contains("0 to 65536, by /etc/subuid"));
    let write =
        "mkdir /hers; echo 1 > /hers/file; echo 2 > /ours; chown -R web /hers; chmod 700 /hers";
    good(&["run", "--name", "it", "-v", "vol:/vol", BOX, "sh", "-c", write]);
    good(&[
        "run",
        "--rm",
        "-v",
        "vol:/vol",
        "-u",
        "0",
        BOX,
        "sh",
        "-c",
        "touch /vol/x; chown 7 /vol",
    ]);
    let write = "mkdir /vol/x; touch /vol/x/file; chown -R 7 /vol";
    good(&["run", "--rm", "-v", "other:/vol", BOX, "sh", "-c", write]);
    ranges.take();
    refused(&asked, "/etc/subuid has no range of ids for this user");
    good(&["run", "--rm", BOX, "true"]);
    good(&["start", "it"]);
    refused(&["volume", "rm", "vol"], "used by instance it");
    refused(&["volume", "rm", "other"], "/etc/subuid has no range of ids for this user");
    assert!(good(&["volume", "ls"]).contains("other"), "what is left of it is known");
    refused(&["rm", "it"], "/etc/subuid has no range of ids for this user");
    // Another range has no right to what was written with the first one.
    ranges.give(200_000);
    refused(&["rm", "it"], "who is not in this user's ranges; give this user");
    ranges.give(100_000);
    good(&["rm", "it"]);
    good(&["volume", "rm", "vol"]);
    good(&["volume", "rm", "other"]);
    for folder in ["state/instances", "state/volumes"] {
        let left: Vec<_> = fs::read_dir(own.join(folder)).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let pid: i32 = fs::read_to_string(own.join("run/daemon.lock")).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    home.until("the daemon has ended", || rustix::process::test_kill_process(pid).is_err());
}

/// What `/etc/subuid` and `/etc/subgid` say to whoever is started so: others see the host's.
struct Ranges(PathBuf);

impl Ranges {
    fn new(place: &Place) -> Option<Ranges> {
        let present = |path: &str| Path::new(path).exists();
        if !["/etc/subuid", "/etc/subgid"].into_iter().all(present) {
            not_run("users of a plain user's containers", "this host has no /etc/subuid");
            return None;
        }
        if !["/usr/bin/newuidmap", "/usr/bin/newgidmap"].into_iter().all(present) {
            not_run("users of a plain user's containers", "needs newuidmap (Debian: uidmap)");
            return None;
        }
        let ranges = Ranges(place.path("ranges"));
        ranges.take();
        Some(ranges)
    }

    fn give(&self, first: u32) {
        fs::write(&self.0, format!("somebody:1:5\n{NOBODY}:{first}:65536\n")).unwrap();
    }

    fn take(&self) {
        fs::write(&self.0, "somebody:1:5\n").unwrap();
    }

    /// A program of the user's, to whom the files say that.
    fn command(&self, program: &Path) -> Command {
        let script = "mount --bind \"$1\" /etc/subuid && mount --bind \"$1\" /etc/subgid && shift && \
                      exec setpriv --reuid 65534 --regid 65534 --clear-groups -- \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(&self.0).arg(program);
        command
    }
}

const KERNEL: Kernel = Kernel::Debian12Cloud;

/// What a plain user is given.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let place = std::env::temp_dir().join(format!("gr-{name}-{}", std::process::id()));
        fs::create_dir_all(place.join("tmp")).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        chown(place.join("tmp"), Some(NOBODY), Some(NOBODY)).unwrap();
        Place(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Tests of this program, run by the user.
    fn suite(&self, ranges: Option<&Ranges>, arguments: &[&str]) -> Command {
        let program = self.within_reach(&std::env::current_exe().unwrap());
        let mut suite = match ranges {
            Some(ranges) => ranges.command(&program),
            None => {
                let mut suite = Command::new(program);
                suite.uid(NOBODY).gid(NOBODY);
                suite
            }
        };
        suite.args(arguments).arg("--test-threads=2").current_dir("/");
        suite.env("GUISE_TEST_BINARY", self.within_reach(Path::new(&*GUISE)));
        suite.env("GUISE_ASSETS", self.assets());
        suite.env("TMPDIR", self.path("tmp")).env("HOME", self.path("tmp"));
        suite.env_remove("XDG_RUNTIME_DIR");
        suite
    }

    /// Whether the user can do to a file what `test` calls so.
    fn can(&self, what: &str, file: &Path) -> bool {
        let mut test = Command::new("test");
        test.arg(what).arg(file).uid(NOBODY).gid(NOBODY).current_dir("/");
        test.status().unwrap().success()
    }

    /// Where the user finds the kernel that machines boot.
    fn assets(&self) -> PathBuf {
        let all = guise_testkit::assets::directory();
        let kernel = KERNEL.root().unwrap();
        if self.can("-x", &kernel) {
            return all;
        }
        let copy = self.path("assets").join(kernel.strip_prefix(&all).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        let copied = Command::new("cp").arg("-r").args([&kernel, &copy]).status().unwrap();
        assert!(copied.success(), "copy {}", kernel.display());
        self.path("assets")
    }

    /// A file, or a copy of it where the user cannot come to it.
    fn within_reach(&self, file: &Path) -> PathBuf {
        if self.can("-r", file) {
            return file.to_owned();
        }
        let copy = self.path(file.file_name().unwrap().to_str().unwrap());
        let copied = Command::new("cp").arg(file).arg(&copy).status().unwrap();
        assert!(copied.success(), "copy {}", file.display());
        copy
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
