//! Accesses that share a check: several groups at once, bases that move, bytes in two pages,
//! and a stack pointer that is behind for a while.

use std::arch::global_asm;

use super::flat::Flat;
use super::snippets::{compare, numbers, snippet};

snippet!(
    t_interleaved,
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rbp",
    "sub rsp, 40",
    "lea r15, [rdi+512]",
    "lea r14, [rdi+1024]",
    "lea r13, [rdi+1536]",
    "lea rbp, [rdi+2048]",
    "mov ecx, 5",
    "2:",
    "mov rax, [rsp+8]",
    "bts qword ptr [r15], 16",
    "adc rax, [rsp+16]",
    "btc dword ptr [r14+4], 3",
    "mov [rsp+24], rax",
    "bt qword ptr [r13], 7",
    "sbb [rsp+8], rax",
    // Five bases in turns; some move on, and all are used again.
    "mov rax, [r15]",
    "mov rbx, [r14+8]",
    "mov [rsp+8], rax",
    "add rax, [r13+16]",
    "mov [rbp+24], rax",
    "add r15, 24",
    "xor rbx, [r15-8]",
    "mov [rsp+16], rbx",
    "add [r14], rbx",
    "adc [r14+16], rax",
    "mov rdx, [rbp+rcx*8+64]",
    "xor [rbp+rcx*8+72], rax",
    "mov [r13+40], edx",
    "inc rbp",
    "mov r12w, [rbp+23]",
    "add [rsp+8], r12w",
    "lea rbp, [rbp+7]",
    "mov ah, [rdi+3]",
    "sub [rdi+30], ah",
    "mov rax, [r15+rcx*4]",
    "add rcx, 2",
    "sub [r15+rcx*4-8], rax",
    "sub rcx, 3",
    "jnz 2b",
    "mov rax, [rsp+8]",
    "add rax, [rsp+16]",
    "add rsp, 40",
    "pop rbp",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "ret",
);

snippet!(
    t_more_than_there_are_places,
    "push rbx",
    "push rbp",
    "lea rax, [rdi+64]",
    "lea rbx, [rdi+128]",
    "lea rcx, [rdi+192]",
    "lea rdx, [rdi+256]",
    "lea rsi, [rdi+320]",
    "lea rbp, [rdi+384]",
    "lea r8, [rdi+448]",
    "lea r9, [rdi+512]",
    "mov r10, [rax]",
    "add r10, [rbx]",
    "add r10, [rcx]",
    "add r10, [rdx]",
    "add r10, [rsi]",
    "add r10, [rbp]",
    "add r10, [r8]",
    "add r10, [r9]",
    "add [rax+8], r10",
    "add [rbx+8], r10",
    "add [rcx+8], r10",
    "add [rdx+8], r10",
    "add [rsi+8], r10",
    "add [rbp+8], r10",
    "add [r8+8], r10",
    "add [r9+8], r10",
    "mov rax, [rax+8]",
    "pop rbp",
    "pop rbx",
    "ret",
);

// Conditional branches in the middle: what is behind them may not be reached, and its base
// may be nonsense then.
snippet!(
    t_branches_between,
    "xor eax, eax",
    "mov rcx, 64",
    "2:",
    "mov rdx, [rdi]",
    "test dl, 1",
    "jz 3f",
    "add rax, [rdi+8]",
    "mov rdx, [rdi+16]",
    "test dl, 2",
    "jz 3f",
    "add [rdi+24], rax",
    "xor rax, [rdi+32]",
    "3:",
    "add rdi, 8",
    "dec rcx",
    "jnz 2b",
    "ret",
);

// Every offset to a page's end, in a loop that begins with the group.
snippet!(
    t_over_page_ends,
    "xor eax, eax",
    "mov rcx, 4700",
    "2:",
    "add rax, [rdi]",
    "mov rdx, [rdi+8]",
    "xor [rdi+16], rdx",
    "rol rax, 5",
    "add rdi, 1",
    "dec rcx",
    "jnz 2b",
    "ret",
);

// Flags that live through accesses of a group, and through the check that it begins with.
snippet!(
    t_flags_through_groups,
    "xor eax, eax",
    "mov ecx, 100",
    "stc",
    "2:",
    "mov rdx, [rdi]",
    "adc rax, rdx",
    "mov [rdi+8], rax",
    "adc rax, [rdi+16]",
    "lea rdi, [rdi+8]",
    "mov rdx, [rdi+24]",
    "adc [rdi], rdx",
    "rcl rax, 1",
    "dec ecx",
    "jnz 2b",
    "setc dl",
    "movzx edx, dl",
    "add rax, rdx",
    "ret",
);

// Pushes and pops with instructions between them that see the stack pointer and those that
// do not.
snippet!(
    t_stack_behind,
    "push rbx",
    "mov rbx, rdi",
    "push rbp",
    "lea rax, [rdi+rdi*2]",
    "push r12",
    "mov rbp, rsp",
    "push rax",
    "push 77",
    "mov r12, [rsp+8]",
    "push rsp",
    "pop rax",
    "sub rax, rbp",
    "push qword ptr [rbx]",
    "add rax, [rsp]",
    "mov rcx, [rsp]",
    "add rsp, 8",
    "mov [rbx+8], rcx",
    "pop rdx",
    "add rax, rdx",
    "pop rdx",
    "sub rdx, r12",
    "add rax, rdx",
    "push rax",
    "pop r15",
    "push r15",
    "xor edx, edx",
    "test rax, rax",
    "jz 2f",
    "push rdx",
    "add rsp, 8",
    "2:",
    "pop rax",
    "cmp rsp, rbp",
    "jne 3f",
    "add rax, 1",
    "3:",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret 0",
);

#[test]
fn groups_do_the_same() {
    compare(t_interleaved, numbers);
    compare(t_more_than_there_are_places, numbers);
    compare(t_branches_between, numbers);
    compare(t_over_page_ends, numbers);
    compare(t_flags_through_groups, numbers);
}

// R15 is not kept, so it is called as a guest only; the two ways of translating agree, and
// with what is known.
#[test]
fn a_stack_pointer_may_be_behind_between_pushes() {
    let call = |exact| {
        let mut buffer = numbers();
        let place = t_stack_behind as *const () as u64;
        let result = Flat::new(exact).call(place, buffer.as_mut_ptr() as u64, 0);
        // The stack and the buffer are elsewhere each time, but distances are not.
        (result, buffer[1], buffer[0])
    };
    let (result, copied, original) = call(false);
    assert_eq!(copied, original);
    let distance = (-16i64) as u64;
    assert_eq!(result, distance.wrapping_add(original).wrapping_add(77).wrapping_add(1));
    assert_eq!(call(true), (result, copied, original));
}

snippet!(
    t_divides_behind_pushes,
    "push rdi",
    "mov eax, 1",
    "push rsi",
    "xor edx, edx",
    "push rdx",
    ".globl t_divides_behind_pushes_here",
    "t_divides_behind_pushes_here: div rdx",
    "add rsp, 24",
    "ret",
);
unsafe extern "C" {
    static t_divides_behind_pushes_here: u8;
}

#[test]
fn a_trap_behind_pushes_finds_the_stack_pointer_exact() {
    let mut flat = Flat::new(false);
    let stack = [0u64; 64];
    let top = &raw const stack[48] as u64;
    let state = &mut flat.machine.state;
    state.gpr[4] = top;
    state.rip = t_divides_behind_pushes as *const () as u64;
    // SAFETY: the state lives longer than the run.
    unsafe { state.bind_to_thread().unwrap() };
    flat.translator.run(&mut flat.machine).expect("generated code works");
    assert_eq!(flat.machine.state.rip, &raw const t_divides_behind_pushes_here as u64);
    assert_eq!(flat.machine.state.gpr[4], top - 24);
}
