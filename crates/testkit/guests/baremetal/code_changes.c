/* Code that changes: by itself, through another mapping, by another processor, by a
   device; a kernel that patches its text with breakpoints; code across two pages. All of
   it in kernel mode and then in user mode. Two processors. */
#include "users.h"
#include "processors.h"
#include "virtio.h"

#define ROUNDS 200

static u8 code[2 * 4096] __attribute__((aligned(4096)));
static u8 other_code[4096] __attribute__((aligned(4096)));
typedef u64 function(void);

static void serialize(void)
{
	u32 r[4];
	cpuid(0, r);
}

/* mov $value, %eax; ret */
static void write_function(u8 *at, u32 value)
{
	at[0] = 0xb8;
	*(volatile u32 *)(at + 1) = value;
	at[5] = 0xc3;
}

/* A block that changes an instruction further down in itself, and runs on into it. */
static u64 changes_itself(u32 value)
{
	u64 result;
	asm volatile("mov %1, 1f+1(%%rip)\n\t"
		     "jmp 2f\n"
		     "2:\tnop\n"
		     "1:\tmov $0x11223344, %%eax\n\t"
		     "mov %%rax, %0"
		     : "=r"(result)
		     : "r"(value)
		     : "rax", "memory");
	return result;
}

static void by_itself(void)
{
	u64 sum = 0;
	for (u32 i = 0; i < ROUNDS; i++)
		sum += changes_itself(i * 3);
	print_number("by itself", sum);

	/* A loop whose body is another instruction in each turn: add, sub, xor, or. */
	static const u8 opcodes[4] = { 0x01, 0x29, 0x31, 0x09 };
	u64 value = 1;
	u8 *at = code;
	/* mov %rdi, %rax; OP %rsi, %rax; ret */
	at[0] = 0x48, at[1] = 0x89, at[2] = 0xf8, at[3] = 0x48, at[5] = 0xf0, at[6] = 0xc3;
	for (u32 i = 0; i < ROUNDS; i++) {
		*(volatile u8 *)(at + 4) = opcodes[i % 4];
		asm volatile("call *%1" : "=a"(value) : "r"(at), "D"(value), "S"((u64)i * 5) : "memory");
	}
	print_number("other instructions", value);

	/* A string instruction that writes over the code behind it. */
	sum = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		u8 new[8] = { 0xb8, i, 1, 0, 0, 0xc3, 0x90, 0x90 };
		u64 result, count = sizeof new;
		u8 *source = new, *destination = code;
		/* The string ends, and the code that it wrote is called at once. */
		asm volatile("rep movsb\n\tcall *%4"
			     : "=&a"(result), "+&S"(source), "+&D"(destination), "+&c"(count)
			     : "r"(code)
			     : "memory");
		sum += result;
	}
	print_number("by a string", sum);
}

static void through_another_mapping(void)
{
	u64 sum = 0;
	map_page(0, code, PRESENT | WRITABLE);
	map_page(1, code, PRESENT | WRITABLE);
	for (u32 i = 0; i < ROUNDS; i++) {
		write_function(PAGE(0) + 128, i);
		sum += ((function *)(PAGE(1) + 128))();
		write_function(PAGE(1) + 128, i + 1);
		sum += ((function *)(code + 128))();
	}
	print_number("through another mapping", sum);

	/* The same linear page leads to other memory, and back. */
	write_function(code + 256, 7);
	write_function(other_code + 256, 9);
	sum = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		map_page(2, i % 2 ? code : other_code, PRESENT);
		sum += ((function *)(PAGE(2) + 256))();
	}
	print_number("mapped elsewhere", sum);
}

/* An instruction that lies in two pages, of which one changes or is exchanged. */
static void across_pages(void)
{
	u64 sum = 0;
	write_function(code + 4094, 0);
	for (u32 i = 0; i < ROUNDS; i++) {
		*(volatile u32 *)(code + 4095) = i << 8;
		sum += ((function *)(code + 4094))();
	}
	print_number("across pages", sum);
	static u8 tail[2][4096] __attribute__((aligned(4096)));
	/* In the window: the head in one page, then one of two tails. */
	for (u32 i = 0; i < 2; i++) {
		*(u32 *)(tail[i]) = (u32)(0x100 + i) << 8;
		tail[i][4] = 0xc3;
	}
	other_code[4095] = 0xb8; /* mov $imm32, %eax */
	map_page(4, other_code, PRESENT);
	sum = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		map_page(5, tail[i % 2], PRESENT);
		sum += ((function *)(PAGE(4) + 4095))();
	}
	print_number("with another second page", sum);
}

static void by_a_device(void)
{
	u32 same = 0;
	u8 *at = code + 512;
	write_function(at, 0x01020304);
	u64 before = ((function *)at)();
	u32 changes = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		/* The device writes the four bytes of the operand. */
		entropy_ask(at + 1, 4);
		while (!entropy_is_there())
			asm volatile("pause");
		u64 now = ((function *)at)();
		same += now == *(volatile u32 *)(at + 1);
		changes += now != before;
		before = now;
	}
	print_number("as the device wrote it", same);
	print(changes > ROUNDS - 3 ? "it wrote something else each time\n" : "it wrote little\n");
}

/* Text patching as kernels do it, while another processor runs the text. The other one
   does so in kernel mode as long as `running` is 1, in user mode as long as it is 2. */
static volatile u32 running = 1, calls, breakpoints, bad, stopped;
static u8 *const text = code + 1024;
#define LENGTH 5
#define INTERRUPTS 0x200ul

static void __attribute__((interrupt)) on_breakpoint(struct frame *frame)
{
	breakpoints++;
	if (frame->rip != (u64)text + 1)
		fail("a breakpoint elsewhere");
	/* Skips the instruction that is being changed. */
	frame->rip = (u64)text + LENGTH;
}
static volatile u32 synchronized;
static void __attribute__((interrupt)) on_synchronize(struct frame *frame)
{
	(void)frame;
	serialize();
	__atomic_add_fetch(&synchronized, 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
}

static void synchronize(void)
{
	synchronized = 0;
	interrupt_others(0x71);
	while (!synchronized)
		asm volatile("pause");
	serialize();
}

static void run_text(u64 as)
{
	while (running == as) {
		/* eax is 1, or 2; the skipped instruction leaves 0. */
		u64 result;
		asm volatile("xor %%eax, %%eax; call *%1" : "=a"(result) : "r"(text) : "memory");
		bad += result > 2;
		calls++;
	}
	__atomic_store_n(&stopped, as, __ATOMIC_SEQ_CST);
	while (running != 2)
		asm volatile("pause");
}

static void run_text_as_user(u64 as)
{
	run_text(as);
	for (;;)
		asm volatile("pause");
}

void ap_main(void)
{
	set_handler(3, on_breakpoint);
	set_handler(0x71, on_synchronize);
	apic_enable();
	load_segments_of(1);
	arrive();
	enable_interrupts();
	run_text(1);
	run_user_of(1, run_text_as_user, FIXED_FLAG | INTERRUPTS, 2);
}

static void patch(void)
{
	u32 stale = 0, begun = calls;
	bad = 0;
	for (u32 i = 0; i < ROUNDS; i++) {
		u32 value = i % 2 ? 1 : 2;
		*(volatile u8 *)text = 0xcc;
		synchronize();
		*(volatile u32 *)(text + 1) = value;
		synchronize();
		*(volatile u8 *)text = 0xb8;
		synchronize();
		/* The other goes through the new text at least once before the next change. */
		u32 before = calls;
		while (calls - before < 2)
			asm volatile("pause");
		stale += ((function *)text)() != value;
	}
	u32 made = calls - begun, as = running;
	running = 0;
	while (stopped != as)
		asm volatile("pause");
	print_number("patched by another, torn", bad);
	print_number("patched by another, stale", stale);
	print(made > ROUNDS ? "it was running\n" : "it was not running\n");
}

static void by_itself_and_others(void)
{
	by_itself();
	through_another_mapping();
	across_pages();
	by_a_device();
}

int main(void)
{
	load_segments();
	set_handler(0x71, on_synchronize);
	apic_enable();
	open_window();
	entropy_start(NO_VECTOR);
	by_itself_and_others();
	prepare_for_users();
	set_handler(3, on_breakpoint);
	write_function(text, 1);
	start_processors(1, 1);
	patch();

	print("in user mode\n");
	in_user_mode(by_itself_and_others);
	/* Where breakpoints are everybody's, and the other processor runs the text as a user. */
	allow_users(3);
	u32 before = calls;
	running = 2;
	while (calls == before)
		asm volatile("pause");
	in_user_mode(patch);
	return 0;
}
