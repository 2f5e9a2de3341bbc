use super::*;
use crate::driver::Driver;
use crate::frame::PartialChecksum;

/// A network that sends back what it gets.
#[derive(Default)]
struct Echo {
    frames: Vec<(Vec<u8>, Offload)>,
}

impl Network for Echo {
    fn descriptor(&self) -> BorrowedFd<'_> {
        unreachable!("nobody waits for it")
    }

    fn timer(&self) -> Option<Duration> {
        None
    }

    fn input(&mut self, frame: &[u8], offload: Offload) {
        self.frames.push((frame.to_vec(), offload));
    }

    fn poll(&mut self, interface: &mut dyn Interface) {
        for (frame, offload) in self.frames.drain(..) {
            interface.room(frame.len()).unwrap()[..frame.len()].copy_from_slice(&frame);
            interface.deliver(frame.len(), offload);
        }
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

/// Kind and contents of each block.
fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = word(&bytes[4..]) as usize;
        assert_eq!(length % 4, 0);
        assert_eq!(word(&bytes[length - 4..]) as usize, length);
        found.push((word(bytes), bytes[8..length - 4].to_vec()));
        bytes = &bytes[length..];
    }
    found
}

#[test]
fn both_directions_are_written_with_checksums_put_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port.pcapng");
    let capture = Capture::create(&path, "net0").unwrap();
    let mut watched = Watched::new(Echo::default(), Some(capture));
    let frame: Vec<u8> = (0..61).collect();
    let partial = PartialChecksum { start: 14, offset: 4 };
    let offload = Offload { partial_checksum: Some(partial), ..Offload::default() };
    watched.input(&frame, offload);
    let mut driver = Driver::default();
    watched.poll(&mut driver);
    assert_eq!(driver.frames.len(), 1);

    let blocks = blocks(&std::fs::read(&path).unwrap());
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [SECTION, INTERFACE, ENHANCED_PACKET, ENHANCED_PACKET]);
    assert_eq!(blocks[0].1[..4], BYTE_ORDER.to_le_bytes());
    assert_eq!(blocks[1].1[..2], ETHERNET.to_le_bytes());
    let mut expected = frame.clone();
    checksum::complete(&mut expected, &partial);
    for ((_, block), way) in blocks[2..].iter().zip([Direction::FromGuest, Direction::ToGuest]) {
        assert_eq!(block[12..16], 61u32.to_le_bytes());
        assert_eq!(block[20..81], expected[..]);
        assert_eq!(block[84..92], [2, 0, 4, 0, way as u8, 0, 0, 0]);
        let time = u64::from(u32::from_le_bytes(block[4..8].try_into().unwrap())) << 32;
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 - time;
        assert!(age < 3_600_000_000_000, "the time is not now");
    }
}

#[test]
fn a_capture_that_cannot_be_made_says_which() {
    let error = Capture::create(Path::new("/nonexistent/port.pcapng"), "net0");
    let text = error.err().expect("an error").to_string();
    assert!(text.contains("/nonexistent/port.pcapng"), "{text}");
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_network() {
    if !Path::new("/dev/full").exists() {
        println!("not run: this machine has no /dev/full");
        return;
    }
    let file = BufWriter::with_capacity(BUFFER, File::create("/dev/full").unwrap());
    let path = PathBuf::from("/dev/full");
    let capture = Capture { file, path, block: Vec::new(), unwritten: false };
    let mut watched = Watched::new(Echo::default(), Some(capture));
    let mut driver = Driver::default();
    for _ in 0..2 {
        watched.input(&[0; 60], Offload::default());
        watched.poll(&mut driver);
    }
    assert!(watched.capture.is_none());
    assert_eq!(driver.frames.len(), 2);
}
