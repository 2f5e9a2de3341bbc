//! `guise cp`, both ways.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use guise_image::tar::{Entry, Kind, Writer};

use crate::home::{BOX, Guise, Home, in_every_guise};

in_every_guise!(files_and_folders_go_both_ways, archives_and_links_do_not_lead_out,);

fn files_and_folders_go_both_ways(guise: Guise) {
    let Some(home) = Home::new("copy", guise) else { return };
    home.good(&["run", "-d", "--name", "it", "-v", "vol:/vol", BOX, "sleep", "1000"]);
    let folder = home.path("folder");
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::write(folder.join("deep/er/file"), vec![b'x'; 300_000]).unwrap();
    fs::write(folder.join("tool"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(folder.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("deep/er/file", folder.join("link")).unwrap();
    let from = folder.to_string_lossy().into_owned();
    home.good(&["cp", &from, "it:/vol"]);
    assert_eq!(
        home.good(&["exec", "it", "sh", "-c", "/vol/folder/tool; wc -c < /vol/folder/link"]),
        "ran\n300000"
    );
    // Under a new name, and back.
    home.good(&["cp", &from, "it:/tmp/renamed"]);
    let back = home.path("back").to_string_lossy().into_owned();
    home.good(&["cp", "it:/tmp/renamed", &back]);
    assert_eq!(fs::read(home.path("back/deep/er/file")).unwrap().len(), 300_000);
    assert_eq!(fs::read_link(home.path("back/link")).unwrap().to_string_lossy(), "deep/er/file");
    assert_eq!(fs::metadata(home.path("back/tool")).unwrap().permissions().mode() & 0o777, 0o755);
    let missing = home.guise(&["cp", "it:/no/such", &back]);
    assert!(missing.code == 1 && missing.err.lines().count() == 1, "{missing:?}");
}

fn archives_and_links_do_not_lead_out(guise: Guise) {
    let Some(home) = Home::new("hostile", guise) else { return };
    let trap = "ln -s / /tmp/out; ln -s /etc/passwd /tmp/file; exec sleep 1000";
    home.good(&["run", "-d", "--name", "it", BOX, "sh", "-c", trap]);
    home.until("the traps are set", || {
        home.guise(&["exec", "it", "test", "-L", "/tmp/file"]).code == 0
    });
    let mut tar = Writer::new(Vec::new());
    tar.file("../../escaped", b"no").unwrap();
    let archive = tar.finish().unwrap();
    let said = home.guise_with(&["cp", "-", "it:/tmp"], &archive);
    assert!(said.code == 1 && said.err.contains("elsewhere"), "{said:?}");
    // A link that the archive itself makes leads to the instance's root, at the most.
    let mut tar = Writer::new(Vec::new());
    tar.append(&Entry::new("l", Kind::Symlink(b"/../../..".to_vec()), 0o777), std::io::empty())
        .unwrap();
    tar.file("l/guise-was-here", b"no").unwrap();
    home.guise_with(&["cp", "-", "it:/tmp"], &tar.finish().unwrap());
    assert!(!std::path::Path::new("/guise-was-here").exists());
    // Writing over a link replaces the link.
    let mine = home.path("mine");
    fs::write(&mine, "mine").unwrap();
    home.good(&["cp", &mine.to_string_lossy(), "it:/tmp/file"]);
    assert_eq!(home.good(&["exec", "it", "cat", "/tmp/file"]), "mine");
    assert!(home.good(&["exec", "it", "head", "-n1", "/etc/passwd"]).starts_with("root:"));
}
