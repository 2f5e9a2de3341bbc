//! Pieces of assembly that need what compilers seldom produce.

use std::arch::global_asm;

use super::flat::Flat;

macro_rules! snippet {
    ($name:ident, $($line:expr),+ $(,)?) => {
        global_asm!(
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ":"),
            $($line),+
        );
        unsafe extern "C" {
            fn $name(first: u64, second: u64) -> u64;
        }
    };
}

pub(in crate::translate) use snippet;

pub(in crate::translate) fn compare(
    function: unsafe extern "C" fn(u64, u64) -> u64,
    make: impl Fn() -> Vec<u64>,
) {
    let mut native = make();
    // SAFETY: snippets keep to the C ABI and to the buffer that they are given.
    let expected = unsafe { function(native.as_mut_ptr() as u64, native.len() as u64) };
    for exact in [false, true] {
        let mut buffer = make();
        let mut flat = Flat::new(exact);
        let result =
            flat.call(function as usize as u64, buffer.as_mut_ptr() as u64, buffer.len() as u64);
        assert_eq!(result, expected, "exact: {exact}");
        assert_eq!(buffer, native, "exact: {exact}");
    }
}

pub(in crate::translate) fn numbers() -> Vec<u64> {
    (1..1200u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

snippet!(
    t_displaced,
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rbp",
    "mov rax, [rdi+112]",
    "mov rdx, [rdi+104]",
    "mov r13, [rdi]",
    "mov r14, [rdi+8]",
    "mov r15, [rdi+16]",
    "add r13, r14",
    "adc r15, r13",
    "xchg r14, r15",
    "imul r14, r13, 77",
    "lea r13, [r14+r15*4+9]",
    "lea r15d, [r13+r14]",
    "lea r14w, [r13+3]",
    "mov [rdi+24], r13",
    "mov [rdi+32], r14d",
    "mov [rdi+36], r15w",
    "mov [rdi+40], r13b",
    "add [rdi+48], r15",
    "xadd [rdi+56], r14",
    "cmpxchg r13, r15",
    "cmovc r14, r13",
    "lock cmpxchg [rdi+64], r13",
    "mulx r13, r14, [rdi+72]",
    "andn r15, r13, [rdi+80]",
    "shld r13, r14, 5",
    "bswap r15",
    "movzx r14d, r13b",
    "movsx r13, word ptr [rdi+88]",
    "mov [rdi+96], rsp",
    "mov [rdi+96], r13",
    "mov rax, rsp",
    "sub rsp, 64",
    "mov [rsp+8], r14",
    "lea r15, [rsp+8]",
    "mov r15, [r15]",
    "add r15, [rsp+8]",
    "mov rsp, rax",
    "push r13",
    "push r14",
    "push r15",
    "pop r13",
    "pop r15",
    "pop r14",
    "lea rax, [r13+r14]",
    "xor rax, r15",
    "pop rbp",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "ret",
);

snippet!(
    t_flags,
    "push rbx",
    "xor eax, eax",
    "mov ecx, 100",
    "clc",
    "2: mov rdx, [rdi]",
    "adc rax, [rdi+8]",
    "lea rdi, [rdi+8]",
    "dec ecx",
    "jnz 2b",
    "adc rax, 0",
    "mov rdx, [rdi]",
    "cmp rdx, [rdi+8]",
    "mov rcx, [rdi+16]",
    "mov [rdi+24], rcx",
    "seta dl",
    "movzx edx, dl",
    "add rax, rdx",
    "cmp rax, rcx",
    "push rax",
    "mov rbx, [rdi+32]",
    "pop rax",
    "setg bl",
    "setp bh",
    "adc rax, rbx",
    "inc qword ptr [rdi+40]",
    "adc rax, [rdi+48]",
    "stc",
    "mov rcx, [rdi+56]",
    "rcl rax, 3",
    "mov [rdi+64], rcx",
    "pushfq",
    "pop rdx",
    "and edx, 0x8d5",
    "xor rax, rdx",
    "xor ecx, ecx",
    "cmp rax, rdx",
    "shl rbx, cl",
    "mov rcx, [rdi+72]",
    "setl cl",
    "add al, cl",
    "pop rbx",
    "ret",
);

snippet!(
    t_highbytes,
    "push rbx",
    "mov ebx, 0x7654",
    "mov edx, 0x3456",
    "mov rax, [rdi]",
    "mov ah, [rdi+9]",
    "mov [rdi+17], ah",
    "add bh, [rdi+3]",
    "mov ecx, 0x1234",
    "xor [rdi+5], ch",
    "cmp dh, [rdi]",
    "setb dl",
    "mov [rdi+20], dh",
    "add [rsp-24], ah",
    "movzx eax, ah",
    "add eax, ecx",
    "xchg [rdi+33], bh",
    "mov al, bh",
    "pop rbx",
    "ret",
);

snippet!(
    t_bits,
    "mov rax, 777",
    "bts [rdi+512], rax",
    "setc cl",
    "mov rax, -130",
    "btr [rdi+512], rax",
    "setc ch",
    "mov r10d, -77",
    "lock btc [rdi+512], r10d",
    "adc cl, 0",
    "bt dword ptr [rdi+4], 7",
    "adc ch, 0",
    "mov edx, 99",
    "bt [rdi], edx",
    "adc cl, cl",
    "movzx eax, cx",
    "ret",
);

snippet!(
    t_strings,
    "push rdi",
    "lea rsi, [rdi+100]",
    "lea rdi, [rdi+3000]",
    "mov ecx, 2500",
    "cld",
    "rep movsb",
    "mov rax, rdi",
    "sub rax, rsi",
    "pop rdi",
    "push rdi",
    "lea rdi, [rdi+5500]",
    "mov ecx, 300",
    "mov r8, rax",
    "mov rax, 0x1122334455667788",
    "cmp r8, r8",
    "rep stosq",
    "setz cl",
    "pop rdi",
    "lea rsi, [rdi+4]",
    "lea rdi, [rdi+12]",
    "mov edx, ecx",
    "mov ecx, 100",
    "rep movsq",
    "mov ecx, 77",
    "rep movsd",
    "mov ecx, 33",
    "rep stosw",
    "xor ecx, ecx",
    "rep stosb",
    "lea rax, [rax+r8]",
    "add rax, rdx",
    "ret",
);

snippet!(
    t_indirect,
    "push rbx",
    "push r15",
    "mov r15, rdi",
    "xor ebx, ebx",
    "xor eax, eax",
    "lea r11, [rip+3f]",
    "2: mov rcx, rbx",
    "and ecx, 3",
    "lea rdx, [rip+9f]",
    "movsxd rcx, dword ptr [rdx+rcx*4]",
    "add rcx, rdx",
    "jmp rcx",
    "3: add rax, [r15+rbx*8]",
    "jmp 8f",
    "4: xor rax, [r15+rbx*8]",
    "call 7f",
    "jmp 8f",
    "5: lea rcx, [rip+7f]",
    "call rcx",
    "jmp 8f",
    "6: lea rcx, [rip+7f]",
    "push rcx",
    "call [rsp]",
    "pop rcx",
    "jmp 8f",
    "7: rol rax, 7",
    "add rax, rbx",
    "ret",
    "8: inc ebx",
    "cmp ebx, 500",
    "jb 2b",
    // A return to another place than the call's.
    "call 20f",
    "ud2",
    "20: lea rcx, [rip+21f]",
    "mov [rsp], rcx",
    "ret 0",
    "21: add rax, 5",
    "mov r11, rax",
    "mov rax, r11",
    "pop r15",
    "pop rbx",
    "ret",
    ".balign 4",
    "9: .long 3b-9b, 4b-9b, 5b-9b, 6b-9b",
);

snippet!(
    t_vectors,
    "movups xmm0, [rdi]",
    "movaps xmm9, xmm0",
    "paddq xmm0, [rdi+16]",
    "movq r11, xmm0",
    "pinsrq xmm9, r11, 1",
    "pextrq r10, xmm9, 0",
    "cvtsi2sd xmm15, r10",
    "addsd xmm15, [rdi+8]",
    "cvttsd2si r15, xmm15",
    "movups [rdi+64], xmm9",
    "movsd [rdi+80], xmm15",
    "xor rax, rax",
    "crc32 rax, qword ptr [rdi+64]",
    "add rax, r10",
    "movd r11d, xmm0",
    "add rax, r11",
    "mov r15, [rsp]",
    "mov r15, r15",
    "ret",
);

// Its groups of stack accesses come to lie on every side of a page's end.
snippet!(
    t_stack_across_pages,
    "push rbx",
    "mov rbx, rsp",
    "mov ecx, 600",
    "mov rax, rdi",
    "xor rax, rdi",
    "2:",
    "sub rsp, 8",
    "add rax, rcx",
    "push rcx",
    "push rax",
    "adc rax, 3",
    "push r14",
    "mov [rsp+8], rcx",
    "add [rsp+16], rax",
    "movups xmm1, [rsp+8]",
    "lea r8, [rsp+16]",
    "pop r14",
    "call 4f",
    "pop rdx",
    "xor rax, rdx",
    "pop rdx",
    "add rax, rdx",
    "rol rax, 3",
    "dec ecx",
    "jnz 2b",
    "mov rsp, rbx",
    "pop rbx",
    "ret",
    "4: sub rsp, 24",
    "mov [rsp], rax",
    "mov rdx, [rsp+24]",
    "sub rdx, [rsp]",
    "sub rdx, [rsp+24]",
    "xor rax, rdx",
    "add rsp, 24",
    "ret",
);

// Deeper than the shadow stack, and back.
snippet!(
    t_deep,
    "mov ecx, 20000",
    "xor eax, eax",
    "call 3f",
    "mov [rdi], rax",
    "ret",
    "3:",
    "push rcx",
    "dec ecx",
    "jz 4f",
    "call 3b",
    "4:",
    "pop rcx",
    "lea rax, [rax+rax*2]",
    "add rax, rcx",
    "ret",
);

// Operands at displaced registers, whose values and high bytes are operands, too.
snippet!(
    t_based,
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "lea r13, [rdi+64]",
    "lea r14, [rdi+128]",
    "lea r15, [rdi+192]",
    "mov rbx, rdi",
    "mov rbp, rdi",
    "mov r12, rdi",
    "mov rax, [r13]",
    "mov ecx, 0x4321",
    "mov [r13+8], al",
    "mov [rbx+1], ah",
    "mov [rbp], ch",
    "add ch, [rbx+2]",
    "add bl, [r13+3]",
    "mov rbx, rdi",
    "add [r14-8], r15",
    "sub [r14-8], rdi",
    "movzx ecx, byte ptr [r15+5]",
    "add [r12+16], rcx",
    "xor [rbp+24], cl",
    "cmp [r14], r14",
    "setb [r13+32]",
    "mov [rdi+256], r13",
    "mov r13, [rdi+256]",
    "mov r13, [r13+16]",
    "add rax, r13",
    "mov r14, [r14]",
    "lea rax, [rax+r14]",
    "mov qword ptr [rdi+256], 0",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

#[test]
fn snippets_do_the_same() {
    compare(t_deep, numbers);
    compare(t_based, numbers);
    compare(t_displaced, numbers);
    compare(t_flags, numbers);
    compare(t_highbytes, numbers);
    compare(t_bits, numbers);
    compare(t_strings, numbers);
    compare(t_indirect, numbers);
    compare(t_stack_across_pages, numbers);
}

#[test]
fn vectors_stay_in_the_processor() {
    // R15 is not kept, so the function is called as a guest only, and its result is
    // compared with one computed here.
    let mut first = numbers();
    let mut second = numbers();
    let mut flat = Flat::new(false);
    let place = t_vectors as *const () as u64;
    let one = flat.call(place, first.as_mut_ptr() as u64, 0);
    let mut other = Flat::new(true);
    let two = other.call(place, second.as_mut_ptr() as u64, 0);
    assert_eq!((one, &first), (two, &second));
    let sum = u128::from(first[2]) << 64;
    assert_ne!(sum, 0);
    assert_eq!(first[8], numbers()[0]);
    assert_eq!(first[9], numbers()[0].wrapping_add(numbers()[2]));
}

snippet!(
    t_divides,
    "mov rax, [rdi]",
    "cmp rax, 0",
    "mov rcx, [rdi+8]",
    "xor edx, edx",
    "stc",
    ".globl t_divides_here",
    "t_divides_here: div rcx",
    "ret",
);
unsafe extern "C" {
    static t_divides_here: u8;
}

#[test]
fn a_trap_is_found_at_its_instruction() {
    let mut flat = Flat::new(false);
    let buffer = [77u64, 0];
    let state = &mut flat.machine.state;
    state.gpr[7] = buffer.as_ptr() as u64;
    state.rip = t_divides as *const () as u64;
    // SAFETY: the state lives longer than the run.
    unsafe { state.bind_to_thread().unwrap() };
    flat.translator.run(&mut flat.machine).expect("generated code works");
    let here = &raw const t_divides_here as u64;
    assert_eq!(flat.machine.state.rip, here);
    assert_eq!(flat.machine.state.gpr[0], 77);
    assert_eq!(flat.machine.state.rflags & 0x8d5, 1 | 4 | 0x40, "as XOR and STC left them");
    assert_eq!(flat.machine.stepped, [here]);
    assert_eq!(flat.translator.counts.traps, 1);
}

#[test]
fn code_that_is_written_is_translated_again() {
    // Writes its own next instruction's constant, then returns it: mov [rip+1], dil;
    // mov eax, imm32; ret.
    let bytes = [0x40, 0x88, 0x3d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3];
    // SAFETY: an anonymous mapping of one page, never freed: the test's code.
    let page = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0).cast::<u8>()
    };
    // SAFETY: the mapping is longer than the code.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), page, bytes.len()) };
    let mut flat = Flat::new(false);
    for value in [3u64, 9, 9, 200] {
        assert_eq!(flat.call(page as u64, value, 0), value);
    }
}
