use super::*;

fn parse(list: &[&str]) -> Options {
    let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
    Options::parse(&list, "/x").unwrap()
}

#[test]
fn flags_go_to_the_mount_and_the_rest_to_the_file_system() {
    let o = parse(&["nosuid", "strictatime", "mode=755", "size=65536k", "sync"]);
    assert_eq!(o.set, ATTR_NOSUID | ATTR_STRICTATIME);
    assert_eq!(o.data, ["mode=755", "size=65536k"]);
    assert_eq!(o.super_flags, ["sync"]);
}

#[test]
fn the_last_of_two_opposites_counts() {
    assert_eq!(parse(&["ro", "rw"]).set, 0);
    assert_eq!(parse(&["rw", "ro"]).set, ATTR_RDONLY);
    assert_eq!(parse(&["noatime", "strictatime"]).set, ATTR_STRICTATIME);
}

#[test]
fn recursive_names_and_propagation_are_told_apart() {
    let o = parse(&["rbind", "rro", "rslave", "relatime", "rnosuid"]);
    assert_eq!(o.bind, Some(Bind::Tree));
    assert_eq!(o.set_all, ATTR_RDONLY | ATTR_NOSUID);
    assert_eq!(o.propagation, [(libc::MS_SLAVE, true)]);
    assert_eq!(o.clear, ATTR_ATIME);
}

#[test]
fn remount_is_refused() {
    assert!(Options::parse(&["remount".to_owned()], "/x").is_err());
}
