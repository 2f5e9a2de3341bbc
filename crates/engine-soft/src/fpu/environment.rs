//! The x87 environment: control, status and tag words and the last instruction's
//! place, in the layouts that 16- and 32-bit code knows in real and protected mode.
//!
//! The selectors in it are 0, as on processors that tell so in CPUID
//! (leaf 7, EBX bit 13).

use crate::state::X87;

use super::{finit, fxsave};

/// Which of the four layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Fields have 32 bits, not 16.
    pub wide: bool,
    /// Real or virtual-8086 mode.
    pub real: bool,
}

impl Layout {
    /// Length of the environment.
    pub fn size(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

/// The longest image of FNSAVE.
pub const MAX_STATE: usize = 28 + 80;

/// Tags of two bits a register become one: whether it is in use.
pub fn abridge_tags(full: u16) -> u8 {
    (0..8).filter(|i| full >> (i * 2) & 3 != 3).fold(0, |tags, i| tags | 1 << i)
}

/// Full tags, which say what is in a register, from its contents.
pub fn full_tags(image: &X87) -> u16 {
    let top = (image.status() >> 11 & 7) as usize;
    (0..8).fold(0, |tags, physical| {
        let tag = if image.0[4] >> physical & 1 == 0 {
            3
        } else {
            let start = fxsave::REGISTERS + ((physical + 8 - top) & 7) * 16;
            kind_of(&image.0[start..start + 10])
        };
        tags | tag << (physical * 2)
    })
}

/// 0 valid, 1 zero, 2 special.
fn kind_of(register: &[u8]) -> u16 {
    let mantissa = u64::from_le_bytes(std::array::from_fn(|i| register[i]));
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    match (exponent, mantissa) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        (_, mantissa) if mantissa >> 63 == 0 => 2,
        _ => 0,
    }
}

impl X87 {
    pub fn control(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    pub fn status(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    fn opcode(&self) -> u16 {
        u16::from_le_bytes([self.0[6], self.0[7]]) & 0x7ff
    }

    fn instruction_pointer(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[8 + i]))
    }

    fn data_pointer(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[16 + i]))
    }

    /// Whether an exception waits to be raised.
    pub fn has_pending_exception(&self) -> bool {
        self.status() & !self.control() & 0x3f != 0
    }

    /// Loads both words; the summary bits follow from the rest.
    pub(super) fn set_words(&mut self, control: u16, status: u16) {
        // Bit 6 of the control word is always 1; bits 13 to 15 and 7 do not exist.
        let control = control & 0x1f7f | 0x40;
        let pending = status & !control & 0x3f != 0;
        let status = status & 0x7f7f | if pending { 0x8080 } else { 0 };
        self.0[0..2].copy_from_slice(&control.to_le_bytes());
        self.0[2..4].copy_from_slice(&status.to_le_bytes());
    }
}

fn put(bytes: &mut [u8], wide: bool, index: usize, value: u32) {
    if wide {
        bytes[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
    } else {
        bytes[index * 2..index * 2 + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
}

fn get(bytes: &[u8], wide: bool, index: usize) -> u32 {
    if wide {
        u32::from_le_bytes(std::array::from_fn(|i| bytes[index * 4 + i]))
    } else {
        u16::from_le_bytes(std::array::from_fn(|i| bytes[index * 2 + i])).into()
    }
}

/// The environment as it goes to memory. FNSTENV masks all exceptions afterwards
/// ([`mask_all`]).
pub fn store(image: &X87, layout: Layout) -> [u8; 28] {
    let mut bytes = [0; 28];
    let wide = layout.wide;
    // What pads a 16-bit field to 32 bits is all ones.
    let pad = if wide { 0xffff_0000 } else { 0 };
    put(&mut bytes, wide, 0, u32::from(image.control()) | pad);
    put(&mut bytes, wide, 1, u32::from(image.status()) | pad);
    put(&mut bytes, wide, 2, u32::from(full_tags(image)) | pad);
    let (ip, data) = (image.instruction_pointer() as u32, image.data_pointer() as u32);
    let opcode = u32::from(image.opcode());
    if layout.real {
        let low = |value: u32| value & 0xffff;
        let high = |value: u32| value >> 16 << 12;
        put(&mut bytes, wide, 3, low(ip) | pad);
        put(&mut bytes, wide, 4, high(ip) & if wide { 0x0fff_f000 } else { 0xf000 } | opcode);
        put(&mut bytes, wide, 5, low(data) | pad);
        put(&mut bytes, wide, 6, high(data) & if wide { 0x0fff_f000 } else { 0xf000 });
    } else {
        put(&mut bytes, wide, 3, ip);
        put(&mut bytes, wide, 4, if wide { opcode << 16 } else { 0 });
        put(&mut bytes, wide, 5, data);
        put(&mut bytes, wide, 6, pad);
    }
    bytes
}

/// Masks all exceptions, as FNSTENV does after storing.
pub fn mask_all(image: &mut X87) {
    image.set_words(image.control() | 0x3f, image.status());
}

/// Loads an environment.
pub fn load(image: &mut X87, bytes: &[u8; 28], layout: Layout) {
    let wide = layout.wide;
    let word = |index| get(bytes, wide, index);
    // Registers are kept in the order of the stack, which the new top shifts.
    let registers = physical_registers(image);
    image.set_words(word(0) as u16, word(1) as u16);
    image.0[4] = abridge_tags(word(2) as u16);
    set_physical_registers(image, &registers);
    let (ip, data, opcode) = if layout.real {
        let high = |value: u32| (value >> 12 & 0xffff) << 16;
        let join = |low: u32, rest: u32| low & 0xffff | high(rest);
        (join(word(3), word(4)), join(word(5), word(6)), word(4))
    } else {
        (word(3), word(5), if wide { word(4) >> 16 } else { 0 })
    };
    image.0[6..8].copy_from_slice(&(opcode as u16 & 0x7ff).to_le_bytes());
    image.0[8..16].copy_from_slice(&u64::from(ip).to_le_bytes());
    image.0[16..24].copy_from_slice(&u64::from(data).to_le_bytes());
}

/// What every MMX instruction does to the x87 stack: the top becomes register 0, which
/// is MM0, and all registers count as in use.
pub fn enter_mmx(image: &mut X87) {
    let registers = physical_registers(image);
    image.set_words(image.control(), image.status() & !0x3800);
    image.0[4] = 0xff;
    set_physical_registers(image, &registers);
}

fn physical_registers(image: &X87) -> [[u8; 10]; 8] {
    let top = (image.status() >> 11 & 7) as usize;
    std::array::from_fn(|physical| {
        let start = fxsave::REGISTERS + ((physical + 8 - top) & 7) * 16;
        std::array::from_fn(|i| image.0[start + i])
    })
}

fn set_physical_registers(image: &mut X87, registers: &[[u8; 10]; 8]) {
    let top = (image.status() >> 11 & 7) as usize;
    for (physical, register) in registers.iter().enumerate() {
        let start = fxsave::REGISTERS + ((physical + 8 - top) & 7) * 16;
        image.0[start..start + 10].copy_from_slice(register);
    }
}

/// FNSAVE: the environment and the registers; all is initialized afterwards. Returns
/// the length too.
pub fn save(image: &mut X87, layout: Layout) -> ([u8; MAX_STATE], usize) {
    let mut bytes = [0; MAX_STATE];
    let start = layout.size();
    bytes[..start].copy_from_slice(&store(image, layout)[..start]);
    for number in 0..8 {
        let from = fxsave::REGISTERS + number * 16;
        let to = start + number * 10;
        bytes[to..to + 10].copy_from_slice(&image.0[from..from + 10]);
    }
    finit(image);
    (bytes, start + 80)
}

/// FRSTOR.
pub fn restore(image: &mut X87, bytes: &[u8; MAX_STATE], layout: Layout) {
    let start = layout.size();
    load(image, &std::array::from_fn(|i| bytes[i]), layout);
    for number in 0..8 {
        let from = start + number * 10;
        let to = fxsave::REGISTERS + number * 16;
        image.0[to..to + 10].copy_from_slice(&bytes[from..from + 10]);
    }
}
