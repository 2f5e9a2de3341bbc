use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::layout::{BOOT_INFO, COMMAND_LINE, MIB};
use crate::memory::Ram;

/// A machine's memory, and what was loaded into it.
struct Bench {
    ram: Ram,
}

impl Bench {
    fn new(mebibytes: u64) -> Self {
        Bench { ram: Ram::new(mebibytes * MIB, 0).unwrap() }
    }

    fn load(
        &self,
        image: &[u8],
        initrd: Option<&'static [u8]>,
        line: &str,
    ) -> Result<Entry, BootError> {
        let target = Target { memory: &self.ram.memory, ram: self.ram.layout, rsdp: 0xe_0000 };
        load_image(&target, image, initrd.map(Initrd::from_bytes), line, Path::new("kernel"))
    }

    fn error(&self, image: &[u8], initrd: Option<&'static [u8]>) -> String {
        self.load(image, initrd, "").unwrap_err().to_string()
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn word(&self, address: u64) -> u32 {
        self.ram.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn quad(&self, address: u64) -> u64 {
        self.ram.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage whose protected-mode part is 4 KiB of 0xee.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 512 * 3];
    image[0x1f1] = 2;
    put(&mut image, 0x1f4, &(4096u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &(2 * MIB as u32).to_le_bytes());
    image[0x234] = 1;
    put(&mut image, 0x236, &0x7fu16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut image, 0x260, &(4 * MIB as u32).to_le_bytes());
    image.resize(image.len() + 4096, 0xee);
    image
}

#[test]
fn a_bzimage_is_entered_where_it_likes_to_be() {
    let bench = Bench::new(64);
    let entry = bench.load(&bzimage(), Some(b"ramdisk"), "console=ttyS0").unwrap();
    assert_eq!(entry, Entry::Long { rip: 16 * MIB + 0x200, rsi: BOOT_INFO });
    assert_eq!(bench.bytes(16 * MIB, 4096), vec![0xee; 4096]);
    assert_eq!(bench.bytes(COMMAND_LINE, 14), b"console=ttyS0\0");
    assert_eq!(u64::from(bench.word(BOOT_INFO + 0x228)), COMMAND_LINE);
    let (address, size) = (bench.word(BOOT_INFO + 0x218), bench.word(BOOT_INFO + 0x21c));
    assert_eq!((u64::from(address), size), (64 * MIB - 4096, 7));
    assert_eq!(bench.bytes(64 * MIB - 4096, 7), b"ramdisk");
    assert_eq!(bench.quad(BOOT_INFO + 0x70), 0xe_0000);
    assert_eq!(bench.bytes(BOOT_INFO + 0x1e8, 1), [4]);
}

#[test]
fn a_relocatable_bzimage_moves_down_in_a_small_machine() {
    let bench = Bench::new(8);
    let entry = bench.load(&bzimage(), None, "").unwrap();
    assert_eq!(entry, Entry::Long { rip: 2 * MIB + 0x200, rsi: BOOT_INFO });
}

#[test]
fn a_bzimage_that_does_not_fit_says_so() {
    let error = Bench::new(4).error(&bzimage(), None);
    assert!(error.contains("the kernel needs memory up to 0x1400000"), "{error}");
}

#[test]
fn bad_bzimages_are_refused_with_the_reason() {
    let bench = Bench::new(64);
    let cases: [(&str, usize, &[u8]); 5] = [
        ("2.05 and a 64-bit entry came with 2.12", 0x206, &[5, 2]),
        ("it is a 32-bit kernel", 0x236, &[0, 0]),
        ("it is truncated", 0x1f4, &[0xff, 0xff, 0xff, 0xff]),
        ("less memory than it is long", 0x260, &[0, 0, 0, 0]),
        ("setup header is shorter", 0x201, &[3]),
    ];
    for (reason, at, bytes) in cases {
        let mut image = bzimage();
        put(&mut image, at, bytes);
        let error = bench.error(&image, None);
        assert!(error.contains(reason), "{error}");
    }
    let image = bzimage();
    for length in [0x206, 0x260, 0x300, image.len() - 600] {
        let error = bench.error(&image[..length], None);
        assert!(error.starts_with("kernel cannot be booted: it "), "{error}");
    }
}

#[test]
fn an_initrd_larger_than_memory_is_refused_before_it_is_read() {
    let file = std::env::temp_dir().join(format!("guise-initrd-{}", std::process::id()));
    File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let initrd = Initrd::open(&file).unwrap();
    let bench = Bench::new(64);
    let target = Target { memory: &bench.ram.memory, ram: bench.ram.layout, rsdp: 0 };
    let result = load_image(&target, &bzimage(), Some(initrd), "", Path::new("kernel"));
    std::fs::remove_file(&file).unwrap();
    let error = result.unwrap_err().to_string();
    assert!(error.contains("has 1024 GiB and 44 MiB of memory are free for it"), "{error}");
}

#[test]
fn command_lines_have_limits() {
    let bench = Bench::new(64);
    let error = bench.load(&bzimage(), None, &"x".repeat(2048)).unwrap_err();
    assert!(matches!(error, BootError::CommandLine { length: 2048, limit: 2047 }));
    bench.load(&bzimage(), None, &"x".repeat(2047)).unwrap();
    assert!(matches!(bench.load(&bzimage(), None, "a\0b"), Err(BootError::CommandLineNul)));
}

#[test]
fn what_is_no_kernel_is_called_that() {
    let bench = Bench::new(64);
    for image in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
        assert!(bench.error(image, None).contains("is not a kernel"));
    }
}

/// An ELF file of 64 bits with one segment at 2 MiB and, maybe, a PVH note.
fn elf(entry: u64, pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut image, 24, &entry.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 52, &[64, 0, 56, 0, if pvh { 2 } else { 1 }, 0]);
    // PT_LOAD: 16 bytes of the file, 64 bytes of memory.
    put(&mut image, 64, &[1, 0, 0, 0, 7, 0, 0, 0]);
    for (index, field) in [0x800, 0xffff_ffff_8020_0000, 2 * MIB, 16, 64, 0].into_iter().enumerate()
    {
        put(&mut image, 72 + index * 8, &u64::to_le_bytes(field));
    }
    put(&mut image, 0x800, &[0xcc; 16]);
    // PT_NOTE.
    put(&mut image, 120, &[4, 0, 0, 0, 4, 0, 0, 0]);
    for (index, field) in [0x900, 0, 0, 20, 20, 4].into_iter().enumerate() {
        put(&mut image, 128 + index * 8, &u64::to_le_bytes(field));
    }
    put(&mut image, 0x900, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut image, 0x90c, b"Xen\0\x40\x00\x20\x00");
    image
}

#[test]
fn an_elf_kernel_with_the_note_starts_by_pvh() {
    let bench = Bench::new(64);
    bench.ram.memory.write_slice(&[0xaa; 64], GuestAddress(2 * MIB)).unwrap();
    let entry = bench.load(&elf(0, true), Some(b"disk"), "one two").unwrap();
    assert_eq!(entry, Entry::Protected { eip: 0x20_0040, eax: 0, ebx: BOOT_INFO as u32 });
    assert_eq!(bench.bytes(2 * MIB, 16), [0xcc; 16]);
    assert_eq!(bench.bytes(2 * MIB + 16, 48), [0; 48], "the rest is cleared");
    assert_eq!(bench.word(BOOT_INFO), 0x336e_c578);
    assert_eq!(bench.word(BOOT_INFO + 12), 1);
    let module = bench.quad(BOOT_INFO + 16);
    assert_eq!((bench.quad(module), bench.quad(module + 8)), (64 * MIB - 4096, 4));
    assert_eq!(bench.bytes(bench.quad(BOOT_INFO + 24), 8), b"one two\0");
    let map = bench.quad(BOOT_INFO + 40);
    assert_eq!((bench.quad(map), bench.quad(map + 8), bench.word(map + 16)), (0, 640 << 10, 1));
}

#[test]
fn an_elf_kernel_without_the_note_starts_as_linux() {
    let bench = Bench::new(64);
    let entry = bench.load(&elf(2 * MIB + 8, false), None, "").unwrap();
    assert_eq!(entry, Entry::Long { rip: 2 * MIB + 8, rsi: BOOT_INFO });
    assert_eq!(bench.bytes(BOOT_INFO + 0x202, 4), b"HdrS");
}

#[test]
fn bad_elf_files_are_refused_with_the_reason() {
    let bench = Bench::new(64);
    let cases: [(&str, usize, &[u8]); 6] = [
        ("another processor", 18, &[183]),
        ("not a fixed executable", 16, &[3]),
        ("its entry address is not in memory", 24, &[0, 0, 0, 0xff, 0xff]),
        ("a segment ends outside of the file", 72, &[0, 0xff, 0xff]),
        ("below the first mebibyte", 88, &[0, 0, 1]),
        ("longer in the file than in memory", 104, &[1]),
    ];
    for (reason, at, bytes) in cases {
        let mut image = elf(2 * MIB, false);
        put(&mut image, at, bytes);
        let error = bench.error(&image, None);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let image = elf(2 * MIB, false);
    for length in 4..64 {
        assert!(bench.load(&image[..length], None, "").is_err());
    }
}

/// A flat file with a multiboot header that gives addresses.
fn multiboot_image(flags: u32) -> Vec<u8> {
    let mut image = vec![0x90; 0x400];
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let start = 2 * MIB as u32;
    for (index, field) in
        [magic, flags, checksum, start + 0x20, start, start + 0x400, start + 0x800, start + 0x100]
            .into_iter()
            .enumerate()
    {
        put(&mut image, 0x20 + index * 4, &field.to_le_bytes());
    }
    image
}

#[test]
fn a_multiboot_file_gets_its_information() {
    let bench = Bench::new(64);
    let entry = bench.load(&multiboot_image(0x1_0003), Some(b"module"), "a b").unwrap();
    let start = 2 * MIB as u32;
    assert_eq!(
        entry,
        Entry::Protected { eip: start + 0x100, eax: 0x2bad_b002, ebx: BOOT_INFO as u32 }
    );
    assert_eq!(bench.word(BOOT_INFO) & 0x4d, 0x4d);
    assert_eq!(bench.word(BOOT_INFO + 4), 640);
    assert_eq!(bench.word(BOOT_INFO + 8), 63 * 1024);
    assert_eq!(bench.bytes(u64::from(bench.word(BOOT_INFO + 16)), 11), b"kernel a b\0");
    assert_eq!(bench.word(BOOT_INFO + 20), 1);
    let module = u64::from(bench.word(BOOT_INFO + 24));
    assert_eq!(bench.bytes(u64::from(bench.word(module)), 6), b"module");
    assert_eq!(bench.word(module + 4) - bench.word(module), 6);
    assert_eq!(bench.word(u64::from(bench.word(BOOT_INFO + 48))), 20, "size of the first entry");
}

#[test]
fn bad_multiboot_files_are_refused_with_the_reason() {
    let bench = Bench::new(64);
    assert!(bench.error(&multiboot_image(3), None).contains("gives no addresses"));
    assert!(bench.error(&multiboot_image(0x1_8003), None).contains("requires what does not exist"));
    let mut image = multiboot_image(0x1_0003);
    put(&mut image, 0x30, &0x0300_0000u32.to_le_bytes());
    assert!(bench.error(&image, None).contains("contradict"), "starts after its header");
    assert!(bench.error(&multiboot_image(0x1_0003)[..0x200], None).contains("truncated"));
}

/// Every prefix and every flipped byte of good images ends in an entry or an error.
#[test]
fn damaged_images_never_panic() {
    let bench = Bench::new(24);
    for image in [bzimage(), elf(2 * MIB, true), multiboot_image(0x1_0003)] {
        for length in (0..image.len()).step_by(37) {
            let _ = bench.load(&image[..length], None, "");
        }
        for at in 0..image.len().min(0x300) {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut damaged = image.clone();
                damaged[at] = value;
                let _ = bench.load(&damaged, Some(b"initrd"), "line");
            }
        }
    }
}
