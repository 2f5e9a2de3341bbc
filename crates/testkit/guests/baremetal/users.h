/* The same work in kernel mode and in user mode: pages of the window belong to who uses
   them, and INVLPG is done by the kernel. */
#pragma once
#include "pages.h"
#include "segments.h"

/* Ports are everybody's. */
#define IOPL_3 0x3000ul
#define FIXED_FLAG 2ul

/* USER while the work is done in user mode. */
static u64 whose;

void invalidate_for_user(void);
asm("invalidate_for_user:\n"
    "	invlpg (%rdi)\n"
    "	iretq\n");

static inline void map_page(int number, const volatile void *page, u64 rights)
{
	window[number] = (u64)page | rights | whose;
	if (whose)
		asm volatile("int $0x81" : : "D"(PAGE(number)) : "memory");
	else
		invalidate(PAGE(number));
}

/* Segments are loaded. */
static inline void prepare_for_users(void)
{
	open_to_users();
	set_handler(0x80, back_from_user);
	allow_users(0x80);
	set_handler(0x81, invalidate_for_user);
	allow_users(0x81);
}

static inline void as_user(void (*work)(void))
{
	work();
	asm volatile("int $0x80");
}

/* Does this work in user mode, without interrupts. */
static inline void in_user_mode(void (*work)(void))
{
	whose = USER;
	run_user(as_user, FIXED_FLAG | IOPL_3, (u64)work);
	whose = 0;
}
