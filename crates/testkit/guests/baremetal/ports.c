/* Ports and device memory in every width, and port strings. */
#include "lib.h"

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc

int main(void)
{
	const char text[] = "a string through REP OUTSB\n";
	const char *from = text;
	u64 count = sizeof text - 1;
	asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x3f8) : "memory");
	print_number("left of it", count);
	print_number("moved on by", from - text);

	/* The address register keeps what a double word wrote. */
	outl(PCI_ADDRESS, 0x80000000);
	print_hex("configuration address", inl(PCI_ADDRESS));
	u32 whole = inl(PCI_DATA);
	u32 halves = inw(PCI_DATA) | (u32)inw(PCI_DATA + 2) << 16;
	u32 bytes = inb(PCI_DATA) | inb(PCI_DATA + 1) << 8 | inb(PCI_DATA + 2) << 16 |
		    (u32)inb(PCI_DATA + 3) << 24;
	print(whole == halves && whole == bytes ? "widths agree\n" : "widths differ\n");

	u32 words[4] = { 0 };
	u32 *to = words;
	count = 4;
	asm volatile("rep insl" : "+D"(to), "+c"(count) : "d"(PCI_ADDRESS) : "memory");
	print_hex("last of REP INSL", words[3]);
	/* Backwards. */
	to = words + 3;
	count = 4;
	asm volatile("std; rep insl; cld" : "+D"(to), "+c"(count) : "d"(PCI_DATA) : "memory");
	print(words[0] == whole && words[3] == whole ? "backwards too\n" : "backwards differs\n");

	print_hex("a port without a device", inb(0x2f0));
	print_hex("a wide one", inl(0x2f0));

	/* Device memory: PCI's configuration space once more, and the I/O APIC. */
	volatile u8 *ecam = (volatile u8 *)*(u64 *)(acpi_table("MCFG") + 44);
	print(*(volatile u32 *)ecam == whole ? "same through memory\n" : "memory differs\n");
	u32 copied;
	asm volatile("rep movsb" : : "S"(ecam), "D"(&copied), "c"(4) : "memory");
	print(copied == whole ? "same through REP MOVSB\n" : "REP MOVSB differs\n");
	*(volatile u32 *)0xfec00000 = 1;
	print_hex("I/O APIC version", *(volatile u32 *)0xfec00010 & 0xff);
	print_hex("memory without a device", *(volatile u32 *)0xd0000000);
	return 0;
}
