/* Ends as ACPI says. */
#include "lib.h"

int main(void)
{
	print("off\n");
	power_off();
}
