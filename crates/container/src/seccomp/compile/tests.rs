use super::*;
use crate::spec::SyscallRule;

/// What the kernel gives a filter.
#[derive(Clone, Copy)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

/// Runs a filter as the kernel would.
fn run(program: &[Instruction], call: Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.arch,
        _ => {
            let arg = call.args[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
        }
    };
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let i = program[at];
        at += 1;
        let test = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LOAD => accumulator = word(i.k),
            AND => accumulator &= i.k,
            JUMP => at += i.k as usize,
            JUMP_EQUAL => at += test(accumulator == i.k),
            JUMP_GREATER => at += test(accumulator > i.k),
            JUMP_GREATER_OR_EQUAL => at += test(accumulator >= i.k),
            RETURN => return i.k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn profile(default: &str, rules: &[(&[&str], &str, &[SyscallArg])]) -> Seccomp {
    Seccomp {
        default_action: default.into(),
        architectures: vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X86".into()],
        syscalls: rules
            .iter()
            .map(|(names, action, args)| SyscallRule {
                names: names.iter().map(|n| (*n).to_owned()).collect(),
                action: (*action).to_owned(),
                errno_ret: None,
                args: args.to_vec(),
            })
            .collect(),
        ..Seccomp::default()
    }
}

fn arg(index: u32, value: u64, op: &str, value_two: u64) -> SyscallArg {
    SyscallArg { index, value, value_two, op: op.into() }
}

fn call(number: libc::c_long, args: [u64; 6]) -> Call {
    Call { arch: AUDIT_ARCH_X86_64, number: number as u32, args }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

#[test]
fn a_list_of_allowed_calls() {
    let p =
        profile("SCMP_ACT_ERRNO", &[(&["read", "write", "no_such_call"], "SCMP_ACT_ALLOW", &[])]);
    let program = compile(&p).unwrap().program;
    assert_eq!(run(&program, call(libc::SYS_read, [0; 6])), ALLOW);
    assert_eq!(run(&program, call(libc::SYS_write, [0; 6])), ALLOW);
    assert_eq!(run(&program, call(libc::SYS_open, [0; 6])), DENY);
    assert_eq!(run(&program, call(100_000, [0; 6])), DENY);
}

#[test]
fn other_interfaces_have_their_own_numbers() {
    let p = profile("SCMP_ACT_ERRNO", &[(&["read"], "SCMP_ACT_ALLOW", &[])]);
    let program = compile(&p).unwrap().program;
    let with = |arch, number| run(&program, Call { arch, number, args: [0; 6] });
    assert_eq!(with(AUDIT_ARCH_I386, 3), ALLOW, "read is 3 there");
    assert_eq!(with(AUDIT_ARCH_I386, 0), DENY);
    assert_eq!(with(AUDIT_ARCH_X86_64, X32_BIT), KILL, "x32 is not listed");
    assert_eq!(with(0xc000_00b7, 63), KILL, "another machine's");

    let mut p = p;
    p.architectures.push("SCMP_ARCH_X32".into());
    let program = compile(&p).unwrap().program;
    let with = |number| run(&program, Call { arch: AUDIT_ARCH_X86_64, number, args: [0; 6] });
    assert_eq!((with(X32_BIT), with(X32_BIT | 1), with(0), with(1)), (ALLOW, DENY, ALLOW, DENY));
}

#[test]
fn every_operator_compares_all_64_bits() {
    let value = 0x1_0000_0005u64;
    let samples = [
        0,
        5,
        6,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0004,
        value,
        value + 1,
        0x2_0000_0005,
        u64::MAX,
    ];
    type Holds = fn(u64, u64) -> bool;
    let holds: [(&str, Holds); 6] = [
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_GT", |a, b| a > b),
        ("SCMP_CMP_GE", |a, b| a >= b),
    ];
    for (op, holds) in holds {
        let p = profile("SCMP_ACT_ERRNO", &[(&["dup"], "SCMP_ACT_ALLOW", &[arg(2, value, op, 0)])]);
        let program = compile(&p).unwrap().program;
        for sample in samples {
            let answer = run(&program, call(libc::SYS_dup, [9, 9, sample, 9, 9, 9]));
            assert_eq!(answer == ALLOW, holds(sample, value), "{op} {sample:#x}");
        }
    }
    let masked = arg(0, 0xff00_0000_00ff, "SCMP_CMP_MASKED_EQ", 0x0100_0000_0002);
    let p = profile("SCMP_ACT_ERRNO", &[(&["dup"], "SCMP_ACT_ALLOW", &[masked])]);
    let program = compile(&p).unwrap().program;
    let with = |v| run(&program, call(libc::SYS_dup, [v, 0, 0, 0, 0, 0])) == ALLOW;
    assert!(with(0x01aa_bbcc_dd02) && !with(0x0200_0000_0002) && !with(0x0100_0000_0003));
}

#[test]
fn different_arguments_are_all_needed_and_the_same_one_is_an_alternative() {
    let both = [arg(0, 1, "SCMP_CMP_EQ", 0), arg(1, 2, "SCMP_CMP_EQ", 0)];
    let either = [arg(0, 1, "SCMP_CMP_EQ", 0), arg(0, 2, "SCMP_CMP_EQ", 0)];
    let p = profile(
        "SCMP_ACT_ERRNO",
        &[(&["dup2"], "SCMP_ACT_ALLOW", &both), (&["dup3"], "SCMP_ACT_ALLOW", &either)],
    );
    let program = compile(&p).unwrap().program;
    let with = |n, a, b| run(&program, call(n, [a, b, 0, 0, 0, 0])) == ALLOW;
    assert!(with(libc::SYS_dup2, 1, 2) && !with(libc::SYS_dup2, 1, 3));
    assert!(with(libc::SYS_dup3, 1, 0) && with(libc::SYS_dup3, 2, 0));
    assert!(!with(libc::SYS_dup3, 3, 0));
}

#[test]
fn a_profile_of_every_call_stays_small_and_right() {
    let names: Vec<String> = syscalls::x86_64::Sysno::iter().map(|s| s.name().to_owned()).collect();
    let every_second: Vec<&str> = names.iter().step_by(2).map(String::as_str).collect();
    let p = profile("SCMP_ACT_ERRNO", &[(&every_second, "SCMP_ACT_ALLOW", &[])]);
    let program = compile(&p).unwrap().program;
    assert!(program.len() < MAX_INSTRUCTIONS);
    for name in &names {
        let number = Architecture::X86_64.number(name).unwrap();
        let expected = if every_second.contains(&name.as_str()) { ALLOW } else { DENY };
        assert_eq!(run(&program, call(number.into(), [0; 6])), expected, "{name}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert!(compile(&profile("SCMP_ACT_WHATEVER", &[])).is_err());
    assert!(compile(&profile("SCMP_ACT_NOTIFY", &[])).is_err());
    let bad = [arg(6, 0, "SCMP_CMP_EQ", 0)];
    assert!(compile(&profile("SCMP_ACT_ALLOW", &[(&["dup"], "SCMP_ACT_ERRNO", &bad)])).is_err());
    let bad = [arg(0, 0, "SCMP_CMP_LIKE", 0)];
    assert!(compile(&profile("SCMP_ACT_ALLOW", &[(&["dup"], "SCMP_ACT_ERRNO", &bad)])).is_err());
    let names = vec!["dup"; 50_000];
    let args = vec![arg(0, 0, "SCMP_CMP_EQ", 0); 50_000];
    assert!(compile(&profile("SCMP_ACT_ALLOW", &[(&names, "SCMP_ACT_ERRNO", &args)])).is_err());
    let mut p = profile("SCMP_ACT_ALLOW", &[]);
    p.default_errno_ret = Some(1);
    assert!(compile(&p).is_err());
}
