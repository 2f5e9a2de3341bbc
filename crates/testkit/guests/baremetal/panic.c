/* Says that it panicked. */
#include "lib.h"

int main(void)
{
	print("panic\n");
	outb(0x505, 1);
	for (;;)
		asm volatile("hlt");
}
