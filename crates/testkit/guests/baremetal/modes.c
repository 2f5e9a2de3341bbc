/* Long mode, 32-bit code inside of it, and a trip to real mode and back. */
#include "lib.h"

int main(void)
{
	print_hex("boot magic", boot_magic);
	print_hex("compatibility mode", in_compatibility_mode());
	print_hex("real mode", in_real_mode());
	print_hex("compatibility mode again", in_compatibility_mode());
	return 0;
}
