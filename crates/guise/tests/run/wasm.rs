//! WebAssembly instances: what the other guises are tested for, as far as it means something
//! to a program without a shell, a user and processes; the rest is refused in one line.

use std::fs;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use guise_image::tar::{Entry, Kind, Writer};
use rustix::process::{Pid, Signal, kill_process};

use crate::home::{BOX, Guise, Home, Said, not_run};
use crate::terminal::Terminal;

/// A home with the tool as a file, whose path comes with it.
pub fn home(test: &str) -> Option<(Home, String)> {
    let home = Home::new(test, Guise::Wasm)?;
    let tool = home.path("tool.wasm");
    fs::write(&tool, wat::parse_str(include_str!("wasm/tool.wat")).unwrap()).unwrap();
    let tool = tool.to_string_lossy().into_owned();
    Some((home, tool))
}

fn one_line(said: &Said, code: i32, about: &str) {
    assert_eq!((said.code, said.err.lines().count()), (code, 1), "{said:?}");
    assert!(said.err.contains(about), "{about}: {said:?}");
}

#[test]
fn programs_end_with_their_own_codes_or_say_what_failed() {
    let Some((home, tool)) = home("w-codes") else { return };
    let bad = |name: &str, bytes: &[u8]| {
        fs::write(home.path(name), bytes).unwrap();
        home.path(name).to_string_lossy().into_owned()
    };
    let text = bad("text.wasm", b"text, and more text");
    let broken = bad("broken.wasm", b"\0asm\x01\0\0\0broken");
    let asking = bad(
        "asking.wasm",
        &wat::parse_str(r#"(module (import "no" "such" (func)) (func (export "_start")))"#)
            .unwrap(),
    );
    let library = bad("library.wasm", &wat::parse_str("(module)").unwrap());
    for (args, code) in [
        (vec!["run", "--rm", &tool], 0),
        (vec!["run", "--rm", &tool, "x", "7"], 7),
        (vec!["run", "--rm", &broken], 126),
        (vec!["run", "--rm", &asking], 126),
        (vec!["run", "--rm", &library], 126),
        (vec!["run", "--rm", &text], 125),
        (vec!["run", "--rm", "/no/such/program.wasm"], 125),
        (vec!["run", "--rm", "--as", "microvm", &tool], 125),
        (vec!["run", "--rm", "--as", "container", &tool], 125),
        (vec!["run", "--rm", "--as", "wasm", BOX, "/no-such.wasm"], 127),
        (vec!["run", "--rm", "--as", "wasm", BOX, "/etc/not-a-program"], 126),
    ] {
        let said = home.guise(&args);
        assert_eq!(said.code, code, "{args:?}: {}\n{}", said.err, home.daemon_log());
        if code > 124 {
            assert_eq!(said.err.lines().count(), 1, "one line: {}", said.err);
        }
    }
    let trapped = home.guise(&["run", "--rm", &tool, "t"]);
    one_line(&trapped, 134, "unreachable");
    assert_eq!(home.good(&["ps", "-aq"]), "", "--rm leaves nothing");
    home.expect_nothing_left();
}

#[test]
fn arguments_environment_and_streams_are_the_programs() {
    let Some((home, tool)) = home("w-streams") else { return };
    assert_eq!(home.good(&["run", "--rm", &tool, "e", "two words"]), "two words");
    let said = home.guise(&["run", "--rm", &tool, "E", "err"]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", "err\n"));
    let said = home.good(&["run", "--rm", "-e", "A=1", "-e", "B=two words", &tool, "v"]);
    assert_eq!(said, "A=1\nB=two words");
    // More than all that is in between can hold, both ways at once.
    let input: String = (0..300_000).map(|n| format!("{n}\n")).collect();
    let through = home.guise_with(&["run", "--rm", "-i", &tool, "c"], input.as_bytes());
    assert!(through.out == input, "{} of {} bytes", through.out.len(), input.len());
    let said = home.guise_with(&["run", "--rm", &tool, "c"], b"unheard");
    assert_eq!((said.code, said.out.as_str()), (0, ""));
}

#[test]
fn images_and_artifacts_run_and_auto_knows_them() {
    let Some((home, tool)) = home("w-images") else { return };
    let import = |from: &str, name: &str| {
        let images = home.path("images").to_string_lossy().into_owned();
        home.good(&["image", "--store", &images, "import", "-q", from, name]);
    };
    import(&tool, "tool:1");
    assert_eq!(home.good(&["run", "--rm", "tool:1", "e", "artifact"]), "artifact");
    let mut tar = Writer::new(Vec::new());
    tar.append(&Entry::new("data", Kind::Directory, 0o755), std::io::empty()).unwrap();
    tar.file("tool.wasm", &fs::read(&tool).unwrap()).unwrap();
    tar.file("data/file", b"from the image\n").unwrap();
    let archive = home.path("image.tar");
    fs::write(&archive, tar.finish().unwrap()).unwrap();
    import(&archive.to_string_lossy(), "rooted:1");
    let entry = ["run", "--rm", "--entrypoint", "/tool.wasm", "rooted:1"];
    let said = home.good(&[&entry[..], &["r", "3", "data/file"]].concat());
    assert_eq!(said, "from the image");
    // What it writes is its own: the image stays as it is.
    home.good(&[&entry[..], &["w", "3", "data/file", "more"]].concat());
    let said = home.good(&[&entry[..], &["r", "3", "data/file"]].concat());
    assert_eq!(said, "from the image");
    for image in [&*tool, "tool:1"] {
        let explained = home.good(&["run", "--as", "auto", "--explain", image]);
        assert!(explained.starts_with("wasm\n  the program is WebAssembly"), "{explained}");
    }
    home.good(&["run", "-d", "--as", "auto", "--name", "it", "tool:1", "z"]);
    assert_eq!(home.inspect("it")["status"]["guise"], "wasm");
    assert!(home.good(&["ps"]).contains("wasm"));
    assert!(home.good(&["run", "--as", "auto", "--explain", BOX]).starts_with("container\n"));
    // The file of an instance may go: the instance has it.
    home.good(&["create", "--name", "made", &tool, "e", "kept"]);
    fs::remove_file(&tool).unwrap();
    home.good(&["start", "made"]);
    assert_eq!(home.good(&["wait", "made"]), "0");
    assert_eq!(home.good(&["logs", "made"]), "kept");
    home.good(&["rm", "-f", "it", "made"]);
    home.expect_nothing_left();
}

#[test]
fn what_no_such_program_has_is_refused_in_one_line() {
    let Some((home, tool)) = home("w-refused") else { return };
    let file = format!("{tool}:/tool");
    for (options, about) in [
        (vec!["-p", "127.0.0.1:1:1"], "--network host"),
        (vec!["-u", "web"], "--user"),
        (vec!["-w", "/tmp"], "--workdir"),
        (vec!["-v", &file], "single file"),
        (vec!["--entrypoint", "/x"], "--entrypoint"),
    ] {
        let said = home.guise(&[&["run", "--rm"][..], &options, &[&tool, "x", "0"]].concat());
        one_line(&said, 125, about);
    }
    home.good(&["network", "create", "lab"]);
    one_line(&home.guise(&["run", "--rm", "--network", "lab", &tool]), 125, "--network user");
    home.good(&["run", "-d", "--name", "it", &tool, "z"]);
    one_line(&home.guise(&["exec", "it", "true"]), 125, "second program");
    one_line(&home.guise(&["kill", "-s", "STOP", "it"]), 1, "guise pause");
    assert_eq!(home.inspect("it")["status"]["phase"], "running");
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}

#[test]
fn it_lives_as_others_do() {
    let Some((home, tool)) = home("w-lives") else { return };
    let id = home.good(&["run", "-d", "--name", "one", &tool, "l"]);
    let logged = |name: &str, lives: usize| {
        // Each life prints what all lives until then have written.
        let lines = (1..=lives).sum();
        home.until(&format!("{lives} lives"), || {
            home.good(&["logs", name]) == vec!["life"; lines].join("\n")
        });
    };
    logged("one", 1);
    home.good(&["stop", "one"]);
    assert_eq!(home.inspect("one")["status"]["exit_code"], 143);
    home.good(&["start", &id[..6]]);
    logged("one", 2);
    home.good(&["restart", "-t", "0", "one"]);
    logged("one", 3);
    home.good(&["pause", "one"]);
    home.good(&["stop", "-t", "0", "one"]);
    assert_eq!(home.inspect("one")["status"]["exit_code"], 137);
    home.good(&["start", "one"]);
    logged("one", 4);
    home.good(&["kill", "-s", "USR1", "one"]);
    assert_eq!(home.good(&["wait", "one"]), "138");
    home.good(&["rename", "one", "other"]);
    assert_eq!(home.inspect("other")["id"], id.as_str());
    home.good(&["start", "other"]);
    logged("other", 5);
    let refused = home.guise(&["rm", "other"]);
    assert!(refused.code == 1 && refused.err.contains("rm -f"), "{refused:?}");
    home.good(&["rm", "-f", "other"]);
    home.expect_nothing_left();
}

#[test]
fn policies_and_time_limits() {
    let Some((home, tool)) = home("w-policies") else { return };
    home.good(&["run", "-d", "--name", "it", "--restart", "on-failure:2", &tool, "x", "3"]);
    assert_eq!(home.good(&["wait", "it"]), "3");
    assert_eq!(home.inspect("it")["status"]["restarts"], 2);
    for (guise, program) in [("wasm", vec![&*tool, "s"]), ("container", vec![BOX, "sleep", "1000"])]
    {
        let run = ["run", "--rm", "--as", guise, "--timeout", "1"];
        let said = home.guise(&[&run[..], &program].concat());
        one_line(&said, 124, "ended after 1 s");
    }
    let none = home.guise(&["run", "--rm", "--timeout", "0", &tool, "z"]);
    assert_eq!(none.code, 125, "{none:?}");
    // Who ends before it is not concerned.
    assert_eq!(home.guise(&["run", "--rm", "--timeout", "1000", &tool, "x", "4"]).code, 4);
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

#[test]
fn pause_holds_it_and_logs_follow_it() {
    let Some((home, tool)) = home("w-pause") else { return };
    home.good(&["run", "-d", "--name", "it", &tool, "b"]);
    let mut follow = home.command(["logs", "-f", "it"]).stdout(Stdio::piped()).spawn().unwrap();
    home.until("it prints", || home.good(&["logs", "it"]).lines().count() > 1);
    home.good(&["pause", "it"]);
    assert_eq!(home.inspect("it")["status"]["phase"], "paused");
    let mut before = String::new();
    home.until("nothing is printed for half a second", || {
        before = home.good(&["logs", "it"]);
        std::thread::sleep(Duration::from_millis(500));
        home.good(&["logs", "it"]) == before
    });
    home.good(&["unpause", "it"]);
    home.until("it goes on", || home.good(&["logs", "it"]).len() > before.len());
    // One that computes is held too, and uses nothing then.
    home.good(&["run", "-d", "--name", "busy", &tool, "s"]);
    home.good(&["pause", "busy"]);
    let used = || {
        let stats: serde_json::Value =
            serde_json::from_str(&home.good(&["stats", "-o", "json", "busy"])).unwrap();
        stats[0]["cpu_nanoseconds"].as_u64().unwrap()
    };
    let first = used();
    std::thread::sleep(Duration::from_millis(500));
    let second = used();
    assert!(second - first < 250_000_000, "{first} {second}");
    home.good(&["rm", "-f", "it", "busy"]);
    assert!(follow.wait().unwrap().success());
    home.expect_nothing_left();
}

#[test]
fn signals_and_terminals() {
    let Some((home, tool)) = home("w-terminal") else { return };
    let mut command = home.command(["run", "--rm", "--name", "it", &tool, "b"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    home.until("it prints", || home.guise(&["logs", "it"]).out.starts_with('.'));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
    // The letter of a character device; of a pipe it is another.
    assert_ne!(home.good(&["run", "--rm", &tool, "k"]), "c");
    let terminal = Terminal::open(&home, &format!("run --rm -it {tool} k"));
    terminal.until(&home, "c\r\n");
    assert_eq!(terminal.end(), 0);
    let mut terminal = Terminal::open(&home, &format!("run -it --name it {tool} c"));
    terminal.type_in("typed\n");
    // As an echo, and as what the program made of it.
    terminal.until(&home, "typed\r\ntyped\r\n");
    terminal.type_in("\x10\x11");
    assert_eq!(terminal.end(), 0);
    assert_eq!(home.inspect("it")["status"]["phase"], "running");
    let mut again = Terminal::open(&home, "attach it");
    again.type_in("again\n");
    again.until(&home, "again\r\nagain\r\n");
    again.type_in("\x03");
    assert_eq!(again.end(), 130);
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

#[test]
fn volumes_are_shared_and_files_copied() {
    let Some((home, tool)) = home("w-files") else { return };
    home.good(&["run", "--rm", "-v", "data:/srv", &tool, "w", "4", "file", "from wasm"]);
    let cat = ["run", "--rm", "--as", "container", "-v", "data:/srv", BOX, "cat", "/srv/file"];
    assert_eq!(home.good(&cat), "from wasm");
    let read = ["run", "--rm", "-v", "data:/srv:ro", &tool];
    assert_eq!(home.good(&[&read[..], &["r", "4", "file"]].concat()), "from wasm");
    for (arguments, options) in
        [(["w", "4", "file", "no"], &[][..]), (["w", "3", "file", "no"], &["--read-only"][..])]
    {
        let run = [&["run", "--rm", "-v", "data:/srv:ro"][..], options, &[&tool], &arguments];
        // Not permitted, or read-only, as a code of WASI's.
        let said = home.guise(&run.concat());
        assert!([63, 69, 76].contains(&said.code), "{said:?}");
    }
    // Nothing leads out of the folders.
    let secret = home.path("secret");
    fs::write(&secret, "secret").unwrap();
    for path in ["../../../../etc/passwd", "/etc/passwd", &secret.to_string_lossy()] {
        let said = home.guise(&["run", "--rm", &tool, "r", "3", path]);
        assert!(said.code != 0 && said.out.is_empty(), "{path}: {said:?}");
    }
    home.good(&["run", "-d", "--name", "it", "-v", "data:/srv", &tool, "l"]);
    home.until("it has written", || home.good(&["logs", "it"]) == "life");
    let back = home.path("back").to_string_lossy().into_owned();
    home.good(&["cp", "it:/n", &back]);
    assert_eq!(fs::read(&back).unwrap(), b"life\n");
    home.good(&["cp", &back, "it:/srv/copied"]);
    let cat = ["run", "--rm", "--as", "container", "-v", "data:/srv", BOX, "cat", "/srv/copied"];
    assert_eq!(home.good(&cat), "life");
    let missing = home.guise(&["cp", "it:/no/such", &back]);
    one_line(&missing, 1, "/no/such");
    home.good(&["rm", "-f", "it"]);
    home.good(&["volume", "rm", "data"]);
    home.expect_nothing_left();
}

#[test]
fn it_writes_no_more_than_its_disk_has() {
    const MIB: u64 = 1 << 20;
    let Some((home, tool)) = home("w-disk") else { return };
    if fs::metadata("/dev/loop-control").is_err() || !rustix::process::geteuid().is_root() {
        not_run("a WebAssembly program's disk", "needs root and loop devices");
        return;
    }
    let large = home.path("large").to_string_lossy().into_owned();
    fs::File::create(&large).unwrap().set_len(64 * MIB).unwrap();
    home.good(&["run", "-d", "--name", "it", "--disk-size", "32M", &tool, "l"]);
    home.until("it has written", || home.good(&["logs", "it"]) == "life");
    let refused = home.guise(&["cp", &large, "it:/large"]);
    one_line(&refused, 1, "No space left on device");
    let id = home.inspect("it")["id"].as_str().unwrap().to_owned();
    let disk = home.path("state/instances").join(id).join("own.img");
    assert_eq!(fs::metadata(&disk).unwrap().len(), 32 * MIB);
    // What it wrote is there in the next life, also when something of an earlier one has the disk
    // yet, and nothing holds it after the last one.
    let worker = home.inspect("it")["status"]["pid"].to_string();
    let mounted = fs::File::open(format!("/proc/{worker}/ns/mnt")).unwrap();
    home.good(&["restart", "-t", "0", "it"]);
    home.until("it has read it", || home.good(&["logs", "it"]) == "life\nlife\nlife");
    drop(mounted);
    home.good(&["kill", "-s", "KILL", "it"]);
    home.good(&["wait", "it"]);
    home.good(&["rm", "it"]);
    home.until("no loop device has it", || {
        let loops = fs::read_dir("/sys/block").unwrap().flatten();
        let mut files = loops
            .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        !files.any(|file| file.starts_with(&*disk.to_string_lossy()))
    });
    home.expect_nothing_left();
}

#[test]
fn memory_and_processors_are_limited_and_told() {
    let Some((home, tool)) = home("w-limits") else { return };
    // Pages of 64 KiB.
    assert_eq!(home.guise(&["run", "--rm", "-m", "8M", &tool, "g", "100"]).code, 0);
    let said = home.guise(&["run", "--rm", "-m", "8M", &tool, "g", "200"]);
    one_line(&said, 137, "memory");
    home.good(&["run", "-d", "--name", "it", "-m", "16M", "--cpus", "0.1", &tool, "s"]);
    let used = || {
        let stats: serde_json::Value =
            serde_json::from_str(&home.good(&["stats", "-o", "json", "it"])).unwrap();
        assert_eq!(stats[0]["memory_limit"], 16 << 20);
        assert_eq!(stats[0]["processes"], 1);
        Duration::from_nanos(stats[0]["cpu_nanoseconds"].as_u64().unwrap())
    };
    let begun = std::time::Instant::now();
    let before = used();
    home.until("it has used time", || used() > before + Duration::from_millis(200));
    let share = (used() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "{share} of a processor");
    home.good(&["rm", "-f", "it"]);
}

#[test]
fn sockets_are_there_where_they_are_asked_for() {
    let Some((home, _)) = home("w-sockets") else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let program = include_str!("wasm/connect.wat").replace("const PORT", &format!("const {port}"));
    let file = home.path("connect.wasm");
    fs::write(&file, wat::parse_str(program).unwrap()).unwrap();
    let file = file.to_string_lossy().into_owned();
    let run = |network: &str| home.guise(&["run", "--rm", "--network", network, &file]);
    for (network, code) in [("auto", 1), ("none", 1), ("user", 1), ("host", 0)] {
        let said = run(network);
        assert_eq!((said.code, said.err.as_str()), (code, ""), "{network}: {said:?}");
    }
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_ok(), "it came through to the server");
    assert!(server.accept().is_err(), "once");
}

#[test]
fn it_survives_the_daemon_and_its_worker_is_missed() {
    let Some((mut home, tool)) = home("w-survive") else { return };
    home.good(&["run", "-d", "--name", "long", &tool, "b"]);
    home.kill_daemon();
    home.start_daemon();
    home.until_phase("long", "running");
    let before = home.good(&["logs", "long"]).len();
    home.until("it goes on", || home.good(&["logs", "long"]).len() > before);
    let worker = home.inspect("long")["status"]["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(worker as i32).unwrap(), Signal::KILL).unwrap();
    home.until_phase("long", "failed");
    home.good(&["start", "long"]);
    home.until_phase("long", "running");
    home.good(&["rm", "-f", "long"]);
    home.expect_nothing_left();
}
