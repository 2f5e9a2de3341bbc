use std::path::{Path, PathBuf};

use super::*;
use crate::format::{BackingReference, FormatKind};
use crate::formats::qcow2::Amendment;
use crate::ops::{CreateRequest, create};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("guise-graph-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("inside")).expect("make directories");
        Self(dir)
    }

    fn layer(&self, name: &str, below: Option<&str>) -> PathBuf {
        let path = self.0.join(name);
        let mut request = CreateRequest::new(&path, FormatKind::Qcow2, Some(1 << 20));
        request.trust_backing = true;
        request.backing = below.map(|name| BackingReference {
            name: name.to_owned(),
            format: Some("qcow2".to_owned()),
        });
        create(&request).expect("create");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("remove");
    }
}

fn read(path: &Path, backing: BackingPolicy) -> Result<Image> {
    let options = OpenOptions { backing, ..OpenOptions::read(Some(FormatKind::Qcow2)) };
    Image::open(path, &options)
}

#[test]
fn references_stay_in_the_directory_unless_allowed() {
    let dir = Scratch::new("policy");
    let base = dir.layer("base", None);
    let top = dir.layer("inside/top", Some("../base"));
    let refused = read(&top, BackingPolicy::SameDirectory).err().expect("refused");
    assert!(matches!(refused, Error::Backing { .. }), "{refused}");
    read(&top, BackingPolicy::Anywhere).expect("anywhere");
    read(&top, BackingPolicy::Within(vec![dir.0.clone()])).expect("within");
    assert!(read(&top, BackingPolicy::Ignore).expect("alone").backing().is_none());
    let absolute = dir.layer("inside/absolute", Some(base.to_str().expect("plain")));
    assert!(read(&absolute, BackingPolicy::SameDirectory).is_err());
    std::os::unix::fs::symlink(&base, dir.0.join("inside/link")).expect("link");
    let linked = dir.layer("inside/linked", Some("link"));
    assert!(read(&linked, BackingPolicy::SameDirectory).is_err(), "links are followed first");
    for name in ["json:{}", "nbd://host/disk", ""] {
        let odd = dir.layer("odd", Some(name));
        assert!(read(&odd, BackingPolicy::Anywhere).is_err() || name.is_empty(), "{name}");
    }
}

#[test]
fn circles_and_endless_chains_are_refused() {
    let dir = Scratch::new("circle");
    let first = dir.layer("first", None);
    dir.layer("second", Some("first"));
    let options =
        OpenOptions { backing: BackingPolicy::Ignore, ..OpenOptions::write(FormatKind::Qcow2) };
    let image = Image::open(&first, &options).expect("open");
    let reference =
        BackingReference { name: "second".to_owned(), format: Some("qcow2".to_owned()) };
    let change = Amendment { backing: Some(Some(reference)), ..Amendment::default() };
    let qcow2 = image.format().as_qcow2().expect("qcow2");
    qcow2.amend(&change, &image.below()).expect("amend");
    image.close().expect("close");
    drop(image);
    assert!(matches!(read(&first, BackingPolicy::SameDirectory), Err(Error::Backing { .. })));
    dir.layer("0", None);
    for number in 1..=MAX_DEPTH {
        dir.layer(&number.to_string(), Some(&(number - 1).to_string()));
    }
    let deepest = dir.0.join((MAX_DEPTH - 1).to_string());
    assert_eq!(read(&deepest, BackingPolicy::SameDirectory).expect("deep").depth(), MAX_DEPTH);
    let deeper = dir.0.join(MAX_DEPTH.to_string());
    assert!(matches!(read(&deeper, BackingPolicy::SameDirectory), Err(Error::Backing { .. })));
}

#[test]
fn a_format_is_not_guessed_for_writing() {
    let dir = Scratch::new("guess");
    let path = dir.layer("disk", None);
    let guessing = OpenOptions { write: true, ..OpenOptions::default() };
    assert!(Image::open(&path, &guessing).is_err());
    let raw = Image::open(&path, &OpenOptions::write(FormatKind::Raw)).expect("as raw");
    assert_eq!(raw.size(), std::fs::metadata(&path).expect("stat").len());
}

#[test]
fn what_is_below_shows_through() {
    let dir = Scratch::new("through");
    let base = dir.layer("base", None);
    let image = Image::open(&base, &OpenOptions::write(FormatKind::Qcow2)).expect("open");
    image.write(0, &[1; 200_000]).expect("write");
    image.close().expect("close");
    drop(image);
    let top = dir.layer("top", Some("base"));
    let image = Image::open(&top, &OpenOptions::write(FormatKind::Qcow2)).expect("open");
    image.write(100_000, &[2; 10]).expect("write");
    image.write_zeroes(131_072, 65_536, true).expect("zero");
    let mut all = vec![9; 262_144];
    image.read(0, &mut all).expect("read");
    assert!(all[..100_000].iter().all(|&byte| byte == 1));
    assert!(all[100_000..100_010].iter().all(|&byte| byte == 2));
    assert!(all[100_010..131_072].iter().all(|&byte| byte == 1));
    assert!(all[131_072..196_608].iter().all(|&byte| byte == 0));
    assert!(all[196_608..200_000].iter().all(|&byte| byte == 1));
    assert!(all[200_000..].iter().all(|&byte| byte == 0));
}
