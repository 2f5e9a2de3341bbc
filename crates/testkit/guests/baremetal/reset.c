/* Resets through the FADT's reset register. */
#include "lib.h"

int main(void)
{
	u8 *fadt = acpi_table("FACP");
	print("reset\n");
	outb(*(u64 *)(fadt + 120), fadt[128]);
	for (;;)
		asm volatile("hlt");
}
