use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn context(ignore: &str) -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["src/deep", "out/doc"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    for file in ["a.txt", "b.txt", "src/main", "src/deep/x", "out/big", "out/doc/kept"] {
        fs::write(dir.path().join(file), file).unwrap();
    }
    symlink("/etc/passwd", dir.path().join("escape")).unwrap();
    symlink("../../../../src/main", dir.path().join("inside")).unwrap();
    fs::write(dir.path().join(".dockerignore"), ignore).unwrap();
    let tree = Tree::context(dir.path(), &dir.path().join("Containerfile")).unwrap();
    (dir, tree)
}

fn paths(selected: &Selected) -> Vec<String> {
    selected.items.iter().map(|i| String::from_utf8_lossy(&i.path).into_owned()).collect()
}

#[test]
fn names_patterns_and_directories() {
    let (_dir, tree) = context("");
    let all = tree.select("*.txt").unwrap();
    assert_eq!(all.iter().map(|s| &s.name[..]).collect::<Vec<_>>(), ["a.txt", "b.txt"]);
    let all = tree.select("/src/").unwrap();
    assert_eq!(paths(&all[0]), ["deep", "deep/x", "main"]);
    assert!(tree.select("missing").is_err() && tree.select("*.none").is_err());
}

#[test]
fn what_is_left_out() {
    let (_dir, tree) = context("out\n!out/doc\nb.txt\n");
    let all = tree.select(".").unwrap();
    let paths = paths(&all[0]);
    assert!(paths.contains(&"out/doc/kept".to_owned()), "{paths:?}");
    assert!(!paths.iter().any(|p| p == "out/big" || p == "b.txt"), "{paths:?}");
    let error = tree.select("b.txt").err().unwrap();
    assert!(error.to_string().contains(".dockerignore"), "{error}");
}

/// `..` and links end at the context's root.
#[test]
fn nothing_outside_is_read() {
    let (_dir, tree) = context("");
    assert!(tree.select("escape").is_err());
    assert_eq!(tree.select("inside").unwrap()[0].stat.st_size, 8);
    assert!(tree.select("../../../../etc/passwd").is_err());
    assert_eq!(tree.select("src/../a.txt").unwrap()[0].name, "a.txt");
}

#[test]
fn the_digest_follows_the_contents_and_not_the_times() {
    let (dir, tree) = context("");
    let of = |tree: &Tree| digest(&tree.select(".").unwrap()).unwrap();
    let before = of(&tree);
    fs::write(dir.path().join("src/main"), "src/main").unwrap();
    assert_eq!(of(&tree), before);
    fs::write(dir.path().join("src/main"), "src/niam").unwrap();
    assert_ne!(of(&tree), before);
}
