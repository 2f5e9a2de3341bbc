use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("guise-path-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("root")).unwrap();
        Scratch(path)
    }

    fn root(&self) -> RootDir {
        RootDir::new(open_host(self.0.join("root")).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn dots_are_taken_out() {
    assert_eq!(clean("/a/../../b/./c//d/"), "/b/c/d");
    assert_eq!(clean("../.."), "/");
}

/// The class of CVE-2018-15664, CVE-2019-19921 and CVE-2021-30465: a link in
/// the image that leads a mount's target to the host.
#[test]
fn links_lead_nowhere_outside() {
    let scratch = Scratch::new("links");
    let outside = scratch.0.join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, scratch.0.join("root/absolute")).unwrap();
    symlink("../outside", scratch.0.join("root/relative")).unwrap();
    let root = scratch.root();
    // The absolute link names a path that does not exist below the root, so
    // something cannot be made there; the relative one stays at the root.
    assert!(root.make_dir("/absolute/x").is_err());
    assert!(root.make_dir("/relative/x").is_err());
    assert!(root.make_file("/../outside/file").is_ok());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(scratch.0.join("root/outside/file").is_file());
}

#[test]
fn links_inside_are_followed() {
    let scratch = Scratch::new("inside");
    std::fs::create_dir(scratch.0.join("root/real")).unwrap();
    symlink("/real", scratch.0.join("root/alias")).unwrap();
    scratch.root().make_dir("/alias/a/b").unwrap();
    assert!(scratch.0.join("root/real/a/b").is_dir());
}

#[test]
fn magic_links_are_not_followed() {
    let root = RootDir::new(open_host("/").unwrap());
    assert!(root.place("/proc/self/root/etc").is_err());
    assert!(root.place("/proc/self/cwd").is_err());
}
