/* An exception without a handler, in the handler of an exception without one. */
#include "lib.h"

int main(void)
{
	static const struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) nothing = { 0, 0 };
	print("triple fault\n");
	load_idt((void *)&nothing);
	asm volatile("ud2");
	return 0;
}
