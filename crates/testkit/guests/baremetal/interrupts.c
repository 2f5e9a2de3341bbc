/* Exceptions with their error codes, and interrupts through both controllers. */
#include "lib.h"

static volatile u64 last_error, last_address, ticks;
static volatile u32 breakpoints, divides, undefined;

static void __attribute__((interrupt)) on_breakpoint(struct frame *frame)
{
	breakpoints++;
	(void)frame;
}
static void __attribute__((interrupt)) on_divide(struct frame *frame)
{
	divides++;
	frame->rip += 2;
}
static void __attribute__((interrupt)) on_undefined(struct frame *frame)
{
	undefined++;
	frame->rip += 2;
}
static void __attribute__((interrupt)) on_protection(struct frame *frame, u64 error)
{
	last_error = error;
	frame->rip += 2;
}
static void __attribute__((interrupt)) on_page_fault(struct frame *frame, u64 error)
{
	last_error = error;
	asm volatile("mov %%cr2, %0" : "=r"(*(u64 *)&last_address));
	frame->rip += 2;
}
static void __attribute__((interrupt)) on_pic_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
	outb(0x20, 0x20);
}
static void __attribute__((interrupt)) on_apic_tick(struct frame *frame)
{
	(void)frame;
	ticks++;
	apic_write(APIC_EOI, 0);
}

static void io_apic_write(u32 index, u32 value)
{
	*(volatile u32 *)0xfec00000 = index;
	*(volatile u32 *)0xfec00010 = value;
}

int main(void)
{
	set_handler(0, on_divide);
	set_handler(3, on_breakpoint);
	set_handler(6, on_undefined);
	set_handler(13, on_protection);
	set_handler(14, on_page_fault);
	set_handler(0x20, on_pic_tick);
	set_handler(0x50, on_apic_tick);

	asm volatile("int3; int3");
	print_number("breakpoints", breakpoints);
	/* div %ecx is two bytes long, as ud2 and the accesses below are. */
	asm volatile("div %%ecx" : : "a"(1), "d"(0), "c"(0));
	print_number("divide errors", divides);
	asm volatile("ud2");
	print_number("undefined", undefined);
	asm volatile("mov %0, %%fs" : : "a"(0x123c));
	print_hex("selector error", last_error);
	/* Nothing is mapped at 8 GiB. */
	asm volatile("mov (%0), %%al" : : "b"(0x200000123) : "rax");
	print_hex("read error", last_error);
	print_hex("read address", last_address);
	asm volatile("mov %%al, (%0)" : : "b"(0x200000456));
	print_hex("write error", last_error);
	print_hex("write address", last_address);

	pic_init(1);
	pit_periodic(500);
	WAIT_UNTIL(ticks >= 10);
	print("ten ticks through the 8259\n");
	outb(0x21, 0xff);
	ticks = 0;

	apic_enable();
	io_apic_write(0x10 + 2 * 2 + 1, apic_read(APIC_ID) & 0xff000000);
	io_apic_write(0x10 + 2 * 2, 0x50);
	WAIT_UNTIL(ticks >= 10);
	print("ten ticks through the I/O APIC\n");
	io_apic_write(0x10 + 2 * 2, 0x10050);
	return 0;
}
