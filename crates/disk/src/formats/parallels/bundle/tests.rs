use std::path::{Path, PathBuf};

use super::*;
use crate::format::{FormatKind, Preallocation};
use crate::formats::parallels::Parallels;
use crate::graph::{Image, Node, OpenOptions};
use crate::storage::{FileOptions, FileStorage};

const SIZE: u64 = 4 << 20;
const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const BASE: &str = "{11111111-2222-3333-4444-555555555555}";

fn image(id: &str, kind: &str, file: &str) -> String {
    format!("<Image>\n<GUID>{id}</GUID><Type>{kind}</Type>\n<File>{file}</File></Image>")
}

fn shot(id: &str, parent: &str) -> String {
    format!("<Shot><GUID>{id}</GUID><ParentGUID>{parent}</ParentGUID></Shot>")
}

fn text(images: &str, snapshots: &str) -> String {
    format!(
        "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n\
         <Disk_Parameters><Disk_size>{}</Disk_size><Name/></Disk_Parameters>\n\
         <StorageData>\n<Storage>\n<Start>0</Start>{images}</Storage></StorageData>\n\
         <Snapshots>{snapshots}</Snapshots>\n</Parallels_disk_image>\n",
        SIZE / SECTOR
    )
}

fn parse(text: &str) -> std::result::Result<Vec<String>, String> {
    let parsed = Bundle::parse(text, Blame::new("parallels", "disk.hdd"));
    let names = |bundle: Bundle| bundle.layers.into_iter().map(|layer| layer.file).collect();
    parsed.map(names).map_err(|error| error.to_string())
}

#[test]
fn layers_are_ordered_by_their_parents() {
    let images = image(TOP, "Compressed", "top &amp; more.hds") + &image(BASE, "Plain", "base.hds");
    let shots = shot(TOP, BASE) + &shot(BASE, NOBODY);
    let want = Ok(vec!["base.hds".to_owned(), "top & more.hds".to_owned()]);
    assert_eq!(parse(&text(&images, &shots)), want);
    assert_eq!(parse(&text(&images, &format!("<TopGUID>{TOP}</TopGUID>{shots}"))), want);
}

#[test]
fn nonsense_is_told() {
    let one = image(TOP, "Compressed", "top.hds");
    let circle = shot(TOP, TOP);
    for (text, part) in [
        (String::new(), "no Parallels_disk_image"),
        ("<Parallels_disk_image>".to_owned(), "no Parallels_disk_image"),
        (text(&one, &format!("<TopGUID>{TOP}</TopGUID>{circle}")), "circle"),
        (text(&one, &circle), "circle"),
        (text(&one, &shot(BASE, NOBODY)), "no file for snapshot"),
        (text(&one, &format!("<TopGUID>{TOP}</TopGUID>")), "does not list"),
        (text(&image(TOP, "Odd", "x"), &shot(TOP, NOBODY)), "files of type Odd"),
        (text(&format!("{one}</Storage><Storage>"), ""), "split"),
        (text("<Image></Image>", ""), "files of type ?"),
    ] {
        let told = parse(&text).expect_err("refused");
        assert!(told.contains(part), "{told}");
    }
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("remove");
    }
}

#[test]
fn a_directory_with_a_snapshot_is_a_disk() {
    let dir = Scratch(std::env::temp_dir().join(format!("guise-hdd-{}", std::process::id())));
    std::fs::create_dir_all(&dir.0).expect("make a directory");
    let part = |name: &str| FileStorage::open(&dir.0.join(name), FileOptions::create());
    for name in ["base.hds", "top.hds"] {
        Parallels::create(&part(name).expect("file"), SIZE, 64 << 10, Preallocation::Off)
            .expect("create");
    }
    let images = image(BASE, "Compressed", "base.hds") + &image(TOP, "Compressed", "top.hds");
    let shots = shot(BASE, NOBODY) + &shot(TOP, BASE);
    let describe = |top: &str| {
        let text = text(&images, &format!("<TopGUID>{top}</TopGUID>{shots}"));
        std::fs::write(dir.0.join(FILE_NAME), text).expect("write the description");
    };
    let open = |path: &Path| Image::open(path, &OpenOptions::write(FormatKind::Parallels));
    describe(BASE);
    let base = open(&dir.0).expect("open the base");
    base.write(100_000, &[1; 200_000]).expect("write");
    base.close().expect("close");
    drop(base);
    describe(TOP);
    // By its directory, and by the description itself, as what it looks like.
    let top = open(&dir.0).expect("open the top");
    top.write(150_000, &[2; 1000]).expect("write");
    top.close().expect("close");
    drop(top);
    let disk = Image::open(&dir.0.join(FILE_NAME), &OpenOptions::read(None)).expect("open");
    let mut have = vec![0; 200_000];
    disk.read(100_000, &mut have).expect("read");
    let mut want = vec![1; 200_000];
    want[50_000..51_000].fill(2);
    assert!(have == want, "the snapshot's data with the changes");
    assert_eq!((disk.size(), disk.depth()), (SIZE, 2));
}
