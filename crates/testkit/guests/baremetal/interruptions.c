/* What happens between instructions: interrupts and their shadows, single steps,
   breakpoints, NMIs, alignment checks, returns into all of these. */
#include "pages.h"
#include "segments.h"

#define TF 0x100ul
#define INTERRUPTS 0x200ul
#define RF 0x10000ul
#define AC 0x40000ul

static volatile u64 at, taken, from;

static void __attribute__((interrupt)) on_self(struct frame *frame)
{
	taken++;
	at = frame->rip;
	from = frame->cs & 3;
	apic_write(APIC_EOI, 0);
}

static void ask(void)
{
	apic_write(APIC_COMMAND, 0x41 | 1 << 18);
	while (apic_read(APIC_COMMAND) & 1 << 12)
		;
}

/* Where an interrupt that waits is taken in this code, which begins at `1:`. */
#define TAKEN_IN(name, code)                                                    \
	do {                                                                    \
		u64 begin;                                                      \
		taken = 0;                                                      \
		at = 0;                                                         \
		ask();                                                          \
		asm volatile("lea 1f(%%rip), %%rax; mov %%rax, %0; pushfq; pop %%rcx; or $0x200, %%rcx\n" \
			     "1:\t" code "\n\tnop; nop; nop; cli"               \
			     : "=m"(begin)                                      \
			     :                                                  \
			     : "rax", "rcx", "rdx", "memory", "cc");            \
		print_number(name, taken ? at - begin : 999);                   \
		/* One that was not taken is, here. */                          \
		asm volatile("sti; nop; nop; cli" ::: "memory");                \
	} while (0)

static void shadows(void)
{
	TAKEN_IN("sti", "sti; inc %%eax; inc %%eax");
	TAKEN_IN("sti, cli", "sti; cli");
	TAKEN_IN("sti, sti", "sti; sti; inc %%eax; inc %%eax");
	TAKEN_IN("sti, load, jump", "sti; mov (%%rsp), %%rdx; jmp 2f; 2: inc %%eax");
	TAKEN_IN("sti, call", "sti; call 2f; jmp 3f; 2: ret; 3:");
	TAKEN_IN("popfq", "push %%rcx; popfq; inc %%eax; inc %%eax");
	TAKEN_IN("popfq and cli", "push %%rcx; popfq; cli");
	TAKEN_IN("iretq", "mov %%rsp, %%rdx; pushq $0x10; push %%rdx; push %%rcx; pushq $8; lea 2f(%%rip), %%rdx;"
			  "push %%rdx; iretq; 2: inc %%eax");
	TAKEN_IN("sti, hlt", "sti; hlt; inc %%eax");
	/* A loop that never leaves by itself. */
	taken = 0;
	apic_write(APIC_DIVIDE, 0xb);
	apic_write(APIC_TIMER, 0x41);
	apic_write(APIC_INITIAL, 2000000);
	asm volatile("sti; 1: cmpq $0, %0; je 1b; cli" : : "m"(taken) : "memory", "cc");
	print_number("out of a loop", taken);
	taken = 0;
	apic_write(APIC_INITIAL, 2000000);
	asm volatile("sti; 1: jmp 2f; 2: cmpq $0, %0; jne 3f; jmp 1b; 3: cli" : : "m"(taken) : "memory", "cc");
	print_number("out of jumps", taken);
}

static volatile u64 steps, trail, step_end;
static u64 origin;

static void __attribute__((interrupt)) on_debug(struct frame *frame)
{
	u64 why;
	asm volatile("mov %%db6, %0" : "=r"(why));
	steps++;
	trail = (trail ^ (frame->rip - origin) ^ (why & 0x400f) << 20) * 0x9e3779b97f4a7c15ul;
	trail ^= trail >> 29;
	asm volatile("mov %0, %%db6" : : "r"(0xffff0ff0ul));
	if (!(why & 0x4000))
		frame->rflags |= RF;
	if (steps > 500)
		fail("it steps for ever");
}
static volatile u32 called;
static void __attribute__((interrupt)) on_call(struct frame *frame)
{
	(void)frame;
	called++;
}

static u8 buffer[64], target[64];

#define STEP(name, code)                                                           \
	do {                                                                       \
		steps = 0;                                                         \
		trail = 0;                                                         \
		asm volatile("lea 1f(%%rip), %%rax; mov %%rax, %0\n\t"             \
			     "pushfq; orq $0x100, (%%rsp); popfq\n"                \
			     "1:\t" code "\n\tpushfq; andq $~0x100, (%%rsp); popfq; nop" \
			     : "=m"(origin)                                        \
			     : "S"(buffer), "D"(target), "c"(5ul)                  \
			     : "rax", "rdx", "rbx", "memory", "cc");               \
		print_number(name, steps);                                         \
		print_hex("  trail", trail);                                       \
	} while (0)

static void single_steps(void)
{
	STEP("nothing", "");
	STEP("arithmetic", "mov $7, %%eax; add $3, %%eax; push %%rax; pop %%rdx; lea 4(%%rdx), %%edx");
	STEP("branches", "xor %%eax, %%eax; jz 2f; nop; 2: jnz 3f; call 4f; jmp 3f; 4: ret; 3: nop");
	asm volatile("" : : : "memory");
	STEP("loop", "mov $4, %%ecx; 2: inc %%eax; loop 2b");
	STEP("rep movsb", "mov $5, %%ecx; cld; push %%rsi; push %%rdi; rep movsb; pop %%rdi; pop %%rsi");
	STEP("a stack segment", "mov %%ss, %%eax; mov %%eax, %%ss; nop; nop");
	STEP("an interrupt", "int $0x42; nop");
	STEP("flags", "pushfq; pop %%rax; push %%rax; popfq; cld");
	STEP("sse", "pxor %%xmm0, %%xmm0; movq %%xmm0, %%rax; nop");
	print_number("calls", called);
}

static void breakpoints(void)
{
	volatile u64 word[2] = { 0, 0 };
	u64 place;
	steps = 0;
	trail = 0;
	asm volatile("lea 1f(%%rip), %0" : "=r"(place));
	asm volatile("lea 1f(%%rip), %%rax; mov %%rax, %0; mov %%rax, %%db0\n\t"
		     "mov %1, %%db1; mov %2, %%db7; xor %%eax, %%eax; mov $5, %%ecx\n\t"
		     "1:\tinc %%eax\n\t"
		     "mov %%rax, (%1)\n\t"
		     "loop 1b\n\t"
		     "mov (%1), %%rax; mov %%rax, 8(%1)\n\t"
		     "mov %3, %%rax; mov %%rax, %%db7"
		     : "=m"(origin)
		     : "r"(word), "r"(0x400ul | 2 | 8 | 0x9ul << 20), "i"(0x400)
		     : "rax", "rcx", "memory", "cc");
	(void)place;
	print_number("breakpoints", steps);
	print_hex("  trail", trail);
}

/* NMIs: one at a time, the next after IRET, whoever executes it. */
static volatile u32 nmis, depth, deepest;
static volatile int again, with_breakpoint;

static void send_nmi(void)
{
	apic_write(APIC_COMMAND_HIGH, apic_read(APIC_ID));
	apic_write(APIC_COMMAND, 4 << 8);
	while (apic_read(APIC_COMMAND) & 1 << 12)
		;
}
static void __attribute__((interrupt)) on_breakpoint(struct frame *frame) { (void)frame; }
static void __attribute__((interrupt)) on_nmi(struct frame *frame)
{
	(void)frame;
	nmis++;
	if (++depth > deepest)
		deepest = depth;
	if (again) {
		again = 0;
		send_nmi();
		send_nmi();
		for (volatile u32 i = 0; i < 100; i++)
			;
		if (with_breakpoint) {
			asm volatile("int3");
			for (volatile u32 i = 0; i < 100; i++)
				;
		}
	}
	depth--;
}

static void nmi(int twice, int breakpoint, const char *name)
{
	nmis = depth = deepest = 0;
	again = twice;
	with_breakpoint = breakpoint;
	send_nmi();
	for (volatile u32 i = 0; i < 1000; i++)
		;
	print_number(name, nmis);
	print_number("  depth", deepest);
}

/* User mode: alignment checks, and interrupts that find it. */
static volatile u64 alignment, alignment_error;
static void __attribute__((interrupt)) on_alignment(struct frame *frame, u64 error)
{
	alignment++;
	alignment_error = error;
	frame->rflags &= ~AC;
}
static u64 words[4] __attribute__((aligned(16)));
void loads_in_user_mode(void);
void spins_in_user_mode(void);
asm("loads_in_user_mode:\n"
    "	mov (%rdi), %al\n"
    "	mov (%rdi), %ax\n"
    "	mov (%rdi), %eax\n"
    "	mov (%rdi), %rax\n"
    "	add %rax, (%rdi)\n"
    "	int $0x80\n"
    "spins_in_user_mode:\n"
    "1:	cmpq $0, (%rdi)\n"
    "	je 1b\n"
    "	int $0x80\n");

static void users(void)
{
	open_to_users();
	set_handler(0x80, back_from_user);
	allow_users(0x80);
	static const u32 offsets[] = { 0, 1, 2, 4, 8 };
	for (u32 enabled = 0; enabled < 2; enabled++) {
		write_cr0(enabled ? read_cr0() | 1 << 18 : read_cr0() & ~(1ul << 18));
		for (u32 i = 0; i < 5; i++) {
			alignment = 0;
			run_user(loads_in_user_mode, 2 | AC, (u64)words + offsets[i]);
			print_number(enabled ? "checked, at" : "unchecked, at", offsets[i]);
			print_number("  exceptions", alignment);
		}
	}
	alignment = 0;
	run_user(loads_in_user_mode, 2, (u64)words + 1);
	print_number("without AC", alignment);
	print_hex("error code", alignment_error);
	/* One that waits is taken as soon as user mode is entered, with interrupts on. */
	taken = 0;
	ask();
	run_user(spins_in_user_mode, 2 | INTERRUPTS, (u64)&taken);
	disable_interrupts();
	print_number("in user mode", taken);
	print_number("  from level", from);
	print_number("  at", at - (u64)spins_in_user_mode);
	taken = 0;
	apic_write(APIC_INITIAL, 2000000);
	run_user(spins_in_user_mode, 2 | INTERRUPTS, (u64)&taken);
	disable_interrupts();
	print_number("out of a user's loop", taken);
}

int main(void)
{
	load_segments();
	set_handler(0x41, on_self);
	set_handler(1, on_debug);
	set_handler(2, on_nmi);
	set_handler(3, on_breakpoint);
	set_handler(17, on_alignment);
	set_handler(0x42, on_call);
	apic_enable();
	write_cr4(read_cr4() | 3 << 9);
	write_cr0((read_cr0() | 2) & ~0xcul);
	shadows();
	single_steps();
	breakpoints();
	nmi(0, 0, "one NMI");
	nmi(1, 0, "two more in it");
	nmi(1, 1, "with a breakpoint in it");
	users();
	return 0;
}
