/* A 32-bit program without a C library: the kernel's 32-bit entry points, segments,
   x87 arithmetic and a signal, seen from compatibility mode. */

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

/* The oldest way into the kernel, which every kernel has. */
static long call(long number, long a, long b, long c)
{
	long result;
	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(number), "b"(a), "c"(b), "d"(c)
		     : "memory");
	return result;
}

static long call6(long number, long a, long b, long c, long d, long e)
{
	long result;
	asm volatile("push %%ebp; xor %%ebp, %%ebp; int $0x80; pop %%ebp"
		     : "=a"(result)
		     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
		     : "memory");
	return result;
}

#define EXIT 1
#define FORK 2
#define WRITE 4
#define WAITPID 7
#define GETPID 20
#define KILL 37
#define SIGACTION 67
#define MPROTECT 125
#define MMAP2 192
#define SET_THREAD_AREA 243

static u32 sum;
static void mix(u32 value) { sum = (sum ^ value) * 2654435761u + (sum >> 7); }

static void print(const char *text)
{
	long length = 0;
	while (text[length])
		length++;
	call(WRITE, 1, (long)text, length);
}

static void report(const char *subject)
{
	char digits[10];
	for (int i = 0; i < 8; i++)
		digits[i] = "0123456789abcdef"[sum >> (28 - 4 * i) & 15];
	digits[8] = '\n';
	digits[9] = 0;
	print("torture32: ");
	print(subject);
	print(digits);
}

static volatile u32 handled;
static void on_signal(int number)
{
	handled += number;
}

struct old_action {
	void (*handler)(int);
	u32 mask, flags;
	void (*restorer)(void);
};

/* The kernel's own trampoline needs a virtual library; this is its content. */
void restore(void);
asm(".text\nrestore: pop %eax; mov $119, %eax; int $0x80");

static void legacy_instructions(void)
{
	/* Instructions that 64-bit mode does not have. */
	u32 a = 0x1234, flags;
	asm volatile("mov $0x79, %%al; add $0x35, %%al; daa; mov %%eax, %0" : "=r"(a) : : "eax", "cc");
	mix(a & 0xff);
	asm volatile("mov $0x0209, %%eax; aad; movzbl %%al, %%eax; mov %%eax, %0" : "=r"(a) : : "eax", "cc");
	mix(a);
	asm volatile("mov $123, %%eax; aam; movzwl %%ax, %%eax; mov %%eax, %0" : "=r"(a) : : "eax", "cc");
	mix(a);
	asm volatile("pusha; mov $7, %%ecx; popa; pushf; pop %0" : "=r"(flags) : : "cc", "memory");
	asm volatile("push %%es; pop %%es; mov $5, %%eax; inc %%eax; dec %%eax; inc %%eax; mov %%eax, %0"
		     : "=r"(a) : : "eax", "cc");
	mix(a);
	static const int bounds[2] = { -5, 5 };
	asm volatile("bound %0, %1" : : "r"(3), "m"(bounds));
	asm volatile("stc; .byte 0xd6; movzbl %%al, %%eax; mov %%eax, %0" : "=r"(a) : : "eax", "cc");
	mix(a);
}

static void segments(void)
{
	/* A segment of one's own: limits and bases matter here. */
	static u32 block[16];
	struct {
		u32 number, base, limit, flags;
	} area = { -1u, (u32)block, sizeof block - 1, 0x41 };
	if (call(SET_THREAD_AREA, (long)&area, 0, 0))
		return mix(0xbad);
	for (int i = 0; i < 16; i++)
		block[i] = i * i;
	u32 selector = area.number * 8 + 3, value, limit;
	asm volatile("mov %2, %%gs; mov %%gs:36, %0; lsl %2, %1"
		     : "=&r"(value), "=&r"(limit)
		     : "r"(selector));
	mix(value);
	mix(limit);
	asm volatile("movl $99, %%gs:8" : : : "memory");
	mix(block[2]);
}

static void floating(void)
{
	double value = 2;
	for (int i = 0; i < 50; i++)
		asm volatile("fldl %0; fsqrt; fld1; faddp; fstpl %0" : "+m"(value));
	u32 halves[2];
	__builtin_memcpy(halves, &value, 8);
	mix(halves[0]);
	mix(halves[1]);
	u8 environment[108];
	asm volatile("fld1; fldpi; fsave %0" : "=m"(environment));
	/* Control, status and tag words, and the two values. */
	mix(environment[0] | environment[1] << 8);
	mix(environment[4] | environment[5] << 8);
	mix(environment[8] | environment[9] << 8);
	for (int i = 28; i < 48; i++)
		mix(environment[i]);
}

static void processes(void)
{
	for (int i = 0; i < 20; i++) {
		long child = call(FORK, 0, 0, 0);
		if (!child)
			call(EXIT, i * 7 & 0x7f, 0, 0);
		int status = 0;
		call(WAITPID, child, (long)&status, 0);
		mix(status);
	}
}

static void signals(void)
{
	struct old_action action = { on_signal, 0, 0x04000000, restore };
	mix(call(SIGACTION, 10, (long)&action, 0));
	long self = call(GETPID, 0, 0, 0);
	for (int i = 0; i < 25; i++)
		call(KILL, self, 10, 0);
	mix(handled);
}

static void changing_code(void)
{
	u8 *code = (u8 *)call6(MMAP2, 0, 4096, 7, 0x22, -1);
	code[0] = 0xb8;
	code[5] = 0xc3;
	for (u32 i = 0; i < 1000; i++) {
		*(u32 *)(code + 1) = i * 77;
		u32 value;
		asm volatile("call *%1" : "=a"(value) : "r"(code) : "memory");
		mix(value);
	}
}

static void wide(void)
{
	u64 a = 0x0123456789abcdefull;
	for (u32 i = 1; i < 2000; i++) {
		a = a * 6364136223846793005ull + i;
		a ^= a >> (i & 31);
		mix((u32)(a >> 32));
		mix((u32)a);
	}
}

void __attribute__((force_align_arg_pointer)) _start(void)
{
	legacy_instructions();
	report("instructions ");
	segments();
	report("segments ");
	floating();
	report("floating ");
	processes();
	report("processes ");
	signals();
	report("signals ");
	changing_code();
	report("code ");
	wide();
	report("wide ");
	print("torture32: done\n");
	call(EXIT, 0, 0, 0);
}
