/* A driver for the virtio entropy device on PCI: the smallest device that writes to
   memory by itself and sends messages. */
#pragma once
#include "lib.h"

#define VIRTIO_VENDOR 0x1af4
#define VIRTIO_ENTROPY 0x1044
#define DEVICE_WINDOW 0xc1000000u
#define NO_VECTOR 0xffff

static u8 slot;
static u8 *bar, *common, *notify, *table, *pending;
static u16 enable_msix;

static struct {
	u64 address;
	u32 length;
	u16 flags, next;
} descriptors[8] __attribute__((aligned(16)));
static struct {
	u16 flags, index, ring[8];
} available __attribute__((aligned(2)));
static volatile struct {
	u16 flags, index;
	struct {
		u32 id, length;
	} ring[8];
} used __attribute__((aligned(4)));

static u32 pci_read(u8 at) { return config_read(slot, at); }
static void pci_write(u8 at, u32 value) { config_write(slot, at, value); }
static u8 pci_byte(u8 at) { return pci_read(at) >> at % 4 * 8; }

static u8 common_8(u8 at) { return *(volatile u8 *)(common + at); }
static void set_8(u8 at, u8 value) { *(volatile u8 *)(common + at) = value; }
static void set_16(u8 at, u16 value) { *(volatile u16 *)(common + at) = value; }
static void set_32(u8 at, u32 value) { *(volatile u32 *)(common + at) = value; }

/* A message of the table: where to, with what data, masked or not. */
static inline void set_message(u32 number, u32 address, u32 data, u32 masked)
{
	volatile u32 *entry = (u32 *)(table + number * 16);
	entry[3] = 1;
	entry[0] = address;
	entry[1] = 0;
	entry[2] = data;
	entry[3] = masked;
}

/* Finds the device, negotiates, and sets up its queue with this message for it. */
static inline void entropy_start(u16 message)
{
	for (slot = 1; pci_read(0) != (VIRTIO_ENTROPY << 16 | VIRTIO_VENDOR); slot++)
		if (slot == 31)
			fail("no entropy device");
	/* The BAR is 64-bit: low half, high half, then memory accesses and bus mastering. */
	pci_write(0x10, DEVICE_WINDOW);
	pci_write(0x14, 0);
	pci_write(0x04, (pci_read(0x04) & 0xffff) | 6);
	bar = (u8 *)(u64)DEVICE_WINDOW;
	for (u8 at = pci_byte(0x34); at; at = pci_byte(at + 1)) {
		if (pci_byte(at) == 0x11) {
			table = bar + (pci_read(at + 4) & ~7u);
			pending = bar + (pci_read(at + 8) & ~7u);
			enable_msix = at;
		}
		if (pci_byte(at) == 0x09 && pci_byte(at + 3) == 1)
			common = bar + pci_read(at + 8);
		if (pci_byte(at) == 0x09 && pci_byte(at + 3) == 2)
			notify = bar + pci_read(at + 8);
	}
	if (!table || !common || !notify)
		fail("capabilities are missing");
	if (message != NO_VECTOR)
		pci_write(enable_msix, pci_read(enable_msix) | 1u << 31);
	set_8(0x14, 0);
	set_8(0x14, 1 | 2);
	/* Version 1 is all that is wanted: feature 32. */
	set_32(0x08, 1);
	set_32(0x0c, 1);
	set_8(0x14, 1 | 2 | 8);
	if (!(common_8(0x14) & 8))
		fail("the device refuses the features");
	set_16(0x16, 0);
	set_16(0x18, 8);
	set_16(0x1a, message);
	set_32(0x20, (u32)(u64)descriptors);
	set_32(0x24, 0);
	set_32(0x28, (u32)(u64)&available);
	set_32(0x2c, 0);
	set_32(0x30, (u32)(u64)&used);
	set_32(0x34, 0);
	set_16(0x1c, 1);
	set_8(0x14, 1 | 2 | 4 | 8);
}

/* Asks for random bytes at this place. */
static inline void entropy_ask(volatile void *to, u32 length)
{
	u16 at = available.index % 8;
	descriptors[at].address = (u64)to;
	descriptors[at].length = length;
	descriptors[at].flags = 2;
	available.ring[at] = at;
	__atomic_store_n(&available.index, available.index + 1, __ATOMIC_SEQ_CST);
	*(volatile u16 *)notify = 0;
}

static inline int entropy_is_there(void)
{
	return __atomic_load_n(&used.index, __ATOMIC_ACQUIRE) == available.index;
}
