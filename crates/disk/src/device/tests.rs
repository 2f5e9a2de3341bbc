use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::format::FormatKind;
use crate::ops::{CreateRequest, create};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A file that goes with the test.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(kind: FormatKind) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("guise-device-{}-{number}", std::process::id());
        let scratch = Self(std::env::temp_dir().join(name));
        create(&CreateRequest::new(&scratch.0, kind, Some(8 << 20))).expect("create");
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("remove");
    }
}

fn fill(queue: &mut Queue, offset: u64, byte: u8) {
    queue.push(offset, Request::Write { offset, buffer: Buffer::Owned(vec![byte; 4096]) });
}

fn drain(queue: &mut Queue) -> Vec<Completion> {
    queue.submit().expect("submit");
    let mut all = Vec::new();
    while queue.wait().expect("wait") {
        while let Some(completion) = queue.take() {
            all.push(completion);
        }
    }
    all
}

#[test]
fn a_queue_reads_what_it_wrote() {
    for kind in [FormatKind::Raw, FormatKind::Qcow2, FormatKind::Vhdx, FormatKind::Vdi] {
        let file = Scratch::new(kind);
        let device = BlockDevice::open(&DeviceOptions::new(&file.0, kind)).expect("open");
        let mut queue = device.queue(32);
        for round in 0..3_u8 {
            for index in 0..64 {
                fill(&mut queue, index * 40_960, round + index as u8);
            }
            assert!(drain(&mut queue).iter().all(|done| done.result.is_ok()));
        }
        queue.push(0, Request::Flush);
        for index in 0..64 {
            let buffer = Buffer::Owned(vec![0; 4096]);
            queue.push(index, Request::Read { offset: index * 40_960, buffer });
        }
        for done in drain(&mut queue) {
            assert!(done.result.is_ok());
            if let Some(Buffer::Owned(bytes)) = done.buffer {
                assert!(bytes.iter().all(|&byte| byte == 2 + done.tag as u8), "{kind:?}");
            }
        }
        drop(queue);
        device.close().expect("close");
    }
}

#[test]
fn several_queues_at_once() {
    let file = Scratch::new(FormatKind::Qcow2);
    let device = BlockDevice::open(&DeviceOptions::new(&file.0, FormatKind::Qcow2)).expect("open");
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let device = device.clone();
            scope.spawn(move || {
                let mut queue = device.queue(16);
                for index in 0..100 {
                    // Threads share clusters, not sectors.
                    fill(&mut queue, (index * 4 + thread) * 4096, thread as u8 + 1);
                    if index % 10 == 9 {
                        queue.push(0, Request::Flush);
                        assert!(drain(&mut queue).iter().all(|done| done.result.is_ok()));
                    }
                }
            });
        }
    });
    let mut all = vec![0; 400 * 4096];
    device.read_vectored(0, &mut [IoSliceMut::new(&mut all)]).expect("read");
    for (index, block) in all.chunks_exact(4096).enumerate() {
        assert!(block.iter().all(|&byte| byte == (index % 4) as u8 + 1), "block {index}");
    }
    device.close().expect("close");
    let report = device.image().format().check(crate::format::Repair::Nothing).expect("check");
    assert_eq!((report.corruptions, report.leaks), (0, 0));
}

#[test]
fn changes_thrown_away() {
    let file = Scratch::new(FormatKind::Qcow2);
    let before = std::fs::read(&file.0).expect("read file");
    let mut options = DeviceOptions::new(&file.0, FormatKind::Qcow2);
    options.snapshot = true;
    let device = BlockDevice::open(&options).expect("open");
    device
        .write_vectored(4096, &[IoSlice::new(&[7; 100]), IoSlice::new(&[8; 924])])
        .expect("write");
    let mut back = [0; 1024];
    device.read_vectored(4096, &mut [IoSliceMut::new(&mut back)]).expect("read");
    assert!(back[..100] == [7; 100] && back[100..] == [8; 924]);
    device.close().expect("close");
    drop(device);
    assert!(std::fs::read(&file.0).expect("read file") == before);
}

#[test]
fn outside_the_disk() {
    let file = Scratch::new(FormatKind::Raw);
    let device = BlockDevice::open(&DeviceOptions::new(&file.0, FormatKind::Raw)).expect("open");
    let mut queue = device.queue(4);
    fill(&mut queue, device.size() - 512, 1);
    fill(&mut queue, u64::MAX - 100, 1);
    let done = drain(&mut queue);
    assert_eq!(done.len(), 2);
    assert!(done.iter().all(|done| done.result.is_err()));
}

#[test]
fn options_as_text() {
    let options = DeviceOptions::parse("a,,b.img,format=vpc,readonly,cache=none").expect("parse");
    assert_eq!(options.path.to_str(), Some("a,b.img"));
    assert_eq!(options.format, Some(FormatKind::Vhd));
    assert!(options.readonly && options.direct && !options.snapshot);
    for wrong in ["", ",format=raw", "a,format=floppy", "a,readonly=maybe", "a,colour=red"] {
        assert!(DeviceOptions::parse(wrong).is_err(), "{wrong}");
    }
}

/// Also of reads that have to wait for the host's own disk, which end in another way than
/// those whose bytes are in memory.
#[test]
fn every_completion_is_signalled() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const READS: u64 = 64;
    let file = Scratch::new(FormatKind::Raw);
    let plain = std::fs::File::options().write(true).open(&file.0).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&plain, &vec![7; 8 << 20], 0).expect("fill");
    plain.sync_all().expect("sync");
    rustix::fs::fadvise(&plain, 0, None, rustix::fs::Advice::DontNeed).expect("forget");
    let device = BlockDevice::open(&DeviceOptions::new(&file.0, FormatKind::Raw)).expect("open");
    let mut queue = device.queue(8);
    if !queue.has_ring() {
        println!("not run: signals of a ring: this kernel, or its sandbox, has no io_uring");
        return;
    }
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    for number in 0..READS {
        // From the end, so that the kernel does not read ahead.
        let offset = (READS - 1 - number) * (128 << 10);
        let buffer = Buffer::Owned(vec![0; 4096]);
        queue.push(number, Request::Read { offset, buffer });
        queue.submit().expect("submit");
        let done = loop {
            // Only when the descriptor says so is it looked for what is done.
            let ring = queue.descriptor().expect("it has a ring");
            let mut fds = [PollFd::new(&ring, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&patience)).expect("poll");
            assert_eq!(ready, 1, "read {number} ended without a signal, or not at all");
            if let Some(done) = queue.take() {
                break done;
            }
        };
        assert_eq!(done.tag, number);
        done.result.expect("read");
    }
}

/// Nobody reads the bell, so it would be heard once only if it was not watched for rings.
#[test]
fn a_bell_is_heard_each_time_that_it_is_rung() {
    use std::os::fd::AsFd as _;
    use std::sync::mpsc;
    const ROUNDS: u64 = 200;
    let file = Scratch::new(FormatKind::Raw);
    let device = BlockDevice::open(&DeviceOptions::new(&file.0, FormatKind::Raw)).expect("open");
    let mut queue = device.queue(8);
    if !queue.can_watch() {
        println!("not run: a bell beside a ring: this kernel, or its sandbox, has no io_uring");
        return;
    }
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd");
    let ring = bell.try_clone().expect("another descriptor");
    let (orders, wanted) = mpsc::channel();
    let ringer = std::thread::spawn(move || {
        for () in wanted {
            rustix::io::write(&ring, &1_u64.to_ne_bytes()).expect("ring");
        }
    });
    for round in 0..ROUNDS {
        orders.send(()).expect("the ringer listens");
        let buffer = Buffer::Owned(vec![1; 4096]);
        queue.push(round, Request::Read { offset: round * 4096, buffer });
        let (mut rung, mut read) = (false, false);
        // A wait that the bell did not end would be for ever.
        while !rung || !read {
            rung |= queue.wait_also_for(bell.as_fd()).expect("wait");
            while let Some(done) = queue.take() {
                done.result.expect("read");
                assert_eq!(done.tag, round);
                read = true;
            }
        }
    }
    drop(orders);
    ringer.join().expect("the ringer");
}

#[test]
fn internal_snapshots_are_listed() {
    let file = Scratch::new(FormatKind::Qcow2);
    let mut options = DeviceOptions::new(&file.0, FormatKind::Qcow2);
    let names = |device: &BlockDevice| -> Vec<String> {
        device.snapshots().into_iter().map(|snapshot| snapshot.name).collect()
    };
    let device = BlockDevice::open(&options).expect("open");
    assert!(names(&device).is_empty());
    let qcow2 = device.image().format().as_qcow2().expect("qcow2");
    qcow2.create_snapshot("before", (1, 2)).expect("create");
    assert_eq!(names(&device), ["before"]);
    device.close().expect("close");
    drop(device);
    // Also through a layer that is thrown away.
    options.snapshot = true;
    let device = BlockDevice::open(&options).expect("open");
    assert_eq!(names(&device), ["before"]);
    device.write(0, &[7; 4096]).expect("write");
    device.close().expect("close");
    drop(device);
    let mut bytes = [1; 4096];
    let device = BlockDevice::open(&DeviceOptions { snapshot: false, ..options }).expect("open");
    device.read(0, &mut bytes).expect("read");
    assert_eq!(bytes, [0; 4096]);
}
