//! Guise in a machine of Guise. The machine has cgroups of version 2 and nothing else, which is
//! what most hosts have today, and few that tests run on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::home::{BOX, GUISE, Guise, Home};

/// What runs in the machine: a container with limits, what there is of it, and what is left.
const SCRIPT: &str = r#"
set -e
mkdir -p /mnt
mount -t tmpfs tmpfs /mnt
export GUISE_STATE=/mnt/state GUISE_RUN=/mnt/run GUISE_IMAGES=/mnt/images
cd /sys/fs/cgroup
guise=/share/guise
$guise run -d --name it --rootfs /share/box --as container -m 64M --cpus 0.5 --pids-limit 50 \
    --cpu-weight 300 sh -c 'while :; do :; done' >/dev/null 2>&1
for group in guise-*; do
    cd $group
    echo "group of $(wc -l <cgroup.procs):" $(cat memory.max cpu.max cpu.weight pids.max)
    cd ..
done
set +e
$guise run --rm --rootfs /share/box --as container -m 32M \
    sh -c 'head -c 100000000 /dev/zero | tail >/dev/null'
echo "more than its memory ended with $?"
$guise rm -f it >/dev/null
echo "left $(ls -d guise-* 2>/dev/null)"
"#;

/// The libraries that the binary asks for, and what links them.
fn libraries() -> Vec<String> {
    let listed = Command::new("ldd").arg(&*GUISE).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(str::to_owned).collect()
}

#[test]
fn limits_hold_where_there_are_cgroups_of_version_2_alone() {
    let Some(home) = Home::new("nested", Guise::Microvm) else { return };
    let share = home.path("share");
    let (programs, loaded) = (share.join("box/bin"), share.join("lib64"));
    for folder in [&programs, &loaded] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::copy(&*GUISE, share.join("guise")).unwrap();
    for library in libraries() {
        let name = Path::new(&library).file_name().unwrap();
        fs::copy(&library, loaded.join(name)).unwrap();
    }
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| fs::exists(path).unwrap());
    fs::copy(busybox.unwrap(), programs.join("busybox")).unwrap();
    for name in ["sh", "head", "tail"] {
        symlink("busybox", programs.join(name)).unwrap();
    }
    fs::write(share.join("script"), SCRIPT).unwrap();
    let share = share.display();
    let (shared, libraries) = (format!("{share}:/share"), format!("{share}/lib64:/lib64"));
    let options = ["run", "--rm", "-m", "1G", "-v", &shared, "-v", &libraries];
    let libraries = ["-e", "LD_LIBRARY_PATH=/lib64", BOX, "sh", "/share/script"];
    let said = home.guise(&[&options[..], &libraries].concat());
    let has = |line: &str| said.out.lines().any(|found| found == line);
    assert!(has("group of 1: 67108864 50000 100000 300 50"), "the container's: {said:?}");
    // Its worker may compile filters and hold archives, and is not held back.
    assert!(has("group of 3: 268435456 max 100000 100 8192"), "{said:?}");
    assert!(has("more than its memory ended with 137"), "{said:?}");
    assert!(has("left "), "{said:?}");
}
