//! From a scanned region to host code.
//!
//! Instructions are taken in the order of the scan. One without memory operands and
//! displaced registers is copied byte for byte; the others are re-encoded with their
//! memory operand at the host address that a check has found, and with scratch
//! registers in the place of displaced ones. What branches, pushes, or belongs to
//! the system has its own emitter in a file beside this one.

use iced_x86::{Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind};

use super::branches::code_place;
use super::deferred::Setter;
use super::emit::{Alu, Emit, Fixup, Mem, cc};
use super::flags::Flags;
use super::frame;
use super::group::Groups;
use super::memory::{AccessInfo, Form};
use super::runtime::Routines;
use super::scan::{Region, Step, Way};
use super::select::{self, VectorLevel};
use super::site::{Failed, NewSite};
use crate::tlb::PAGE_SIZE;
use guise_engine::extensions::Features;

/// What the code depends on besides the instructions themselves.
#[derive(Clone, Copy)]
pub struct Setting {
    pub vectors: VectorLevel,
    pub bmi2: bool,
    /// At privilege level 0.
    pub supervisor: bool,
    pub features: Features,
    /// Each instruction is counted as it begins.
    pub counted: bool,
    /// Without groups.
    pub plain: bool,
}

/// A direct way out of the region that can be connected to other code.
#[derive(Default)]
pub struct LinkSite {
    /// Where the jump's displacement stands.
    pub jump: Fixup,
    /// Where the expected id of the target's page stands, for other pages.
    pub expected: Option<usize>,
    /// For indirect jumps.
    pub guess: Option<Guess>,
}

/// What an indirect jump is to compare its target with.
#[derive(Clone, Copy)]
pub struct Guess {
    /// Where the comparison begins, and where the expected address stands.
    pub start: usize,
    pub target: usize,
    /// A jump's displacement that is to lead to `rest` once the guess is made.
    pub first: Fixup,
    /// Looks the target up.
    pub rest: usize,
}

/// For host traps: which guest instruction a piece of code belongs to.
#[derive(Clone, Copy)]
pub struct Origin {
    pub host: u32,
    pub offset: u16,
    /// The guest's flags are in the host's there.
    pub native: bool,
}

#[derive(Default)]
pub struct Compiled {
    pub code: Vec<u8>,
    /// Where the region can be entered with flags in the frame: guest offset, place.
    pub entries: Vec<(u16, u32)>,
    /// Where control comes back after calls.
    pub returns: Vec<(u16, u32)>,
    pub links: Vec<LinkSite>,
    pub sites: Vec<NewSite>,
    pub origins: Vec<Origin>,
}

/// What is emitted behind the straight code.
pub(super) enum Cold {
    /// A check failed: the helper finds the host address, or leaves.
    Access { enter: Fixup, back: usize, entry: i32, info: AccessInfo, form: Form },
    /// A branch leaves the region.
    Edge { enter: Fixup, from: u64, to: u64, flags: Flags, setter: Option<Setter>, live: bool },
    /// Flags are to be computed again; where that is done is told at `place`.
    Deferred { place: usize, setter: Setter },
    /// The frame has such a place instead of flags.
    Settle { enter: Fixup, back: usize },
    /// Control goes on at `rip` by way of the Rust code; flags are in the frame.
    Next { enter: Fixup, rip: u64 },
    /// A call's target page is not what it was: control leaves with the shadow entry.
    CallLink { enters: [Option<Fixup>; 2], jump: Fixup, link: u32, target: u64, after: usize },
    /// A return whose shadow entry is another one.
    ReturnMiss { enter: Fixup },
    /// The guest's vectors are not in the host's registers yet.
    LoadVectors { enter: Fixup, back: usize },
    /// The check of a group failed.
    Group {
        enter: Fixup,
        back: usize,
        entry: i32,
        info: AccessInfo,
        form: Form,
        group: (u64, u32, usize),
    },
    /// The check with a site failed.
    Site { failed: Failed },
    /// The shared end of an indirect call: goes to the target in S0.
    Indirect { enter: Fixup, link: u32 },
    /// What is done in place cannot be this time: the interpreter does it.
    InPlace { enter: Fixup, instruction: Instruction, back: usize },
    /// The Rust code has the interpreter execute the instruction there.
    Interpret { enter: Fixup, rip: u64, instruction: Instruction },
}

pub struct Compiler<'a> {
    pub(super) emit: Emit,
    pub(super) region: &'a Region,
    pub(super) routines: &'a Routines,
    pub(super) setting: Setting,
    pub(super) page_id: u32,
    /// The id of the next page, if an instruction reaches into it.
    pub(super) next_id: u32,
    pub(super) first_link: u32,
    /// Where the data of sites ends that this region will get.
    pub(super) sites_top: u64,
    pub(super) flags: Flags,
    /// What wrote the guest's flags last, if they can be computed again from registers.
    pub(super) setter: Option<Setter>,
    pub(super) groups: Groups,
    /// How far the guest's stack pointer is ahead of STACK.
    pub(super) stack_ahead: i32,
    pub(super) cold: Vec<Cold>,
    pub(super) out: Compiled,
    pub(super) info: InstructionInfoFactory,
    /// Bytes of this instruction and the branch that the processor decodes together with
    /// it; 0 if there is none.
    pub(super) fused: u64,
    /// Something in the region has vectors, or MXCSR, as an operand.
    uses_vectors: bool,
    /// By step.
    passed_on: Vec<bool>,
    encoder: Encoder,
    labels: Vec<Option<usize>>,
    references: Vec<(Fixup, u16)>,
    bytes: &'a [u8; 4096],
}

impl<'a> Compiler<'a> {
    pub fn new(
        region: &'a Region,
        bytes: &'a [u8; 4096],
        routines: &'a Routines,
        setting: Setting,
        (page_id, next_id): (u32, u32),
        first_link: u32,
        (origin, sites_top): (u64, u64),
    ) -> Compiler<'a> {
        Compiler {
            emit: Emit::new(region.steps.len() * 48 + 256, origin),
            region,
            routines,
            setting,
            page_id,
            next_id,
            first_link,
            sites_top,
            flags: Flags::SAVED,
            setter: None,
            groups: Groups::default(),
            stack_ahead: 0,
            cold: Vec::new(),
            out: Compiled::default(),
            info: InstructionInfoFactory::new(),
            uses_vectors: region.steps.iter().any(|step| {
                step.level
                    .is_some_and(|level| level > VectorLevel::None && level <= setting.vectors)
            }),
            passed_on: Vec::new(),
            fused: 0,
            encoder: Encoder::new(64),
            labels: vec![None; region.steps.len()],
            references: Vec::new(),
            bytes,
        }
    }

    /// Translates the region.
    pub fn compile(mut self) -> Compiled {
        let region = self.region;
        let first = &region.steps[0];
        self.out.entries.push((first.offset, 0));
        self.want_vectors();
        self.prepare_groups();
        self.find_passed_on();
        if self.wants_flags(0) {
            self.settle_flags();
            self.flags.bring_back(&mut self.emit);
        }
        for (index, step) in region.steps.iter().enumerate() {
            self.begin(index, step);
            self.step(index, step);
            self.finish(index, step);
        }
        self.emit_entries();
        self.emit_cold();
        for (fixup, index) in std::mem::take(&mut self.references) {
            let place = self.labels[index as usize].expect("every step was emitted");
            self.emit.bind(fixup, place);
        }
        self.out.code = self.emit.code;
        self.out
    }

    /// Which leaders are reached with flags in the frame only: from outside, and from calls.
    fn find_passed_on(&mut self) {
        let steps = &self.region.steps;
        self.passed_on = steps.iter().map(|step| step.leader).collect();
        for step in steps {
            let call = matches!(
                step.instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            for way in [step.next, step.target] {
                if let Way::Inside(to) = way
                    && !call
                {
                    self.passed_on[to as usize] = false;
                }
            }
        }
    }

    /// Whether flags are to be in the host's where this step begins; if not, and they
    /// matter, they are in the frame.
    pub(super) fn wants_flags(&self, index: usize) -> bool {
        self.region.steps[index].live_in != 0 && !self.passed_on[index]
    }

    /// Whether control goes straight from here out of the region by a jump, as in linkage
    /// tables: flags pass through in whatever form they come, because nothing changes what
    /// they could be computed from.
    fn only_jumps_on(&self, index: usize) -> bool {
        let steps = &self.region.steps[index..];
        let jump = steps.iter().position(|step| !select::is_nothing(&step.instruction));
        let Some(jump) = jump else { return false };
        steps[1..=jump].iter().all(|step| !step.leader)
            && steps[..=jump].iter().all(|step| !step.cut && !step.crosses)
            && match steps[jump].instruction.flow_control() {
                FlowControl::IndirectBranch => true,
                FlowControl::UnconditionalBranch => matches!(steps[jump].target, Way::Outside(_)),
                _ => false,
            }
    }

    fn begin(&mut self, index: usize, step: &Step) {
        if step.leader {
            self.flags = if self.wants_flags(index) {
                Flags::NATIVE
            } else {
                Flags { native: false, saved: step.live_in != 0 }
            };
        }
        if step.leader {
            self.emit.held = None;
            self.setter = None;
        }
        self.labels[index] = Some(self.emit.here());
        if step.leader && self.flags.saved && !self.only_jumps_on(index) {
            self.settle_flags();
        }
        if self.setting.counted {
            self.emit.load(frame::S1, frame::begun());
            self.emit.lea(frame::S1, Mem::at(frame::S1, 1));
            self.emit.store(frame::begun(), frame::S1);
        }
        if step.leader {
            self.groups.end_all();
        }
        self.fused = match self.region.steps.get(index + 1) {
            Some(branch) if select::fuses(&step.instruction, &branch.instruction) => {
                // The memory operand may get longer; a branch has six bytes.
                step.instruction.len() as u64 + 2 + 6
            }
            _ => 0,
        };
        self.before_group(index, step);
    }

    /// After the instruction: on to the next one, wherever it is.
    fn finish(&mut self, index: usize, step: &Step) {
        self.after_group(index);
        self.note_setter(step);
        let straight_on =
            |next: u16| next as usize == index + 1 && !self.region.steps[next as usize].leader;
        if !matches!(step.next, Way::Inside(next) if straight_on(next)) {
            self.settle_stack();
        }
        match step.next {
            Way::Nowhere => {}
            Way::Inside(next) => {
                let target = &self.region.steps[next as usize];
                if target.leader && self.wants_flags(next as usize) {
                    if step.instruction.is_call_near() || step.instruction.is_call_near_indirect() {
                        self.settle_flags();
                    }
                    self.flags.bring_back(&mut self.emit);
                }
                if next as usize != index + 1 {
                    self.jump_inside(step, next);
                }
            }
            Way::Outside(address) => {
                self.leave_to(step.instruction.ip(), address, step.live_out != 0);
            }
        }
    }

    pub(super) fn reference(&mut self, fixup: Fixup, index: u16) {
        self.references.push((fixup, index));
    }

    fn step(&mut self, index: usize, step: &Step) {
        let instruction = &step.instruction;
        if !step.cut && !step.crosses && self.supervisor(step) {
            return;
        }
        if step.cut
            || step.level.is_none_or(|level| level > self.setting.vectors)
            || !self.setting.features.allow(instruction.code())
        {
            return self.interpret(step);
        }
        if step.crosses {
            self.expect_next_page(step);
        }
        match instruction.flow_control() {
            FlowControl::Next => self.plain(step),
            FlowControl::ConditionalBranch => self.branch(index, step),
            FlowControl::UnconditionalBranch => self.jump(step),
            FlowControl::Call => self.call(step),
            FlowControl::IndirectCall => self.call_indirect(step),
            FlowControl::IndirectBranch => self.jump_indirect(step),
            FlowControl::Return => self.ret(step),
            _ => self.interpret(step),
        }
    }

    fn plain(&mut self, step: &Step) {
        let instruction = &step.instruction;
        if select::is_nothing(instruction) {
            return;
        }
        match instruction.mnemonic() {
            Mnemonic::Push => self.push(step),
            Mnemonic::Pop => self.pop(step),
            Mnemonic::Pushfq => self.push_flags(step),
            Mnemonic::Leave => self.leave(step),
            Mnemonic::Lea => self.load_address(step),
            Mnemonic::Cld => self.clear_direction(step),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op0_kind() == OpKind::Memory
                    && instruction.op1_kind() == OpKind::Register =>
            {
                self.bit_string(step)
            }
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => self.read_tsc(step),
            _ if select::is_selector_read(instruction) => self.read_selector(step),
            _ if select::is_bulk_string(instruction) => self.bulk_string(step),
            _ => self.general(step),
        }
    }

    /// An instruction that runs as it is but for its operands.
    fn general(&mut self, step: &Step) {
        let instruction = step.instruction;
        let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        if !memory && step.crosses && !self.needs_other_registers(&instruction) {
            self.flags_for(step);
            self.origin(step);
            self.encode(&instruction);
        } else if !memory && !self.needs_other_registers(&instruction) {
            self.flags_for(step);
            self.origin(step);
            let start = step.offset as usize;
            let bytes = &self.bytes[start..start + instruction.len()];
            self.emit.bytes(bytes);
        } else {
            let operand = memory.then(|| self.check_operand(step));
            self.flags_for(step);
            self.substituted(step, operand);
        }
        if step.modifies {
            self.flags.written();
        }
    }

    /// Before an instruction that uses flags, or writes only some of those that matter.
    pub(super) fn flags_for(&mut self, step: &Step) {
        let kept = step.live_out & !step.writes;
        if step.reads != 0 || step.modifies && kept != 0 {
            self.flags.bring_back(&mut self.emit);
        }
    }

    /// Directly before the host's form of the instruction.
    pub(super) fn origin(&mut self, step: &Step) {
        self.emit.room_for_jump(self.fused);
        self.out.origins.push(Origin {
            host: self.emit.here() as u32,
            offset: step.offset,
            native: self.flags.native,
        });
    }

    /// Encodes an instruction whose operands are all the host's.
    pub(super) fn encode(&mut self, instruction: &Instruction) {
        let code = std::mem::take(&mut self.emit.code);
        let length = code.len();
        self.encoder.set_buffer(code);
        let result = self.encoder.encode(instruction, 0);
        self.emit.code = self.encoder.take_buffer();
        if result.is_err() {
            // What iced decodes it encodes; should it ever not, the code must not run on.
            self.emit.code.truncate(length);
            self.emit.bytes(&[0x0f, 0x0b]);
        }
    }

    /// An instruction that reaches into the next page: that must be what it was.
    fn expect_next_page(&mut self, step: &Step) {
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        self.emit.load(frame::S1, frame::bank());
        let place = code_place(self.region.page + PAGE_SIZE);
        self.emit.cmp_mem_patchable(Mem::at(frame::S1, place), self.next_id);
        let enter = self.emit.jcc(cc::NE);
        let (rip, instruction) = (step.instruction.ip(), step.instruction);
        self.cold.push(Cold::Interpret { enter, rip, instruction });
    }

    /// Has the interpreter execute the instruction.
    pub(super) fn interpret(&mut self, step: &Step) {
        self.flags.put_aside(&mut self.emit, true);
        let rip = step.instruction.ip();
        if step.next == Way::Nowhere {
            self.leave_to_interpreter(rip, &step.instruction);
        } else {
            self.interpret_inline(&step.instruction);
        }
        self.flags = Flags::SAVED;
    }

    /// Leaves for the interpreter; flags are in the frame.
    pub(super) fn leave_to_interpreter(&mut self, rip: u64, instruction: &Instruction) {
        let argument = instruction.mnemonic() as usize | instruction.len() << 16;
        self.emit.store32_imm(frame::argument(), argument as i32);
        self.emit.mov_imm(frame::S1, rip);
        self.emit.store(frame::rip(), frame::S1);
        self.emit.jmp_to(self.routines.leave_interpret);
    }

    pub(super) fn interpret_inline(&mut self, instruction: &Instruction) {
        let (length, mnemonic) = (instruction.len() as u64, instruction.mnemonic() as u64);
        self.emit.mov_imm(frame::S1, instruction.ip());
        let info = mnemonic << 48 | u64::from(self.page_id) << 8 | length;
        self.emit.mov_imm(frame::S0, info);
        self.emit.call_to(self.routines.interpret);
    }

    /// Where control comes back from the interpreter to.
    pub(super) fn back_in_place(&mut self) -> usize {
        self.emit.held = None;
        self.emit.here()
    }

    /// Where the region is entered: has vectors in the host's registers if it uses them.
    /// Flags are in the frame.
    pub(super) fn want_vectors(&mut self) {
        if self.uses_vectors {
            self.emit.alu_mem_imm32(Alu::Cmp, frame::vectors_live(), 0);
            let enter = self.emit.jcc(cc::E);
            self.cold.push(Cold::LoadVectors { enter, back: self.emit.here() });
        }
    }

    /// Entries for leaders: they bring flags back where those matter. Each is a piece of
    /// code of its own, so that it can be overwritten with a jump elsewhere.
    fn emit_entries(&mut self) {
        let region = self.region;
        for (index, step) in region.steps.iter().enumerate().skip(1) {
            if !step.leader {
                continue;
            }
            self.out.entries.push((step.offset, self.emit.here() as u32));
            self.want_vectors();
            if self.wants_flags(index) {
                self.settle_flags();
                let mut flags = Flags::SAVED;
                flags.bring_back(&mut self.emit);
            }
            let jump = self.emit.jmp();
            self.emit.bind(jump, self.labels[index].expect("every step was emitted"));
        }
    }
}
