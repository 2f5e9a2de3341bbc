use super::*;

const HYBRID: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /outer /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw
43 31 0:22 / /sys rw - sysfs sysfs rw";

const OWN: &str = "3:cpu,cpuacct:/a\n2:memory:/outer/b\n1:name=systemd:/c\n0::/d\n";

#[test]
fn the_mount_table_is_understood() {
    let found = parse(HYBRID, OWN);
    let names: Vec<&str> = found.iter().map(Hierarchy::name).collect();
    assert_eq!(names, ["cpu,cpuacct", "memory", "systemd", "uni fied"]);
    assert_eq!(found[0].aliases().collect::<Vec<_>>(), ["cpu", "cpuacct"]);
    assert_eq!(found[2].filesystem(), ("cgroup", vec!["name=systemd".into(), "none".into()]));
    assert!(found[3].is_unified());
}

#[test]
fn a_user_without_rights_stays_below_its_own_cgroup() {
    let mut found = parse(HYBRID, OWN);
    for h in &mut found {
        h.place(Path::new("guise/x"), true);
    }
    assert_eq!(found[0].directory().unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/guise/x"));
    assert_eq!(found[1].directory().unwrap(), Path::new("/sys/fs/cgroup/memory/b/guise/x"));
}

#[test]
fn what_is_saved_is_read_again() {
    let mut found = parse(HYBRID, OWN);
    found[1].place(Path::new("guise/x"), false);
    let saved = found[1].save().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    let again = Hierarchy::from_saved(&serde_json::from_str(&text).unwrap());
    assert_eq!(again.save(), Some(saved));
}
