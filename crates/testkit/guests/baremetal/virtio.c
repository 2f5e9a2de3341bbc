/* Drivers for virtio devices on PCI, each of which does one thing with its device. Every
   request is waited for with an interrupt by message. */
#include "lib.h"

#define VECTOR 0x41
#define FIRST_BAR 0xc1000000u
#define SIZE 8

struct descriptor {
	u64 address;
	u32 length;
	u16 flags, next;
};
/* A queue of the split kind. */
struct ring {
	struct descriptor descriptors[SIZE] __attribute__((aligned(16)));
	struct {
		u16 flags, index, ring[SIZE], event;
	} available;
	struct {
		u16 flags, index;
		struct {
			u32 id, length;
		} ring[SIZE];
		u16 event;
	} used __attribute__((aligned(4)));
	u16 taken;
};

static struct ring rings[6];
static u8 buffer[3][4096] __attribute__((aligned(4096)));
static volatile u32 interrupts;
/* The device that is being driven. */
static volatile u8 *bar;

static void __attribute__((interrupt)) on_message(struct frame *frame)
{
	(void)frame;
	interrupts++;
	apic_write(APIC_EOI, 0);
}

static void put8(u32 at, u8 value) { *(volatile u8 *)(bar + at) = value; }
static void put16(u32 at, u16 value) { *(volatile u16 *)(bar + at) = value; }
static void put32(u32 at, u32 value) { *(volatile u32 *)(bar + at) = value; }
static void put64(u32 at, u64 value)
{
	put32(at, (u32)value);
	put32(at + 4, (u32)(value >> 32));
}
static u8 get8(u32 at) { return *(volatile u8 *)(bar + at); }

static void clear(void *at, u32 length)
{
	for (u32 n = 0; n < length; n++)
		((volatile u8 *)at)[n] = 0;
}

/* Finds the messages' control register, and switches them on with one for all. */
static void enable_messages(u32 slot)
{
	u32 at = find_capability(slot, 0x11);
	if (!at)
		fail("a device has no messages");
	put32(0x4000, LOCAL_APIC);
	put32(0x4004, 0);
	put32(0x4008, VECTOR);
	put32(0x400c, 0);
	config_write(slot, at, config_read(slot, at) | 0x80000000u);
}

/* Puts the device's registers into memory, negotiates, and sets up so many queues. */
static void start(u32 slot, u32 number, u32 queues, u32 features)
{
	config_write(slot, 0x10, FIRST_BAR + number * 0x10000);
	config_write(slot, 0x14, 0);
	config_write(slot, 0x04, 6);
	bar = (volatile u8 *)(u64)(FIRST_BAR + number * 0x10000);
	enable_messages(slot);
	put8(0x14, 0);
	put8(0x14, 3);
	put32(0x08, 0);
	put32(0x0c, features);
	put32(0x08, 1);
	put32(0x0c, 1);
	put8(0x14, 11);
	if (!(get8(0x14) & 8))
		fail("a device refuses version 1");
	clear(rings, sizeof rings);
	for (u32 queue = 0; queue < queues; queue++) {
		put16(0x16, queue);
		put16(0x18, SIZE);
		put16(0x1a, 0);
		put64(0x20, (u64)rings[queue].descriptors);
		put64(0x28, (u64)&rings[queue].available);
		put64(0x30, (u64)&rings[queue].used);
		put16(0x1c, 1);
	}
	put8(0x14, 15);
}

static void describe(u32 queue, u32 at, void *address, u32 length, u16 flags)
{
	rings[queue].descriptors[at] =
		(struct descriptor){ (u64)address, length, flags, (u16)(at + 1) };
}

/* Hands the chain that begins at the first descriptor to the device. */
static void offer(u32 queue)
{
	struct ring *ring = &rings[queue];
	ring->available.ring[ring->available.index % SIZE] = 0;
	asm volatile("mfence" : : : "memory");
	ring->available.index++;
	asm volatile("mfence" : : : "memory");
	put16(0x3000 + 4 * queue, queue);
}

/* Waits until it comes back. Returns how much the device wrote. */
static u32 wait(u32 queue)
{
	struct ring *ring = &rings[queue];
	WAIT_UNTIL(*(volatile u16 *)&ring->used.index != ring->taken);
	enable_interrupts();
	u32 length = ring->used.ring[ring->taken % SIZE].length;
	ring->taken++;
	return length;
}

#define NEXT 1
#define WRITE 2

static u8 disk_request(u32 kind, u64 sector, void *data, u32 length, u16 flags)
{
	static u8 header[16], status;
	*(u32 *)header = kind;
	*(u64 *)(header + 8) = sector;
	status = 0xff;
	describe(0, 0, header, 16, NEXT);
	if (length)
		describe(0, 1, data, length, flags | NEXT);
	describe(0, length ? 2 : 1, &status, 1, WRITE);
	offer(0);
	wait(0);
	return *(volatile u8 *)&status;
}

static void disk(void)
{
	for (u32 n = 0; n < 4096; n++)
		buffer[0][n] = (u8)(n * 7);
	clear(buffer[1], 4096);
	if (disk_request(1, 8, buffer[0], 4096, 0) || disk_request(4, 0, 0, 0, 0))
		fail("writing to the disk");
	if (disk_request(0, 8, buffer[1], 4096, WRITE))
		fail("reading from the disk");
	for (u32 n = 0; n < 4096; n++)
		if (((volatile u8 *)buffer[1])[n] != (u8)(n * 7))
			fail("the disk has other data");
	if (disk_request(0, 1ul << 40, buffer[1], 4096, WRITE) != 1)
		fail("the disk reads past its end");
	print("disk: written, flushed, read\n");
}

static void network(void)
{
	/* Who has 10.0.2.2? */
	static const u8 question[] = { 255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0,
		6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2 };
	clear(buffer, sizeof buffer);
	for (u32 n = 0; n < sizeof question; n++)
		buffer[0][12 + n] = question[n];
	/* The sender is the interface itself, twice. */
	for (u32 n = 0; n < 6; n++)
		buffer[0][12 + 6 + n] = buffer[0][12 + 22 + n] = get8(0x2000 + n);
	describe(0, 0, buffer[1], 4096, WRITE);
	offer(0);
	describe(1, 0, buffer[0], 12 + 60, 0);
	offer(1);
	wait(1);
	volatile u8 *answer = buffer[1];
	if (wait(0) < 12 + 42 || answer[12 + 21] != 2 || answer[12 + 31] != 2)
		fail("the network does not answer");
	print("network: 10.0.2.2 answers\n");
}

/* Tells the console something of a port: an event, and a value. */
static void tell(u32 port, u16 event, u16 value)
{
	u16 *message = (u16 *)buffer[0];
	message[0] = (u16)port, message[1] = 0, message[2] = event, message[3] = value;
	describe(3, 0, message, 8, 0);
	offer(3);
	wait(3);
}

/* Waits for such a message. Returns how long it is with what follows. */
static u32 hear(u32 port, u16 event)
{
	volatile u16 *message = (volatile u16 *)buffer[1];
	clear(buffer[1], 4096);
	describe(2, 0, buffer[1], 256, WRITE);
	offer(2);
	u32 length = wait(2);
	if (message[0] != port || message[2] != event)
		fail("the console says something else");
	return length;
}

static void console(void)
{
	static char text[] = "console: hello\n";
	tell(0, 0, 1);
	hear(0, 1);
	hear(1, 1);
	tell(1, 3, 1);
	u32 length = hear(1, 7);
	print("port: ");
	print((const char *)buffer[1] + 8);
	print(length > 8 ? "\n" : "without a name\n");
	hear(1, 6);
	describe(1, 0, text, sizeof text - 1, 0);
	offer(1);
	wait(1);
}

/* Blocks at the beginning of the memory that can be added: the answer. */
static u16 blocks(u16 request, u16 count)
{
	volatile u16 *answer = (volatile u16 *)buffer[1];
	clear(buffer, sizeof buffer);
	*(u16 *)buffer[0] = request;
	for (u32 n = 0; n < 8; n++)
		buffer[0][8 + n] = get8(0x2010 + n);
	*(u16 *)(buffer[0] + 16) = count;
	describe(0, 0, buffer[0], 24, NEXT);
	describe(0, 1, buffer[1], 10, WRITE);
	offer(0);
	if (wait(0) != 10)
		fail("the memory answers too little");
	return answer[0];
}

static void memory(void)
{
	/* None was granted. */
	if (blocks(0, 1) != 1 || blocks(1, 1) != 3 || blocks(3, 1) || blocks(2, 0))
		fail("the memory answers wrongly");
	print("memory: none to be had\n");
}

static void entropy(void)
{
	u32 different = 0;
	clear(buffer[0], 64);
	describe(0, 0, buffer[0], 64, WRITE);
	offer(0);
	if (wait(0) != 64)
		fail("too few random numbers");
	for (u32 n = 1; n < 64; n++)
		different += ((volatile u8 *)buffer[0])[n] != buffer[0][0];
	print(different > 32 ? "entropy: 64 bytes\n" : "entropy: not random\n");
}

static void balloon(void)
{
	static u32 page;
	buffer[2][0] = 77;
	page = (u32)((u64)buffer[2] >> 12);
	describe(0, 0, &page, 4, 0);
	offer(0);
	wait(0);
	u8 gone = *(volatile u8 *)buffer[2];
	describe(1, 0, &page, 4, 0);
	offer(1);
	wait(1);
	print(gone == 0 ? "balloon: a page given and taken\n" : "balloon: the page is still there\n");
}

static void sockets(void)
{
	u32 *header = (u32 *)buffer[0];
	clear(buffer, sizeof buffer);
	/* From port 5 of the guest to port 99 of the host, where nobody is. */
	header[0] = 3, header[2] = 2, header[4] = 5, header[5] = 99;
	header[7] = 1 << 16 | 1, header[9] = 4096;
	describe(0, 0, buffer[1], 4096, WRITE);
	offer(0);
	describe(1, 0, buffer[0], 44, 0);
	offer(1);
	wait(1);
	wait(0);
	volatile u32 *answer = (volatile u32 *)buffer[1];
	if (answer[4] != 99 || answer[5] != 5 || answer[7] >> 16 != 3)
		fail("a socket is answered wrongly");
	print("sockets: refused\n");
}

static void share(void)
{
	u32 *request = (u32 *)buffer[0];
	clear(buffer, sizeof buffer);
	request[0] = 56, request[1] = 26, request[2] = 7, request[10] = 7, request[11] = 36;
	describe(1, 0, buffer[0], 56, NEXT);
	describe(1, 1, buffer[1], 80, WRITE);
	offer(1);
	volatile u32 *answer = (volatile u32 *)buffer[1];
	if (wait(1) != 80 || answer[1] || answer[4] != 7)
		fail("the share does not speak FUSE");
	print("share: FUSE 7\n");
}

int main(void)
{
	static const struct {
		u32 kind, queues, features;
		void (*drive)(void);
	} drivers[] = { { 1, 2, 0, network }, { 2, 1, 0, disk }, { 3, 6, 2, console },
		{ 4, 1, 0, entropy }, { 5, 2, 0, balloon }, { 19, 3, 0, sockets },
		{ 24, 1, 0, memory }, { 26, 2, 0, share } };
	u32 number = 0;
	apic_enable();
	set_handler(VECTOR, on_message);
	enable_interrupts();
	for (u32 slot = 0; slot < 32; slot++) {
		u32 id = config_read(slot, 0);
		if ((id & 0xffff) != 0x1af4 || id >> 16 < 0x1040)
			continue;
		for (u32 n = 0; n < sizeof drivers / sizeof *drivers; n++)
			if (drivers[n].kind == (id >> 16) - 0x1040) {
				start(slot, number++, drivers[n].queues, drivers[n].features);
				drivers[n].drive();
				put8(0x14, 0);
			}
	}
	print_number("devices", number);
	print(interrupts >= number ? "interrupts came\n" : "no interrupts\n");
	return 0;
}
