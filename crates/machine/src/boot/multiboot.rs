//! Multiboot 1: a header near the start of the file, a 32-bit entry, and an
//! information structure behind EBX. Test suites and small kernels use it. An
//! initial RAM disk is handed over as the only module.

use super::{BootError, Entry, Job, place};
use crate::layout::{BASE_RAM_END, BOOT_INFO, COMMAND_LINE, EXTENDED_RAM_START, KIB, Usage};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies in this much of the file, at a multiple of four.
const SEARCHED: usize = 8192;
/// Requirements of the header: its address fields are valid.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Requirements that this loader meets: aligned modules, memory information, a video
/// mode (there is no display, which is a permitted answer), addresses.
const MET: u32 = 0b111 | HAS_ADDRESSES;
/// The low half of the flags are requirements; the others are hints.
const REQUIREMENTS: u32 = 0xffff;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

const INFO_SIZE: usize = 88;
const MODULES_AT: u64 = BOOT_INFO + 0x80;
const NAME_AT: u64 = BOOT_INFO + 0xa0;
const MAP_AT: u64 = BOOT_INFO + 0xc0;
const COMMAND_LINE_LIMIT: u64 = 32 * KIB;
/// Strings of modules follow the command line.
const MODULE_STRING_AT: u64 = COMMAND_LINE + COMMAND_LINE_LIMIT;
const INITRD_LIMIT: u64 = 1 << 32;

/// A header that was found.
#[derive(Clone, Copy)]
pub struct Header {
    at: usize,
    flags: u32,
}

/// Looks for the header; the checksum makes it certain.
pub fn find_header(image: &[u8]) -> Option<Header> {
    let searched = &image[..image.len().min(SEARCHED)];
    let (words, _) = searched.as_chunks::<4>();
    words.windows(3).enumerate().find_map(|(index, words)| {
        let [magic, flags, checksum] = [0, 1, 2].map(|at| u32::from_le_bytes(words[at]));
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { at: index * 4, flags })
    })
}

/// Loads a file that is not ELF but has a header with addresses.
pub fn load(job: Job) -> Result<Entry, BootError> {
    let Some(header) = find_header(job.image) else {
        return Err(BootError::NotAKernel { path: job.path.to_owned() });
    };
    if header.flags & HAS_ADDRESSES == 0 {
        return Err(job.bad("its multiboot header gives no addresses and it is not an ELF file"));
    }
    let field = |index: usize| {
        let at = header.at + 12 + index * 4;
        let bytes = job.image.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
        bytes.map(|bytes| u32::from_le_bytes(*bytes))
    };
    let (Some(header_address), Some(start), Some(load_end), Some(bss_end), Some(entry)) =
        (field(0), field(1), field(2), field(3), field(4))
    else {
        return Err(job.bad("it ends inside its multiboot header"));
    };
    let inconsistent = || job.bad("the addresses in its multiboot header contradict each other");
    let before_header = header_address.checked_sub(start).ok_or_else(inconsistent)? as usize;
    let file_start = header.at.checked_sub(before_header).ok_or_else(inconsistent)?;
    let file_end = match load_end {
        0 => job.image.len(),
        end => file_start + end.checked_sub(start).ok_or_else(inconsistent)? as usize,
    };
    let content = job
        .image
        .get(file_start..file_end)
        .ok_or_else(|| job.bad("it is truncated: its multiboot header promises more"))?;
    let start = u64::from(start);
    if start < EXTENDED_RAM_START {
        return Err(job.bad("it loads below the first mebibyte, where boot data is"));
    }
    place::write(job.target, "the kernel", start, content)?;
    let loaded_end = start + content.len() as u64;
    let end = u64::from(bss_end).max(loaded_end);
    place::clear(job.target, "the kernel", loaded_end, end - loaded_end)?;
    self::start(job, header, entry, end)
}

/// Writes the information structure for a kernel that has been loaded.
pub fn start(mut job: Job, header: Header, entry: u32, end: u64) -> Result<Entry, BootError> {
    let target = job.target;
    if header.flags & REQUIREMENTS & !MET != 0 {
        return Err(job.bad(format!(
            "its multiboot header requires what does not exist (flags {:#x})",
            header.flags
        )));
    }
    // As boot loaders do, the program's name comes first.
    let command_line = format!("{} {}", job.path.display(), job.command_line);
    let command_line = job.write_command_line(command_line.trim_end(), COMMAND_LINE_LIMIT - 1)?;
    let initrd = job.initrd.take();
    let module = initrd.map(|initrd| initrd.load(target, end, INITRD_LIMIT)).transpose()?;
    if let Some((address, size)) = module {
        place::write(target, "a module's name", MODULE_STRING_AT, b"initrd\0")?;
        let entry = words(&[address as u32, (address + size) as u32, MODULE_STRING_AT as u32, 0]);
        place::write(target, "the list of modules", MODULES_AT, &entry)?;
    }
    place::write(target, "the loader's name", NAME_AT, b"Guise\0")?;
    let map = memory_map(&job);
    place::write(target, "the memory map", MAP_AT, &map)?;

    let mut info = [0u32; INFO_SIZE / 4];
    info[0] = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    info[1] = (BASE_RAM_END / KIB) as u32;
    info[2] = (target.ram.low.saturating_sub(EXTENDED_RAM_START) / KIB) as u32;
    info[4] = command_line as u32;
    if module.is_some() {
        info[0] |= INFO_MODULES;
        info[5] = 1;
        info[6] = MODULES_AT as u32;
    }
    info[11] = map.len() as u32;
    info[12] = MAP_AT as u32;
    info[16] = NAME_AT as u32;
    place::write(target, "the multiboot information", BOOT_INFO, &words(&info))?;
    Ok(Entry::Protected { eip: entry, eax: LOADER_MAGIC, ebx: BOOT_INFO as u32 })
}

/// Entries that begin with the size of their rest.
fn memory_map(job: &Job) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in job.target.ram.map() {
        debug_assert!(matches!(line.usage, Usage::Ram | Usage::Reserved));
        bytes.extend_from_slice(&20u32.to_le_bytes());
        bytes.extend_from_slice(&line.start.to_le_bytes());
        bytes.extend_from_slice(&line.size.to_le_bytes());
        bytes.extend_from_slice(&line.usage.e820().to_le_bytes());
    }
    bytes
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
