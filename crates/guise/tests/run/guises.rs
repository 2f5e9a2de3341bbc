//! Instances of different guises beside each other, and what only one of them has.

use crate::home::{BOX, Guise, Home, not_run};

/// What one writes the other sees, at once.
#[test]
fn guises_share_volumes() {
    let Some(mut home) = Home::new("mixed", Guise::Microvm) else { return };
    let disk = home.disk();
    let disk = disk.to_str().unwrap();
    let begin = |options: &[&str], program: &[&str]| {
        let volume = ["-d", "-v", "data:/srv", BOX];
        home.good(&[options, &volume[..], program].concat());
    };
    let script = "echo from the container > /srv/one; exec sleep 1000";
    begin(&["run", "--as", "container", "--name", "c"], &["sh", "-c", script]);
    begin(&["run", "--name", "m"], &["sleep", "1000"]);
    let vm = ["run", "-d", "--as", "vm", "--engine", "soft", "--name", "v", "-v", "data:/srv"];
    home.good(&[&vm[..], &["--disk", disk]].concat());
    home.until("the volume leads into the machine", || {
        home.guise(&["exec", "m", "cat", "/srv/one"]).out == "from the container\n"
    });
    home.good(&["exec", "m", "sh", "-c", "echo from the machine > /srv/two; mkdir /srv/folder"]);
    assert_eq!(home.good(&["exec", "c", "cat", "/srv/two"]), "from the machine");
    assert_eq!(home.good(&["exec", "c", "ls", "/srv"]), "folder\none\ntwo");
    assert_eq!(home.good(&["exec", "v", "cat", "/srv/one"]), "from the container");
    home.good(&["exec", "v", "sh", "-c", "echo from the system > /srv/two"]);
    assert_eq!(home.good(&["exec", "c", "cat", "/srv/two"]), "from the system");
    assert_eq!(home.good(&["exec", "m", "cat", "/srv/two"]), "from the system");
    assert_eq!(home.inspect("c")["status"]["guise"], "container");
    assert_eq!(home.inspect("m")["status"]["guise"], "microvm");
    assert_eq!(home.inspect("v")["status"]["guise"], "vm");
    // A single file cannot be shared so, which is said before anything runs.
    let file = format!("{}:/box.tar", home.path("box.tar").display());
    let said = home.guise(&["run", "--rm", "-v", &file, BOX, "true"]);
    assert_eq!((said.code, said.err.lines().count()), (125, 1), "{said:?}");
    assert!(said.err.contains("--as container"), "{said:?}");
}

/// A network is the same to all that are in it.
#[test]
fn guises_find_each_other_by_name() {
    let Some(mut home) = Home::new("among", Guise::Microvm) else { return };
    if !std::path::Path::new("/dev/net/tun").exists() {
        not_run("containers on a named network", "this host has no /dev/net/tun");
        return;
    }
    home.good(&["network", "create", "lab"]);
    let serve = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www";
    for (name, guise) in [("one", Guise::Container), ("two", Guise::Microvm)] {
        let network = ["--network", "lab", "--name", name, "--hostname", name];
        let program = [BOX, "sh", "-c", serve];
        home.good(&[&["run", "-d"][..], guise.options(), &network[..], &program[..]].concat());
    }
    let vm = ["run", "-d", "--as", "vm", "--engine", "soft", "--network", "lab", "--name", "three"];
    let disk = home.disk();
    let system = ["--hostname", "three", "--disk", disk.to_str().unwrap(), "sh", "-c", serve];
    home.good(&[&vm[..], &system].concat());
    for (from, to) in [("one", "two"), ("two", "one"), ("one", "three"), ("three", "two")] {
        // A static busybox resolves names in nslookup only.
        let script = format!(
            "a=$(nslookup {to} | grep -A1 ^Name | grep -o '[0-9.]*$' | tail -n 1) && \
             printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $a 80"
        );
        let ask = ["exec", from, "sh", "-c", &script];
        home.until("one asks the other by its name", || {
            home.guise(&ask).out.trim_end().ends_with(to)
        });
    }
    home.good(&["rm", "-f", "one", "two", "three"]);
    home.good(&["network", "rm", "lab"]);
}

/// The kernel is the machine's own, whatever executes it.
#[test]
fn machines_have_kernels_of_their_own() {
    let Some(home) = Home::new("kernels", Guise::Microvm) else { return };
    let ours = rustix::system::uname().release().to_string_lossy().into_owned();
    for engine in ["soft", "auto"] {
        let run = ["run", "--as", "microvm", "--engine", engine, "--rm", BOX, "uname", "-r"];
        let theirs = home.good(&run);
        assert!(theirs.ends_with("-cloud-amd64") && theirs != ours, "{engine}: {theirs}");
    }
    let explained = home.good(&["run", "--as", "microvm", "--explain", BOX]);
    assert!(explained.starts_with("microvm\n"), "{explained}");
    let small = home.guise(&["run", "--rm", "-m", "16M", BOX, "true"]);
    assert!(small.code == 125 && small.err.contains("96 MiB"), "{small:?}");
    let host = home.guise(&["run", "--rm", "--network", "host", BOX, "true"]);
    assert!(host.code == 125 && host.err.contains("--as container"), "{host:?}");
    home.expect_nothing_left();
}

/// Machines that have nothing to do leave the processors to the others.
#[test]
fn idle_machines_stay_responsive() {
    let Some(home) = Home::new("idle", Guise::Microvm) else { return };
    let names = ["a", "b", "c", "d"];
    for name in names {
        home.good(&["run", "-d", "--name", name, "-m", "128M", BOX, "sleep", "1000"]);
    }
    for name in names {
        assert_eq!(home.good(&["exec", name, "echo", "here"]), "here");
    }
    let used = |name: &str| -> u64 {
        let stats = home.good(&["stats", "-o", "json", name]);
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats[0]["cpu_nanoseconds"].as_u64().unwrap()
    };
    let (before, begun) = (names.map(used), std::time::Instant::now());
    std::thread::sleep(std::time::Duration::from_secs(2));
    let (after, passed) = (names.map(used), begun.elapsed());
    // It is far less; a loop that waits for nothing would take all of it.
    for (before, after) in before.into_iter().zip(after) {
        let share = (after - before) as f64 / passed.as_nanos() as f64;
        assert!(share < 0.5, "an idle machine uses {share} of a processor");
    }
}
