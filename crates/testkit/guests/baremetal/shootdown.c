/* TLB shootdowns under load, and accessed and dirty bits that others change.

   The first processor gives a page of the window new memory again and again, tells the
   others by an interrupt to forget the old, and goes on when all have. From then on none
   of them may see the old memory, which is poisoned. */
#include "pages.h"
#include "processors.h"

#define SHOOTDOWNS 100
#define CLEANINGS 100
#define POISON 0xdeadu
#define FORGET 0x70
/* Of CR0: a kernel's own writes mind read-only pages, too. */
#define WRITE_PROTECT 0x10000ul

static volatile u64 versions[2][512] __attribute__((aligned(4096)));
static volatile u64 counted[512] __attribute__((aligned(4096)));
static volatile u32 acknowledged, finish, ready;
static volatile u64 oldest;
static volatile u32 wrong, reads, faults;
static u32 count;
static struct meeting all;

static void __attribute__((interrupt)) on_forget(struct frame *frame)
{
	(void)frame;
	invalidate(PAGE(0));
	invalidate(PAGE(1));
	__atomic_add_fetch(&acknowledged, 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
}

static void shoot(void)
{
	acknowledged = 0;
	invalidate(PAGE(0));
	invalidate(PAGE(1));
	interrupt_others(FORGET);
	while (acknowledged < count - 1)
		asm volatile("pause");
}

/* The page of counters is made writable again by whoever finds that it is not. */
static void __attribute__((interrupt)) on_page_fault(struct frame *frame, u64 error)
{
	u64 address;
	asm volatile("mov %%cr2, %0" : "=r"(address));
	if ((u8 *)address < PAGE(1) || (u8 *)address >= PAGE(2) || error != 3) {
		print_hex("a fault at", frame->rip);
		print_hex("for", address);
		fail("unexpected page fault");
	}
	__atomic_add_fetch(&faults, 1, __ATOMIC_SEQ_CST);
	__atomic_or_fetch(&window[1], WRITABLE, __ATOMIC_SEQ_CST);
	invalidate(PAGE(1));
}

static void read_versions(void)
{
	volatile u64 *page = (u64 *)PAGE(0);
	while (!finish) {
		u64 at_least = oldest;
		asm volatile("" : : : "memory");
		for (u32 i = 0; i < 64; i++) {
			u64 value = page[i * 8];
			if (value == POISON || value < at_least)
				__atomic_add_fetch(&wrong, 1, __ATOMIC_SEQ_CST);
		}
		reads++;
	}
}

static void count_up(u32 me)
{
	volatile u64 *mine = (u64 *)PAGE(1) + me * 8;
	while (!finish) {
		for (u32 i = 0; i < 100; i++)
			++*mine;
		asm volatile("lock incq %0" : "+m"(*mine));
	}
}

void ap_main(void)
{
	set_handler(FORGET, on_forget);
	apic_enable();
	write_cr0(read_cr0() | WRITE_PROTECT);
	arrive();
	while (!ready)
		asm volatile("pause");
	enable_interrupts();
	u32 turn = 0;
	meet(&all, &turn);
	read_versions();
	meet(&all, &turn);
	meet(&all, &turn);
	count_up(my_number());
	meet(&all, &turn);
	for (;;)
		asm volatile("hlt");
}

static void fill(volatile u64 *page, u64 value)
{
	for (u32 i = 0; i < 512; i++)
		page[i] = value;
}

static void versions_test(u32 *turn)
{
	fill(versions[0], 1);
	set_page(0, versions[0], PRESENT | WRITABLE);
	oldest = 1;
	meet(&all, turn);
	for (u64 version = 2; version < SHOOTDOWNS + 2; version++) {
		volatile u64 *new = versions[(version + 1) % 2], *old = versions[version % 2];
		fill(new, version);
		window[0] = (u64)new | PRESENT | WRITABLE;
		shoot();
		oldest = version;
		fill(old, POISON);
		if (((volatile u64 *)PAGE(0))[511] != version)
			wrong++;
	}
	/* A page that all read is never taken from those who have not come round yet. */
	while (!reads)
		asm volatile("pause");
	finish = 1;
	meet(&all, turn);
	print_number("old memory was seen", wrong);
}

/* As operating systems track what is written: a page whose dirty bit is clear and which
   nobody may write has not changed since. */
static void dirty_test(u32 *turn)
{
	u32 unseen = 0, dirty = 0;
	finish = 0;
	set_page(1, counted, PRESENT | WRITABLE);
	meet(&all, turn);
	for (u32 i = 0; i < CLEANINGS || !dirty; i++) {
		/* Clean and write-protected, told to all. */
		__atomic_and_fetch(&window[1], ~(DIRTY | WRITABLE), __ATOMIC_SEQ_CST);
		shoot();
		u64 before = 0, after = 0;
		for (u32 who = 1; who < count; who++)
			before += counted[who * 8];
		for (volatile u32 wait = 0; wait < 300; wait++)
			;
		/* What was written meanwhile went through a fault, and set the bit again. */
		for (u32 who = 1; who < count; who++)
			after += counted[who * 8];
		u64 entry = __atomic_load_n(&window[1], __ATOMIC_SEQ_CST);
		dirty += (entry & DIRTY) != 0;
		unseen += after != before && !(entry & DIRTY);
	}
	finish = 1;
	/* The others may wait at the page. */
	meet(&all, turn);
	print_number("writes without a dirty bit", unseen);
	print(faults ? "write protection held\n" : "nothing faulted\n");
	u64 sum = 0;
	for (u32 who = 1; who < count; who++)
		sum += counted[who * 8] % 101;
	print_number("counts that were torn", sum);
}

int main(void)
{
	set_handler(FORGET, on_forget);
	set_handler(14, on_page_fault);
	apic_enable();
	open_window();
	write_cr0(read_cr0() | WRITE_PROTECT);
	all.count = count = processor_count();
	start_processors(1, count - 1);
	ready = 1;
	u32 turn = 0;
	versions_test(&turn);
	dirty_test(&turn);
	return 0;
}
