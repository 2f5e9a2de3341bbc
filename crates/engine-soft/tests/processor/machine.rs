//! Registers and memory of both sides, filled at random and compared.

use std::fmt::Write;

use crate::random::Random;

/// All user-mode registers.
#[derive(Clone)]
pub struct State {
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub mxcsr: u32,
    /// The first 160 bytes of FXSAVE's image.
    pub x87: [u8; 160],
    pub vector: [[u8; 64]; 32],
    pub opmask: [u64; 8],
}

pub const STATUS_FLAGS: u64 = 0x8d5;
const DIRECTION: u64 = 0x400;

impl State {
    pub fn random(random: &mut Random) -> State {
        let mut state = State {
            gpr: std::array::from_fn(|_| random.integer()),
            rflags: random.next() & STATUS_FLAGS | 0x202,
            mxcsr: mxcsr(random),
            x87: [0; 160],
            vector: [[0; 64]; 32],
            opmask: std::array::from_fn(|_| random.integer()),
        };
        if random.one_in(3) {
            // Divisions that do not overflow.
            state.gpr[2] = 0;
        }
        for vector in &mut state.vector {
            random.fill(vector);
        }
        let control = if random.one_in(4) { random.next() as u16 & 0xf3f } else { 0x37f };
        let flags = if random.one_in(6) { random.next() as u16 & 0x3f } else { 0 };
        let status = random.next() as u16 & 0x7f00 & !0x80 | flags;
        let pending = flags & !control & 0x3f != 0;
        let status = status | if pending { 0x8080 } else { 0 };
        state.x87[0..2].copy_from_slice(&(control | 0x40).to_le_bytes());
        state.x87[2..4].copy_from_slice(&status.to_le_bytes());
        state.x87[4] = if random.one_in(3) { random.next() as u8 } else { 0xff };
        for register in 0..8 {
            let start = 32 + register * 16;
            state.x87[start..start + 10].copy_from_slice(&random.extended());
        }
        state
    }

    /// Whether all that is defined is equal. The places of the last x87 instruction and
    /// of its operand are the engine's to make up.
    pub fn same(&self, other: &State) -> bool {
        let flags = STATUS_FLAGS | DIRECTION;
        self.gpr == other.gpr
            && self.rflags & flags == other.rflags & flags
            && self.mxcsr == other.mxcsr
            && self.x87[..5] == other.x87[..5]
            && self.x87[32..] == other.x87[32..]
            && self.vector == other.vector
            && self.opmask == other.opmask
    }

    /// What differs, and what it was before.
    pub fn differences(&self, other: &State, before: &State) -> String {
        let mut text = String::new();
        let mut line = |name: String, before: String, host: String, engine: String| {
            if host != engine {
                let _ = writeln!(text, "  {name}: {before} -> host {host}, engine {engine}");
            }
        };
        for i in 0..16 {
            let show = |state: &State| format!("{:#x}", state.gpr[i]);
            line(format!("r{i}"), show(before), show(self), show(other));
        }
        let flags = |state: &State| format!("{:#x}", state.rflags & (STATUS_FLAGS | DIRECTION));
        line("flags".into(), flags(before), flags(self), flags(other));
        let mxcsr = |state: &State| format!("{:#x}", state.mxcsr);
        line("mxcsr".into(), mxcsr(before), mxcsr(self), mxcsr(other));
        let words = |state: &State| format!("{:02x?}", &state.x87[..5]);
        line("x87".into(), words(before), words(self), words(other));
        for i in 0..8 {
            let show = |state: &State| format!("{:02x?}", &state.x87[32 + i * 16..][..10]);
            line(format!("st{i}"), show(before), show(self), show(other));
        }
        for i in 0..32 {
            let show = |state: &State| format!("{:02x?}", state.vector[i]);
            line(format!("v{i}"), show(before), show(self), show(other));
        }
        for i in 0..8 {
            let show = |state: &State| format!("{:#x}", state.opmask[i]);
            line(format!("k{i}"), show(before), show(self), show(other));
        }
        text
    }
}

fn mxcsr(random: &mut Random) -> u32 {
    let mut value = 0x1f80;
    if random.one_in(3) {
        value |= random.next() as u32 & 0xe040;
    }
    if random.one_in(3) {
        value |= random.next() as u32 & 0x3f;
    }
    if random.one_in(6) {
        value &= !(random.next() as u32 & 0x1f80);
    }
    value
}

/// Two buffers in the low two gigabytes, one for each side.
pub struct Memory {
    start: *mut u8,
}

pub const MEMORY_SIZE: usize = 8192;

impl Memory {
    pub fn new() -> Memory {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Memory { start: start.cast() }
    }

    pub fn address(&self) -> u64 {
        self.start as u64
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this size, and is written through `&mut self` or by an
        // instruction under test, which runs while no such slice is held.
        unsafe { std::slice::from_raw_parts(self.start, MEMORY_SIZE) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.start, MEMORY_SIZE) }
    }

    /// Fills the middle, where operands are.
    pub fn randomize(&mut self, random: &mut Random) {
        random.fill(&mut self.bytes_mut()[MIDDLE - 128..MIDDLE + 256]);
    }

    pub fn copy_from(&mut self, other: &Memory) {
        self.bytes_mut().copy_from_slice(other.bytes());
    }

    pub fn same(&self, other: &Memory) -> bool {
        self.bytes() == other.bytes()
    }
}

/// Around here operands lie.
pub const MIDDLE: usize = 4096;

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.start.cast(), MEMORY_SIZE) };
    }
}
