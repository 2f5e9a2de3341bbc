use std::io::Write;

use super::*;
use crate::limits::Limits;
use crate::progress::Silent;
use crate::testing::{directory, file, image_of, name};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

/// All files of the store that hold something.
fn files(store: &Store) -> Vec<String> {
    let mut all = Vec::new();
    for dir in ["blobs/sha256", "refs", "layers", "erofs", "partial", "tmp"] {
        for entry in fs::read_dir(store.path(dir)).unwrap() {
            all.push(format!("{dir}/{}", entry.unwrap().file_name().to_string_lossy()));
        }
    }
    all
}

#[test]
fn only_what_a_name_reaches_survives_a_collection() {
    let (_dir, store) = store();
    let base = vec![file("base", b"1")];
    {
        let session = store.session().unwrap();
        let keep = image_of(&session, &[base.clone(), vec![file("keep", b"2")]]);
        let lose = image_of(&session, &[base.clone(), vec![file("lose", b"3")]]);
        for image in [&keep, &lose] {
            session.layer_dirs(image, Limits::default(), &Silent).unwrap();
            session.erofs(image, Limits::default(), &Silent).unwrap();
        }
        session.set_reference(&name("keep"), &keep.descriptor).unwrap();
        session.set_reference(&name("lose"), &lose.descriptor).unwrap();
    }
    assert_eq!(store.collect().unwrap().unwrap().items, 0);
    store.remove_reference(&name("lose")).unwrap();
    // Its manifest, configuration and upper layer; that layer's directory; its
    // EROFS image.
    assert_eq!(store.collect().unwrap().unwrap().items, 5);
    let image = store.image(&name("keep"), None).unwrap();
    for layer in &image.manifest.layers {
        assert!(store.has_blob(layer.digest));
    }
    assert_eq!(fs::read_dir(store.path("layers")).unwrap().count(), 2);
    store.remove_reference(&name("keep")).unwrap();
    store.collect().unwrap().unwrap();
    assert_eq!(files(&store), Vec::<String>::new());
    assert!(matches!(store.image(&name("keep"), None), Err(Error::NoSuchImage(_))));
}

#[test]
fn leases_keep_images_whose_name_has_gone() {
    let (_dir, store) = store();
    let target = {
        let session = store.session().unwrap();
        let image = image_of(&session, &[vec![directory("d")]]);
        session.hold("instance-1", &image.descriptor).unwrap();
        image.descriptor
    };
    store.collect().unwrap().unwrap();
    assert!(store.image_of(&target, "x", None).is_ok());
    store.release("instance-1").unwrap();
    store.release("instance-1").unwrap();
    store.collect().unwrap().unwrap();
    assert!(store.image_of(&target, "x", None).is_err());
}

#[test]
fn nothing_is_collected_while_something_is_added() {
    let (_dir, store) = store();
    let session = store.session().unwrap();
    session.add_bytes("x", b"not yet named").unwrap();
    assert_eq!(store.collect().unwrap(), None);
    drop(session);
    assert_eq!(store.collect().unwrap().unwrap().items, 1);
}

#[test]
fn blobs_are_verified_on_the_way_in_and_documents_on_the_way_out() {
    let (_dir, store) = store();
    let session = store.session().unwrap();
    let promised = Descriptor::new("x", Digest::of(b"good"), 4);
    let error = session.add_known(&promised, &b"evil"[..]).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    let error = session.add_known(&promised, &b"good and more"[..]).unwrap_err();
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    let error = session.add_known(&promised, &b"goo"[..]).unwrap_err();
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    assert!(!store.has_blob(promised.digest));
    session.add_known(&promised, &b"good"[..]).unwrap();
    fs::write(store.blob_path(promised.digest), b"evil").unwrap();
    let error = store.small_blob("it", &promised, 100).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let (_dir, store) = store();
    let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let descriptor = Descriptor::new("x", Digest::of(&data), data.len() as u64);
    {
        let session = store.session().unwrap();
        let mut partial = session.partial(&descriptor).unwrap().unwrap();
        partial.push(&data[..60_000]).unwrap();
    }
    let session = store.session().unwrap();
    let mut partial = session.partial(&descriptor).unwrap().unwrap();
    assert_eq!(partial.have(), 60_000);
    partial.push(&data[60_000..]).unwrap();
    partial.finish().unwrap();
    assert!(session.partial(&descriptor).unwrap().is_none());
    assert_eq!(fs::read(store.blob_path(descriptor.digest)).unwrap(), data);
}

#[test]
fn an_abandoned_writer_leaves_nothing() {
    let (_dir, store) = store();
    let session = store.session().unwrap();
    let mut writer = session.blob_writer().unwrap();
    writer.write_all(b"half").unwrap();
    drop(writer);
    assert_eq!(files(&store), Vec::<String>::new());
}

#[test]
fn fifty_at_once_make_one_layer() {
    let (_dir, store) = store();
    let image = image_of(&store.session().unwrap(), &[vec![file("f", &[3; 100_000])]]);
    let all: Vec<(PathBuf, PathBuf)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..50)
            .map(|_| {
                // A store of its own each, as processes have.
                let (root, image) = (store.root().to_owned(), image.clone());
                scope.spawn(move || {
                    let store = Store::open(root).unwrap();
                    let session = store.session().unwrap();
                    let limits = Limits::default();
                    let mut dirs = session.layer_dirs(&image, limits, &Silent).unwrap();
                    (dirs.remove(0), session.erofs(&image, limits, &Silent).unwrap())
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(store.path("layers")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(store.path("tmp")).unwrap().count(), 0);
}

#[test]
fn a_newer_store_is_left_alone() {
    let (_dir, store) = store();
    fs::write(store.path("format"), "2").unwrap();
    let error = Store::open(store.root()).unwrap_err();
    assert!(matches!(error, Error::NewerStore { .. }), "{error}");
}

#[test]
fn names_move_and_are_listed_in_order() {
    let (_dir, store) = store();
    let session = store.session().unwrap();
    let one = image_of(&session, &[vec![directory("one")]]).descriptor;
    let two = image_of(&session, &[vec![directory("two")]]).descriptor;
    session.set_reference(&name("b"), &one).unwrap();
    session.set_reference(&name("a:1"), &one).unwrap();
    session.set_reference(&name("b"), &two).unwrap();
    let all = store.references().unwrap();
    let names: Vec<String> = all.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["a:1", "b:latest"]);
    assert_eq!(all[1].target, two);
}
