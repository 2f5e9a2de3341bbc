/* The PVH entry: no magic in a register, but a structure with one. */
#include "lib.h"

int main(void)
{
	u32 *info = (u32 *)(u64)boot_info;
	print_hex("start of day", info[0]);
	print("command line: ");
	print((char *)*(u64 *)(info + 6));
	print("\n");
	print_number("map entries", info[12]);
	return 0;
}
