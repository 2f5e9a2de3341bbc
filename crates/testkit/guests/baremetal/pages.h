/* A window of 4 KiB pages at 8 GiB, and other processors: what tests of address
   translation share. */
#pragma once
#include "lib.h"

#define PRESENT 1ul
#define WRITABLE 2ul
#define USER 4ul
#define ACCESSED 0x20ul
#define DIRTY 0x40ul
#define LARGE 0x80ul
#define GLOBAL 0x100ul
#define NO_EXECUTE (1ul << 63)

#define WINDOW 0x200000000ul
#define PAGE(number) ((u8 *)(WINDOW + (number) * 4096ul))

static u64 window_directory[512] __attribute__((aligned(4096)));
static volatile u64 window[512] __attribute__((aligned(4096)));

static inline void open_window(void)
{
	u64 *pointers = (u64 *)(page_root[0] & ~0xffful);
	/* Whose a page is, its own entry says. */
	pointers[8] = (u64)window_directory | PRESENT | WRITABLE | USER;
	window_directory[0] = (u64)window | PRESENT | WRITABLE | USER;
}

static inline void invalidate(const volatile void *address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static inline void set_page(int number, const volatile void *page, u64 flags)
{
	window[number] = (u64)page | flags;
	invalidate(PAGE(number));
}

static inline u64 read_cr0(void) { u64 value; asm volatile("mov %%cr0, %0" : "=r"(value)); return value; }
static inline u64 read_cr3(void) { u64 value; asm volatile("mov %%cr3, %0" : "=r"(value)); return value; }
static inline u64 read_cr4(void) { u64 value; asm volatile("mov %%cr4, %0" : "=r"(value)); return value; }
static inline void write_cr0(u64 value) { asm volatile("mov %0, %%cr0" : : "r"(value) : "memory"); }
static inline void write_cr3(u64 value) { asm volatile("mov %0, %%cr3" : : "r"(value) : "memory"); }
static inline void write_cr4(u64 value) { asm volatile("mov %0, %%cr4" : : "r"(value) : "memory"); }
