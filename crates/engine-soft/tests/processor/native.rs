//! The processor's side: all registers are loaded, the instruction runs where it
//! stands, all registers are stored. A trap in it goes on at the storing.

use std::arch::x86_64::__cpuid_count;

use guise_engine::extensions::host_xcr0;
use guise_engine_soft::host::traps::{self, Registration, TrapAction, TrapFrame};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use crate::Outcome;
use crate::machine::State;

const PAGE: usize = 4096;
/// One page of code, and after it data that the code reaches relative to RIP.
const SIZE: usize = 5 * PAGE;
const SLOT: usize = 2048;
const AFTER: usize = 3072;
const GPR_IN: usize = PAGE;
const RFLAGS_IN: usize = PAGE + 128;
const GPR_OUT: usize = PAGE + 256;
const RFLAGS_OUT: usize = PAGE + 384;
const HOST_RSP: usize = PAGE + 512;
const HOST_MXCSR: usize = PAGE + 520;
const VECTOR: usize = PAGE + 528;
const XSAVE_IN: usize = 2 * PAGE;
const XSAVE_OUT: usize = 3 * PAGE;

/// A component's number, a place in the area, bytes of the vector.
type Piece = (usize, usize, std::ops::Range<usize>);

const NO_TRAP: u64 = !0;

pub struct Native {
    start: *mut u8,
    /// Components of XSAVE that are compared, and where they are.
    components: u64,
    offsets: [usize; 8],
    _registration: Registration,
}

fn on_trap(frame: &mut TrapFrame<'_>, start: usize) -> TrapAction {
    let vector = u64::from(frame.vector());
    // SAFETY: a field of the region that was registered with this address.
    unsafe { ((start + VECTOR) as *mut u64).write(vector) };
    frame.set_rip((start + AFTER) as u64);
    TrapAction::Resume
}

impl Native {
    pub fn new() -> Native {
        traps::prepare_thread().unwrap();
        // SAFETY: a new mapping at a place of the kernel's choice. This is a test; the
        // product never maps memory that is writable and executable.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        let start = start.cast::<u8>();
        let code = start as usize;
        let registration = traps::register(code..code + PAGE, on_trap, code).unwrap();
        let components = host_xcr0() & 0xe7;
        assert_eq!(components & 3, 3);
        let mut offsets = [0; 8];
        for component in [2, 5, 6, 7] {
            if components >> component & 1 != 0 {
                offsets[component] = __cpuid_count(0xd, component as u32).ebx as usize;
            }
        }
        let mut native = Native { start, components, offsets, _registration: registration };
        let before = native.before();
        native.write(0, &before);
        let after = native.after();
        native.write(AFTER, &after);
        native.write(HOST_MXCSR, &0x1f80u32.to_le_bytes());
        native
    }

    /// Where the instruction under test stands.
    pub fn slot(&self) -> u64 {
        self.start as u64 + SLOT as u64
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SIZE);
        // SAFETY: within the mapping, checked above.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at + N <= SIZE);
        // SAFETY: within the mapping, checked above.
        unsafe { self.start.add(at).cast::<[u8; N]>().read_unaligned() }
    }

    fn place(&self, at: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RIP, self.start as i64 + at as i64)
    }

    fn encode(&self, at: usize, instructions: &[Instruction]) -> Vec<u8> {
        let mut encoder = Encoder::new(64);
        let mut ip = self.start as u64 + at as u64;
        for instruction in instructions {
            ip += encoder.encode(instruction, ip).unwrap() as u64;
        }
        encoder.take_buffer()
    }

    fn before(&self) -> Vec<u8> {
        let mut code = Vec::new();
        let one = |code, register| Instruction::with1(code, register).unwrap();
        for register in PRESERVED {
            code.push(one(Code::Push_r64, register));
        }
        let rsp = Register::RSP;
        code.push(Instruction::with2(Code::Mov_rm64_r64, self.place(HOST_RSP), rsp).unwrap());
        code.extend(self.components_in_registers());
        code.push(Instruction::with1(Code::Xrstor64_mem, self.place(XSAVE_IN)).unwrap());
        code.push(Instruction::with1(Code::Push_rm64, self.place(RFLAGS_IN)).unwrap());
        code.push(Instruction::with(Code::Popfq));
        for number in 0..16u32 {
            let from = self.place(GPR_IN + number as usize * 8);
            let to = Register::RAX + number;
            code.push(Instruction::with2(Code::Mov_r64_rm64, to, from).unwrap());
        }
        code.push(Instruction::with_branch(Code::Jmp_rel32_64, self.slot()).unwrap());
        let bytes = self.encode(0, &code);
        assert!(bytes.len() <= SLOT);
        bytes
    }

    fn components_in_registers(&self) -> [Instruction; 2] {
        [
            Instruction::with2(Code::Mov_r32_imm32, Register::EAX, self.components as u32).unwrap(),
            Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0).unwrap(),
        ]
    }

    fn after(&self) -> Vec<u8> {
        let mut code = Vec::new();
        for number in 0..16u32 {
            let to = self.place(GPR_OUT + number as usize * 8);
            let from = Register::RAX + number;
            code.push(Instruction::with2(Code::Mov_rm64_r64, to, from).unwrap());
        }
        let rsp = Register::RSP;
        code.push(Instruction::with2(Code::Mov_r64_rm64, rsp, self.place(HOST_RSP)).unwrap());
        code.push(Instruction::with(Code::Pushfq));
        code.push(Instruction::with1(Code::Pop_rm64, self.place(RFLAGS_OUT)).unwrap());
        code.push(Instruction::with(Code::Cld));
        code.extend(self.components_in_registers());
        code.push(Instruction::with1(Code::Xsave64_mem, self.place(XSAVE_OUT)).unwrap());
        code.push(Instruction::with(Code::Fninit));
        code.push(Instruction::with1(Code::Ldmxcsr_m32, self.place(HOST_MXCSR)).unwrap());
        if self.components & 4 != 0 {
            code.push(Instruction::with(Code::VEX_Vzeroupper));
        }
        for register in PRESERVED.into_iter().rev() {
            code.push(Instruction::with1(Code::Pop_r64, register).unwrap());
        }
        code.push(Instruction::with(Code::Retnq));
        let bytes = self.encode(AFTER, &code);
        assert!(bytes.len() <= PAGE - AFTER);
        bytes
    }

    pub fn set_instruction(&mut self, bytes: &[u8]) {
        self.write(SLOT, bytes);
        let at = SLOT + bytes.len();
        let back = self.start as u64 + AFTER as u64;
        let jump = Instruction::with_branch(Code::Jmp_rel32_64, back).unwrap();
        let jump = self.encode(at, &[jump]);
        self.write(at, &jump);
    }

    pub fn run(&mut self, before: &State) -> (State, Outcome) {
        self.load(before);
        self.write(VECTOR, &NO_TRAP.to_le_bytes());
        // SAFETY: the code written above keeps the ABI; the instruction in its middle
        // was made to access the test's memory only, and a trap in it is caught.
        unsafe {
            let run: extern "sysv64" fn() = std::mem::transmute(self.start);
            run();
        }
        let vector = u64::from_le_bytes(self.read(VECTOR));
        let outcome = if vector == NO_TRAP { Outcome::Done } else { Outcome::Fault(vector as u8) };
        (self.store(), outcome)
    }

    fn load(&mut self, state: &State) {
        for (number, value) in state.gpr.iter().enumerate() {
            self.write(GPR_IN + number * 8, &value.to_le_bytes());
        }
        self.write(RFLAGS_IN, &state.rflags.to_le_bytes());
        let area = XSAVE_IN;
        self.write(area, &state.x87);
        self.write(area + 24, &state.mxcsr.to_le_bytes());
        self.write(area + 512, &self.components.to_le_bytes());
        for (number, vector) in state.vector.iter().enumerate() {
            for (_, at, bytes) in self.pieces(number) {
                self.write(area + at, &vector[bytes]);
            }
        }
        if self.components >> 5 & 1 != 0 {
            for (number, mask) in state.opmask.iter().enumerate() {
                self.write(area + self.offsets[5] + number * 8, &mask.to_le_bytes());
            }
        }
    }

    fn store(&self) -> State {
        let area = XSAVE_OUT;
        let mut state = State {
            gpr: std::array::from_fn(|i| u64::from_le_bytes(self.read(GPR_OUT + i * 8))),
            rflags: u64::from_le_bytes(self.read(RFLAGS_OUT)),
            mxcsr: u32::from_le_bytes(self.read(area + 24)),
            x87: self.read(area),
            vector: [[0; 64]; 32],
            opmask: [0; 8],
        };
        let present = u64::from_le_bytes(self.read(area + 512));
        let components = self.components & present;
        for number in 0..32 {
            for (component, at, bytes) in self.pieces(number) {
                if components >> component & 1 != 0 {
                    let piece: [u8; 64] = self.read(area + at);
                    let length = bytes.len();
                    state.vector[number][bytes].copy_from_slice(&piece[..length]);
                }
            }
        }
        if components >> 5 & 1 != 0 {
            let start = area + self.offsets[5];
            state.opmask = std::array::from_fn(|i| u64::from_le_bytes(self.read(start + i * 8)));
        }
        if components & 1 == 0 {
            // Initial, so not written.
            state.x87 = [0; 160];
            state.x87[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        }
        state
    }

    /// The components that the host has of a vector, and where its bytes are in the area.
    fn pieces(&self, number: usize) -> impl Iterator<Item = Piece> + use<> {
        let low = [
            (1, 160 + number * 16, 0..16),
            (2, self.offsets[2] + number * 16, 16..32),
            (6, self.offsets[6] + number * 32, 32..64),
        ];
        let high = [(7, self.offsets[7] + number.saturating_sub(16) * 64, 0..64)];
        let (low, high) = if number < 16 { (Some(low), None) } else { (None, Some(high)) };
        let components = self.components;
        low.into_iter()
            .flatten()
            .chain(high.into_iter().flatten())
            .filter(move |(component, _, _)| components >> component & 1 != 0)
    }

    /// Without the parts of registers that the host does not have.
    pub fn trim(&self, state: &mut State) {
        for (number, vector) in state.vector.iter_mut().enumerate() {
            let mut kept = [0; 64];
            for (_, _, bytes) in self.pieces(number) {
                kept[bytes.clone()].copy_from_slice(&vector[bytes]);
            }
            *vector = kept;
        }
        if self.components >> 5 & 1 == 0 {
            state.opmask = [0; 8];
        }
    }
}

const PRESERVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nothing runs there any more.
        unsafe { libc::munmap(self.start.cast(), SIZE) };
    }
}
