/* An IOMMU between a device and the machine: pages, interrupts, and what it refuses. The
   device is one that copies and interrupts on demand. */
#include "lib.h"

#define EDU 0x11e81234u
#define PAGE 4096

/* Registers of the unit. */
#define COMMAND 0x18
#define STATUS 0x1c
#define ROOT_TABLE 0x20
#define FAULT_STATUS 0x34
#define FAULT_CONTROL 0x38
#define FAULT_DATA 0x3c
#define FAULT_ADDRESS 0x40
#define QUEUE_TAIL 0x88
#define QUEUE_ADDRESS 0x90
#define INTERRUPT_TABLE 0xb8
#define FAULT_RECORDS 0x220
/* Commands. */
#define TRANSLATE (1u << 31)
#define SET_ROOT (1u << 30)
#define QUEUE (1u << 26)
#define REMAP (1u << 25)
#define SET_INTERRUPTS (1u << 24)

/* Registers of the device. */
#define INTERRUPT_STATUS 0x24
#define INTERRUPT_RAISE 0x60
#define INTERRUPT_TAKEN 0x64
#define DMA_FROM 0x80
#define DMA_TO 0x88
#define DMA_LENGTH 0x90
#define DMA_COMMAND 0x98
#define OWN_MEMORY 0x40000

#define FIRST_VECTOR 0x50
#define SECOND_VECTOR 0x51
#define FAULT_VECTOR 0x52
/* Entries of the table of interrupts. */
#define OF_WIRE 1
#define OF_MESSAGE 2

static u64 root[512] __attribute__((aligned(PAGE)));
static u64 contexts[512] __attribute__((aligned(PAGE)));
static u64 tables[3][512] __attribute__((aligned(PAGE)));
static u64 interrupts[512] __attribute__((aligned(PAGE)));
static u64 queue[512] __attribute__((aligned(PAGE)));
static u8 pages[2][PAGE] __attribute__((aligned(PAGE)));
static volatile u32 done;
static u32 tail, slot;
static u64 unit, edu;
static volatile u32 firsts, seconds, faults;

static u32 get(u64 at) { return *(volatile u32 *)at; }
static u64 get_wide(u64 at) { return *(volatile u64 *)at; }
static void set(u64 at, u32 value) { *(volatile u32 *)at = value; }
static void set_wide(u64 at, u64 value) { *(volatile u64 *)at = value; }

static void acknowledge(void)
{
	set(edu + INTERRUPT_TAKEN, get(edu + INTERRUPT_STATUS));
	apic_write(APIC_EOI, 0);
}
static void __attribute__((interrupt)) on_first(struct frame *frame)
{
	(void)frame;
	firsts++;
	acknowledge();
}
static void __attribute__((interrupt)) on_second(struct frame *frame)
{
	(void)frame;
	seconds++;
	acknowledge();
}
static void __attribute__((interrupt)) on_fault(struct frame *frame)
{
	(void)frame;
	faults++;
	apic_write(APIC_EOI, 0);
}

static void command(u32 bit)
{
	set(unit + COMMAND, (get(unit + STATUS) & ~(SET_ROOT | SET_INTERRUPTS)) | bit);
	while (!(get(unit + STATUS) & bit))
		asm volatile("pause");
}

static void queue_up(u64 low, u64 high)
{
	queue[tail / 8] = low;
	queue[tail / 8 + 1] = high;
	tail = (tail + 16) % PAGE;
}

/* Has all that was changed looked at anew, and waits. */
static void invalidate(void)
{
	done = 0;
	queue_up(1 | 1 << 4, 0);
	queue_up(2 | 1 << 4, 0);
	queue_up(4, 0);
	queue_up(5 | 1 << 5 | 1ul << 32, (u64)&done);
	set_wide(unit + QUEUE_TAIL, tail);
	while (!done)
		asm volatile("pause");
}

/* The one fault that comes after so many others. */
static void print_fault(const char *what, u32 number)
{
	WAIT_UNTIL(faults == number);
	u32 status = get(unit + FAULT_STATUS);
	u64 record = unit + FAULT_RECORDS + 16 * (status >> 8 & 0xff);
	print(what);
	print_hex(" is refused, reason", get_wide(record + 8) >> 32 & 0xff);
	print_hex("information", get_wide(record));
	if ((get_wide(record + 8) & 0xffff) != slot << 3)
		fail("the fault is laid to another device");
	set(record + 12, 1u << 31);
	if (get(unit + FAULT_STATUS) & 0xff)
		fail("there is another fault");
}

static void find_device(void)
{
	for (slot = 1; config_read(slot, 0) != EDU; slot++)
		if (slot == 31)
			fail("no device to drive");
	config_write(slot, 4, 6);
	edu = config_read(slot, 0x10) & ~15u;
	set(edu + 4, 0x12345678);
	print_hex("the device inverts", get(edu + 4));
}

static void copy(u64 from, u64 to, u64 length, u32 direction)
{
	set_wide(edu + DMA_FROM, from);
	set_wide(edu + DMA_TO, to);
	set_wide(edu + DMA_LENGTH, length);
	set(edu + DMA_COMMAND, direction | 1);
	while (get(edu + DMA_COMMAND) & 1)
		asm volatile("pause");
}
static void copy_in(u64 address, u64 length) { copy(address, OWN_MEMORY, length, 0); }
static void copy_out(u64 address, u64 length) { copy(OWN_MEMORY, address, length, 2); }

/* The device sees the first page, to be read, at 0x7000, and the second one after it. */
static void test_pages(void)
{
	root[0] = (u64)contexts | 1;
	contexts[2 * (slot << 3)] = (u64)tables[0] | 1;
	contexts[2 * (slot << 3) + 1] = 1 | 5 << 8;
	tables[0][0] = (u64)tables[1] | 3;
	tables[1][0] = (u64)tables[2] | 3;
	tables[2][7] = (u64)pages[1] | 1;
	tables[2][8] = (u64)pages[0] | 3;
	set_wide(unit + ROOT_TABLE, (u64)root);
	command(SET_ROOT);
	invalidate();
	command(TRANSLATE);
	for (u32 i = 0; i < 16; i++) {
		pages[1][PAGE - 8 + i % 8] = 'a' + i % 8;
		pages[0][i] = 'A' + i;
	}
	copy_in(0x7ff8, 16);
	copy_out(0x8100, 16);
	for (u32 i = 0; i < 16; i++)
		if (pages[0][0x100 + i] != (i < 8 ? 'a' + i : 'A' + i - 8))
			fail("what was copied is something else");
	print("16 bytes went through two pages\n");
	copy_out(0x7000, 4);
	print_fault("a write", 1);
	copy_in(0x9234, 4);
	print_fault("a read", 2);
	tables[2][9] = (u64)pages[0] | 1;
	invalidate();
	copy_in(0x9100, 4);
	copy_out(0x8200, 4);
	print_number("a page later", pages[0][0x200]);
}

static void raise(void) { set(edu + INTERRUPT_RAISE, 1); }

/* The device's wire, a level, whose end has to reach the I/O APIC. */
static void test_wire(u64 processor)
{
	u32 pin = config_read(slot, 0x3c) & 0xff;
	interrupts[2 * OF_WIRE] = 1 | 1 << 4 | FIRST_VECTOR << 16 | processor << 40;
	set_wide(unit + INTERRUPT_TABLE, (u64)interrupts | 7);
	command(SET_INTERRUPTS);
	invalidate();
	command(REMAP);
	*(volatile u32 *)0xfec00000 = 0x10 + 2 * pin + 1;
	*(volatile u32 *)0xfec00010 = OF_WIRE << 17 | 1 << 16;
	*(volatile u32 *)0xfec00000 = 0x10 + 2 * pin;
	*(volatile u32 *)0xfec00010 = 1 << 15 | FIRST_VECTOR;
	for (u32 round = 1; round <= 3; round++) {
		raise();
		WAIT_UNTIL(firsts == round);
	}
	print_number("interrupts by wire", firsts);
	*(volatile u32 *)0xfec00010 = 1 << 16;
}

static void test_messages(u64 processor)
{
	u32 at = find_capability(slot, 5);
	if (!at)
		fail("the device has no messages");
	interrupts[2 * OF_MESSAGE] = 1 | FIRST_VECTOR << 16 | processor << 40;
	interrupts[2 * OF_MESSAGE + 1] = slot << 3 | 1 << 18;
	invalidate();
	config_write(slot, at + 4, LOCAL_APIC | OF_MESSAGE << 5 | 1 << 4);
	config_write(slot, at + 8, 0);
	config_write(slot, at + 12, 0);
	config_write(slot, at, config_read(slot, at) | 1 << 16);
	for (u32 round = 1; round <= 3; round++) {
		raise();
		WAIT_UNTIL(firsts == 3 + round);
	}
	print_number("interrupts by message", firsts - 3);
	interrupts[2 * OF_MESSAGE] = 1 | SECOND_VECTOR << 16 | processor << 40;
	invalidate();
	raise();
	WAIT_UNTIL(seconds == 1);
	print_number("by another vector", seconds);
	/* Made out to somebody else; in the format of old. */
	interrupts[2 * OF_MESSAGE + 1] = (slot << 3 | 1) | 1 << 18;
	invalidate();
	raise();
	print_fault("another's message", 3);
	config_write(slot, at + 4, LOCAL_APIC);
	config_write(slot, at + 12, FIRST_VECTOR);
	raise();
	print_fault("a message of old", 4);
	print_number("by any of them", firsts - 6 + seconds - 1);
}

int main(void)
{
	set_handler(FIRST_VECTOR, on_first);
	set_handler(SECOND_VECTOR, on_second);
	set_handler(FAULT_VECTOR, on_fault);
	apic_enable();
	u8 *dmar = acpi_table("DMAR");
	if (!dmar)
		fail("no IOMMU");
	unit = *(u64 *)(dmar + 56);
	u64 processor = apic_read(APIC_ID) >> 24;
	set(unit + FAULT_DATA, FAULT_VECTOR);
	set(unit + FAULT_ADDRESS, LOCAL_APIC | processor << 12);
	set(unit + FAULT_CONTROL, 0);
	set_wide(unit + QUEUE_ADDRESS, (u64)queue);
	command(QUEUE);
	find_device();
	test_pages();
	test_wire(processor);
	test_messages(processor);
	return 0;
}
