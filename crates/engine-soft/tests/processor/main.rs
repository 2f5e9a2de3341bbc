//! The engine against the processor: random instructions of every form that the
//! decoder knows and the host has, with random operands, flags and memory, run on the
//! host as they are and in the engine. Results, flags, memory and faults are equal.
//!
//! `GUISE_PROCESSOR_CASES` is the number of cases (2,200,000 where not given) and
//! `GUISE_PROCESSOR_SEED` the seed, which a failure prints.

mod form;
mod guest;
mod machine;
mod native;
#[path = "../port_board/mod.rs"]
mod port_board;
mod random;
mod stub;

use std::collections::BTreeMap;

use guise_engine::extensions::Features;
use guise_engine_soft::Tier;
use guise_engine_soft::host::classify::{Class, of_code};
use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};

use machine::{Memory, State};
use native::Native;
use random::Random;

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// With the exception of this vector.
    Fault(u8),
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// One side of the comparison.
trait Engine {
    /// The instruction to run, where the host's is.
    fn set_instruction(&mut self, bytes: &[u8]);

    /// Runs the instruction. `theirs` is where its addresses lead on the host's side.
    fn run(
        &mut self,
        instruction: &Instruction,
        before: &State,
        theirs: &Memory,
        ours: &mut Memory,
    ) -> (State, Outcome);
}

/// States that each instruction is run with.
const STATES: u64 = 8;

#[test]
fn every_form_gives_what_the_processor_gives() {
    let features = Features::host();
    let mut native = Native::new();
    let mut engine = stub::StubEngine::new(features);
    let classes = [Class::Stub, Class::Masked];
    compare(&mut native, &mut engine, &classes, number("GUISE_PROCESSOR_CASES", 2_200_000));
}

#[test]
fn the_interpreter_gives_what_the_processor_gives() {
    compare_tier(Tier::Interpreter);
}

/// What it does not translate, and what faults, goes through the interpreter from there.
#[test]
fn the_translator_gives_what_the_processor_gives() {
    compare_tier(Tier::Translator);
}

fn compare_tier(tier: Tier) {
    let mut native = Native::new();
    let memory = Memory::new();
    let mut engine = guest::Guest::new(tier, native.slot(), memory.address());
    let classes = [Class::Stub, Class::Masked, Class::Hint, Class::Core];
    let cases = number("GUISE_PROCESSOR_CASES", 2_200_000) / 10;
    compare_in(memory, &mut native, &mut engine, &classes, cases);
}

fn compare(native: &mut Native, engine: &mut dyn Engine, classes: &[Class], cases: u64) {
    compare_in(Memory::new(), native, engine, classes, cases);
}

fn compare_in(
    mut theirs: Memory,
    native: &mut Native,
    engine: &mut dyn Engine,
    classes: &[Class],
    cases: u64,
) {
    let seed = number("GUISE_PROCESSOR_SEED", u64::from(std::process::id()) * 0x9e37_79b9);
    println!("seed {seed}, {cases} cases");
    let features = Features::host();
    let forms: Vec<Code> = Code::values()
        .filter(|&code| classes.contains(&of_code(code, &features)))
        .filter(|&code| form::is_testable(code))
        .filter(|&code| !is_another_makers(code))
        .collect();
    let mut random = Random::new(seed);
    let mut ours = Memory::new();
    let mut done = 0;
    let mut made: BTreeMap<String, u64> = BTreeMap::new();
    let mut failures = Vec::new();
    while done < cases {
        random.refill();
        for &code in &forms {
            let attempt = |_| {
                let bytes = form::make(code, &mut random, native.slot())?;
                let instruction = decode(&bytes, native.slot());
                (instruction.code() == code).then_some((bytes, instruction))
            };
            let Some((bytes, instruction)) = (0..50).find_map(attempt) else { continue };
            *made.entry(format!("{code:?}")).or_default() += 1;
            native.set_instruction(&bytes);
            engine.set_instruction(&bytes);
            for _ in 0..STATES {
                let mut before = State::random(&mut random);
                native.trim(&mut before);
                if !form::aim(&instruction, &mut before, &mut random, &theirs) {
                    continue;
                }
                theirs.randomize(&mut random);
                ours.copy_from(&theirs);
                let (expected, wanted) = native.run(&before);
                let (mut found, outcome) = engine.run(&instruction, &before, &theirs, &mut ours);
                done += 1;
                settle(&instruction, wanted, &expected, &mut found);
                let equal = wanted == outcome && expected.same(&found) && theirs.same(&ours);
                if !equal && failures.len() < 40 {
                    failures.push(report(
                        &instruction,
                        &bytes,
                        &before,
                        wanted,
                        &expected,
                        outcome,
                        &found,
                        theirs.same(&ours),
                    ));
                    break;
                }
            }
        }
        if failures.len() >= 40 {
            break;
        }
    }
    let never: Vec<String> = forms
        .iter()
        .map(|code| format!("{code:?}"))
        .filter(|name| !made.contains_key(name))
        .collect();
    println!("{done} cases of {} forms; never made: {}", made.len(), never.join(" "));
    assert!(failures.is_empty(), "seed {seed}\n{}", failures.join("\n"));
    assert!(never.is_empty(), "forms that could not be made: {}", never.join(" "));
}

/// Guests are told of an Intel processor, on which prefetches of a register (0F 0D) do
/// nothing; AMD's refuse them.
fn is_another_makers(code: Code) -> bool {
    let name = format!("{code:?}");
    name.starts_with("Reservednop") && name.ends_with("0F0D") && !is_intel()
}

fn is_intel() -> bool {
    std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu")
}

pub fn decode(bytes: &[u8], ip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode()
}

/// Takes over from the processor what its manual leaves undefined.
fn settle(instruction: &Instruction, outcome: Outcome, expected: &State, found: &mut State) {
    let undefined = instruction.rflags_undefined();
    let mut mask = 0;
    for (flag, bit) in [
        (RflagsBits::CF, 0x1),
        (RflagsBits::PF, 0x4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, OVERFLOW),
    ] {
        if undefined & flag != 0 {
            mask |= bit;
        }
    }
    if rotates_more_than_once(instruction) {
        mask |= OVERFLOW;
    }
    if outcome != Outcome::Done {
        // Some faults come after the flags have changed.
        mask |= machine::STATUS_FLAGS;
    }
    found.rflags = found.rflags & !mask | expected.rflags & mask;
    // Vendors disagree about the upper half of a register that was compared and found
    // to differ.
    if instruction.code() == Code::Cmpxchg_rm32_r32 && expected.rflags & ZERO == 0 {
        let register = instruction.op0_register();
        if register.is_gpr32() {
            let number = register as usize - Register::EAX as usize;
            let upper = !0xffff_ffff;
            found.gpr[number] = found.gpr[number] & !upper | expected.gpr[number] & upper;
        }
    }
}

const OVERFLOW: u64 = 0x800;
const ZERO: u64 = 0x40;

/// Rotations by more than one leave the overflow flag undefined, also those that come to
/// a full turn.
fn rotates_more_than_once(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr | Mnemonic::Rol | Mnemonic::Ror)
        && instruction.op1_kind() == OpKind::Immediate8
        && instruction.immediate8() & 0x3f > 1
}

#[allow(clippy::too_many_arguments)]
fn report(
    instruction: &Instruction,
    bytes: &[u8],
    before: &State,
    wanted: Outcome,
    expected: &State,
    outcome: Outcome,
    found: &State,
    same_memory: bool,
) -> String {
    format!(
        "{:?} {bytes:02x?} ({instruction})\n  host {wanted:?}, engine {outcome:?}{}\n{}",
        instruction.code(),
        if same_memory { "" } else { ", memory differs" },
        expected.differences(found, before),
    )
}
