use std::fs::File;
use std::io::{Read, Write};

use super::*;

/// A program, with nothing but two outputs.
fn program(text: &str) -> (Program, File, File) {
    let (output, write) = rustix::pipe::pipe().unwrap();
    let (errors, complain) = rustix::pipe::pipe().unwrap();
    let program = Program {
        code: wat::parse_str(text).unwrap(),
        arguments: vec!["test".into()],
        environment: Vec::new(),
        folders: Vec::new(),
        network: Network::None,
        memory: None,
        processors: None,
        streams: Streams { input: None, output: write, errors: complain, terminal: false },
    };
    (program, File::from(output), File::from(errors))
}

fn start(text: &str) -> Result<Running, StartError> {
    Running::start(program(text).0)
}

const SPIN: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop $l (br $l))))"#;

/// Waits for input.
const READ: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read"
      (func $read (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 64))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn component(result: u32) -> String {
    format!(
        r#"(component
          (core module $m (func (export "run") (result i32) i32.const {result}))
          (core instance $i (instantiate $m))
          (func $run (result (result)) (canon lift (core func $i "run")))
          (instance $exported (export "run" (func $run)))
          (export "wasi:cli/run@0.2.0" (instance $exported)))"#
    )
}

#[test]
fn modules_and_components_end_with_their_codes() {
    let exit = |code: i32| {
        format!(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
               (memory (export "memory") 1)
               (func (export "_start") (call $exit (i32.const {code}))))"#
        )
    };
    assert_eq!(start(&exit(0)).unwrap().wait(), End::Code(0));
    assert_eq!(start(&exit(42)).unwrap().wait(), End::Code(42));
    assert_eq!(start(&component(0)).unwrap().wait(), End::Code(0));
    let failed = start(&component(1)).unwrap();
    assert_eq!((failed.wait(), failed.wait()), (End::Code(1), End::Code(1)), "more than once");
}

#[test]
fn what_is_no_program_is_refused() {
    let refused = |code: &[u8]| {
        let mut program = program("(module)").0;
        program.code = code.to_vec();
        match Running::start(program) {
            Err(StartError::NotExecutable(why)) => why,
            other => panic!("{:?}", other.map(|_| "it runs")),
        }
    };
    assert!(refused(b"").contains("neither"));
    assert!(refused(b"\x7fELF....").contains("neither"));
    assert!(refused(&wat::parse_str("(module)").unwrap()).contains("_start"));
    let asking = wat::parse_str(r#"(module (import "a" "b" (func)) (func (export "_start")))"#);
    assert!(refused(&asking.unwrap()).contains("a::b"));
    for length in [8, 9, 20, 40] {
        let code = wat::parse_str(SPIN).unwrap();
        refused(&code[..length.min(code.len() - 1)]);
    }
}

#[test]
fn a_trap_is_told() {
    let text = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;
    let (program, _output, mut errors) = program(text);
    let running = Running::start(program).unwrap();
    assert!(matches!(running.wait(), End::Trapped(why) if why.contains("unreachable")));
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("guise: ") && said.ends_with("executed\n"), "{said:?}");
}

#[test]
fn memory_ends_where_it_was_said() {
    let text = |pages: u32| {
        format!(
            r#"(module (memory (export "memory") 1) (func (export "_start")
               (if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable))))"#
        )
    };
    let with = |pages: u32, memory: Option<u64>| {
        let program = Program { memory, ..program(&text(pages)).0 };
        Running::start(program).unwrap().wait()
    };
    assert_eq!(with(15, Some(1 << 20)), End::Code(0));
    assert_eq!(with(16, Some(1 << 20)), End::OutOfMemory);
    assert_eq!(with(16, None), End::Code(0));
    // More than an address can name is refused without a limit too, and is not about memory.
    assert!(matches!(with(65536, None), End::Trapped(_)));
    let much = r#"(module (memory (export "memory") 100) (func (export "_start")))"#;
    let program = Program { memory: Some(1 << 20), ..program(much).0 };
    assert_eq!(Running::start(program).unwrap().wait(), End::OutOfMemory);
}

#[test]
fn a_program_that_computes_or_waits_is_held_and_ended() {
    for text in [SPIN, READ] {
        let (mut program, _output, _errors) = program(text);
        let (input, _typed) = rustix::pipe::pipe().unwrap();
        program.streams.input = Some(input);
        let running = Running::start(program).unwrap();
        running.pause();
        running.pause();
        running.resume();
        running.pause();
        running.kill(15);
        running.kill(9);
        assert_eq!(running.wait(), End::Killed(15), "the first counts");
        running.pause();
        running.resume();
    }
}

#[test]
fn input_ends_a_wait() {
    let (mut program, _output, _errors) = program(READ);
    let (input, typed) = rustix::pipe::pipe().unwrap();
    program.streams.input = Some(input);
    let running = Running::start(program).unwrap();
    File::from(typed).write_all(b"text").unwrap();
    assert_eq!(running.wait(), End::Code(0));
}
