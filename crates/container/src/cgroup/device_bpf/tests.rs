use super::*;
use crate::cgroup::devices::rules;
use crate::spec::DeviceRule;

/// Runs a compiled program as the kernel would.
fn run(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0u64; 16];
    let mut at = 0usize;
    loop {
        let word = code[at];
        let (op, to, from) = (word as u8, (word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
        let (offset, value) = ((word >> 16) as i16, (word >> 32) as u32 as i32);
        at += 1;
        let jump = match op {
            LOAD_WORD => {
                registers[to] = u64::from(context[offset as usize / 4]);
                false
            }
            MOV_IMM => {
                registers[to] = value as u64;
                false
            }
            MOV_REG => {
                registers[to] = registers[from];
                false
            }
            AND_IMM => {
                registers[to] &= value as u64;
                false
            }
            RIGHT_SHIFT_IMM => {
                registers[to] >>= value;
                false
            }
            JUMP_NOT_EQUAL_IMM => registers[to] != value as u64,
            JUMP_EQUAL_IMM => registers[to] == value as u64,
            JUMP_NOT_EQUAL_REG => registers[to] != registers[from],
            EXIT => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        };
        if jump {
            at = (at as i64 + i64::from(offset)) as usize;
        }
    }
}

fn rule(allow: bool, kind: &str, major: Option<i64>, access: &str) -> DeviceRule {
    DeviceRule { allow, kind: Some(kind.into()), major, minor: None, access: Some(access.into()) }
}

#[test]
fn nothing_is_allowed_but_what_is_named() {
    let code = compile(&rules(&[rule(false, "a", None, "rwm"), rule(true, "b", Some(8), "r")]));
    assert!(run(&code, TYPE_BLOCK, ACCESS_READ, 8, 1));
    assert!(!run(&code, TYPE_BLOCK, ACCESS_READ | ACCESS_WRITE, 8, 1));
    assert!(!run(&code, TYPE_CHAR, ACCESS_READ, 8, 1));
    assert!(!run(&code, TYPE_CHAR, ACCESS_READ, 1, 1), "/dev/mem");
    assert!(run(&code, TYPE_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3), "/dev/null");
    assert!(run(&code, TYPE_CHAR, ACCESS_MKNOD, 1, 1), "making a node gives no use of it");
}

#[test]
fn a_later_rule_takes_away_from_an_earlier_one() {
    let code = compile(&rules(&[rule(true, "a", None, "rwm"), rule(false, "c", Some(10), "w")]));
    assert!(run(&code, TYPE_CHAR, ACCESS_READ, 10, 229));
    assert!(!run(&code, TYPE_CHAR, ACCESS_READ | ACCESS_WRITE, 10, 229));
    assert!(run(&code, TYPE_BLOCK, ACCESS_WRITE, 8, 0));
}
