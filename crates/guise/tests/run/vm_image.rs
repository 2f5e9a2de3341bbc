//! VMs of images: the image's own kernel and system, with Guise's agent beside it.

use std::fs;
use std::time::{Duration, Instant};

use guise_testkit::assets::Kernel;
use guise_testkit::system_image;

use crate::home::{BOX, Guise, Home};

/// A boot on a busy machine that executes guests in software.
const BOOT: Duration = Duration::from_secs(600);
const KERNEL: Kernel = Kernel::Debian12Cloud;
const SYSTEM: &str = "system:1";
const AS_VM: [&str; 5] = ["--as", "vm", "--engine", "soft", "-m"];

fn home(test: &str) -> Option<Home> {
    let home = Home::new(test, Guise::Container)?;
    let tar = home.path("system.tar");
    system_image::small(KERNEL, &tar).unwrap();
    home.import_from(&tar, SYSTEM);
    fs::remove_file(tar).unwrap();
    Some(home)
}

fn until_said(home: &Home, name: &str, what: &str) {
    home.until_within(BOOT, what, || home.good(&["logs", name]).contains(what));
}

#[test]
fn an_image_boots_by_itself_and_keeps_what_it_writes() {
    let Some(home) = home("own") else { return };
    let tell = home.path("user-data");
    fs::write(&tell, "#!/bin/sh\necho told-$((6 * 7)) >/dev/ttyS0\n").unwrap();
    let options = ["--name", "it", "--hostname", "seeded", "--network", "none", "--user-data"];
    let tell = tell.to_str().unwrap();
    let run = [&["run", "-d"][..], &AS_VM, &["256M"], &options, &[tell, SYSTEM]].concat();
    home.good(&run);
    until_said(&home, "it", "start 1 of seeded");
    assert!(home.good(&["logs", "it"]).contains("told-42"));
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["guise"], "vm");
    assert!(status["chosen_because"].as_str().unwrap().contains("own kernel"), "{status}");
    let inside = |script: &str| home.good(&["exec", "it", "sh", "-c", script]);
    let version = KERNEL.modules().unwrap();
    assert_eq!(inside("uname -r"), version.file_name().unwrap().to_string_lossy());
    assert!(inside("cat /proc/mounts").contains("overlay / overlay rw"));
    // The first process is the image's own, and nothing is left of what led there.
    assert_eq!(inside("cat /proc/1/cmdline | tr '\\0' ' '"), "/bin/busybox sh /sbin/init");
    assert_eq!(inside("ls -d /.guise /modules /lower 2>/dev/null; echo none"), "none");
    let folder = home.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "from the host").unwrap();
    let (folder, back) = (folder.to_str().unwrap(), home.path("back"));
    home.good(&["cp", folder, "it:/root"]);
    home.good(&["cp", "it:/root/folder/file", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(back).unwrap(), "from the host");
    let stats = home.good(&["stats", "-o", "json", "it"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert!(stats[0]["processes"].as_u64() > Some(5), "{stats}");
    home.good(&["stop", "-t", "600", "it"]);
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["exit_code"], 0, "{status}\n{}", home.good(&["logs", "it"]));
    home.good(&["start", "it"]);
    until_said(&home, "it", "start 2 of seeded");
    assert_eq!(inside("cat /starts /root/folder/file"), "2\nfrom the host");
    home.good(&["rm", "-f", "it"]);
    home.expect_nothing_left();
}

#[test]
fn a_program_runs_in_an_images_own_system() {
    let Some(home) = home("own-program") else { return };
    let script = "echo $MODE; id -un; pwd; cat /srv/one; ip route | grep -c default; exit 7";
    let options = ["-v", "data:/srv", "-e", "MODE=fast", "-u", "web", "-w", "/tmp"];
    let fill = ["run", "--rm", "-v", "data:/srv", BOX, "sh", "-c", "echo shared >/srv/one"];
    home.good(&fill);
    let program = [SYSTEM, "sh", "-c", script];
    let said = home.guise(&[&["run", "--rm"][..], &AS_VM, &["256M"], &options, &program].concat());
    assert_eq!((said.code, &*said.out), (7, "fast\nweb\n/tmp\nshared\n1\n"), "{said:?}");
    home.expect_nothing_left();
}

#[test]
fn an_image_that_does_not_boot_is_refused_in_one_line() {
    let Some(home) = Home::new("no-system", Guise::Container) else { return };
    for (args, code, about) in [
        (&["run", "--rm", "--as", "vm", BOX][..], 125, "no kernel"),
        (&["run", "--rm", "--as", "vm", BOX, "true"], 125, "--include linux-image-cloud-amd64"),
        (&["run", "--rm", "--as", "vm", "debian:12"], 125, "--include linux-image-cloud-amd64"),
        (&["run", "--explain", "--as", "vm", "trixie"], 125, "pull trixie --include"),
        (&["run", "--rm", "--as", "vm", "--pull", "never", "no/such:1"], 125, "not in the store"),
        (&["run", "--rm", "--as", "vm", "-e", "A=1", BOX], 125, "--user-data"),
        (&["run", "--rm", "--as", "vm", "--read-only", BOX], 125, "--read-only"),
    ] {
        let said = home.guise(args);
        assert_eq!((said.code, said.err.lines().count()), (code, 1), "{args:?}: {said:?}");
        assert!(said.err.contains(about), "{args:?}: {said:?}");
    }
    let explained = home.good(&["run", "--explain", "--as", "vm", BOX]);
    assert!(explained.starts_with("vm\n") && explained.contains("own kernel"), "{explained}");
    home.expect_nothing_left();
}

/// The real `cloud-init`, in a Debian with systemd.
#[test]
fn cloud_init_does_what_the_seed_says() {
    let Some(home) = Home::new("cloud-init", Guise::Container) else { return };
    home.import_from(&system_image::with_cloud_init(KERNEL).unwrap(), SYSTEM);
    let tell = home.path("user-data");
    let text = "#cloud-config
locale: false
users:
  - default
  - name: somebody
    groups: [adm]
    shell: /bin/bash
write_files:
  - path: /etc/written
    content: |
      by the seed
runcmd:
  - [sh, -c, 'echo ran >/run/ran']
";
    fs::write(&tell, text).unwrap();
    let key = home.path("id.pub");
    fs::write(&key, "ssh-ed25519 AAAAC3 one@here\n").unwrap();
    let begun = Instant::now();
    let options = ["--name", "it", "--hostname", "seeded", "--ssh-key", key.to_str().unwrap()];
    let seed = ["--user-data", tell.to_str().unwrap(), SYSTEM];
    home.good(&[&["run", "-d"][..], &AS_VM, &["768M"], &options, &seed].concat());
    let inside = |script: &str| home.good(&["exec", "it", "sh", "-c", script]);
    // Asked often, or with its own program, it would take twice as long.
    let result = "for second in $(seq 600); do \
                  [ -e /run/cloud-init/result.json ] && break; sleep 1; done; \
                  cat /run/cloud-init/result.json";
    let result = inside(result);
    println!("cloud-init had done everything after {:?}", begun.elapsed());
    assert!(result.contains("NoCloud") && result.contains("\"errors\": []"), "{result}");
    assert_eq!(inside("hostname; cat /etc/written /run/ran"), "seeded\nby the seed\nran");
    assert_eq!(inside("id -nG somebody"), "somebody adm");
    assert!(inside("cat /home/debian/.ssh/authorized_keys").contains("AAAAC3"));
    // systemd has asked the network for an address, as the seed says.
    assert!(inside("cat /run/systemd/netif/leases/*").contains("ADDRESS=10.0.2.15"));
    home.good(&["stop", "-t", "600", "it"]);
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["exit_code"], 0, "{status}\n{}", home.good(&["logs", "it"]));
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

#[test]
fn a_folder_runs_as_an_image_does() {
    let Some(home) = Home::new("rootfs", Guise::Container) else { return };
    let (tar, root) = (home.path("system.tar"), home.path("root"));
    system_image::small(KERNEL, &tar).unwrap();
    fs::create_dir(&root).unwrap();
    let unpack = ["-xf", tar.to_str().unwrap(), "-C", root.to_str().unwrap()];
    assert!(std::process::Command::new("tar").args(unpack).status().unwrap().success());
    fs::write(root.join("mark"), "in the folder").unwrap();
    let root = root.to_str().unwrap();
    let run = |options: &[&str], program: &[&str]| {
        home.guise(&[&["run", "--rm"][..], options, &["--rootfs", root], program].concat())
    };
    let program = ["sh", "-c", "cat /mark; echo other >/mark"];
    let vm = [&AS_VM[..], &["256M"]].concat();
    let version = ["sh", "-c", "uname -r; cat /mark; echo other >/mark"];
    let said = run(&["--as", "container"], &program);
    assert_eq!((said.code, &*said.out), (0, "in the folder"), "{said:?}");
    let said = run(&vm, &version);
    let kernel = KERNEL.modules().unwrap();
    let kernel = kernel.file_name().unwrap().to_string_lossy();
    assert_eq!((said.code, said.out), (0, format!("{kernel}\nin the folder")), "{}", said.err);
    // It stays as it is, and nothing of it has a name among the images.
    assert_eq!(fs::read_to_string(home.path("root/mark")).unwrap(), "in the folder");
    assert!(!home.good(&["image", "ls"]).contains("root"));
    let said = home.guise(&["run", "--rm", "--rootfs", "/nowhere", "true"]);
    assert_eq!((said.code, said.err.lines().count()), (125, 1), "{said:?}");
    assert!(said.err.contains("/nowhere/: it is no folder"), "{said:?}");
}
