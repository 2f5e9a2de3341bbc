use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::Limits;
use crate::progress::Silent;
use crate::spec::{Config, Manifest, Platform};
use crate::store::{Image, Store};

#[test]
fn what_was_packed_unpacks_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let session = store.session().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("d/e")).unwrap();
    fs::write(upper.join("d/file"), "text").unwrap();
    fs::set_permissions(upper.join("d/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(upper.join("d/file"), upper.join("d/e/link")).unwrap();
    symlink("nowhere/../x", upper.join("s")).unwrap();
    let (layer, diff_id) = session.pack_layer(&upper).unwrap().unwrap();
    assert_eq!(session.pack_layer(&upper).unwrap().unwrap().1, diff_id, "not the same twice");

    let config = Config::of_layers(Platform::host(), vec![diff_id]);
    let described = session.add_json(media::OCI_CONFIG, &config).unwrap();
    let manifest = Manifest::oci(described, vec![layer]);
    let descriptor = session.add_json(media::OCI_MANIFEST, &manifest).unwrap();
    let image = Image { descriptor, manifest, config };
    let dirs = session.layer_dirs(&image, Limits::default(), &Silent).unwrap();
    assert_eq!(fs::read_to_string(dirs[0].join("d/file")).unwrap(), "text");
    let metadata = fs::metadata(dirs[0].join("d/file")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o4755, 2));
    assert_eq!(fs::read_link(dirs[0].join("s")).unwrap(), Path::new("nowhere/../x"));
}

#[test]
fn nothing_is_no_layer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    assert!(store.session().unwrap().pack_layer(&upper).unwrap().is_none());
}
