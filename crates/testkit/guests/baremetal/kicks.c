/* Paravirtual kicks that end a HLT. A waiter for a spin lock in a virtual machine halts
   with interrupts off, and who gives the lock back kicks it. Half of the kicks come while
   the waiter still looks around: they must not get lost. Two processors. */
#include "processors.h"

#define ROUNDS 200
#define HYPERCALL_KICK 5

/* Twice the round: about to halt; one more: it has gone on. */
static volatile u32 waiter_at, kicked;

void ap_main(void)
{
	apic_enable();
	arrive();
	for (u32 round = 1; round <= ROUNDS; round++) {
		waiter_at = round * 2;
		while (round % 2 && kicked < round)
			asm volatile("pause");
		asm volatile("hlt");
		waiter_at = round * 2 + 1;
	}
	for (;;)
		asm volatile("hlt");
}

int main(void)
{
	apic_enable();
	start_processors(1, 1);
	for (u32 round = 1; round <= ROUNDS; round++) {
		u64 result = HYPERCALL_KICK;
		while (waiter_at != round * 2)
			asm volatile("pause");
		asm volatile("vmcall" : "+a"(result) : "b"(0ul), "c"(1ul) : "memory");
		if (result)
			fail("no kick");
		kicked = round;
		while (waiter_at <= round * 2)
			asm volatile("pause");
	}
	print_number("kicks that ended a HLT", kicked);
	return 0;
}
