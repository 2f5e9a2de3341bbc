/* Start-up of all processors, locked arithmetic between them, interrupts to all. */
#include "lib.h"

#define ROUNDS 20000
#define TRAMPOLINE 0x8000

static volatile u32 arrived, finished, interrupted;
static volatile u64 counter;
static volatile u32 go;
static u8 stacks[8][8192] __attribute__((aligned(16)));

static void __attribute__((interrupt)) on_call(struct frame *frame)
{
	(void)frame;
	__atomic_add_fetch(&interrupted, 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
}

static void work(void)
{
	while (!go)
		asm volatile("pause");
	for (int i = 0; i < ROUNDS; i++) {
		asm volatile("lock incq %0" : "+m"(counter));
		u64 old = counter;
		while (!__atomic_compare_exchange_n(&counter, &old, old + 2, 0, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST))
			;
	}
	__atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
}

void ap_main(void)
{
	/* The table of handlers is shared; the register that points at it is not. */
	set_handler(0x60, on_call);
	apic_enable();
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	work();
	enable_interrupts();
	for (;;)
		asm volatile("hlt");
}

static void command(u32 id, u32 low)
{
	apic_write(APIC_COMMAND_HIGH, id << 24);
	apic_write(APIC_COMMAND, low);
	while (apic_read(APIC_COMMAND) & 1 << 12)
		;
}

int main(void)
{
	u32 count = processor_count();
	set_handler(0x60, on_call);
	apic_enable();
	for (u8 *from = trampoline, *to = (u8 *)TRAMPOLINE; from < trampoline_end;)
		*to++ = *from++;
	for (u32 id = 1; id < count; id++) {
		ap_stack = (u32)(u64)(stacks[id] + sizeof stacks[id]);
		command(id, 0x4500);
		command(id, 0x4600 | TRAMPOLINE >> 12);
		while (arrived < id)
			asm volatile("pause");
	}
	print_number("others", arrived);
	go = 1;
	work();
	while (finished < count)
		asm volatile("pause");
	print(counter == (u64)count * ROUNDS * 3 ? "no update was lost\n" : "updates were lost\n");
	/* To all but itself; they are about to halt, or have. */
	command(0, 0x60 | 3 << 18);
	while (interrupted < count - 1)
		asm volatile("pause");
	print_number("interrupted", interrupted);
	return 0;
}
