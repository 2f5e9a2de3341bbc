//! What an instance may use, and what it can see.

use std::time::{Duration, Instant};

use crate::home::{BOX, Guise, Home, in_every_guise};

in_every_guise!(memory_and_processes_are_limited_and_told);

fn memory_and_processes_are_limited_and_told(guise: Guise) {
    let Some(home) = Home::new("limits", guise) else { return };
    let said =
        home.guise(&["run", "--rm", "-m", "128M", BOX, "tail", "-c", "199999999", "/dev/zero"]);
    assert_eq!(said.code, 137, "{said:?}");
    assert!(said.err.contains("memory"), "{}", said.err);
    let many = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all";
    let said = home.guise(&["run", "--rm", "--pids-limit", "16", BOX, "sh", "-c", many]);
    match guise {
        // How many there may be is decided inside.
        Guise::Vm => assert!(said.code == 125 && said.err.contains("--pids-limit"), "{said:?}"),
        _ => assert!(!said.out.contains("all") && said.err.contains("fork"), "{said:?}"),
    }
    home.good(&["run", "-d", "--name", "it", "-m", "128M", BOX, "sh", "-c", "while :; do :; done"]);
    home.until("it has used time", || {
        let stats = home.good(&["stats", "-o", "json", "it"]);
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        assert_eq!(stats[0]["memory_limit"], 128 << 20);
        stats[0]["cpu_nanoseconds"].as_u64() > Some(50_000_000)
    });
    let metrics = home.ask("/v1/metrics");
    for told in ["guise_instances{phase=\"running\"} 1", "name=\"it\"} 134217728"] {
        assert!(metrics.contains(told), "{told}: {metrics}");
    }
    let too_many = home.guise(&["run", "--rm", "--cpus", "100000", BOX, "true"]);
    assert_eq!(too_many.code, 125, "{too_many:?}");
}

#[test]
fn a_container_gets_its_part_of_a_processor() {
    let Some(home) = Home::new("part", Guise::Container) else { return };
    let busy =
        ["run", "-d", "--name", "it", "--cpus", "0.2", BOX, "sh", "-c", "while :; do :; done"];
    home.good(&busy);
    let used = || {
        let stats = home.good(&["stats", "-o", "json", "it"]);
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats[0]["cpu_nanoseconds"].as_u64().unwrap()
    };
    home.until("it has used time", || used() > 50_000_000);
    let (begun, before) = (Instant::now(), used());
    std::thread::sleep(Duration::from_secs(2));
    let (took, passed) = ((used() - before) as f64 / 1e9, begun.elapsed().as_secs_f64());
    // A period's share more or less, and what a process may overrun before it is stopped.
    assert!(took < 0.3 * passed, "{took} s of processor in {passed} s");
}

#[test]
fn a_machine_gets_whole_processors_and_so_much_disk() {
    let Some(home) = Home::new("whole", Guise::Microvm) else { return };
    let script =
        "grep -c ^processor /proc/cpuinfo; dd if=/dev/zero of=/big bs=1M count=64; echo $?";
    let limits = ["--cpus", "2", "--disk-size", "32M"];
    let said = home.good(&[&["run", "--rm"][..], &limits, &[BOX, "sh", "-c", script]].concat());
    assert_eq!(said, "2\n1");
}

#[test]
fn memory_that_is_not_there_is_not_promised() {
    let Some(home) = Home::new("promised", Guise::Container) else { return };
    let said = home.guise(&["run", "--rm", "-m", "1000T", BOX, "true"]);
    assert!(said.code == 125 && said.err.contains("are left of this host's"), "{said:?}");
    assert_eq!(home.good(&["ps", "-aq"]), "");
}

#[test]
fn the_host_is_out_of_reach() {
    let Some(home) = Home::new("reach", Guise::Container) else { return };
    let script = "ls /proc | grep -c '^[0-9]'; mount -t tmpfs x /tmp; unshare -U true; \
                  mknod /tmp/sda b 8 0 && cat /tmp/sda; echo 1 > /proc/sys/kernel/panic; \
                  cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; ip link | grep -c '^[0-9]'";
    let said = home.guise(&["run", "--rm", "--network", "none", BOX, "sh", "-c", script]);
    for refused in ["mount: permission denied", "unshare:", "can't open '/tmp/sda'", "panic"] {
        assert!(said.err.contains(refused), "{refused}: {}", said.err);
    }
    let counts: Vec<usize> = said.out.lines().filter_map(|line| line.trim().parse().ok()).collect();
    // Its own processes, nothing of the kernel's memory and firmware, one interface.
    assert!(counts[0] < 6 && counts[1..] == [0, 0, 1], "{}", said.out);
    let said = home.guise(&["run", "--rm", "--read-only", BOX, "touch", "/x"]);
    assert!(said.code == 1 && said.err.contains("Read-only"), "{said:?}");
}
