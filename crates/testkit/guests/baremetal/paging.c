/* Page tables: aliases, accessed and dirty bits, protection, no-execute, and that
   a changed entry is used after INVLPG. */
#include "lib.h"

#define PRESENT 1ul
#define WRITABLE 2ul
#define ACCESSED 0x20ul
#define DIRTY 0x40ul
#define NO_EXECUTE (1ul << 63)
#define AT 0x200000000ul /* 8 GiB: nothing is there yet */

static u64 directory[512] __attribute__((aligned(4096)));
static u64 table[512] __attribute__((aligned(4096)));
static u8 first[4096] __attribute__((aligned(4096)));
static u8 second[4096] __attribute__((aligned(4096)));
static volatile u64 fault_error, faults, resume;

static void __attribute__((interrupt)) on_page_fault(struct frame *frame, u64 error)
{
	faults++;
	fault_error = error;
	frame->rip = resume;
}

static void set(int index, void *page, u64 flags)
{
	table[index] = (u64)page | flags;
	asm volatile("invlpg (%0)" : : "r"(AT + index * 4096ul) : "memory");
}

/* The error code of a read, a write or a call, or -1. */
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

int main(void)
{
	set_handler(14, on_page_fault);
	/* 8 GiB is entry 8 of the table that maps the first 512 GiB. */
	u64 *first_pointers = (u64 *)(page_root[0] & ~0xffful);
	first_pointers[8] = (u64)directory | PRESENT | WRITABLE;
	directory[0] = (u64)table | PRESENT | WRITABLE;

	print_hex("not present, read", READ(AT));
	set(0, first, PRESENT | WRITABLE);
	print_hex("bits before", table[0] & (ACCESSED | DIRTY));
	READ(AT);
	print_hex("bits after a read", table[0] & (ACCESSED | DIRTY));
	WRITE(AT);
	print_hex("bits after a write", table[0] & (ACCESSED | DIRTY));

	set(1, first, PRESENT | WRITABLE);
	*(volatile u8 *)(AT + 5) = 77;
	print_number("through the alias", *(volatile u8 *)(AT + 4096 + 5));
	second[5] = 88;
	set(1, second, PRESENT | WRITABLE);
	print_number("after the change", *(volatile u8 *)(AT + 4096 + 5));

	set(2, first, PRESENT);
	print_hex("read-only, read", READ(AT + 2 * 4096));
	print_hex("read-only, write", WRITE(AT + 2 * 4096));
	u64 cr0;
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~0x10000ul));
	print_hex("the same without CR0.WP", WRITE(AT + 2 * 4096));
	asm volatile("mov %0, %%cr0" : : "r"(cr0));

	/* EFER.NXE is on; a page with RET in it can be called, unless it is marked. */
	first[64] = 0xc3;
	set(3, first, PRESENT | WRITABLE);
	print_hex("call", TRY("mov %%rsp, %%rcx; call *%%rbx", AT + 3 * 4096 + 64));
	set(3, first, PRESENT | WRITABLE | NO_EXECUTE);
	print_hex("call no-execute", TRY("jmp *%%rbx", AT + 3 * 4096 + 64));

	/* An access across two pages, the second of which is absent. */
	set(5, 0, 0);
	set(4, first, PRESENT | WRITABLE);
	print_hex("across pages", TRY("mov %%eax, (%%rbx)", AT + 4 * 4096 + 4094));
	/* A write that changes what has been executed. */
	u8 *code = second;
	code[0] = 0xb0; /* mov $imm, %al; ret */
	code[2] = 0xc3;
	u32 sum = 0;
	for (int i = 0; i < 100; i++) {
		code[1] = i;
		u8 result;
		asm volatile("call *%1" : "=a"(result) : "r"(code) : "memory");
		sum += result;
	}
	print_number("changed code", sum);
	return 0;
}
