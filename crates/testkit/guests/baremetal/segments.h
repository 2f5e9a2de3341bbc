/* Segments for user mode, a task state segment for each of two processors with stacks of
   their own for some interrupts, and a way into user mode and back. */
#pragma once
#include "lib.h"

#define KERNEL_CODE 0x08
#define USER_DATA (0x28 | 3)
#define USER_CODE (0x30 | 3)
#define TASK 0x38
#define TASKS 2

static u64 segments[7 + 2 * TASKS] = {
	0,
	0x00af9b000000ffff,
	0x00cf93000000ffff,
	0x00cf9b000000ffff,
	0x00cf93000000ffff,
	0x00cff3000000ffff,
	0x00affb000000ffff,
};
static struct {
	u32 reserved;
	u64 rsp[3], unused, ist[7], unused_too;
	u16 unused_three, ports;
} __attribute__((packed)) tasks[TASKS];
static u8 kernel_stack[TASKS][8192] __attribute__((aligned(16)));
static u8 interrupt_stack[TASKS][8192] __attribute__((aligned(16)));
static u8 user_stack[TASKS][8192] __attribute__((aligned(16)));

static inline void load_segments_of(u32 processor)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { sizeof segments - 1, (u64)segments };
	u64 base = (u64)&tasks[processor], *segment = segments + 7 + 2 * processor;
	tasks[processor].rsp[0] = (u64)(kernel_stack[processor] + sizeof kernel_stack[0]);
	tasks[processor].ist[0] = (u64)(interrupt_stack[processor] + sizeof interrupt_stack[0]);
	tasks[processor].ports = sizeof tasks[0];
	segment[0] = (sizeof tasks[0] - 1) | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
	segment[1] = base >> 32;
	u16 selector = TASK + 16 * processor;
	asm volatile("lgdt %0; ltr %1" : : "m"(pointer), "r"(selector) : "memory");
}

static inline void load_segments(void) { load_segments_of(0); }

/* All that is mapped becomes the user's, too. */
static inline void open_to_users(void)
{
	u64 *pointers = (u64 *)(page_root[0] & ~0xffful);
	page_root[0] |= 4;
	for (u32 i = 0; i < 4; i++) {
		u64 *directory = (u64 *)(pointers[i] & ~0xffful);
		pointers[i] |= 4;
		for (u32 n = 0; n < 512; n++)
			directory[n] |= 4;
	}
	u64 cr3;
	asm volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(cr3) : : "memory");
}

/* Calls a function in user mode with these flags; it returns by `int $0x80`, which only
   the processor that called last may do. */
u64 call_user(void *function, u64 flags, u64 argument, void *stack);
void back_from_user(void);
asm(".globl call_user, back_from_user\n"
    "call_user:\n"
    "	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "	mov %rsp, before_user\n"
    "	pushq $0x2b; push %rcx; push %rsi; pushq $0x33; push %rdi\n"
    "	mov %rdx, %rdi\n"
    "	iretq\n"
    "back_from_user:\n"
    "	mov before_user, %rsp\n"
    "	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "	ret\n"
    ".lcomm before_user, 8\n");

static inline u64 run_user_of(u32 processor, void *function, u64 flags, u64 argument)
{
	return call_user(function, flags, argument, user_stack[processor] + sizeof user_stack[0]);
}

static inline u64 run_user(void *function, u64 flags, u64 argument)
{
	return run_user_of(0, function, flags, argument);
}
