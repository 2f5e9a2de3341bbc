use std::io::Read as _;

use super::*;

fn read(disk: Vec<u8>, name: &str) -> String {
    let volume = FileSystem::new(Cursor::new(disk), FsOptions::new()).unwrap();
    assert_eq!(volume.volume_label(), "CIDATA");
    let mut text = String::new();
    volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn seed(user_data: Option<&str>, ssh_keys: &[String], folders: Vec<Folder>) -> Seed {
    Seed {
        id: "abc".to_owned(),
        host_name: "web".to_owned(),
        user_data: user_data.map(str::to_owned),
        ssh_keys: ssh_keys.to_owned(),
        folders,
    }
}

#[test]
fn the_guest_finds_who_it_is() {
    let seed = seed(None, &[], Vec::new());
    let disk = seed.disk(&[[2, 0, 0, 0, 0, 0xa], [2, 0, 0, 0, 0, 0xb]]).unwrap();
    assert_eq!(read(disk.clone(), "meta-data"), "instance-id: abc\nlocal-hostname: web\n");
    assert!(read(disk.clone(), "user-data").starts_with("#cloud-config\n"));
    let network = read(disk, "network-config");
    for (name, mac) in [("guest0", "02:00:00:00:00:0a"), ("guest1", "02:00:00:00:00:0b")] {
        let lines = format!("  {name}:\n    match: {{macaddress: \"{mac}\"}}\n    dhcp4: true\n");
        assert!(network.contains(&lines), "{network}");
    }
    let alone = read(seed.disk(&[]).unwrap(), "network-config");
    assert_eq!(alone, "version: 2\nethernets: {}\n");
}

#[test]
fn what_the_user_wants_has_room() {
    for length in [0, 1, 1000, 1 << 20] {
        let wanted = "#".repeat(length);
        let seed = seed(Some(&wanted), &[], Vec::new());
        assert!(read(seed.disk(&[]).unwrap(), "user-data") == wanted, "{length}");
    }
}

#[test]
fn shared_folders_are_to_be_mounted() {
    let folder = |tag: &str, target: &str, read_only| Folder {
        tag: tag.to_owned(),
        target: target.to_owned(),
        read_only,
    };
    let folders = vec![folder("mount0", "/srv", false), folder("mount1", "/a \"b", true)];
    let seed = seed(None, &[], folders);
    let told = read(seed.disk(&[]).unwrap(), "vendor-data");
    let mounts: serde_json::Value =
        serde_json::from_str(told.strip_prefix("#cloud-config\nmounts: ").unwrap()).unwrap();
    assert_eq!(mounts[0], serde_json::json!(["mount0", "/srv", "virtiofs", "nofail", "0", "0"]));
    assert_eq!(mounts[1][1], "/a \"b");
    assert_eq!(mounts[1][3], "ro,nofail");
}

#[test]
fn keys_are_told() {
    let keys = ["ssh-ed25519 AAAA a \"b\"".to_owned(), "ssh-rsa BBBB".to_owned()];
    let told = read(seed(None, &keys, Vec::new()).disk(&[]).unwrap(), "meta-data");
    let line = told.lines().find_map(|line| line.strip_prefix("public-keys: ")).unwrap();
    assert_eq!(serde_json::from_str::<Vec<String>>(line).unwrap(), keys);
}
