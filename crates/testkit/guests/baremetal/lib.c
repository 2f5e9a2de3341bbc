#include "lib.h"

#define SERIAL 0x3f8
#define DEBUG_EXIT 0xf4

static void put(char character)
{
	while (!(inb(SERIAL + 5) & 0x20))
		;
	outb(SERIAL, character);
}

void print(const char *text)
{
	for (; *text; text++)
		put(*text);
}

void print_number(const char *label, u64 value)
{
	char digits[24];
	int at = sizeof digits;
	digits[--at] = 0;
	do
		digits[--at] = '0' + value % 10;
	while (value /= 10);
	print(label);
	print(": ");
	print(digits + at);
	print("\n");
}

void print_hex(const char *label, u64 value)
{
	print(label);
	print(": 0x");
	int shift = 60;
	while (shift && !(value >> shift & 15))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[value >> shift & 15]);
	print("\n");
}

void leave(u32 code)
{
	outl(DEBUG_EXIT, code);
	for (;;)
		asm volatile("cli; hlt");
}

void fail(const char *what)
{
	print("FAILED: ");
	print(what);
	print("\n");
	leave(1);
}

struct gate {
	u16 low, selector;
	u8 stack, type;
	u16 middle;
	u32 high, zero;
};
static struct gate idt[256];
static struct {
	u16 limit;
	u64 base;
} __attribute__((packed)) idt_pointer;

void set_handler(u8 vector, void *handler)
{
	u64 address = (u64)handler;
	idt[vector] = (struct gate){ address, 8, 0, 0x8e, address >> 16, address >> 32, 0 };
	idt_pointer.limit = sizeof idt - 1;
	idt_pointer.base = (u64)idt;
	load_idt(&idt_pointer);
}

void set_interrupt_stack(u8 vector, u8 stack) { idt[vector].stack = stack; }

void allow_users(u8 vector) { idt[vector].type = 0xee; }

static void __attribute__((interrupt)) spurious(struct frame *frame) { (void)frame; }

void apic_enable(void)
{
	set_handler(0xff, spurious);
	write_msr(0x1b, read_msr(0x1b) | 1 << 11);
	apic_write(APIC_SPURIOUS, 0x1ff);
}

static int same(const u8 *bytes, const char *text, int length)
{
	for (int i = 0; i < length; i++)
		if (bytes[i] != (u8)text[i])
			return 0;
	return 1;
}

static u32 word(const u8 *bytes) { return *(const u32 *)bytes; }

static u8 *root_pointer(void)
{
	for (u8 *at = (u8 *)0xe0000; at < (u8 *)0x100000; at += 16)
		if (same(at, "RSD PTR ", 8))
			return at;
	fail("no ACPI root pointer");
}

u8 *acpi_table(const char *signature)
{
	u8 *root = (u8 *)*(u64 *)(root_pointer() + 24);
	for (u32 at = 36; at < word(root + 4); at += 8) {
		u8 *table = (u8 *)*(u64 *)(root + at);
		if (same(table, signature, 4))
			return table;
	}
	return 0;
}

u32 processor_count(void)
{
	u8 *madt = acpi_table("APIC");
	u32 count = 0;
	for (u32 at = 44; at < word(madt + 4); at += madt[at + 1])
		count += madt[at] == 0;
	return count;
}

void power_off(void)
{
	u8 *fadt = acpi_table("FACP");
	u8 *dsdt = (u8 *)(u64)word(fadt + 40);
	for (u32 at = 36; at + 10 < word(dsdt + 4); at++) {
		if (!same(dsdt + at, "_S5_", 4))
			continue;
		/* Package, its length, number of elements; the first is the sleep type. */
		u8 *element = dsdt + at + 7;
		u8 type = element[0] == 0x0a ? element[1] : element[0];
		outw(word(fadt + 64), type << 10 | 1 << 13);
		for (;;)
			asm volatile("hlt");
	}
	fail("no sleep state S5");
}

void pit_periodic(u32 hertz)
{
	u32 divisor = PIT_HZ / hertz;
	outb(0x43, 0x34);
	outb(0x40, divisor);
	outb(0x40, divisor >> 8);
}

void pic_init(u8 unmasked)
{
	outb(0x20, 0x11);
	outb(0xa0, 0x11);
	outb(0x21, 0x20);
	outb(0xa1, 0x28);
	outb(0x21, 4);
	outb(0xa1, 2);
	outb(0x21, 1);
	outb(0xa1, 1);
	outb(0x21, ~unmasked);
	outb(0xa1, 0xff);
}
