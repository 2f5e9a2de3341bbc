//! ELF kernels: the segments go where their physical addresses say. What is then
//! entered, and how, is told by the file: the PVH note, a multiboot header, or
//! neither, in which case it is Linux's `vmlinux` and its 64-bit entry.

use std::ops::Range;

use object::Endianness;
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use super::linux::Parameters;
use super::{BootError, Entry, Job, Target, multiboot, place, pvh};
use crate::layout::{EXTENDED_RAM_START, FREE_BASE_RAM};

/// Linux's limit for a command line where no header states one.
const COMMAND_LINE_LIMIT: u64 = 2047;
const INITRD_LIMIT: u64 = 0x8000_0000;

/// What an ELF file says of itself.
pub struct Kernel {
    pub entry: u64,
    /// The end of the highest segment in memory.
    pub end: u64,
    /// The 32-bit entry of the PVH note.
    pub pvh_entry: Option<u32>,
    pub is_64_bit: bool,
    /// It has segments where the 64-bit entry's page tables would be.
    uses_base_ram: bool,
}

pub fn load(job: Job) -> Result<Entry, BootError> {
    let kernel = load_segments(&job)?;
    if let Some(entry) = kernel.pvh_entry {
        pvh::start(job, entry, kernel.end)
    } else if let Some(header) = multiboot::find_header(job.image) {
        let entry = u32::try_from(kernel.entry)
            .map_err(|_| job.bad("its multiboot entry is beyond 4 GiB"))?;
        multiboot::start(job, header, entry, kernel.end)
    } else if kernel.is_64_bit {
        start_linux(job, &kernel)
    } else {
        Err(job.bad("it is a 32-bit ELF file with neither a multiboot header nor a PVH note"))
    }
}

/// An uncompressed Linux kernel, as `vmlinux` comes out of the linker.
fn start_linux(mut job: Job, kernel: &Kernel) -> Result<Entry, BootError> {
    if kernel.uses_base_ram {
        return Err(job.bad("a segment is below the first mebibyte, where boot data is"));
    }
    let target = job.target;
    let initrd = job.initrd.take();
    let initrd = initrd.map(|initrd| initrd.load(target, kernel.end, INITRD_LIMIT)).transpose()?;
    let command_line = job.write_command_line(job.command_line, COMMAND_LINE_LIMIT)?;
    let parameters = Parameters { header: &[], command_line, initrd };
    Ok(Entry::Long { rip: kernel.entry, rsi: parameters.write(target)? })
}

/// Reads the headers and puts the segments into RAM.
fn load_segments(job: &Job) -> Result<Kernel, BootError> {
    let bad = |error: object::read::Error| job.bad(format!("its ELF headers are bad: {error}"));
    match job.image.get(4) {
        Some(&class) if class == elf::ELFCLASS64.0 => {
            let header = FileHeader64::<Endianness>::parse(job.image).map_err(bad)?;
            load_parsed(job, header, bad)
        }
        Some(&class) if class == elf::ELFCLASS32.0 => {
            let header = FileHeader32::<Endianness>::parse(job.image).map_err(bad)?;
            load_parsed(job, header, bad)
        }
        _ => Err(job.bad("its ELF headers are bad: unknown class")),
    }
}

fn load_parsed<H: FileHeader<Endian = Endianness>>(
    job: &Job,
    header: &H,
    bad: impl Fn(object::read::Error) -> BootError + Copy,
) -> Result<Kernel, BootError> {
    let endian = header.endian().map_err(bad)?;
    if endian != Endianness::Little
        || !matches!(header.e_machine(endian), elf::EM_X86_64 | elf::EM_386)
    {
        return Err(job.bad("it is an ELF file for another processor"));
    }
    if header.e_type(endian) != elf::ET_EXEC {
        return Err(job.bad("it is an ELF file but not a fixed executable (a program, a library?)"));
    }
    let segments = header.program_headers(endian, job.image).map_err(bad)?;
    let mut kernel = Kernel {
        entry: header.e_entry(endian).into(),
        end: 0,
        pvh_entry: None,
        is_64_bit: header.is_class_64(),
        uses_base_ram: false,
    };
    for segment in segments {
        match segment.p_type(endian) {
            elf::PT_LOAD => {
                let memory = load_segment(job, segment, endian)?;
                kernel.end = kernel.end.max(memory.end);
                kernel.uses_base_ram |= !memory.is_empty() && memory.start < EXTENDED_RAM_START;
            }
            elf::PT_NOTE => {
                let Some(mut notes) = segment.notes(endian, job.image).map_err(bad)? else {
                    continue;
                };
                while let Some(note) = notes.next().map_err(bad)? {
                    if let Some(entry) =
                        pvh::entry_in(note.name(), note.n_type(endian).0, note.desc())
                    {
                        kernel.pvh_entry = Some(entry);
                    }
                }
            }
            _ => {}
        }
    }
    if kernel.end == 0 {
        return Err(job.bad("it has nothing to load"));
    }
    // Linux's vmlinux is linked to run high and states a virtual entry address; only
    // a physical one can be entered.
    if kernel.pvh_entry.is_none() && kernel.entry >= job.target.ram.low {
        return Err(job.bad("its entry address is not in memory"));
    }
    Ok(kernel)
}

/// Puts one segment into RAM and returns where it is there.
fn load_segment<P: ProgramHeader<Endian = Endianness>>(
    job: &Job,
    segment: &P,
    endian: Endianness,
) -> Result<Range<u64>, BootError> {
    let address: u64 = segment.p_paddr(endian).into();
    let size: u64 = segment.p_memsz(endian).into();
    if size == 0 {
        return Ok(0..0);
    }
    let data = segment
        .data(endian, job.image)
        .map_err(|()| job.bad("it is truncated: a segment ends outside of the file"))?;
    if data.len() as u64 > size {
        return Err(job.bad("a segment is longer in the file than in memory"));
    }
    let target: &Target = job.target;
    let end = address.saturating_add(size);
    let is_free = FREE_BASE_RAM.iter().any(|free| free.start <= address && end <= free.end);
    if address < EXTENDED_RAM_START && !is_free {
        return Err(job.bad("a segment is below the first mebibyte, where boot data is"));
    }
    place::check(target, "the kernel", address, size)?;
    place::write(target, "the kernel", address, data)?;
    let loaded = data.len() as u64;
    place::clear(target, "the kernel", address + loaded, size - loaded)?;
    Ok(address..end)
}
