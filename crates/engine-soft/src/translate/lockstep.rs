//! Both tiers, one after the other on the same instructions, and compared.
//!
//! Code counts the instructions that it begins. It runs as always, but without links
//! between regions and without in-place interpretation, so that it leaves at every
//! thing that cannot be done twice. Then registers and memory go back to what they were,
//! the interpreter executes as many instructions, and both results are compared: all
//! registers, and all pages that either of them wrote.
//!
//! Arithmetic flags that nothing reads are not kept by generated code. So each tier
//! goes on with its own, and they are compared where all of them must be right: before
//! an instruction that is left to the interpreter. Wrong ones in between show as a
//! branch that goes elsewhere.
//!
//! A repeated string instruction that stops in its middle (its page is not in the TLB
//! yet) is done by the interpreter; then everything is done once more, with the page there.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, RflagsBits};

use super::frame::{ARITHMETIC, Leave, pack_flags};
use super::{Backend, Broken, Translator, select};
use crate::state::{CpuState, Segment, Table, Vector};
use crate::tlb::{Bank, PAGE_SIZE};

/// What a comparison needs of a vCPU besides.
pub trait Oracle: Backend {
    /// From now on writes to memory are remembered.
    fn start(&mut self);
    /// Takes them back.
    fn rewind(&mut self);
    /// Ends it. The result: a byte that is not what the first execution had left there.
    fn end(&mut self) -> Option<String>;
    /// Executes the instruction at RIP to its end. False if it raised something.
    fn execute_whole(&mut self) -> bool;
    /// How often devices were reached.
    fn device_accesses(&self) -> u64;
}

/// How often a region is compared, in its first runs and later.
const ALWAYS: u32 = 64;
const LATER: u32 = 256;

#[derive(Default)]
pub struct Progress {
    pub compared: u64,
    pub inconclusive: u64,
    /// The arithmetic flags of generated code, if they are not the interpreter's.
    flags: Option<u64>,
    /// Where the interpreter has been.
    trail: Vec<u64>,
    /// The same for the comparison before.
    previous: Vec<u64>,
    /// By address: how often it was run.
    runs: std::collections::HashMap<u64, u32>,
}

/// The registers that instructions without a privilege change.
#[derive(Clone, PartialEq)]
struct Registers {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    mxcsr: u32,
    bank: *mut Bank,
    seg: [Segment; 6],
    kernel_gs_base: u64,
    tables: [Table; 2],
    control: [u64; 6],
    opmask: [u64; 8],
    x87: [u8; 512],
    vector: [Vector; 32],
}

impl Registers {
    fn of(state: &CpuState) -> Box<Registers> {
        let control = [state.cr0, state.cr2, state.cr3, state.cr4, state.efer, state.xcr0];
        Box::new(Registers {
            gpr: state.gpr,
            rip: state.rip,
            rflags: state.rflags,
            mxcsr: state.mxcsr,
            bank: state.bank,
            seg: state.seg,
            kernel_gs_base: state.kernel_gs_base,
            tables: [state.gdtr, state.idtr],
            control,
            opmask: state.opmask,
            x87: state.x87.0,
            vector: state.vector,
        })
    }

    /// Those that generated code can change.
    fn restore(&self, state: &mut CpuState) {
        state.gpr = self.gpr;
        state.rip = self.rip;
        state.rflags = self.rflags;
        state.mxcsr = self.mxcsr;
        state.bank = self.bank;
        state.seg = self.seg;
        state.kernel_gs_base = self.kernel_gs_base;
        state.opmask = self.opmask;
        state.vector = self.vector;
    }

    fn differences(&self, other: &Registers, flags: bool) -> String {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        let mut text = String::new();
        let mut tell = |name: &str, first: u64, second: u64| {
            if first != second {
                let _ = write!(text, " {name} {first:#x}, not {second:#x};");
            }
        };
        tell("rip", self.rip, other.rip);
        for (name, (&first, &second)) in NAMES.iter().zip(self.gpr.iter().zip(&other.gpr)) {
            tell(name, first, second);
        }
        let kept = if flags { !0 } else { !ARITHMETIC };
        tell("rflags", self.rflags & kept, other.rflags & kept);
        tell("mxcsr", self.mxcsr.into(), other.mxcsr.into());
        tell("kernel gs base", self.kernel_gs_base, other.kernel_gs_base);
        tell("bank", self.bank as u64, other.bank as u64);
        for (first, second) in self.opmask.iter().zip(&other.opmask) {
            tell("opmask", *first, *second);
        }
        for number in 0..32 {
            let (first, second) = (self.vector[number], other.vector[number]);
            if first != second {
                let _ = write!(text, " zmm{number} {:x?}, not {:x?};", first.0, second.0);
            }
        }
        let same = (self.seg, self.tables, self.control, self.x87);
        if same != (other.seg, other.tables, other.control, other.x87) {
            text.push_str(" segments, tables, control or x87 registers;");
        }
        text
    }
}

impl Translator {
    /// Whether it was made for [`Translator::run_lockstep`].
    pub fn compares(&self) -> bool {
        self.options.lockstep
    }

    /// As `run`, comparing.
    pub fn run_lockstep<B: Oracle>(&mut self, backend: &mut B) -> Result<(), Broken> {
        let address = self.prepare(backend);
        // SAFETY: as in `run`.
        let state = || unsafe { &mut *address };
        let mut plain = false;
        loop {
            self.drain(backend);
            if self.cache.exhausted {
                self.flush(state());
            }
            if state().attention.load(std::sync::atomic::Ordering::Acquire) != 0 {
                self.lockstep.flags = None;
                return Ok(());
            }
            let Some(mode) = backend.mode() else { return Ok(()) };
            self.user = mode.user;
            let Some((_, code)) = self.find(backend, mode, plain) else {
                self.lockstep.flags = None;
                if !backend.step() {
                    return Ok(());
                }
                continue;
            };
            let runs = self.lockstep.runs.entry(state().rip).or_default();
            *runs += 1;
            let left = if *runs < ALWAYS || runs.is_multiple_of(LATER) {
                self.compare(backend, code)?
            } else {
                self.lockstep.flags = None;
                self.enter(address, code, pack_flags(state().rflags))?;
                state().generated.leave
            };
            plain = left == Leave::Plain as u32;
            if left == Leave::Trap as u32 || left == Leave::Interpret as u32 {
                self.lockstep.flags = None;
                if !backend.step() {
                    return Ok(());
                }
            }
        }
    }

    /// One way through generated code, and the same by the interpreter, whose results
    /// count. The result is how generated code was left.
    fn compare<B: Oracle>(&mut self, backend: &mut B, code: u64) -> Result<u32, Broken> {
        let address = backend.state();
        // SAFETY: as in `run`.
        let state = || unsafe { &mut *address };
        let before = Registers::of(state());
        backend.start();
        let mut again = true;
        loop {
            let flags = self.lockstep.flags.unwrap_or(pack_flags(before.rflags));
            state().generated.begun = 0;
            self.enter(address, code, flags)?;
            let leave = state().generated.leave;
            let stays = leave == Leave::Trap as u32 || leave == Leave::Interpret as u32;
            let translated = Registers::of(state());
            let unfinished = stays || leave == Leave::Plain as u32;
            let count = state().generated.begun - u64::from(unfinished);
            let rip = translated.rip;
            let next = if stays { instruction_at(backend, rip) } else { None };
            let string = next.is_some_and(|next| is_repeated(&next));
            let missed = state().generated.argument == u32::MAX;
            backend.rewind();
            before.restore(state());
            self.interpret_some(backend, count, &before)?;
            if string {
                let devices = backend.device_accesses();
                let raised = !backend.execute_whole();
                if again && !raised && devices == backend.device_accesses() {
                    again = false;
                    backend.rewind();
                    before.restore(state());
                    continue;
                }
                self.lockstep.inconclusive += 1;
                self.lockstep.flags = None;
                let _ = backend.end();
                return Ok(if raised { leave } else { Leave::Next as u32 });
            }
            self.lockstep.compared += 1;
            let all_flags = leave == Leave::Interpret as u32
                && !missed
                && rip % PAGE_SIZE <= PAGE_SIZE - 16
                && next.is_some_and(|next| select::is_interpreted(&next));
            let interpreted = Registers::of(state());
            let wrong = (translated.rflags ^ interpreted.rflags) & ARITHMETIC;
            // Before what was executed is looked up again, which marks page tables.
            let difference = backend.end();
            let all_flags = all_flags && wrong & !self.undefined_flags(backend) != 0;
            let mut differences = translated.differences(&interpreted, all_flags);
            if let Some(difference) = difference {
                differences.push_str(&difference);
            }
            if !differences.is_empty() {
                let mut reason =
                    format!("the tiers differ (translated, interpreted):{differences}");
                let _ = write!(reason, " left for {leave} after {count} instructions:");
                self.trail(backend, &mut reason);
                return Err(Broken { rip: before.rip, reason });
            }
            let flags = pack_flags(translated.rflags);
            self.lockstep.flags = (!stays).then_some(flags);
            return Ok(leave);
        }
    }

    fn interpret_some<B: Oracle>(
        &mut self,
        backend: &mut B,
        count: u64,
        before: &Registers,
    ) -> Result<(), Broken> {
        let address = backend.state();
        std::mem::swap(&mut self.lockstep.trail, &mut self.lockstep.previous);
        self.lockstep.trail.clear();
        for done in 0..count {
            // SAFETY: as in `run`.
            let rip = unsafe { (*address).rip };
            if self.lockstep.trail.len() < 400 {
                self.lockstep.trail.push(rip);
            }
            if !backend.execute_whole() {
                let mut reason = format!(
                    "the interpreter raised an exception at {rip:#x}, after {done} of {count} \
                     instructions; translated code did not:"
                );
                self.trail(backend, &mut reason);
                return Err(Broken { rip: before.rip, reason });
            }
        }
        Ok(())
    }

    /// Arithmetic flags that the instructions executed last have left undefined: there
    /// the interpreter need not do what the host does.
    fn undefined_flags<B: Backend>(&self, backend: &mut B) -> u64 {
        let trail = self.lockstep.previous.iter().chain(&self.lockstep.trail);
        trail.fold(0, |undefined, &rip| {
            let Some(instruction) = instruction_at(backend, rip) else { return undefined };
            let left = instruction.rflags_undefined();
            let sure = instruction.rflags_modified() & !left;
            undefined & !flag_bits(sure) | flag_bits(left)
        })
    }

    /// Writes the instructions that the interpreter has executed.
    fn trail<B: Backend>(&self, backend: &mut B, text: &mut String) {
        let mut formatter = IntelFormatter::new();
        let here = self.lockstep.trail.iter().map(|&rip| (rip, ' '));
        for (rip, mark) in self.lockstep.previous.iter().map(|&rip| (rip, '-')).chain(here) {
            let _ = write!(text, "\n{mark} {rip:#x} ");
            if let Some(instruction) = instruction_at(backend, rip) {
                formatter.format(&instruction, text);
            }
        }
    }
}

/// Flags as iced names them, where RFLAGS has them.
fn flag_bits(named: u32) -> u64 {
    let places = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    places.iter().map(|&(name, place)| u64::from(named & name != 0) << place).sum()
}

/// Whether it can be left in its middle.
fn is_repeated(instruction: &Instruction) -> bool {
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    repeats && instruction.is_string_instruction()
}

/// The instruction there, if it is all in one page.
fn instruction_at<B: Backend>(backend: &mut B, rip: u64) -> Option<Instruction> {
    let page = backend.code_page(rip)?;
    // SAFETY: a page of guest memory.
    let bytes = unsafe { page.host.read_volatile() };
    let rest = &bytes[(rip % PAGE_SIZE) as usize..];
    Some(Decoder::with_ip(64, rest, rip, DecoderOptions::NONE).decode())
}
