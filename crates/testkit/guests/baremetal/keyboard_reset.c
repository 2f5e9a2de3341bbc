/* Resets through the keyboard controller. */
#include "lib.h"

int main(void)
{
	print("reset\n");
	outb(0x64, 0xfe);
	for (;;)
		asm volatile("hlt");
}
