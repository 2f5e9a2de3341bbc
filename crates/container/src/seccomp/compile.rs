//! Compiling a profile to classic BPF.
//!
//! Per architecture the numbers are sorted into ranges with one answer each,
//! and a balanced tree of comparisons finds the range: seven or eight steps for
//! a profile of four hundred calls, where a list would take hundreds. Rules
//! with comparisons of arguments hang below as chains.
//!
//! Code is made from its end, so that the target of each jump is known when
//! the jump is made; one that is too far for eight bits goes over a long jump.

use std::collections::BTreeMap;

use super::table::{ACTIONS, ARCHITECTURES, Architecture, FLAGS, OPERATORS, Operator, X32_BIT};
use crate::error::{Error, Result};
use crate::spec::{Seccomp, SyscallArg};
use crate::sys::seccomp::Instruction;

/// The kernel's limit on the length of one program.
const MAX_INSTRUCTIONS: usize = 4096;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// A compiled profile.
pub struct Compiled {
    pub program: Vec<Instruction>,
    pub flags: u64,
    pub notifies: bool,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Comparison {
    index: u32,
    operator: Operator,
    value: u64,
    /// For masked comparisons: what the masked value has to be.
    datum: u64,
}

/// What happens on one system call: the first rule whose comparisons all hold
/// answers, else the last value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    rules: Vec<(Vec<Comparison>, u32)>,
    otherwise: u32,
}

/// Compiles.
pub fn compile(profile: &Seccomp) -> Result<Compiled> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut notifies = is_notify(default);
    if notifies {
        return Err(Error::config(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY as the default would ask about the call that answers",
        ));
    }
    let mut flags = 0;
    for flag in &profile.flags {
        flags |= find(&FLAGS, flag, "linux.seccomp.flags")?;
    }
    let mut architectures = vec![Architecture::X86_64];
    for name in &profile.architectures {
        match ARCHITECTURES.iter().find(|(n, _)| n == name) {
            Some((_, architecture)) if !architectures.contains(architecture) => {
                architectures.push(*architecture);
            }
            Some(_) => {}
            None if name.starts_with("SCMP_ARCH_") => {}
            None => {
                return Err(Error::config("linux.seccomp.architectures", format!("{name:?}")));
            }
        }
    }
    let mut per_architecture: Vec<(Architecture, BTreeMap<u32, Answer>)> =
        architectures.iter().map(|a| (*a, BTreeMap::new())).collect();
    let mut comparisons = 0usize;
    for rule in &profile.syscalls {
        let value = action(&rule.action, rule.errno_ret)?;
        notifies |= is_notify(value);
        let alternatives = alternatives(&rule.args)?;
        // Each becomes at least one instruction, so that more cannot fit; seen
        // here, before a list times a list fills the memory.
        comparisons += rule.names.len().saturating_mul(alternatives.len());
        if comparisons > MAX_INSTRUCTIONS {
            return Err(too_long(comparisons));
        }
        for (architecture, answers) in &mut per_architecture {
            for name in &rule.names {
                // A name this kernel interface lacks cannot be called.
                let Some(number) = architecture.number(name) else { continue };
                let answer = answers
                    .entry(number)
                    .or_insert_with(|| Answer { rules: Vec::new(), otherwise: default });
                if alternatives.is_empty() {
                    if answer.otherwise == default {
                        answer.otherwise = value;
                    }
                } else {
                    answer.rules.extend(alternatives.iter().map(|a| (a.clone(), value)));
                }
            }
        }
    }
    let program = Assembler::program(&per_architecture, default);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(too_long(program.len()));
    }
    Ok(Compiled { program, flags, notifies })
}

fn too_long(instructions: usize) -> Error {
    let why = format!("needs {instructions} instructions, the kernel takes {MAX_INSTRUCTIONS}");
    Error::config("linux.seccomp", why)
}

fn is_notify(value: u32) -> bool {
    value == libc::SECCOMP_RET_USER_NOTIF
}

fn find<T: Copy>(table: &[(&str, T)], name: &str, field: &str) -> Result<T> {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::config(field, format!("{name:?} is not known")))
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    const LARGEST_ERRNO: u32 = 4095;
    let value = find(&ACTIONS, name, "linux.seccomp: action")?;
    let takes_data = matches!(value, libc::SECCOMP_RET_ERRNO | libc::SECCOMP_RET_TRACE);
    match errno {
        Some(_) if !takes_data => {
            Err(Error::config("linux.seccomp: errnoRet", format!("{name} returns no error number")))
        }
        Some(n) if n > LARGEST_ERRNO => {
            Err(Error::config("linux.seccomp: errnoRet", format!("{n} is too large")))
        }
        Some(n) => Ok(value | n),
        None if takes_data => Ok(value | libc::EPERM as u32),
        None => Ok(value),
    }
}

/// The comparisons of a rule: all have to hold, except that two of the same
/// argument are alternatives to each other.
fn alternatives(args: &[SyscallArg]) -> Result<Vec<Vec<Comparison>>> {
    let comparisons = args
        .iter()
        .map(|arg| {
            if arg.index > 5 {
                return Err(Error::config(
                    "linux.seccomp: args",
                    format!("there is no argument {}", arg.index),
                ));
            }
            Ok(Comparison {
                index: arg.index,
                operator: find(&OPERATORS, &arg.op, "linux.seccomp: op")?,
                value: arg.value,
                datum: arg.value_two,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let repeats = comparisons
        .iter()
        .enumerate()
        .any(|(i, c)| comparisons[..i].iter().any(|earlier| earlier.index == c.index));
    Ok(match (comparisons.is_empty(), repeats) {
        (true, _) => Vec::new(),
        (false, true) => comparisons.into_iter().map(|c| vec![c]).collect(),
        (false, false) => vec![comparisons],
    })
}

/// An instruction by its distance from the program's end.
type Label = usize;

/// Makes code from its end.
struct Assembler {
    reversed: Vec<Instruction>,
    returns: BTreeMap<u32, Label>,
}

impl Assembler {
    fn program(
        per_architecture: &[(Architecture, BTreeMap<u32, Answer>)],
        default: u32,
    ) -> Vec<Instruction> {
        let mut a = Assembler { reversed: Vec::new(), returns: BTreeMap::new() };
        let of = |wanted: Architecture| {
            per_architecture.iter().find(|(a, _)| *a == wanted).map(|(_, answers)| answers)
        };
        // Calls of an interface that the profile does not list.
        let foreign = libc::SECCOMP_RET_KILL_PROCESS;
        let mut next = a.answer(foreign);
        if let Some(answers) = of(Architecture::X86) {
            let tree = a.tree(answers, default, None);
            let start = a.load(OFFSET_NUMBER, tree);
            next = a.branch(JUMP_EQUAL, AUDIT_ARCH_I386, start, next);
        }
        let mut wide = of(Architecture::X86_64).cloned().unwrap_or_default();
        let x32 = match of(Architecture::X32) {
            Some(answers) => {
                wide.extend(answers.iter().map(|(n, answer)| (*n, answer.clone())));
                default
            }
            None => foreign,
        };
        let tree = a.tree(&wide, default, Some(x32));
        let start = a.load(OFFSET_NUMBER, tree);
        next = a.branch(JUMP_EQUAL, AUDIT_ARCH_X86_64, start, next);
        a.load(OFFSET_ARCHITECTURE, next);
        a.reversed.reverse();
        a.reversed
    }

    fn emit(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// How far a jump made now has to go.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - to - 1
    }

    /// Something that goes on at `next`, which has to be what was made last or
    /// is jumped to.
    fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        if self.distance(next) != 0 {
            let distance = self.distance(next) as u32;
            self.emit(JUMP, 0, 0, distance);
        }
        self.emit(code, 0, 0, k)
    }

    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.then(LOAD, offset, next)
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let (mut yes, mut no) = (yes, no);
        // One long jump may push the other target out of reach, hence the room.
        const REACH: usize = 253;
        if self.distance(yes) > REACH {
            let distance = self.distance(yes) as u32;
            yes = self.emit(JUMP, 0, 0, distance);
        }
        if self.distance(no) > REACH {
            let distance = self.distance(no) as u32;
            no = self.emit(JUMP, 0, 0, distance);
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.emit(code, jt, jf, k)
    }

    /// Returns a value; one that was made nearby is used again.
    fn answer(&mut self, value: u32) -> Label {
        const NEAR: usize = 200;
        if let Some(label) = self.returns.get(&value)
            && self.distance(*label) < NEAR
        {
            return *label;
        }
        let label = self.emit(RETURN, 0, 0, value);
        self.returns.insert(value, label);
        label
    }

    /// The tree over all numbers; `x32` answers those of that interface that
    /// are not listed.
    fn tree(&mut self, answers: &BTreeMap<u32, Answer>, default: u32, x32: Option<u32>) -> Label {
        let plain = |value: u32| Answer { rules: Vec::new(), otherwise: value };
        let gap = |at: u32| plain(if at >= X32_BIT { x32.unwrap_or(default) } else { default });
        let mut ranges: Vec<(u32, Answer)> = Vec::new();
        let mut add = |start: u32, answer: Answer| {
            if let Some((last, _)) = ranges.last()
                && *last == start
            {
                ranges.pop();
            }
            if ranges.last().is_none_or(|(_, previous)| *previous != answer) {
                ranges.push((start, answer));
            }
        };
        add(0, gap(0));
        let mut boundary = x32.is_some();
        for (number, answer) in answers {
            if boundary && *number >= X32_BIT {
                add(X32_BIT, gap(X32_BIT));
                boundary = false;
            }
            add(*number, answer.clone());
            add(number + 1, gap(number + 1));
        }
        if boundary {
            add(X32_BIT, gap(X32_BIT));
        }
        self.search(&ranges)
    }

    fn search(&mut self, ranges: &[(u32, Answer)]) -> Label {
        match ranges {
            [] => self.answer(libc::SECCOMP_RET_KILL_PROCESS),
            [(_, answer)] => self.leaf(answer),
            _ => {
                let (left, right) = ranges.split_at(ranges.len() / 2);
                let no = self.search(left);
                let yes = self.search(right);
                self.branch(JUMP_GREATER_OR_EQUAL, right[0].0, yes, no)
            }
        }
    }

    fn leaf(&mut self, answer: &Answer) -> Label {
        let mut next = self.answer(answer.otherwise);
        for (comparisons, value) in answer.rules.iter().rev() {
            let mut yes = self.answer(*value);
            for comparison in comparisons.iter().rev() {
                yes = self.compare(comparison, yes, next);
            }
            next = yes;
        }
        next
    }

    fn compare(&mut self, c: &Comparison, yes: Label, no: Label) -> Label {
        let low = OFFSET_ARGUMENTS + 8 * c.index;
        let high = low + 4;
        let (value_low, value_high) = (c.value as u32, (c.value >> 32) as u32);
        match c.operator {
            Operator::Equal => self.equal(c, yes, no),
            Operator::NotEqual => self.equal(c, no, yes),
            Operator::MaskedEqual => {
                let test = self.branch(JUMP_EQUAL, c.datum as u32, yes, no);
                let mask = self.then(AND, value_low, test);
                let lower = self.load(low, mask);
                let test = self.branch(JUMP_EQUAL, (c.datum >> 32) as u32, lower, no);
                let mask = self.then(AND, value_high, test);
                self.load(high, mask)
            }
            Operator::Greater | Operator::GreaterOrEqual => {
                let code = if c.operator == Operator::Greater {
                    JUMP_GREATER
                } else {
                    JUMP_GREATER_OR_EQUAL
                };
                self.ordered(code, c, yes, no)
            }
            Operator::Less => self.ordered(JUMP_GREATER_OR_EQUAL, c, no, yes),
            Operator::LessOrEqual => self.ordered(JUMP_GREATER, c, no, yes),
        }
    }

    fn equal(&mut self, c: &Comparison, yes: Label, no: Label) -> Label {
        let low = OFFSET_ARGUMENTS + 8 * c.index;
        let test = self.branch(JUMP_EQUAL, c.value as u32, yes, no);
        let lower = self.load(low, test);
        let test = self.branch(JUMP_EQUAL, (c.value >> 32) as u32, lower, no);
        self.load(low + 4, test)
    }

    /// Greater in the upper half decides; equal there leaves it to the lower.
    fn ordered(&mut self, code: u16, c: &Comparison, yes: Label, no: Label) -> Label {
        let low = OFFSET_ARGUMENTS + 8 * c.index;
        let upper = (c.value >> 32) as u32;
        let test = self.branch(code, c.value as u32, yes, no);
        let lower = self.load(low, test);
        let same = self.branch(JUMP_EQUAL, upper, lower, no);
        let test = self.branch(JUMP_GREATER, upper, yes, same);
        self.load(low + 4, test)
    }
}

#[cfg(test)]
mod tests;
