use std::arch::global_asm;

use super::*;
use crate::translate::tests::flat::Flat;
use crate::translate::tests::snippets::{compare, numbers, snippet};

const HERE: u64 = 0x7000_0000_0000;

fn bank(pages: &[(u64, u64)]) -> Box<Bank> {
    let mut bank = Bank::new();
    for &(page, host) in pages {
        bank.fill_read(page << 12, (HERE + (host << 12)) as *mut u8);
    }
    bank
}

#[test]
fn a_stretch_ends_where_memory_goes_on_elsewhere() {
    const ALIAS: u64 = 5 + crate::tlb::ENTRIES as u64;
    let bank = bank(&[(4, 4), (5, 5), (6, 6), (7, 70), (8, 8), (2, 2), (ALIAS, 9)]);
    let known =
        |page: u64, pages: u64, host: u64| Some((page << 12, HERE + (host << 12), pages << 12));
    // The last one has the place of 5.
    assert_eq!(around(&bank, 0x6123, false), known(6, 1, 6));
    assert_eq!(around(&bank, 0x4fff, false), known(4, 1, 4));
    assert_eq!(around(&bank, 0x7000, false), known(7, 1, 70));
    assert_eq!(around(&bank, 0x5000, false), None);
    assert_eq!(around(&bank, 0x6000, true), None);
}

#[test]
fn a_stretch_has_all_pages_that_follow_each_other() {
    let pages: Vec<(u64, u64)> = (100..100 + 3 * AROUND / 2).map(|page| (page, page + 7)).collect();
    let bank = bank(&pages);
    let (start, host, length) = around(&bank, 110 << 12, false).expect("the bank knows it");
    assert_eq!((start, host), (100 << 12, HERE + (107 << 12)));
    assert_eq!(length, (10 + 1 + AROUND) << 12);
    assert_eq!(around(&Bank::new(), 0, false), None);
}

// All over the buffer in no order, with bytes in two pages now and then.
snippet!(
    t_all_over,
    "mov rcx, 60000",
    "mov rdx, 12345",
    "xor eax, eax",
    "shl rsi, 3",
    "sub rsi, 16",
    "2:",
    "imul rdx, rdx, 1103515245",
    "add rdx, 12345",
    "mov r8, rdx",
    "shr r8, 16",
    "and r8d, 0x3ffff",
    "cmp r8, rsi",
    "jae 3f",
    "add rax, [rdi+r8]",
    "lea r9, [rdi+r8]",
    "xor [r9+8], rax",
    "3:",
    "dec rcx",
    "jnz 2b",
    "ret",
);

fn many_pages() -> Vec<u64> {
    (0..40 * 512u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

#[test]
fn accesses_all_over_memory_in_one_piece_need_no_look_up() {
    compare(t_all_over, many_pages);
    let mut buffer = many_pages();
    let mut flat = Flat::new(false);
    let (first, second) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
    flat.call(t_all_over as *const () as u64, first, second);
    assert_eq!(flat.translator.cache.counts.retired, 0);
    // The pages themselves, and what lies in two of them until the sites know both.
    assert!(flat.machine.resolved < 2000, "{}", flat.machine.resolved);
}

// Registers that have no host register, in all sizes, with accesses and branches between
// uses of them, and bytes in two pages.
snippet!(
    t_registers_in_turns,
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov r13, rdi",
    "mov r14, 3000",
    "xor r15d, r15d",
    "xor eax, eax",
    "2:",
    "mov rdx, [r13+r15]",
    "add rax, rdx",
    "lea rbx, [r13+r15*2]",
    "mov r12d, r14d",
    "mov r13w, r13w",
    "test r14b, 3",
    "jz 3f",
    "xor [rdi+r15], r14",
    "add r14, 1",
    "sub r14, 1",
    "3:",
    "lea r15d, [r15+1]",
    "mov [rsp-8], r15",
    "cmp r15, 2500",
    "cmovae r15, [rsp-16+8]",
    "mov r8, r15",
    "xchg r13, r14",
    "xchg r14, r13",
    "mov [rdi+r15+64], r15b",
    "movzx r8d, byte ptr [rdi+r15+64]",
    "add rax, r8",
    "add rax, r14",
    "lea r14, [r14-1]",
    "push r14",
    "push r15",
    "pop r8",
    "pop r9",
    "sub rax, r9",
    "imul r8, r15, 3",
    "add rax, r8",
    "mov r14d, r14d",
    "bswap r15",
    "bswap r15",
    "movzx r15, r15w",
    "test r14, r14",
    "jnz 2b",
    "add rax, r15",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "ret",
);

#[test]
fn registers_without_a_host_register_are_kept_right() {
    compare(t_registers_in_turns, numbers);
}

// Adds one to a word in each of 16 pages, and returns the sum.
snippet!(
    t_a_word_of_each_page,
    "xor eax, eax",
    "xor ecx, ecx",
    "2:",
    "mov rdx, rcx",
    "shl rdx, 12",
    "add rax, [rdi+rdx]",
    "inc qword ptr [rdi+rdx]",
    "add ecx, 7",
    "and ecx, 15",
    "jnz 2b",
    "ret",
);

#[test]
fn a_page_in_the_middle_of_a_stretch_may_be_mapped_elsewhere() {
    const WORDS: usize = 512;
    let mut room = vec![0u64; 18 * WORDS];
    let mut other = vec![0u64; 2 * WORDS];
    let page = |words: &mut Vec<u64>| (words.as_mut_ptr() as u64).next_multiple_of(PAGE_SIZE);
    let (first, moved) = (page(&mut room), page(&mut other));
    let at = (first - room.as_ptr() as u64) as usize / 8;
    let moved_at = (moved - other.as_ptr() as u64) as usize / 8;
    let mut flat = Flat::new(false);
    let add = |flat: &mut Flat| flat.call(t_a_word_of_each_page as *const () as u64, first, 0);
    for round in 0..200 {
        assert_eq!(add(&mut flat), 16 * round);
    }
    let known = flat.machine.resolved;
    assert_eq!(add(&mut flat), 16 * 200);
    assert_eq!(flat.machine.resolved, known, "the sites know all pages");
    other[moved_at] = 1_000_000;
    let gone = first + 5 * PAGE_SIZE;
    flat.machine.elsewhere.insert(gone, moved);
    flat.machine.bank.forget(gone);
    for round in 201..400 {
        assert_eq!(add(&mut flat), 15 * round + 1_000_000 + (round - 201));
    }
    assert_eq!(room[at + 5 * WORDS], 201);
    assert_eq!(room[at + 6 * WORDS], 400);
    assert_eq!(other[moved_at], 1_000_000 + 199);
}
