use std::os::unix::fs::symlink;

use rustix::io::Errno;

use super::protocol::*;
use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

const ANSWER: u64 = BUFFERS + 0x8_0000;
const DATA: u64 = BUFFERS + 0x10_0000;

struct Mounted {
    guest: Guest,
    directory: tempfile::TempDir,
}

/// What a test says of an answer that failed.
type Asked = Result<Vec<u8>, Errno>;

impl Mounted {
    fn new(read_only: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = ShareOptions {
            tag: "data".to_owned(),
            read_only,
            cache: Cache::Auto,
            most_files: 16,
            queues: 2,
        };
        let share = directory.path().join("share");
        std::fs::create_dir(&share).unwrap();
        std::fs::write(directory.path().join("outside"), "secret").unwrap();
        let mut guest = Guest::new(Share::new(&share, &options).unwrap());
        guest.start(0, false, true);
        let mut mounted = Self { guest, directory };
        let init = Answer::default().word(7).word(36).word(1 << 20).word(u32::MAX);
        let answer = mounted.ask(INIT, 0, init).unwrap();
        assert_eq!(answer.len(), 64);
        mounted
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("share").join(name)
    }

    fn put(&mut self, queue: usize, operation: u32, node: u64, arguments: &[u8]) {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let header = Answer::default()
            .word((REQUEST_HEADER + arguments.len()) as u32)
            .word(operation)
            .long(77)
            .long(node)
            .word(uid)
            .word(gid)
            .zeros(8);
        self.guest.queues[queue].put(BUFFERS, &header.0);
        self.guest.queues[queue].put(BUFFERS + 0x100, arguments);
    }

    fn answer(&mut self, queue: usize) -> Asked {
        let written = self.guest.queues[queue].wait_used().1 as usize;
        let bytes: [u8; 0x4000] = self.guest.queues[queue].get(ANSWER);
        let (header, body) = bytes[..written].split_at(ANSWER_HEADER);
        let word = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0) as usize, word(8)), (written, 77));
        match word(4) {
            0 => Ok(body.to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    fn ask(&mut self, operation: u32, node: u64, arguments: Answer) -> Asked {
        self.put(1, operation, node, &arguments.0);
        let length = arguments.0.len() as u32;
        self.guest.queues[1].add(&[
            (BUFFERS, REQUEST_HEADER as u32, false),
            (BUFFERS + 0x100, length, false),
            (ANSWER, 0x4000, true),
        ]);
        self.guest.notify(1);
        self.answer(1)
    }

    fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Asked {
        let arguments = Answer::default().long(handle).long(offset).word(data.len() as u32);
        let arguments = arguments.zeros(20);
        self.put(1, WRITE, ROOT, &arguments.0);
        self.guest.queues[1].put(DATA, data);
        self.guest.queues[1].add(&[
            (BUFFERS, 40, false),
            (BUFFERS + 0x100, 40, false),
            (DATA, data.len() as u32, false),
            (ANSWER, 0x4000, true),
        ]);
        self.guest.notify(1);
        self.answer(1)
    }

    fn read(&mut self, handle: u64, offset: u64, length: u32) -> Asked {
        self.ask(READ, ROOT, Answer::default().long(handle).long(offset).word(length).zeros(20))
    }

    /// A file's number.
    fn find(&mut self, node: u64, name: &str) -> Result<u64, Errno> {
        self.ask(LOOKUP, node, text(name)).map(|answer| long(&answer, 0))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        let arguments = Answer::default().word(flags as u32).word(0);
        self.ask(OPEN, node, arguments).map(|answer| long(&answer, 0))
    }

    fn create(&mut self, name: &str) -> Result<(u64, u64), Errno> {
        let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
        let arguments = Answer::default().word(flags).word(0o100_444).zeros(8);
        let answer = self.ask(CREATE, ROOT, arguments.bytes(&text(name).0))?;
        Ok((long(&answer, 0), long(&answer, 128)))
    }

    fn size(&mut self, node: u64) -> Result<u64, Errno> {
        self.ask(GETATTR, node, Answer::default().zeros(16)).map(|answer| long(&answer, 24))
    }
}

fn text(text: &str) -> Answer {
    Answer::default().bytes(text.as_bytes()).zeros(1)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn the_guest_sees_the_tag_and_the_queues() {
    let mounted = Mounted::new(false);
    assert_eq!(&mounted.guest.config::<5>(0), b"data\0");
    assert_eq!(mounted.guest.config::<4>(36), [2, 0, 0, 0]);
}

#[test]
fn files_are_made_written_and_read() {
    let mut mounted = Mounted::new(false);
    let (node, handle) = mounted.create("file").unwrap();
    assert_eq!(long(&mounted.write(handle, 3, b"hello").unwrap(), 0), 5);
    assert_eq!(mounted.read(handle, 0, 100).unwrap(), b"\0\0\0hello");
    assert_eq!(mounted.read(handle, 4, 2).unwrap(), b"el");
    assert_eq!(mounted.size(node), Ok(8));
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), b"\0\0\0hello");
    assert_eq!(mounted.find(ROOT, "file"), Ok(node));
    mounted.ask(RELEASE, node, Answer::default().long(handle).zeros(16)).unwrap();
    assert_eq!(mounted.read(handle, 0, 1), Err(Errno::BADF));
}

#[test]
fn no_name_leads_out() {
    let mut mounted = Mounted::new(false);
    symlink("../outside", mounted.path("link")).unwrap();
    symlink("..", mounted.path("up")).unwrap();
    std::fs::create_dir(mounted.path("dir")).unwrap();
    for name in ["..", ".", "", "dir/..", "../outside", "/etc"] {
        assert_eq!(mounted.find(ROOT, name), Err(Errno::INVAL), "{name:?}");
        for operation in [UNLINK, RMDIR] {
            assert_eq!(mounted.ask(operation, ROOT, text(name)), Err(Errno::INVAL));
        }
        let rename = Answer::default().long(ROOT).bytes(b"dir\0").bytes(&text(name).0);
        assert_eq!(mounted.ask(RENAME, ROOT, rename), Err(Errno::INVAL));
    }
    let link = mounted.ask(LOOKUP, ROOT, text("link")).unwrap();
    // Its mode says that it is a link.
    assert_eq!(link[40 + 60 + 1] >> 4, 0xa);
    let link = long(&link, 0);
    assert_eq!(mounted.ask(READLINK, link, Answer::default()).unwrap(), b"../outside");
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_PATH] {
        assert_eq!(mounted.open(link, flags), Err(Errno::LOOP));
    }
    let up = mounted.find(ROOT, "up").unwrap();
    assert_eq!(mounted.find(up, "outside"), Err(Errno::NOTDIR));
    assert_eq!(mounted.ask(OPENDIR, up, Answer::default().zeros(8)), Err(Errno::NOTDIR));
    // A directory that becomes a link under the guest's eyes stays the directory.
    let dir = mounted.find(ROOT, "dir").unwrap();
    std::fs::rename(mounted.path("dir"), mounted.path("moved")).unwrap();
    symlink("..", mounted.path("dir")).unwrap();
    assert_eq!(mounted.find(dir, "outside"), Err(Errno::NOENT));
}

#[test]
fn what_is_no_file_is_not_opened() {
    let mut mounted = Mounted::new(false);
    let node = |mode: u32| Answer::default().word(mode).word(0x801).zeros(8).bytes(b"node\0");
    assert_eq!(mounted.ask(MKNOD, ROOT, node(0o60_666)), Err(Errno::PERM));
    assert_eq!(mounted.ask(MKNOD, ROOT, node(0o20_666)), Err(Errno::PERM));
    let pipe = mounted.ask(MKNOD, ROOT, node(0o10_666)).unwrap();
    assert_eq!(mounted.open(long(&pipe, 0), libc::O_RDWR), Err(Errno::NXIO));
    assert_eq!(mounted.open(ROOT, libc::O_RDONLY), Err(Errno::ISDIR));
    assert_eq!(mounted.open(999, libc::O_RDONLY), Err(Errno::STALE));
}

#[test]
fn a_read_only_share_stays_as_it_is() {
    let mut mounted = Mounted::new(true);
    std::fs::write(mounted.path("file"), "text").unwrap();
    assert_eq!(mounted.create("new"), Err(Errno::ROFS));
    assert_eq!(mounted.ask(UNLINK, ROOT, text("file")), Err(Errno::ROFS));
    let node = mounted.find(ROOT, "file").unwrap();
    assert_eq!(mounted.open(node, libc::O_WRONLY), Err(Errno::ROFS));
    assert_eq!(mounted.open(node, libc::O_RDONLY | libc::O_TRUNC), Err(Errno::ROFS));
    let handle = mounted.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(mounted.read(handle, 0, 9).unwrap(), b"text");
}

#[test]
fn more_files_are_known_than_descriptors_open() {
    let mut mounted = Mounted::new(false);
    std::fs::create_dir(mounted.path("dir")).unwrap();
    let dir = mounted.find(ROOT, "dir").unwrap();
    let mut nodes = Vec::new();
    for number in 0..100 {
        let name = format!("file {number}");
        std::fs::write(mounted.path("dir").join(&name), vec![b'x'; number]).unwrap();
        nodes.push(mounted.find(dir, &name).unwrap());
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let share = mounted.path("dir");
    let ours = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    assert!(ours.filter(|path| path.starts_with(&share)).count() <= 17);
    // The directory moves, one file is moved, and one is replaced by another.
    let rename = Answer::default().long(ROOT).bytes(b"dir\0other\0");
    mounted.ask(RENAME, ROOT, rename).unwrap();
    let rename = Answer::default().long(ROOT).bytes(b"file 5\0five\0");
    mounted.ask(RENAME, dir, rename).unwrap();
    let replaced = mounted.path("other").join("file 7");
    std::fs::remove_file(&replaced).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&replaced, "somebody else's").unwrap();
    for (number, node) in nodes.iter().enumerate() {
        let expected = if number == 7 { Err(Errno::STALE) } else { Ok(number as u64) };
        assert_eq!(mounted.size(*node), expected, "{number}");
    }
    // What has lost its name is still there for who has it.
    mounted.ask(UNLINK, ROOT, text("five")).unwrap();
    for node in &nodes[20..60] {
        mounted.size(*node).unwrap();
    }
    assert_eq!(mounted.size(nodes[5]), Ok(5));
    mounted.put(0, FORGET, nodes[5], &1_u64.to_le_bytes());
    mounted.guest.queues[0].add(&[(BUFFERS, 40, false), (BUFFERS + 0x100, 8, false)]);
    mounted.guest.notify(0);
    mounted.guest.queues[0].wait_used();
    assert_eq!(mounted.size(nodes[5]), Err(Errno::STALE));
}

#[test]
fn directories_are_listed_in_parts() {
    let mut mounted = Mounted::new(false);
    let mut expected: Vec<String> = (0..50).map(|number| format!("file {number}")).collect();
    for name in &expected {
        std::fs::write(mounted.path(name), "").unwrap();
    }
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    let opened = mounted.ask(OPENDIR, ROOT, Answer::default().zeros(8)).unwrap();
    let handle = long(&opened, 0);
    for (operation, before) in [(READDIR, 0), (READDIRPLUS, 128)] {
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let arguments = Answer::default().long(handle).long(offset).word(500).zeros(20);
            let entries = mounted.ask(operation, ROOT, arguments).unwrap();
            if entries.is_empty() {
                break;
            }
            assert!(entries.len() <= 500);
            let mut at = 0;
            while at < entries.len() {
                let entry = &entries[at + before..];
                let length = long(entry, 16) as u32 as usize;
                offset = long(entry, 8);
                names.push(String::from_utf8(entry[24..24 + length].to_vec()).unwrap());
                at += before + (24 + length).next_multiple_of(8);
            }
        }
        names.sort();
        assert_eq!(names, expected);
    }
}

#[test]
fn who_waits_for_a_lock_gets_it() {
    let mut mounted = Mounted::new(false);
    let (node, handle) = mounted.create("file").unwrap();
    let lock = |owner: u64, kind: i32| {
        let lock = Answer::default().long(handle).long(owner).long(0).long(u64::MAX >> 1);
        lock.word(kind as u32).word(1).word(0).word(0)
    };
    mounted.ask(SETLK, node, lock(1, libc::F_WRLCK)).unwrap();
    assert_eq!(mounted.ask(SETLK, node, lock(2, libc::F_WRLCK)), Err(Errno::AGAIN));
    let holder = mounted.ask(GETLK, node, lock(2, libc::F_WRLCK)).unwrap();
    assert_eq!(holder[16], libc::F_WRLCK as u8);
    // The second waits in one queue, and the first lets go in the other.
    let wanted = lock(2, libc::F_WRLCK).0;
    mounted.put(2, SETLKW, node, &wanted);
    let buffers = [(BUFFERS, 40, false), (BUFFERS + 0x100, wanted.len() as u32, false)];
    mounted.guest.queues[2].add(&[buffers[0], buffers[1], (ANSWER, 0x4000, true)]);
    mounted.guest.notify(2);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(mounted.guest.queues[2].used().is_none());
    // A machine that is saved meanwhile forgets nobody.
    let _ = mounted.guest.function.state();
    let flush = Answer::default().long(handle).zeros(8).long(1);
    mounted.ask(FLUSH, node, flush).unwrap();
    mounted.answer(2).unwrap();
}

#[test]
fn requests_that_are_cut_off_are_refused() {
    let mut mounted = Mounted::new(false);
    for operation in (3..53).filter(|operation| ![INTERRUPT, BATCH_FORGET].contains(operation)) {
        if matches!(operation, DESTROY | STATFS | READLINK | OPENDIR | SYNCFS) {
            continue;
        }
        let result = mounted.ask(operation, ROOT, Answer::default().zeros(3));
        assert!(result.is_err(), "{operation}: {result:?}");
    }
    assert_eq!(mounted.find(ROOT, "nothing"), Err(Errno::NOENT));
}
