/* Faults in the middle of instructions: nothing of the instruction has happened, the
   registers are those of before, and after the fault is mended it goes through. Repeated
   string instructions stop where they are.

   What RFLAGS held in a fault is not compared: an instruction that will write all of the
   arithmetic flags finds other ones in translated code.

   All of it happens in kernel mode and then in user mode, whose errors are told without the
   bit that says so.

   Each line tells the error code, the address in the window, and digests: of the registers
   that the fault's handler saw, of the registers afterwards, and of memory. */
#include "users.h"

/* How often an instruction goes through before it faults: it has been translated then,
   and remembers the memory that it reached. */
#define BEFORE 3

static u8 memory[4][4096] __attribute__((aligned(4096)));

/* Keeps the registers of the fault, mends the page, and returns to the instruction. It
   has a stack of its own, because a fault may be the stack's. */
void page_fault_entry(void);
asm("page_fault_entry:\n"
    "	push %rax\n"
    "	mov 8(%rsp), %rax; mov %rax, seen\n"
    "	mov %cr2, %rax; mov %rax, seen+8\n"
    "	mov 16(%rsp), %rax; mov %rax, seen+16\n"
    "	mov 32(%rsp), %rax; mov %rax, seen+24\n"
    "	mov 40(%rsp), %rax; mov %rax, seen+32\n"
    "	mov (%rsp), %rax; mov %rax, seen+40\n"
    "	mov %rcx, seen+48; mov %rdx, seen+56; mov %rsi, seen+64; mov %rdi, seen+72\n"
    "	push %rbx\n"
    "	mov mended, %rbx; mov mended_entry, %rax; mov %rax, (%rbx)\n"
    "	mov mended_page, %rax; invlpg (%rax)\n"
    "	incl faults\n"
    "	pop %rbx; pop %rax\n"
    "	add $8, %rsp\n"
    "	iretq\n");
enum { ERROR, ADDRESS, RIP, FLAGS, STACK, RAX, RCX, RDX, RSI, RDI, WORDS };
volatile u64 seen[WORDS], mended, mended_entry, mended_page;
volatile u32 faults;

/* Bytes of page 1 that are left out: where the last x87 instruction was. */
static u32 unlike, unlike_end;

static u64 mix(u64 sum, u64 value) { return (sum ^ value) * 0x9e3779b97f4a7c15ul >> 7 ^ sum << 9; }

static void prepare(int bad, u64 rights)
{
	for (int page = 1; page < 4; page++) {
		for (u32 i = 0; i < 4096; i++)
			memory[page][i] = page + i * 7;
		map_page(page, memory[page], page == bad ? rights : PRESENT | WRITABLE);
	}
	*(volatile u64 *)(memory[1] + 64) = 5;
	mended = (u64)&window[bad];
	mended_entry = (u64)memory[bad] | PRESENT | WRITABLE | whose;
	mended_page = (u64)PAGE(bad);
	for (u32 i = 0; i < WORDS; i++)
		seen[i] = 0;
	faults = 0;
}

struct registers {
	u64 rax, rcx, rdx, rsi, rdi, rsp, flags;
};

static void tell(const char *name, const struct registers *after)
{
	u64 then = mix(mix(mix(mix(mix(0, seen[RAX]), seen[RCX]), seen[RDX]), seen[RSI]), seen[RDI]);
	u64 now = mix(mix(mix(mix(mix(0, after->rax), after->rcx), after->rdx), after->rsi), after->rdi);
	now = mix(now, after->flags & 0x8c5);
	u64 content = 0;
	for (int page = 1; page < 4; page++)
		for (u32 i = 0; i < 4096; i += 8)
			if (page != 1 || i < unlike || i >= unlike_end)
				content = mix(content, *(u64 *)(memory[page] + i));
	print(name);
	print_number(", faults", faults);
	print_hex("  error", faults ? seen[ERROR] ^ whose : 0);
	print_hex("  address", seen[ADDRESS] - WINDOW);
	print_hex("  registers in the fault", then);
	print_hex("  registers afterwards", now);
	print_hex("  memory", content);
}

/* An instruction with registers as given, while page `bad` has these rights. RSP is kept
   in RBX meanwhile; SEEN_RIP is checked to be the instruction's own address. */
#define CASE(name, bad, rights, instruction, a, c, d, s, di, sp)                                \
	do {                                                                                    \
		struct registers r;                                                             \
		u64 at, by_flags;                                                               \
		for (int turn = 0; turn <= BEFORE; turn++) {                                    \
			r = (struct registers){ a, c, d, (u64)(s), (u64)(di), (u64)(sp), 0 };   \
			prepare(bad, turn == BEFORE ? rights : PRESENT | WRITABLE);             \
			asm volatile("mov %%rsp, %%rbx\n\t"                                     \
				     "lea 1f(%%rip), %%r8\n\t"                                  \
				     "test %7, %7; cmovnz %7, %%rsp\n\t"                        \
				     "stc\n"                                                    \
				     "1:\t" instruction "\n\t"                                  \
				     "mov %%rsp, %%r9\n\t"                                      \
				     "mov %%rbx, %%rsp\n\t"                                     \
				     "pushfq; pop %%r10\n\t"                                    \
				     "mov %%r10, %5; mov %%r8, %6"                              \
				     : "+a"(r.rax), "+c"(r.rcx), "+d"(r.rdx), "+S"(r.rsi),      \
				       "+D"(r.rdi), "=m"(by_flags), "=m"(at)                    \
				     : "r"(r.rsp)                                               \
				     : "rbx", "r8", "r9", "r10", "memory", "cc");               \
		}                                                                               \
		r.flags = by_flags;                                                             \
		tell(name, &r);                                                                 \
		if (faults && seen[RIP] != at)                                                  \
			print_hex("  RIP is off by", seen[RIP] - at);                           \
		if (faults && r.rsp && seen[STACK] != r.rsp)                                    \
			print_hex("  RSP is off by", seen[STACK] - r.rsp);                      \
	} while (0)

#define RW (PRESENT | WRITABLE)
#define OPERAND (PAGE(1) + 64)
#define CROSSING (PAGE(2) - 3)

static void read_modify_write(void)
{
#define MODIFY(name, rights, instruction, a) CASE(name, 1, rights, instruction, a, 0x1111, 0x2222, 0, OPERAND, 0)
	MODIFY("add", PRESENT, "addq %%rax, (%%rdi)", 9);
	MODIFY("adc, absent", 0, "adcq %%rax, (%%rdi)", 9);
	MODIFY("inc", PRESENT, "incq (%%rdi)", 9);
	MODIFY("not", PRESENT, "notq (%%rdi)", 9);
	MODIFY("shl", PRESENT, "shlq $3, (%%rdi)", 9);
	MODIFY("rcr", PRESENT, "rcrq $1, (%%rdi)", 9);
	MODIFY("xchg", PRESENT, "xchgq %%rax, (%%rdi)", 9);
	MODIFY("xadd", PRESENT, "xaddq %%rax, (%%rdi)", 9);
	MODIFY("lock xadd", PRESENT, "lock xaddq %%rax, (%%rdi)", 9);
	MODIFY("lock or, absent", 0, "lock orl $0x100, (%%rdi)", 9);
	MODIFY("cmpxchg, equal", PRESENT, "cmpxchgq %%rcx, (%%rdi)", 5);
	/* One that compares unequal writes, too. */
	MODIFY("cmpxchg, unequal", PRESENT, "cmpxchgq %%rcx, (%%rdi)", 6);
	MODIFY("lock cmpxchg8b", PRESENT, "lock cmpxchg8b (%%rdi)", 6);
	MODIFY("bts", PRESENT, "btsq $3, (%%rdi)", 9);
	MODIFY("lock btc", PRESENT, "lock btcl $7, (%%rdi)", 9);
	MODIFY("setc", PRESENT, "setc (%%rdi)", 9);
	MODIFY("mul, absent", 0, "mulq (%%rdi); cmp %%rax, %%rdx", 9);
	MODIFY("cmov, absent", 0, "cmovnc (%%rdi), %%rax", 9);
}

static void across_pages(void)
{
#define ACROSS(name, bad, rights, instruction, a) \
	CASE(name, bad, rights, instruction, a, 0x1111, 0x2222, 0, CROSSING, 0)
	ACROSS("store, second absent", 2, 0, "movq %%rax, (%%rdi)", 0x1122334455667788);
	ACROSS("store, second read-only", 2, PRESENT, "movq %%rax, (%%rdi)", 0x1122334455667788);
	ACROSS("store, first read-only", 1, PRESENT, "movq %%rax, (%%rdi)", 0x1122334455667788);
	ACROSS("load, second absent", 2, 0, "movq (%%rdi), %%rax", 9);
	ACROSS("add, second read-only", 2, PRESENT, "addq %%rax, (%%rdi)", 9);
	ACROSS("sub, first absent", 1, 0, "subl %%eax, (%%rdi)", 9);
}

static void stacks(void)
{
#define ON_STACK(name, bad, rights, instruction, a, sp) CASE(name, bad, rights, instruction, a, 0x1111, 0x2222, 0, OPERAND, sp)
	ON_STACK("push, absent", 1, 0, "push %%rax", 77, PAGE(2));
	ON_STACK("push, read-only", 1, PRESENT, "push $-5", 77, PAGE(2));
	ON_STACK("push across", 1, PRESENT, "push %%rax", 77, PAGE(2) + 4);
	ON_STACK("push from absent", 1, 0, "pushq (%%rdi)", 77, PAGE(3));
	ON_STACK("pushfq", 1, PRESENT, "pushfq", 77, PAGE(2));
	ON_STACK("pop, absent", 1, 0, "pop %%rax", 77, PAGE(1) + 8);
	ON_STACK("pop to read-only", 1, PRESENT, "popq (%%rdi)", 77, PAGE(3));
	ON_STACK("pop to what RSP names", 3, PRESENT, "popq 8(%%rsp)", 77, PAGE(3) - 16);
	ON_STACK("call", 1, 0, "call 2f; 2:", 77, PAGE(2));
	ON_STACK("enter", 1, PRESENT, "push %%rbp; mov %%rsp, %%rsi; enter $32, $0; mov %%rbp, %%rsi; leave; pop %%rbp", 77,
		 PAGE(2) + 8);
	ON_STACK("xchg with the stack", 1, PRESENT, "xchg %%rax, (%%rsp)", 77, PAGE(1) + 16);
}

static void strings(void)
{
#define STRING(name, bad, rights, instruction, count, from, to) \
	CASE(name, bad, rights, instruction, 0x5a5a5a5a, count, 0x2222, from, to, 0)
	STRING("rep movsb, to", 2, PRESENT, "rep movsb", 100, PAGE(3), PAGE(2) - 40);
	STRING("rep movsb, from", 3, 0, "rep movsb", 100, PAGE(3) - 30, PAGE(1));
	STRING("rep movsq, across", 2, 0, "rep movsq", 20, PAGE(3), PAGE(2) - 44);
	STRING("rep movsl, backwards", 1, PRESENT, "std; 3: rep movsl; cld", 50, PAGE(3) + 200, PAGE(2) + 80);
	STRING("rep stosb", 2, 0, "rep stosb", 5000, 0, PAGE(1) + 10);
	STRING("rep stosq", 2, PRESENT, "rep stosq", 600, 0, PAGE(1) + 16);
	STRING("rep lodsb", 2, 0, "rep lodsb", 50, PAGE(2) - 25, 0);
	STRING("repe cmpsb", 3, 0, "repe cmpsb", 100, PAGE(1) + 1, PAGE(1) + 1 + 8192 - 40);
	STRING("repne scasb", 2, 0, "repne scasb", 300, 0, PAGE(2) - 60);
	STRING("movsq, once", 2, PRESENT, "movsq", 1, PAGE(3), PAGE(2) - 4);
}

/* The state of the FPU, into and from a page that is not there. */
static u32 has_xsave;

static void enable_states(void)
{
	u32 features[4];
	write_cr4(read_cr4() | 3 << 9);
	cpuid(1, features);
	has_xsave = features[2] & 1 << 26;
	if (!has_xsave)
		return;
	write_cr4(read_cr4() | 1 << 18);
	asm volatile("xsetbv" : : "a"(3), "d"(0), "c"(0));
}

static void states(void)
{
	asm volatile("fninit; fld1; fldpi");
	unlike = 4096 - 256 + 8, unlike_end = unlike + 24;
	CASE("fxsave, second absent", 2, 0, "fxsave (%%rdi)", 0, 0, 0, 0, PAGE(2) - 256, 0);
	CASE("fxrstor, second absent", 2, 0, "fninit; fxsave (%%rdi); fxrstor (%%rdi)", 0, 0, 0, 0, PAGE(2) - 256, 0);
	unlike = (4096 - 50) & ~7, unlike_end = 4096;
	CASE("fnsave, second read-only", 2, PRESENT, "fnsave (%%rdi)", 0, 0, 0, 0, PAGE(2) - 50, 0);
	CASE("fldt, second absent", 2, 0, "fldt (%%rdi); fstpt (%%rdi)", 0, 0, 0, 0, PAGE(2) - 4, 0);
	if (!has_xsave) {
		print("there is no XSAVE\n");
		return;
	}
	prepare(2, 0);
	/* The header in the second page is read before anything is written. */
	u8 *area = PAGE(2) - 512;
	asm volatile("fninit; fldl2e; xsave (%0)" : : "r"(area), "a"(3), "d"(0) : "memory");
	print_number("xsave, faults", faults);
	print_hex("  error", (seen[ERROR] ^ whose) & ~2ul);
	print_hex("  address", (seen[ADDRESS] - WINDOW) & ~0xffful);
	print_hex("  its header", *(u64 *)(area + 512) & 1);
	print_hex("  a register", *(u64 *)(area + 32));
	/* The header as another would have left it, without bits that are reserved. */
	for (u32 i = 0; i < 64; i++)
		area[512 + i] = 0;
	area[512] = 1;
	map_page(2, memory[2], 0);
	faults = 0;
	asm volatile("fninit; xrstor (%0); fxsave (%1)" : : "r"(area), "r"(PAGE(3)), "a"(3), "d"(0) : "memory");
	print_number("xrstor, faults", faults);
	print_hex("  a register", *(u64 *)(PAGE(3) + 32));
}

static void everything(void)
{
	unlike = unlike_end = 0;
	read_modify_write();
	across_pages();
	stacks();
	strings();
	states();
}

int main(void)
{
	load_segments();
	set_handler(14, page_fault_entry);
	set_interrupt_stack(14, 1);
	write_cr0((read_cr0() | 0x10002) & ~0xcul);
	open_window();
	enable_states();
	everything();
	prepare_for_users();
	print("in user mode\n");
	in_user_mode(everything);
	return 0;
}
