/* Other processors: starting them, meeting them, interrupting them. */
#pragma once
#include "lib.h"

#define TRAMPOLINE 0x8000
#define MOST 8

static volatile u32 arrived;
static u8 stacks[MOST][8192] __attribute__((aligned(16)));

static inline u32 my_number(void) { return apic_read(APIC_ID) >> 24; }

static inline void command(u32 id, u32 low)
{
	apic_write(APIC_COMMAND_HIGH, id << 24);
	apic_write(APIC_COMMAND, low);
	while (apic_read(APIC_COMMAND) & 1 << 12)
		;
}

/* An interrupt for all others. */
static inline void interrupt_others(u8 vector) { command(0, vector | 3 << 18); }

/* Starts the processors from `first` to `last`, one after the other; each runs ap_main(),
   which says with arrive() that it is there. */
static inline void start_processors(u32 first, u32 last)
{
	for (u8 *from = trampoline, *to = (u8 *)TRAMPOLINE; from < trampoline_end;)
		*to++ = *from++;
	for (u32 id = first; id <= last; id++) {
		ap_stack = (u32)(u64)(stacks[id] + sizeof stacks[id]);
		command(id, 0x4500);
		command(id, 0x4600 | TRAMPOLINE >> 12);
		while (arrived < id)
			asm volatile("pause");
	}
}

static inline void arrive(void) { __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST); }

/* A place where `count` processors wait for each other; each keeps its own turn. */
struct meeting {
	u32 count;
	volatile u32 waiting;
};
static inline void meet(struct meeting *at, u32 *turn)
{
	u32 target = ++*turn * at->count;
	__atomic_add_fetch(&at->waiting, 1, __ATOMIC_SEQ_CST);
	while ((int)(at->waiting - target) < 0)
		asm volatile("pause");
}
