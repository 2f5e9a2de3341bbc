//! What the program finds: identity, limits, environment, terminal.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::json;

use crate::bundle::Bundle;

#[test]
fn user_groups_umask_and_limits() {
    let script = "id -u; id -g; id -G; umask; ulimit -n; cat /proc/self/oom_score_adj; pwd";
    let Some(mut bundle) = Bundle::new("user", script) else { return };
    let process = &mut bundle.config["process"];
    process["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o27 });
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    process["oomScoreAdj"] = json!(500);
    process["cwd"] = json!("/made/for/it");
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, ["1000", "1001", "1001 7 8", "0027", "100", "500", "/made/for/it"]);
}

#[test]
fn capabilities_are_exactly_those_given() {
    let script = "grep -E '^Cap|NoNewPrivs' /proc/self/status";
    let Some(mut bundle) = Bundle::new("caps", script) else { return };
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_FROM_THE_FUTURE"],
        "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    });
    // As root the kernel gives what the bounding set has; as a user what is
    // ambient.
    bundle.config["process"]["user"] = json!({ "uid": 5, "gid": 5 });
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    assert!(err.contains("CAP_FROM_THE_FUTURE"), "unknown names are warned of: {err}");
    for (set, bits) in
        [("CapInh", 0x20), ("CapPrm", 0x20), ("CapEff", 0x20), ("CapBnd", 0x21), ("CapAmb", 0x20)]
    {
        assert!(out.contains(&format!("{set}:\t{bits:016x}")), "{set}: {out}");
    }
    assert!(out.contains("NoNewPrivs:\t1"));
}

#[test]
fn namespaces_are_its_own() {
    let script = "hostname; cat /proc/sys/net/ipv4/ip_forward; \
                  for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done";
    let Some(mut bundle) = Bundle::new("namespaces", script) else { return };
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("box\n1\n"), "{out}");
    for name in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(!out.contains(ours.to_str().unwrap()), "{name} is the host's");
    }
}

#[test]
fn clocks_are_set_off_in_a_time_namespace() {
    let Some(mut bundle) = Bundle::new("time", "cut -d. -f1 /proc/uptime") else { return };
    bundle.expect_clocks_set_off();
}

#[test]
fn memory_is_taken_where_the_policy_says() {
    let Some(mut bundle) =
        Bundle::new("mempolicy", "grep -c ' bind=static:0 ' /proc/self/numa_maps")
    else {
        return;
    };
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        println!("did not run: the kernel has no memory policies");
        return;
    }
    bundle.config["linux"]["memoryPolicy"] =
        json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] });
    let (status, out, err) = bundle.run();
    assert!(status == 0 && out.trim().parse::<u32>().unwrap() > 0, "{out} {err}");
    bundle.config["process"]["args"][2] = json!("sleep 600");
    bundle.start();
    let mut command = bundle.command(&["exec", &bundle.id, "cat", "/proc/self/numa_maps"]);
    let seen = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(seen.contains(" bind=static:0 "), "{seen}");
}

#[test]
fn a_terminal_is_sent_to_the_console_socket() {
    let Some(mut bundle) = Bundle::new("tty", "tty; stty size; ls -l /dev/console") else {
        return;
    };
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    let path = bundle.directory.join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(bundle.oci(&["create", "--console-socket", "console.sock"]).status.success());
    let (connection, _) = listener.accept().unwrap();
    let master = receive_descriptor(&connection);
    assert!(bundle.oci(&["start"]).status.success());
    let mut text = String::new();
    let mut master = std::fs::File::from(master);
    let mut buffer = [0u8; 1024];
    // Reading ends with an error when the last user of the terminal is gone.
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    assert!(text.contains("33 77"), "{text}");
    assert!(text.contains("136,"), "the console is a terminal: {text}");
}

fn receive_descriptor(socket: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0u8; 256];
    let mut parts = [std::io::IoSliceMut::new(&mut data)];
    recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().unwrap();
        }
    }
    panic!("no descriptor came");
}

#[test]
fn a_terminal_in_the_foreground_is_relayed() {
    let Some(mut bundle) = Bundle::new("relay", "read x; echo got $x; exit 4") else { return };
    bundle.config["process"]["terminal"] = json!(true);
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"words\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("got words"), "{text}");
}
