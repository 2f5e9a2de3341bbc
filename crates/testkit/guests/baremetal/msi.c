/* Messages of a PCI device (MSI-X): to several vectors, masked and unmasked. */
#include "virtio.h"

#define ROUNDS 20

static volatile u32 first, second;
static u8 bytes[64];

static void __attribute__((interrupt)) on_first(struct frame *frame)
{
	(void)frame;
	first++;
	apic_write(APIC_EOI, 0);
}
static void __attribute__((interrupt)) on_second(struct frame *frame)
{
	(void)frame;
	second++;
	apic_write(APIC_EOI, 0);
}

static void ask_and_poll(void)
{
	entropy_ask(bytes, sizeof bytes);
	while (!entropy_is_there())
		asm volatile("pause");
}

int main(void)
{
	set_handler(0x50, on_first);
	set_handler(0x51, on_second);
	apic_enable();
	entropy_start(1);
	set_message(1, 0xfee00000, 0x50, 0);
	for (u32 round = 1; round <= ROUNDS; round++) {
		entropy_ask(bytes, sizeof bytes);
		WAIT_UNTIL(first == round);
		if (!entropy_is_there())
			fail("a message came before the data");
	}
	print_number("messages", first);
	u32 set = 0;
	for (u32 i = 0; i < sizeof bytes; i++)
		set |= bytes[i];
	print(set ? "the data came with them\n" : "no data came\n");

	/* Masked, a message waits. */
	set_message(1, 0xfee00000, 0x51, 1);
	ask_and_poll();
	while (!(*(volatile u32 *)pending & 2))
		asm volatile("pause");
	asm volatile("sti; nop; nop; cli" ::: "memory");
	print_number("while masked", second);
	set_message(1, 0xfee00000, 0x51, 0);
	WAIT_UNTIL(second);
	print_number("unmasked", second);
	print_number("pending", *(volatile u32 *)pending & 2);

	/* By logical destination, to nobody, and to this processor. */
	apic_write(0xe0, 0xffffffff);
	apic_write(0xd0, 1 << 24);
	set_message(1, 0xfee0200c, 0x50, 0);
	ask_and_poll();
	set_message(1, 0xfee0100c, 0x51, 0);
	entropy_ask(bytes, sizeof bytes);
	WAIT_UNTIL(second == 2);
	print_number("to nobody", first - ROUNDS);
	print_number("by logical destination", second);
	return 0;
}
