//! Finding the unit of translation, and which flags matter where in it.
//!
//! A region is what can be reached from one address by direct jumps, branches and
//! the way on after calls without leaving a 4 KiB page, up to a limit. Only whole
//! instructions of that page belong to it.
//!
//! Flags that an instruction leaves behind matter if something may read them before
//! they are written again. In the region that is computed; behind its exits
//! everything may matter, except where the target is in the same page and its first
//! instructions show otherwise.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, RflagsBits,
};

use super::select::{VectorLevel, required_level};
use crate::tlb::PAGE_SIZE;

/// Instructions in one region at most.
pub const REGION_LIMIT: usize = 160;

/// Arithmetic flags as iced names them.
pub const ALL_FLAGS: u8 = (RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF) as u8;

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Nowhere,
    /// To the instruction with this index.
    Inside(u16),
    /// Out of the region, to this address.
    Outside(u64),
}

pub struct Step {
    pub instruction: Instruction,
    /// Offset in the page.
    pub offset: u16,
    pub next: Way,
    pub target: Way,
    /// Something jumps here, or control comes back here.
    pub leader: bool,
    pub reads: u8,
    /// Flags that it surely writes.
    pub writes: u8,
    /// It may write some, and generated code does.
    pub modifies: bool,
    /// Flags that matter before and after.
    pub live_in: u8,
    pub live_out: u8,
    /// What it needs to be translated; none if it is interpreted.
    pub level: Option<VectorLevel>,
    /// Must be interpreted: its bytes are not all there.
    pub cut: bool,
    /// Its last bytes are in the next page.
    pub crosses: bool,
}

pub struct Region {
    pub page: u64,
    pub steps: Vec<Step>,
    /// A bit for each 64 bytes of the page that hold code of this region or that it
    /// has looked at.
    pub granules: u64,
    /// An instruction at the end reaches into the next page.
    pub crosses: bool,
}

/// The longest instruction.
pub const LONGEST: usize = 15;

const UNSEEN: u16 = u16::MAX;

/// Scans regions; holds what is worth keeping between them.
pub struct Scanner {
    seen: Box<[u16; PAGE_SIZE as usize]>,
    undefined_flags_matter: bool,
}

pub fn granules(offset: u64, length: u64) -> u64 {
    let last = (offset + length.max(1) - 1).min(PAGE_SIZE - 1) >> 6;
    (u64::MAX >> (63 - last)) & (u64::MAX << (offset >> 6))
}

impl Scanner {
    /// `undefined_flags_matter`: results are compared with those of an interpreter.
    pub fn new(undefined_flags_matter: bool) -> Scanner {
        Scanner { seen: Box::new([UNSEEN; PAGE_SIZE as usize]), undefined_flags_matter }
    }

    /// The region that begins at `rip`, whose page is `bytes`; `tail` is how the next
    /// page begins, if code may go on there. With `exact`, all flags matter everywhere. What
    /// is `known` has been translated and stays outside, and so does the beginning for who
    /// comes back to it, if the region is to run `once`.
    pub fn scan(
        &mut self,
        rip: u64,
        bytes: &[u8; PAGE_SIZE as usize],
        tail: Option<&[u8; LONGEST]>,
        (exact, once): (bool, bool),
        known: impl Fn(u16) -> bool,
    ) -> Region {
        let page = rip & !(PAGE_SIZE - 1);
        let steps = Vec::with_capacity(64);
        let mut region = Region { page, steps, granules: 0, crosses: false };
        let mut queue = vec![(rip - page) as u16];
        while let Some(start) = queue.pop() {
            let elsewhere = !region.steps.is_empty() && known(start);
            if self.seen[start as usize] == UNSEEN && !elsewhere {
                self.follow(&mut region, bytes, tail, start, &mut queue, &known);
            }
        }
        let steps = region.steps.len();
        for index in 0..steps {
            self.connect(&mut region, index, once);
        }
        if let Some(first) = region.steps.first_mut() {
            first.leader = true;
        }
        self.flow(&mut region, bytes, exact);
        for step in &region.steps {
            self.seen[step.offset as usize] = UNSEEN;
        }
        region
    }

    /// Decodes from `start` on until control surely goes elsewhere.
    fn follow(
        &mut self,
        region: &mut Region,
        bytes: &[u8; PAGE_SIZE as usize],
        tail: Option<&[u8; LONGEST]>,
        start: u16,
        queue: &mut Vec<u16>,
        known: &impl Fn(u16) -> bool,
    ) {
        let page = region.page;
        let mut offset = start as usize;
        let mut decoder = Decoder::with_ip(64, bytes, page, DecoderOptions::NONE);
        loop {
            if offset >= PAGE_SIZE as usize
                || region.steps.len() >= REGION_LIMIT
                || self.seen[offset] != UNSEEN
                || offset != start as usize && known(offset as u16)
                || decoder.set_position(offset).is_err()
            {
                return;
            }
            decoder.set_ip(page + offset as u64);
            let mut instruction = Instruction::default();
            decoder.decode_out(&mut instruction);
            let left = PAGE_SIZE as usize - offset;
            let mut cut = instruction.code() == Code::INVALID && left < LONGEST;
            let mut crosses = false;
            if cut && let Some(tail) = tail {
                let mut joined = [0; 2 * LONGEST];
                joined[..left].copy_from_slice(&bytes[offset..]);
                joined[left..left + LONGEST].copy_from_slice(tail);
                let (ip, options) = (page + offset as u64, DecoderOptions::NONE);
                Decoder::with_ip(64, &joined[..left + LONGEST], ip, options)
                    .decode_out(&mut instruction);
                crosses = !instruction.is_invalid();
                cut = !crosses;
                region.crosses |= crosses;
            }
            let length = instruction.len().max(1);
            region.granules |= granules(offset as u64, if cut { 15 } else { length as u64 });
            self.seen[offset] = region.steps.len() as u16;
            let step = Step {
                offset: offset as u16,
                next: Way::Nowhere,
                target: Way::Nowhere,
                leader: false,
                reads: 0,
                writes: 0,
                modifies: false,
                live_in: 0,
                live_out: 0,
                level: required_level(&instruction),
                cut,
                crosses,
                instruction,
            };
            region.steps.push(step);
            if cut {
                return;
            }
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                    if ends_region(&instruction) {
                        return;
                    }
                    offset += length;
                }
                FlowControl::ConditionalBranch => {
                    if is_interpreted_branch(&instruction) {
                        return;
                    }
                    let target = instruction.near_branch_target();
                    if target & !(PAGE_SIZE - 1) == page {
                        queue.push((target - page) as u16);
                    }
                    offset += length;
                }
                FlowControl::UnconditionalBranch => {
                    let target = instruction.near_branch_target();
                    if is_interpreted_branch(&instruction) || target & !(PAGE_SIZE - 1) != page {
                        return;
                    }
                    offset = (target - page) as usize;
                }
                _ => return,
            }
        }
    }

    fn way(&self, region: &Region, address: u64, once: bool) -> Way {
        if address & !(PAGE_SIZE - 1) == region.page {
            let index = self.seen[(address - region.page) as usize];
            if index != UNSEEN && !(once && index == 0) {
                return Way::Inside(index);
            }
        }
        Way::Outside(address)
    }

    fn connect(&self, region: &mut Region, index: usize, once: bool) {
        let way = |region: &Region, address| self.way(region, address, once);
        let instruction = region.steps[index].instruction;
        let (mut reads, writes) = flag_use(&instruction, region.steps[index].level);
        if self.undefined_flags_matter {
            reads |= flags_left_alone(&instruction);
        }
        let next = instruction.next_ip();
        let (mut on, mut to) = (Way::Nowhere, Way::Nowhere);
        if !region.steps[index].cut {
            match instruction.flow_control() {
                FlowControl::Next if !ends_region(&instruction) => on = way(region, next),
                FlowControl::Call | FlowControl::IndirectCall if !ends_region(&instruction) => {
                    on = way(region, next);
                    if instruction.is_call_near() {
                        // The callee is never inside: calls are links.
                        to = Way::Outside(instruction.near_branch_target());
                    }
                    if let Way::Inside(after) = on {
                        region.steps[after as usize].leader = true;
                    }
                }
                FlowControl::ConditionalBranch if !is_interpreted_branch(&instruction) => {
                    on = way(region, next);
                    to = way(region, instruction.near_branch_target());
                }
                FlowControl::UnconditionalBranch if !is_interpreted_branch(&instruction) => {
                    to = way(region, instruction.near_branch_target());
                }
                _ => {}
            }
        }
        if let Way::Inside(target) = to {
            region.steps[target as usize].leader = true;
        }
        // What follows in the region but not in the code is jumped to.
        if let Way::Inside(target) = on
            && target as usize != index + 1
        {
            region.steps[target as usize].leader = true;
        }
        let step = &mut region.steps[index];
        step.modifies = instruction.rflags_modified() as u8 & ALL_FLAGS != 0;
        (step.next, step.target, step.reads, step.writes) = (on, to, reads, writes);
    }

    /// Propagates the need for flags backwards until nothing changes.
    fn flow(&self, region: &mut Region, bytes: &[u8; PAGE_SIZE as usize], exact: bool) {
        if exact {
            for step in &mut region.steps {
                (step.live_in, step.live_out) = (ALL_FLAGS, ALL_FLAGS);
            }
            return;
        }
        let mut outside = Vec::new();
        for index in 0..region.steps.len() {
            for way in [region.steps[index].next, region.steps[index].target] {
                if let Way::Outside(address) = way
                    && !outside.iter().any(|&(known, _)| known == address)
                {
                    outside.push((address, self.peek(region, bytes, address)));
                }
            }
        }
        loop {
            let mut changed = false;
            for index in (0..region.steps.len()).rev() {
                let step = &region.steps[index];
                let behind = |way| match way {
                    Way::Nowhere => 0,
                    Way::Inside(to) => region.steps[to as usize].live_in,
                    Way::Outside(to) => outside
                        .iter()
                        .find(|&&(address, _)| address == to)
                        .map_or(ALL_FLAGS, |&(_, live)| live),
                };
                let live_out = match (step.next, step.target) {
                    (Way::Nowhere, Way::Nowhere) => ALL_FLAGS,
                    _ if step.instruction.flow_control() == FlowControl::IndirectCall => ALL_FLAGS,
                    (next, target) => behind(next) | behind(target),
                };
                let live_in = live_out & !step.writes | step.reads;
                changed |= live_in != step.live_in || live_out != step.live_out;
                let step = &mut region.steps[index];
                (step.live_in, step.live_out) = (live_in, live_out);
            }
            if !changed {
                return;
            }
        }
    }

    /// Which flags matter at an address of the same page, as far as its first
    /// instructions tell. What was looked at becomes a part of the region's bytes.
    fn peek(&self, region: &mut Region, bytes: &[u8; PAGE_SIZE as usize], address: u64) -> u8 {
        if address & !(PAGE_SIZE - 1) != region.page {
            return ALL_FLAGS;
        }
        let start = (address - region.page) as usize;
        let mut decoder = Decoder::with_ip(64, &bytes[start..], address, DecoderOptions::NONE);
        let (mut live, mut undecided) = (0, ALL_FLAGS);
        for _ in 0..4 {
            let instruction = decoder.decode();
            let plain =
                instruction.flow_control() == FlowControl::Next && !ends_region(&instruction);
            if instruction.is_invalid() {
                break;
            }
            let (reads, writes) = flag_use(&instruction, required_level(&instruction));
            let left = if self.undefined_flags_matter { flags_left_alone(&instruction) } else { 0 };
            live |= (reads | left) & undecided;
            undecided &= !writes;
            if !plain || undecided == 0 {
                break;
            }
        }
        region.granules |= granules(start as u64, decoder.position() as u64 + 15);
        live | undecided
    }
}

/// Flags that are undefined after it, and that AMD's processors leave as they were. No guest
/// relies on that, but it can see it.
fn flags_left_alone(instruction: &Instruction) -> u8 {
    use Mnemonic::{Bsf, Bsr, Div, Idiv, Imul, Mul};
    match instruction.mnemonic() {
        Mul | Imul | Div | Idiv | Bsf | Bsr => instruction.rflags_undefined() as u8 & ALL_FLAGS,
        _ => 0,
    }
}

/// Flags that an instruction may read, and those that it surely writes.
fn flag_use(instruction: &Instruction, level: Option<VectorLevel>) -> (u8, u8) {
    if level.is_none() {
        return (ALL_FLAGS, 0);
    }
    let reads = instruction.rflags_read() as u8 & ALL_FLAGS;
    let writes = instruction.rflags_modified() as u8 & ALL_FLAGS;
    let counted = match instruction.mnemonic() {
        Mnemonic::Shl
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr => Some(1),
        Mnemonic::Shld | Mnemonic::Shrd => Some(2),
        _ => None,
    };
    // A count of zero leaves all flags as they were, so they matter as much as afterwards.
    match counted {
        Some(operand) if !surely_shifts(instruction, operand) => (reads, 0),
        _ => (reads, writes),
    }
}

fn surely_shifts(instruction: &Instruction, operand: u32) -> bool {
    let wide = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() == 8,
        _ => instruction.memory_size().size() == 8,
    };
    let mask = if wide { 0x3f } else { 0x1f };
    instruction.op_kind(operand) == OpKind::Immediate8 && instruction.immediate8() & mask != 0
}

/// The interpreter executes it, and where control goes is seen afterwards.
pub fn ends_region(instruction: &Instruction) -> bool {
    if instruction.is_invalid() {
        return true;
    }
    matches!(
        instruction.code(),
        Code::Hlt
            | Code::Call_rel16
            | Code::Call_rm16
            | Code::Call_rm32
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    ) || matches!(
        instruction.mnemonic(),
        Mnemonic::Syscall
            | Mnemonic::Sysenter
            | Mnemonic::Sysret
            | Mnemonic::Sysexit
            | Mnemonic::Sysretq
            | Mnemonic::Sysexitq
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
            | Mnemonic::Xbegin
    )
}

/// Branches that only the interpreter knows: loops, and 16-bit forms.
pub fn is_interpreted_branch(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Loop
            | Mnemonic::Loope
            | Mnemonic::Loopne
            | Mnemonic::Jcxz
            | Mnemonic::Jecxz
            | Mnemonic::Jrcxz
            | Mnemonic::Xbegin
    ) || matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::FarBranch16 | OpKind::FarBranch32
    )
}
