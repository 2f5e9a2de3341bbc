//! The device rules as an eBPF program on a v2 cgroup.
//!
//! The kernel calls it with what is about to be done: a word with the access in
//! its upper half and the type in its lower, then major and minor. The rules
//! are compiled from the last to the first, the first that matches answers.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::devices::Rule;
use crate::error::{Context, Result};
use crate::sys::bpf;

const TYPE_BLOCK: u32 = 1;
const TYPE_CHAR: u32 = 2;
const ACCESS_MKNOD: u32 = 1;
const ACCESS_READ: u32 = 2;
const ACCESS_WRITE: u32 = 4;

// Registers: r1 the context, r2 type, r3 access, r4 major, r5 minor, r0 result.
const LOAD_WORD: u8 = 0x61;
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const AND_IMM: u8 = 0x57;
const RIGHT_SHIFT_IMM: u8 = 0x77;
const JUMP_NOT_EQUAL_IMM: u8 = 0x55;
const JUMP_NOT_EQUAL_REG: u8 = 0x5d;
const JUMP_EQUAL_IMM: u8 = 0x15;
const EXIT: u8 = 0x95;

fn instruction(op: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(op)
        | u64::from(to & 0xf) << 8
        | u64::from(from & 0xf) << 12
        | u64::from(offset as u16) << 16
        | u64::from(value as u32) << 32
}

/// The program for a list of rules.
pub fn compile(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOV_REG, 3, 2, 0, 0),
        instruction(AND_IMM, 2, 0, 0, 0xffff),
        instruction(RIGHT_SHIFT_IMM, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let block = one(rule);
        code.extend(block);
        if rule.is_everything() {
            return code;
        }
    }
    code.push(instruction(MOV_IMM, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// The tests of one rule, each of which skips to the next rule.
fn one(rule: &Rule) -> Vec<u64> {
    let mut tests: Vec<(u8, u8, u8, i32)> = Vec::new();
    let mut setup: Vec<u64> = Vec::new();
    match rule.kind {
        'b' => tests.push((JUMP_NOT_EQUAL_IMM, 2, 0, TYPE_BLOCK as i32)),
        'c' => tests.push((JUMP_NOT_EQUAL_IMM, 2, 0, TYPE_CHAR as i32)),
        _ => {}
    }
    let mut access = 0;
    for (wanted, bit) in
        [(rule.read, ACCESS_READ), (rule.write, ACCESS_WRITE), (rule.mknod, ACCESS_MKNOD)]
    {
        if wanted {
            access |= bit;
        }
    }
    if access != ACCESS_READ | ACCESS_WRITE | ACCESS_MKNOD {
        setup.push(instruction(MOV_REG, 1, 3, 0, 0));
        setup.push(instruction(AND_IMM, 1, 0, 0, access as i32));
        if rule.allow {
            // All that is asked for has to be allowed.
            tests.push((JUMP_NOT_EQUAL_REG, 1, 3, 0));
        } else {
            // Any part that is denied denies.
            tests.push((JUMP_EQUAL_IMM, 1, 0, 0));
        }
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            tests.push((JUMP_NOT_EQUAL_IMM, register, 0, number as i32));
        }
    }
    let mut block = setup;
    let count = tests.len();
    for (i, (op, to, from, value)) in tests.into_iter().enumerate() {
        // Over the remaining tests and the two instructions of the answer.
        let offset = (count - i - 1 + 2) as i16;
        block.push(instruction(op, to, from, offset, value));
    }
    block.push(instruction(MOV_IMM, 0, 0, 0, rule.allow.into()));
    block.push(instruction(EXIT, 0, 0, 0, 0));
    block
}

/// Puts the rules on a cgroup and takes off those that were there.
pub fn attach(directory: &Path, rules: &[Rule]) -> Result<()> {
    let what = || format!("restrict the devices of {}", directory.display());
    let cgroup = File::open(directory).during(what)?;
    let program = match bpf::load_device_program(&compile(rules)) {
        Ok(program) => program,
        Err(e)
            if e.raw_os_error() == Some(libc::EPERM)
                && (crate::namespaces::in_user_namespace()
                    || !rustix::process::geteuid().is_root()) =>
        {
            // Only the host's root may; a user namespace cannot make nodes, so
            // only those mounted into the container can be used at all.
            return Ok(());
        }
        Err(e) => return Err(e).during(what),
    };
    let before = bpf::attached(cgroup.as_fd()).during(what)?;
    bpf::attach(cgroup.as_fd(), program.as_fd()).during(what)?;
    for old in before {
        bpf::detach(cgroup.as_fd(), old.as_fd()).during(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
