/* Never ends. */
#include "lib.h"

int main(void)
{
	print("spinning\n");
	for (;;)
		;
}
