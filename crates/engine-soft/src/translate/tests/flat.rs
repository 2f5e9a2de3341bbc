//! A guest without a system: its memory is this process, one to one.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::host::stub::Stubs;
use crate::host::traps;
use crate::state::{CpuState, FS, RCX, RDI, RSI, RSP};
use crate::tlb::Bank;
use crate::translate::{Backend, CodePage, CodeWrite, Mode, Options, Translator, VectorLevel};
use guise_engine::extensions::Features;

pub struct Machine {
    pub state: Box<CpuState>,
    pub bank: Box<Bank>,
    /// Pages of data that are not where their address says, and where they are.
    pub elsewhere: HashMap<u64, u64>,
    stubs: Stubs,
    /// Granules that code was made from, by page.
    pub code: HashMap<u64, u64>,
    writes: Vec<CodeWrite>,
    /// Addresses of the instructions that were not translated.
    pub stepped: Vec<u64>,
    pub resolved: usize,
}

pub struct Flat {
    pub machine: Machine,
    pub translator: Translator,
    stack: Vec<u64>,
}

static HALT: u8 = 0xf4;

impl Backend for Machine {
    fn state(&mut self) -> *mut CpuState {
        &raw mut *self.state
    }

    fn mode(&mut self) -> Option<Mode> {
        let vectors = if std::arch::is_x86_feature_detected!("avx512bw") {
            VectorLevel::Avx512
        } else if std::arch::is_x86_feature_detected!("avx2") {
            VectorLevel::Avx
        } else {
            VectorLevel::Sse
        };
        (self.state.rip != &raw const HALT as u64).then_some(Mode { user: true, vectors })
    }

    fn resolve(&mut self, address: u64, size: u32, write: bool) -> Option<*mut u8> {
        self.resolved += 1;
        let page = address & !4095;
        if address + u64::from(size) > page + 4096 {
            // The next page is the next one of the host, too.
            return Some(address as *mut u8);
        }
        let host = self.elsewhere.get(&page).copied().unwrap_or(page);
        if !write {
            self.bank.fill_read(address, host as *mut u8);
        } else if let Some(code) = self.code.get(&page) {
            let last = (address + u64::from(size) - 1) >> 6 & 63;
            if code >> (address >> 6 & 63) & 1 == 1 || code >> last & 1 == 1 {
                return None;
            }
        } else {
            self.bank.fill_write(address, host as *mut u8);
        }
        Some((host + (address - page)) as *mut u8)
    }

    fn step(&mut self) -> bool {
        let rip = self.state.rip;
        if rip == &raw const HALT as u64 {
            return false;
        }
        self.stepped.push(rip);
        // SAFETY: guest addresses are this process's, and 15 bytes of code follow.
        let bytes = unsafe { std::slice::from_raw_parts(rip as *const u8, 15) };
        let instruction = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
        if instruction.has_rep_prefix() && instruction.is_string_instruction() {
            self.copy_one(&instruction);
            return true;
        }
        if self.branch(&instruction) {
            return true;
        }
        let stub = self
            .stubs
            .compile(&instruction)
            .unwrap_or_else(|refusal| panic!("{:?}: {refusal}", instruction.code()));
        let address = self.address(&instruction);
        // SAFETY: the operand lies in memory that this process owns.
        let result = unsafe { stub.run(&raw mut *self.state, address as *mut u8) };
        if result.is_err() {
            return false;
        }
        self.state.rip = instruction.next_ip();
        let end = address.wrapping_add(u64::from(stub.size.max(1)) - 1);
        if stub.writes {
            for page in [address & !4095, end & !4095] {
                if self.code.contains_key(&page) {
                    self.writes.push(CodeWrite { physical: page, granules: u64::MAX });
                }
            }
        }
        true
    }

    fn code_page(&mut self, address: u64) -> Option<CodePage> {
        let page = address & !4095;
        let mut byte = 0u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: page as *mut _, iov_len: 1 };
        // SAFETY: a read through the system, which refuses what cannot be read.
        let read = unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        (read == 1).then_some(())?;
        Some(CodePage { physical: page, host: page as *const [u8; 4096] })
    }

    fn set_code(&mut self, address: u64, id: u32) {
        self.bank.set_code(address, id, false);
    }

    fn mark_code(&mut self, physical: u64, granules: u64) {
        *self.code.entry(physical).or_insert(0) |= granules;
        self.bank.forget_writes_to(physical as *mut u8);
    }

    fn take_code_writes(&mut self, writes: &mut Vec<CodeWrite>) {
        writes.append(&mut self.writes);
    }
}

impl Machine {
    fn address(&self, instruction: &Instruction) -> u64 {
        let operand = (0..instruction.op_count())
            .find(|&operand| instruction.op_kind(operand) == iced_x86::OpKind::Memory);
        let Some(operand) = operand else { return 0 };
        let value = |register: iced_x86::Register, _, _| {
            if register.is_segment_register() {
                let number = register as usize - iced_x86::Register::ES as usize;
                return Some(self.state.seg[number].base);
            }
            let value = self.state.gpr[register.full_register().number()];
            Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
        };
        instruction.virtual_address(operand, 0, value).unwrap_or(0)
    }

    /// Branches, pushes and pops, which may lie across two pages of code.
    fn branch(&mut self, instruction: &Instruction) -> bool {
        use iced_x86::{Code, Mnemonic};
        let next = instruction.next_ip();
        let number = instruction.op0_register().full_register().number() & 15;
        self.state.rip = match instruction.mnemonic() {
            _ if instruction.is_jcc_short_or_near() => {
                let taken = holds(instruction.condition_code(), self.state.rflags);
                if taken { instruction.near_branch_target() } else { next }
            }
            Mnemonic::Jmp if instruction.is_jmp_short_or_near() => instruction.near_branch_target(),
            Mnemonic::Call if instruction.is_call_near() => {
                self.push(next);
                instruction.near_branch_target()
            }
            Mnemonic::Ret => self.pop(),
            _ if instruction.code() == Code::Push_r64 => {
                self.push(self.state.gpr[number]);
                next
            }
            _ if instruction.code() == Code::Pop_r64 => {
                self.state.gpr[number] = self.pop();
                next
            }
            _ => return false,
        };
        true
    }

    fn push(&mut self, value: u64) {
        self.state.gpr[RSP] -= 8;
        // SAFETY: the guest's stack is a buffer of the test.
        unsafe { (self.state.gpr[RSP] as *mut u64).write(value) };
    }

    fn pop(&mut self) -> u64 {
        self.state.gpr[RSP] += 8;
        // SAFETY: as in `push`.
        unsafe { ((self.state.gpr[RSP] - 8) as *const u64).read() }
    }

    /// One element of REP MOVSB, MOVSQ, STOSB and so on; not the instruction's end.
    fn copy_one(&mut self, instruction: &Instruction) {
        let gpr = &mut self.state.gpr;
        if gpr[RCX] == 0 {
            self.state.rip = instruction.next_ip();
            return;
        }
        let size = instruction.memory_size().size();
        let moves = instruction.op1_kind() == iced_x86::OpKind::MemorySegRSI;
        let from = if moves { gpr[RSI] as *const u8 } else { gpr.as_ptr().cast() };
        // SAFETY: the guest's addresses are buffers of the test; RAX is the first register.
        unsafe { std::ptr::copy(from, gpr[RDI] as *mut u8, size) };
        let down = self.state.rflags & 0x400 != 0;
        let by = if down { (size as u64).wrapping_neg() } else { size as u64 };
        if moves {
            gpr[RSI] = gpr[RSI].wrapping_add(by);
        }
        gpr[RDI] = gpr[RDI].wrapping_add(by);
        gpr[RCX] -= 1;
        if gpr[RCX] == 0 {
            self.state.rip = instruction.next_ip();
        }
    }
}

fn holds(condition: iced_x86::ConditionCode, flags: u64) -> bool {
    use iced_x86::ConditionCode as C;
    let bit = |number: u32| flags >> number & 1 == 1;
    let (carry, parity, zero, sign, overflow) = (bit(0), bit(2), bit(6), bit(7), bit(11));
    match condition {
        C::o => overflow,
        C::no => !overflow,
        C::b => carry,
        C::ae => !carry,
        C::e => zero,
        C::ne => !zero,
        C::be => carry || zero,
        C::a => !carry && !zero,
        C::s => sign,
        C::ns => !sign,
        C::p => parity,
        C::np => !parity,
        C::l => sign != overflow,
        C::ge => sign == overflow,
        C::le => zero || sign != overflow,
        C::g => !zero && sign == overflow,
        C::None => true,
    }
}

impl Flat {
    pub fn new(exact: bool) -> Flat {
        traps::prepare_thread().expect("a signal stack");
        let mut bank = Bank::new();
        // SAFETY: all fields of the state are integers, and pointers that are set below.
        let mut state: Box<CpuState> = unsafe { Box::<CpuState>::new_zeroed().assume_init() };
        state.bank = &raw mut *bank;
        state.mxcsr = 0x1f80;
        state.rflags = 2;
        let fs: u64;
        // SAFETY: reads the thread's own FS base.
        unsafe { std::arch::asm!("mov {}, fs:[0]", out(reg) fs) };
        state.seg[FS].base = fs;
        let options = Options {
            code_size: 8 << 20,
            vectors: VectorLevel::Avx512,
            features: Features::host(),
            exact,
            lockstep: false,
        };
        let options = Options {
            vectors: if std::arch::is_x86_feature_detected!("avx512bw") {
                options.vectors
            } else {
                VectorLevel::Avx
            },
            ..options
        };
        let machine = Machine {
            state,
            bank,
            elsewhere: HashMap::new(),
            stubs: Stubs::new(Features::host(), 1 << 20).expect("stubs"),
            code: HashMap::new(),
            writes: Vec::new(),
            stepped: Vec::new(),
            resolved: 0,
        };
        let translator = Translator::new::<Machine>(options).expect("a translator");
        Flat { machine, translator, stack: vec![0; 128 << 10] }
    }

    /// Calls a function of this process as a guest.
    pub fn call(&mut self, function: u64, first: u64, second: u64) -> u64 {
        let top = self.stack.len() - 16;
        let top = top & !1;
        self.stack[top + 1] = &raw const HALT as u64;
        let state = &mut self.machine.state;
        state.gpr[RSP] = &raw const self.stack[top + 1] as u64;
        if state.gpr[RSP].is_multiple_of(16) {
            self.stack[top] = &raw const HALT as u64;
            state.gpr[RSP] -= 8;
        }
        state.gpr[RDI] = first;
        state.gpr[RSI] = second;
        state.rip = function;
        // SAFETY: the state is boxed and lives as long as `self`.
        unsafe { state.bind_to_thread().expect("the GS base") };
        self.translator.run(&mut self.machine).expect("generated code works");
        assert_eq!(self.machine.state.rip, &raw const HALT as u64, "the guest came back");
        self.machine.state.gpr[0]
    }
}
