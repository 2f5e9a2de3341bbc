/* A guest that does nothing but drive a disk's ring: random reads of 4 KiB, so many at a
   time, without an operating system between the ring and the figures. Interrupts are off;
   it looks whether something has come back. */
#include "lib.h"

#define BAR 0xc1000000u
#define SIZE 128
#define SLOTS (SIZE / 4)

struct descriptor {
	u64 address;
	u32 length;
	u16 flags, next;
};
static struct descriptor descriptors[SIZE] __attribute__((aligned(4096)));
static struct {
	u16 flags, index, ring[SIZE], event;
} available __attribute__((aligned(4096)));
static volatile struct {
	u16 flags, index;
	struct {
		u32 id, length;
	} ring[SIZE];
	u16 event;
} used __attribute__((aligned(4096)));
static struct {
	u32 kind, reserved;
	u64 sector;
} headers[SLOTS];
static u8 status[SLOTS], data[SLOTS][4096] __attribute__((aligned(4096)));

static void put8(u32 at, u8 value) { *(volatile u8 *)(u64)(BAR + at) = value; }
static void put16(u32 at, u16 value) { *(volatile u16 *)(u64)(BAR + at) = value; }
static void put32(u32 at, u32 value) { *(volatile u32 *)(u64)(BAR + at) = value; }
static u32 get32(u32 at) { return *(volatile u32 *)(u64)(BAR + at); }
static void put64(u32 at, u64 value)
{
	put32(at, (u32)value);
	put32(at + 4, (u32)(value >> 32));
}

static u64 seed = 88172645463325252ull;
static void offer(u32 slot, u64 blocks)
{
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	headers[slot].sector = seed % blocks * 8;
	available.ring[available.index % SIZE] = (u16)(4 * slot);
	asm volatile("" : : : "memory");
	available.index++;
}

static void measure(const char *name, u32 depth, u32 count, u64 blocks)
{
	u16 taken = used.index;
	u32 offered = 0, done = 0;
	print("begin ");
	print(name);
	print("\n");
	for (; offered < depth; offered++)
		offer(offered, blocks);
	put16(0x3000, 0);
	while (done < count) {
		u32 fresh = 0;
		for (; taken != used.index; taken++, done++) {
			u32 slot = used.ring[taken % SIZE].id / 4;
			if (*(volatile u8 *)&status[slot])
				fail("a read failed");
			if (offered < count) {
				offer(slot, blocks);
				offered++, fresh++;
			}
		}
		asm volatile("mfence" : : : "memory");
		if (fresh && !(used.flags & 1))
			put16(0x3000, 0);
		else
			asm volatile("pause");
	}
	print("end ");
	print(name);
	print("\n");
}

int main(void)
{
	u32 slot = 0;
	while (slot < 32 && config_read(slot, 0) != 0x10421af4)
		slot++;
	if (slot == 32)
		fail("there is no disk");
	config_write(slot, 0x10, BAR);
	config_write(slot, 0x14, 0);
	config_write(slot, 0x04, 6);
	put8(0x14, 0);
	put8(0x14, 3);
	put32(0x08, 1);
	put32(0x0c, 1);
	put8(0x14, 11);
	put16(0x16, 0);
	put16(0x18, SIZE);
	put64(0x20, (u64)descriptors);
	put64(0x28, (u64)&available);
	put64(0x30, (u64)&used);
	put16(0x1c, 1);
	put8(0x14, 15);
	available.flags = 1;
	u64 blocks = (get32(0x2000) | (u64)get32(0x2004) << 32) / 8;
	for (u32 n = 0; n < SLOTS; n++) {
		struct descriptor *first = descriptors + 4 * n;
		first[0] = (struct descriptor){ (u64)&headers[n], 16, 1, (u16)(4 * n + 1) };
		first[1] = (struct descriptor){ (u64)data[n], 4096, 3, (u16)(4 * n + 2) };
		first[2] = (struct descriptor){ (u64)&status[n], 1, 2, 0 };
	}
	measure("warm", 32, 1 << 16, blocks);
	measure("depth-32", 32, 1 << 19, blocks);
	measure("depth-1", 1, 1 << 16, blocks);
	return 0;
}
