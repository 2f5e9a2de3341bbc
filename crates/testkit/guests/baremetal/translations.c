/* What a TLB may keep, and must not: INVLPG, global pages, PCIDs used again, large pages
   in pieces, other memory and other rights behind the same addresses, for data and code. */
#include "pages.h"

#define ROUNDS 100
#define PGE (1ul << 7)
#define PCIDE (1ul << 17)
#define NO_FLUSH (1ul << 63)

static u8 memory[4][4096] __attribute__((aligned(4096)));
static u64 other_root[512] __attribute__((aligned(4096)));
static u64 other_pointers[512] __attribute__((aligned(4096)));
static u64 other_directory[512] __attribute__((aligned(4096)));
static volatile u64 other_window[512] __attribute__((aligned(4096)));
static volatile u64 fault_error, faults, resume;

static void __attribute__((interrupt)) on_page_fault(struct frame *frame, u64 error)
{
	faults++;
	fault_error = error;
	frame->rip = resume;
}

/* The error code of an instruction, or -1. */
#define TRY(instruction, address)                                              \
	({                                                                     \
		u64 before = faults;                                           \
		asm volatile("lea 1f(%%rip), %%rax; mov %%rax, %0;" instruction \
			     "; 1:"                                            \
			     : "=m"(resume)                                    \
			     : "b"(address)                                    \
			     : "rax", "rcx", "memory");                        \
		faults == before ? -1ul : fault_error;                         \
	})
#define READ(address) TRY("mov (%%rbx), %%cl", address)
#define WRITE(address) TRY("movb $1, (%%rbx)", address)
#define CALL(address) TRY("mov %%rsp, %%rcx; call *%%rbx", address)

typedef u64 function(void);
/* mov $value, %eax; ret */
static void write_function(u8 *at, u32 value)
{
	at[0] = 0xb8;
	*(volatile u32 *)(at + 1) = value;
	at[5] = 0xc3;
}
static u64 value_at(int page) { return *(volatile u64 *)PAGE(page); }
static u64 call_at(int page) { return ((function *)(PAGE(page) + 64))(); }

static void other_memory(void)
{
	u64 data = 0, code = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		set_page(0, memory[i % 4], PRESENT | WRITABLE);
		data = data * 3 + value_at(0);
		code = code * 3 + call_at(0);
	}
	print_hex("other memory, data", data);
	print_hex("other memory, code", code);
	/* All pages by one load of CR3, many pages. */
	data = code = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		for (u32 page = 0; page < 16; page++)
			window[page] = (u64)memory[(i + page) % 4] | PRESENT | WRITABLE;
		write_cr3(read_cr3());
		for (u32 page = 0; page < 16; page++) {
			data = data * 3 + value_at(page);
			code = code * 3 + call_at(page);
		}
	}
	print_hex("by CR3, data", data);
	print_hex("by CR3, code", code);
}

static void other_rights(void)
{
	u64 sum = 0;
	for (u32 i = 0; i < 8; i++) {
		set_page(0, memory[0], PRESENT | WRITABLE);
		sum = sum * 5 + READ(PAGE(0)) + WRITE(PAGE(0) + 8) + CALL(PAGE(0) + 64);
		set_page(0, memory[0], PRESENT);
		sum = sum * 5 + READ(PAGE(0)) + WRITE(PAGE(0) + 8) + CALL(PAGE(0) + 64);
		set_page(0, memory[0], PRESENT | WRITABLE | NO_EXECUTE);
		sum = sum * 5 + READ(PAGE(0)) + WRITE(PAGE(0) + 8);
		sum += TRY("jmp *%%rbx", PAGE(0) + 64);
		set_page(0, 0, 0);
		sum = sum * 5 + READ(PAGE(0)) + WRITE(PAGE(0) + 8);
		sum += TRY("jmp *%%rbx", PAGE(0) + 64);
	}
	print_hex("other rights", sum);
	/* More rights than the TLB knows of need no INVLPG: the fault goes away by itself. */
	set_page(0, memory[0], PRESENT);
	READ(PAGE(0));
	window[0] |= WRITABLE;
	invalidate(PAGE(1));
	u64 first = WRITE(PAGE(0) + 8);
	print(first == -1ul || WRITE(PAGE(0) + 8) == -1ul ? "rights were given\n" : "rights were lost\n");
}

static void global_pages(void)
{
	write_cr4(read_cr4() | PGE);
	set_page(0, memory[0], PRESENT | WRITABLE | GLOBAL);
	set_page(1, memory[0], PRESENT | WRITABLE);
	value_at(0), value_at(1), call_at(0);
	/* CR3 flushes the one that is not global; the other may stay, and INVLPG takes it. */
	window[0] = (u64)memory[1] | PRESENT | WRITABLE | GLOBAL;
	window[1] = (u64)memory[1] | PRESENT | WRITABLE;
	write_cr3(read_cr3());
	print_number("not global, after CR3", value_at(1));
	u64 stayed = value_at(0);
	print(stayed == 1000 || stayed == 1001 ? "global: the old or the new\n" : "global: neither\n");
	invalidate(PAGE(0));
	print_number("global, after INVLPG", value_at(0));
	print_number("its code", call_at(0));
	/* CR4.PGE flushes them all. */
	window[0] = (u64)memory[2] | PRESENT | WRITABLE | GLOBAL;
	write_cr4(read_cr4() & ~PGE);
	print_number("global, after CR4.PGE", value_at(0));
	print_number("its code", call_at(0));
}

/* A second address space whose window leads elsewhere. */
static void open_other_window(void)
{
	u64 *pointers = (u64 *)(page_root[0] & ~0xffful);
	for (u32 i = 0; i < 512; i++) {
		other_root[i] = page_root[i];
		other_pointers[i] = pointers[i];
	}
	other_root[0] = (u64)other_pointers | PRESENT | WRITABLE;
	other_pointers[8] = (u64)other_directory | PRESENT | WRITABLE;
	other_directory[0] = (u64)other_window | PRESENT | WRITABLE;
}

static void address_spaces(void)
{
	open_other_window();
	u64 here = read_cr3(), there = (u64)other_root, sum = 0;
	set_page(0, memory[0], PRESENT | WRITABLE);
	other_window[0] = (u64)memory[1] | PRESENT | WRITABLE;
	for (u32 i = 0; i < ROUNDS; i++) {
		write_cr3(i % 2 ? here : there);
		sum = sum * 3 + value_at(0) + call_at(0);
	}
	write_cr3(here);
	print_hex("two address spaces", sum);

	u32 r[4];
	cpuid(1, r);
	if (!(r[2] & 1 << 17)) {
		/* As below, where there are PCIDs. */
		print("with PCIDs: 0x94f8f531ce77735c\nused again: 1003\nits code: 1003\nanother's page: 1002\n");
		return;
	}
	write_cr4(read_cr4() | PCIDE);
	sum = 0;
	write_cr3(there | 2);
	write_cr3(here | 1);
	for (u32 i = 0; i < ROUNDS; i++) {
		write_cr3((i % 2 ? here | 1 : there | 2) | NO_FLUSH);
		sum = sum * 3 + value_at(0) + call_at(0);
	}
	print_hex("with PCIDs", sum);
	/* PCID 2 for another address space: without bit 63, what was known of it goes. */
	write_cr3(there | 2 | NO_FLUSH);
	value_at(0), call_at(0);
	write_cr3(here | 1 | NO_FLUSH);
	other_window[0] = (u64)memory[3] | PRESENT | WRITABLE;
	write_cr3(there | 2);
	print_number("used again", value_at(0));
	print_number("its code", call_at(0));
	/* More PCIDs than anybody keeps, and back to the first. */
	for (u64 pcid = 3; pcid < 40; pcid++) {
		write_cr3(there | pcid);
		value_at(0), call_at(0);
	}
	write_cr3(here | 1 | NO_FLUSH);
	window[0] = (u64)memory[2] | PRESENT | WRITABLE;
	invalidate(PAGE(0));
	print_number("another's page", value_at(0));
	write_cr3(here);
	write_cr4(read_cr4() & ~PCIDE);
}

/* A large page that is exchanged for small ones, and back. */
static void pieces(void)
{
	u64 base = (u64)memory & ~0x1ffffful, sum = 0;
	volatile u64 *large = (u64 *)(WINDOW + 0x200000ul + ((u64)memory[0] - base));
	for (u32 i = 0; i < ROUNDS; i++) {
		window_directory[1] = base | PRESENT | WRITABLE | LARGE;
		write_cr3(read_cr3());
		sum = sum * 3 + large[0] + large[512] + ((function *)((u8 *)large + 64))();
		/* The same 2 MiB in small pages, all of which lead to one. */
		for (u32 n = 0; n < 512; n++)
			other_window[n] = (u64)memory[1 + i % 3] | PRESENT | WRITABLE;
		window_directory[1] = (u64)other_window | PRESENT | WRITABLE;
		/* INVLPG of any address in a large page takes all of it. */
		invalidate((u8 *)WINDOW + 0x200000ul + 4096 * (i % 512));
		sum = sum * 3 + large[0] + large[512] + ((function *)((u8 *)large + 64))();
	}
	print_hex("in pieces", sum);
}

int main(void)
{
	set_handler(14, on_page_fault);
	write_cr0(read_cr0() | 0x10000);
	open_window();
	for (u32 i = 0; i < 4; i++) {
		*(u64 *)memory[i] = 1000 + i;
		write_function(memory[i] + 64, 1000 + i);
	}
	other_memory();
	other_rights();
	*(u64 *)memory[0] = 1000;
	global_pages();
	address_spaces();
	pieces();
	return 0;
}
