//! Linux's bzImage, by the 64-bit boot protocol: a setup header at the end of the
//! first sector, real-mode code that is not used, and the protected-mode kernel,
//! which is entered 0x200 bytes after its start and unpacks itself.

use super::linux::{Parameters, SETUP_HEADER};
use super::{BootError, Entry, Job, place};
use crate::layout::{EXTENDED_RAM_START, GIB};

const SECTOR: u64 = 512;
const MAGIC_OFFSET: usize = 0x202;
/// The header is at most as long as the jump before it reaches; that is one byte.
const HEADER_FIELDS_END: usize = 0x268;
/// The first version of the protocol with a 64-bit entry.
const VERSION_64_BIT: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;

/// Whether the file says that it is a bzImage.
pub fn is_bzimage(image: &[u8]) -> bool {
    image.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(b"HdrS")
        && image.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

/// The fields of the setup header that matter to a 64-bit loader.
struct Header<'a> {
    raw: &'a [u8],
    kernel: &'a [u8],
    relocatable: bool,
    alignment: u64,
    preferred: u64,
    /// Memory that the kernel uses from its load address on, before it looks at
    /// the memory map.
    init_size: u64,
    initrd_limit: u64,
    command_line_limit: u64,
}

pub fn load(mut job: Job) -> Result<Entry, BootError> {
    let initrd = job.initrd.take();
    let header = Header::parse(&job)?;
    let target = job.target;
    let address = header.load_address(&job)?;
    place::check(target, "the kernel", address, header.init_size)?;
    place::write(target, "the kernel", address, header.kernel)?;
    let kernel_end = address + header.init_size;
    let initrd =
        initrd.map(|initrd| initrd.load(target, kernel_end, header.initrd_limit)).transpose()?;
    let command_line = job.write_command_line(job.command_line, header.command_line_limit)?;
    let parameters = Parameters { header: header.raw, command_line, initrd };
    Ok(Entry::Long { rip: address + ENTRY_64, rsi: parameters.write(target)? })
}

impl<'a> Header<'a> {
    fn parse(job: &Job<'a>) -> Result<Self, BootError> {
        let image = job.image;
        if image.len() < HEADER_FIELDS_END {
            return Err(job.bad("it ends inside its setup header"));
        }
        let version = half(image, 0x206);
        if version < VERSION_64_BIT {
            return Err(job.bad(format!(
                "it speaks boot protocol {}.{:02} and a 64-bit entry came with 2.12 (Linux 3.8)",
                version >> 8,
                version & 0xff
            )));
        }
        if half(image, 0x236) & XLF_KERNEL_64 == 0 {
            return Err(job.bad("it is a 32-bit kernel; Guise boots 64-bit ones"));
        }
        let header_end = MAGIC_OFFSET + usize::from(image[0x201]);
        if header_end < HEADER_FIELDS_END {
            return Err(job.bad("its setup header is shorter than its version says"));
        }
        let raw = image
            .get(SETUP_HEADER..header_end)
            .ok_or_else(|| job.bad("it ends inside its setup header"))?;
        let sectors = match image[SETUP_HEADER] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let start = (sectors + 1) * SECTOR;
        let length = u64::from(word(image, 0x1f4)) * 16;
        let rest = image.get(start as usize..).unwrap_or_default();
        // The last paragraph may be incomplete, and a signature may follow it.
        if length == 0 || (rest.len() as u64) < length.saturating_sub(15) {
            return Err(job.bad(format!(
                "it is truncated: its header promises {} bytes and the file has {}",
                start + length,
                image.len()
            )));
        }
        let kernel = &rest[..rest.len().min(length as usize)];
        let init_size = u64::from(word(image, 0x260));
        if init_size < kernel.len() as u64 {
            return Err(job.bad("its header says that it needs less memory than it is long"));
        }
        Ok(Header {
            raw,
            kernel,
            relocatable: image[0x234] != 0,
            alignment: u64::from(word(image, 0x230)),
            preferred: quad(image, 0x258),
            init_size,
            // The last byte that it may occupy.
            initrd_limit: u64::from(word(image, 0x22c)).saturating_add(1),
            command_line_limit: u64::from(word(image, 0x238)),
        })
    }

    /// Where it likes to be, or, if it can be moved and that is no place for it, as
    /// low as it can be.
    fn load_address(&self, job: &Job) -> Result<u64, BootError> {
        let ram = job.target.ram.low;
        let fits = |address: u64| {
            address >= EXTENDED_RAM_START
                && address.saturating_add(self.init_size) <= ram
                && address < 4 * GIB
        };
        if fits(self.preferred) || !self.relocatable {
            if self.preferred < EXTENDED_RAM_START {
                return Err(job.bad("its load address is below the first mebibyte"));
            }
            return Ok(self.preferred);
        }
        if !self.alignment.is_power_of_two() {
            return Err(job.bad("its alignment is not a power of two"));
        }
        let lowest = EXTENDED_RAM_START.next_multiple_of(self.alignment);
        Ok(if fits(lowest) { lowest } else { self.preferred.max(EXTENDED_RAM_START) })
    }
}

fn half(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn word(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
}

fn quad(image: &[u8], at: usize) -> u64 {
    u64::from(word(image, at)) | u64::from(word(image, at + 4)) << 32
}
