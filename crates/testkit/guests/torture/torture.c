/* Tortures a kernel and its processor from user space. Prints a line with a checksum
   for each subject; the same binary prints the same lines wherever it runs
   correctly. A processor without AVX is the only permitted difference. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096

static uint64_t mix(uint64_t sum, uint64_t value)
{
	sum ^= value + 0x9e3779b97f4a7c15ull + (sum << 6) + (sum >> 2);
	return sum * 0xbf58476d1ce4e5b9ull;
}

static uint64_t mix_bytes(uint64_t sum, const void *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		sum = mix(sum, ((const uint8_t *)bytes)[i]);
	return sum;
}

static uint64_t random_state = 88172645463325252ull;
static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	return random_state ^= random_state << 17;
}

static void report(const char *subject, uint64_t sum)
{
	printf("torture: %-12s %016llx\n", subject, (unsigned long long)sum);
	fflush(stdout);
}

static void must(int holds, const char *what)
{
	if (holds)
		return;
	printf("torture: FAILED: %s (errno %d)\n", what, errno);
	fflush(stdout);
	_exit(1);
}

/* Threads that hand a token around with futexes, and a counter under a mutex. */
#define THREADS 6
#define TURNS 300
static uint32_t turn;
static uint64_t token_sum;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t guarded;

static void *take_turns(void *argument)
{
	uint32_t me = (uintptr_t)argument;
	for (uint32_t round = 0; round < TURNS; round++) {
		uint32_t mine = round * THREADS + me, now;
		while ((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != mine)
			syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
		token_sum = mix(token_sum, me * 1000 + round);
		__atomic_store_n(&turn, mine + 1, __ATOMIC_RELEASE);
		syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
		for (int i = 0; i < 10; i++) {
			pthread_mutex_lock(&mutex);
			guarded += me + i;
			pthread_mutex_unlock(&mutex);
		}
	}
	return NULL;
}

static void threads(void)
{
	pthread_t ids[THREADS];
	for (uintptr_t i = 0; i < THREADS; i++)
		must(!pthread_create(&ids[i], NULL, take_turns, (void *)i), "pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(ids[i], NULL);
	report("threads", mix(token_sum, guarded));
}

/* Processes that talk through pipes, and one that executes this program again. */
static void processes(const char *self)
{
	uint64_t sum = 0;
	for (int i = 0; i < 40; i++) {
		int ends[2];
		must(!pipe(ends), "pipe");
		pid_t child = fork();
		must(child >= 0, "fork");
		if (!child) {
			uint64_t value = i * 77ull;
			for (int j = 0; j < 1000; j++)
				value = mix(value, j);
			must(write(ends[1], &value, sizeof value) == sizeof value, "write");
			_exit(i);
		}
		uint64_t value;
		int status;
		must(read(ends[0], &value, sizeof value) == sizeof value, "read");
		must(waitpid(child, &status, 0) == child, "waitpid");
		sum = mix(mix(sum, value), WEXITSTATUS(status));
		close(ends[0]);
		close(ends[1]);
	}
	for (int i = 0; i < 8; i++) {
		pid_t child = fork();
		must(child >= 0, "fork");
		if (!child) {
			char number[16];
			snprintf(number, sizeof number, "%d", i);
			execl(self, "torture", "--child", number, NULL);
			_exit(127);
		}
		int status;
		must(waitpid(child, &status, 0) == child, "waitpid");
		sum = mix(sum, WEXITSTATUS(status));
	}
	report("processes", sum);
}

/* Signals: faults that are repaired, alternate stacks, nesting, timers. */
static volatile uint64_t signal_sum;
static volatile int ticks;
static uint8_t *guard_page;

static void on_fault(int number, siginfo_t *info, void *context)
{
	ucontext_t *user = context;
	signal_sum = mix(signal_sum, number);
	signal_sum = mix(signal_sum, info->si_code);
	if (number == SIGSEGV) {
		signal_sum = mix(signal_sum, (uint8_t *)info->si_addr - guard_page);
		signal_sum = mix(signal_sum, user->uc_mcontext.gregs[REG_ERR]);
		mprotect(guard_page, PAGE, PROT_READ | PROT_WRITE);
	} else if (number == SIGFPE || number == SIGILL) {
		/* DIV ECX and UD2: two bytes each. */
		user->uc_mcontext.gregs[REG_RIP] += 2;
	}
}

static void on_tick(int number)
{
	ticks++;
	if (number == SIGALRM && ticks % 5 == 0)
		raise(SIGUSR1);
}

static void on_user(int number)
{
	(void)number;
	signal_sum = signal_sum * 1;
}

static void signals(void)
{
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	must(!sigaltstack(&stack, NULL), "sigaltstack");
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	for (int number = SIGHUP; number < 32; number++)
		if (number == SIGSEGV || number == SIGFPE || number == SIGILL || number == SIGTRAP)
			sigaction(number, &fault, NULL);
	guard_page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 50; i++) {
		mprotect(guard_page, PAGE, i & 1 ? PROT_READ : PROT_NONE);
		guard_page[i * 13] = i;
		signal_sum = mix(signal_sum, guard_page[i * 13]);
	}
	for (int i = 0; i < 20; i++) {
		uint32_t low = 1, high = 0;
		asm volatile("divl %2" : "+a"(low), "+d"(high) : "c"(0));
		asm volatile("ud2");
		asm volatile("int3");
	}
	struct sigaction tick = { .sa_handler = on_tick };
	struct sigaction user = { .sa_handler = on_user };
	sigaction(SIGALRM, &tick, NULL);
	sigaction(SIGUSR1, &user, NULL);
	struct itimerval every = { { 0, 4000 }, { 0, 4000 } }, never = { 0 };
	setitimer(ITIMER_REAL, &every, NULL);
	/* Arithmetic that a signal must not disturb, flags included. */
	uint64_t sum = 0;
	while (ticks < 25)
		for (int i = 0; i < 1000; i++) {
			uint64_t a = i * 0x123456789abcdefull, b = ~a;
			unsigned char carry;
			asm volatile("addq %2, %0; nop; nop; setc %1" : "+r"(a), "=q"(carry) : "r"(b));
			must(a == ~0ull && !carry, "a signal changed registers");
		}
	setitimer(ITIMER_REAL, &never, NULL);
	report("signals", mix(signal_sum, sum));
}

/* Address space: holes, protections, moves, shared and private pages. */
static void memory(void)
{
	uint64_t sum = 0;
	const size_t pages = 64;
	for (int round = 0; round < 10; round++) {
		uint8_t *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		must(area != MAP_FAILED, "mmap");
		for (size_t i = 0; i < pages; i++)
			*(uint64_t *)(area + i * PAGE + (i * 8) % (PAGE - 8)) = next_random();
		for (size_t i = 0; i < pages; i += 7)
			must(!munmap(area + i * PAGE, PAGE), "munmap");
		for (size_t i = 1; i < pages; i += 7)
			must(!mprotect(area + i * PAGE, PAGE, PROT_READ), "mprotect");
		for (size_t i = 2; i < pages; i += 7)
			must(!madvise(area + i * PAGE, PAGE, MADV_DONTNEED), "madvise");
		int ends[2];
		must(!pipe(ends), "pipe");
		for (size_t i = 0; i < pages; i++) {
			/* The kernel looks at the page: a hole is an error, not a signal. */
			ssize_t written = write(ends[1], area + i * PAGE, 64);
			sum = mix(sum, written == 64);
			uint8_t buffer[64];
			if (written == 64) {
				must(read(ends[0], buffer, 64) == 64, "read");
				sum = mix_bytes(sum, buffer, 64);
			}
		}
		close(ends[0]);
		close(ends[1]);
		munmap(area, pages * PAGE);
	}
	/* Shared pages are seen by the child, private ones are copied. */
	uint64_t *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t *private =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 512; i++)
		shared[i] = private[i] = i;
	pid_t child = fork();
	if (!child) {
		for (int i = 0; i < 512; i++)
			shared[i] = private[i] = i * 3;
		_exit(0);
	}
	waitpid(child, NULL, 0);
	sum = mix_bytes(mix_bytes(sum, shared, PAGE), private, PAGE);
	uint8_t *grown = mremap(shared, PAGE, PAGE, MREMAP_MAYMOVE);
	sum = mix_bytes(sum, grown, PAGE);
	report("memory", sum);
}

/* Floating-point state of several processes, which must survive that they take
   turns: each has x87, SSE and AVX registers full of its own values. */
static int has_avx(void) { return __builtin_cpu_supports("avx"); }

static uint64_t float_work(uint64_t seed)
{
	double x87 = 1.0 + seed;
	uint64_t state = seed, sum = 0;
	uint8_t xmm[16 * 16], out[32];
	for (size_t i = 0; i < sizeof xmm; i++)
		xmm[i] = state = mix(state, i);
	asm volatile("finit; fldl %0" : : "m"(x87));
	for (int round = 0; round < 200; round++) {
		asm volatile("movups (%0), %%xmm4; movups 16(%0), %%xmm9" : : "r"(xmm) : "xmm4", "xmm9");
		if (has_avx())
			asm volatile("vmovups (%0), %%ymm13" : : "r"(xmm + 32) : "xmm13");
		asm volatile("fld1; faddp; fsqrt; fld %%st(0); fsin; fabs; faddp" : :);
		if (round % 8 == 0)
			usleep(1);
		else
			for (volatile int spin = 0; spin < 2000; spin++)
				;
		asm volatile("paddq %%xmm9, %%xmm4; movups %%xmm4, (%0)" : : "r"(out) : "memory", "xmm4");
		sum = mix_bytes(sum, out, 16);
		if (has_avx()) {
			asm volatile("vmovups %%ymm13, (%0)" : : "r"(out) : "memory");
			sum = mix_bytes(sum, out, 32);
		}
		memcpy(xmm, out, 16);
	}
	asm volatile("fstpl %0" : "=m"(x87));
	sum = mix_bytes(sum, &x87, sizeof x87);
	double series = 0;
	float single = 0;
	for (int i = 1; i < 5000; i++) {
		series += 1.0 / ((double)i * i);
		single += 1.0f / i;
	}
	sum = mix_bytes(sum, &series, sizeof series);
	return mix_bytes(sum, &single, sizeof single);
}

static void floating_point(void)
{
	uint64_t *sums = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 6; i++)
		if (!fork()) {
			sums[i] = float_work(i + 1);
			_exit(0);
		}
	while (wait(NULL) > 0)
		;
	report("floating", mix_bytes(0, sums, 6 * sizeof *sums));
	if (!has_avx())
		printf("torture: no AVX here\n");
}

/* Code that writes code, in place and through a second mapping. */
static void self_modifying(void)
{
	uint64_t sum = 0;
	uint8_t *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(code != MAP_FAILED, "mmap of code");
	/* mov $imm32, %eax; ret */
	code[0] = 0xb8;
	code[5] = 0xc3;
	for (uint32_t i = 0; i < 3000; i++) {
		uint32_t value = i * 2654435761u;
		memcpy(code + 1, &value, 4);
		sum = mix(sum, ((uint32_t(*)(void))code)());
	}
	/* A loop that changes the instruction after the one that changes it. */
	static const uint8_t loop[] = {
		0x31, 0xc0,				  /* xor %eax, %eax */
		0xb9, 0xc8, 0x00, 0x00, 0x00,		  /* mov $200, %ecx */
		0x88, 0x0d, 0x01, 0x00, 0x00, 0x00,	  /* mov %cl, 1(%rip) */
		0x05, 0x00, 0x00, 0x00, 0x00,		  /* add $imm32, %eax */
		0xff, 0xc9,				  /* dec %ecx */
		0x75, 0xf1,				  /* jnz to the mov */
		0xc3,
	};
	memcpy(code + 64, loop, sizeof loop);
	sum = mix(sum, ((uint32_t(*)(void))(code + 64))());
	int file = memfd_create("code", 0);
	must(file >= 0 && !ftruncate(file, PAGE), "memfd_create");
	uint8_t *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	uint8_t *executable = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	memcpy(writable, code, 6);
	for (uint32_t i = 0; i < 3000; i++) {
		memcpy(writable + 1, &i, 4);
		sum = mix(sum, ((uint32_t(*)(void))executable)());
	}
	report("self-modifying", sum);
}

/* A child is stepped through known code; every register is looked at on the way. */
extern char stepped[], stepped_end[];
asm(".text\n"
    "stepped:\n"
    "	mov $3, %ecx\n"
    "	xor %eax, %eax\n"
    "1:	add %ecx, %eax\n"
    "	pushf\n"
    "	pop %rdx\n"
    "	rep; nop\n"
    "	loop 1b\n"
    "	mov $16, %ecx\n"
    "	lea -64(%rsp), %rdi\n"
    "	cld\n"
    "	rep stosb\n"
    "	nop\n"
    "	mov $39, %eax\n"
    "	syscall\n"
    "	xor %eax, %eax\n"
    "	nop\n"
    "	ret\n"
    "stepped_end:\n");

static void single_step(void)
{
	uint64_t sum = 0, steps = 0;
	pid_t child = fork();
	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		asm volatile("call stepped" : : : "rax", "rcx", "rdx", "rdi", "r11", "memory", "cc");
		_exit(0);
	}
	int status;
	waitpid(child, &status, 0);
	must(WIFSTOPPED(status), "the child stops");
	while (steps < 2000) {
		struct user_regs_struct registers;
		must(!ptrace(PTRACE_GETREGS, child, 0, &registers), "PTRACE_GETREGS");
		if (registers.rip >= (uint64_t)stepped && registers.rip < (uint64_t)stepped_end) {
			sum = mix(sum, registers.rip - (uint64_t)stepped);
			/* The process number is not the same everywhere. */
			if (registers.rip < (uint64_t)stepped_end - 6)
				sum = mix(mix(sum, registers.rax), registers.rcx & 0xff);
			steps++;
		} else if (steps)
			break;
		must(!ptrace(PTRACE_SINGLESTEP, child, 0, 0), "PTRACE_SINGLESTEP");
		must(waitpid(child, &status, 0) == child && WIFSTOPPED(status), "a step");
	}
	ptrace(PTRACE_CONT, child, 0, 0);
	waitpid(child, &status, 0);
	must(WIFEXITED(status) && !WEXITSTATUS(status), "the stepped child ends well");
	report("single step", mix(sum, steps));
}

/* Integer arithmetic with its flags, 64, 32, 16 and 8 bits wide. */
static void arithmetic(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < 20000; i++) {
		uint64_t a = next_random(), b = next_random(), flags;
		const uint64_t defined = 0x8d5; /* OF SF ZF AF PF CF, all defined here */
#define OPERATE(instruction, modifier)                                                      \
	do {                                                                                \
		uint64_t result = a;                                                        \
		asm volatile(instruction " %" modifier "2, %" modifier "0; pushf; pop %1"   \
			     : "+r"(result), "=r"(flags)                                    \
			     : "r"(b)                                                       \
			     : "cc");                                                       \
		sum = mix(mix(sum, result), flags & defined);                               \
	} while (0)
		OPERATE("add", "q");
		OPERATE("sub", "k");
		OPERATE("add", "w");
		OPERATE("sub", "b");
#undef OPERATE
		uint64_t low = a, high = b | 1;
		asm volatile("mul %2" : "+a"(low), "=&d"(flags) : "r"(high) : "cc");
		sum = mix(mix(sum, low), flags);
		uint64_t quotient = a, rest = 0;
		asm volatile("div %2" : "+a"(quotient), "+d"(rest) : "r"(high) : "cc");
		sum = mix(mix(sum, quotient), rest);
		asm volatile("shld $13, %1, %0" : "+r"(a) : "r"(b) : "cc");
		asm volatile("bsf %1, %0" : "+r"(b) : "r"(a | 4) : "cc");
		sum = mix(mix(sum, a), b);
	}
	report("arithmetic", sum);
}

int main(int count, char **arguments)
{
	if (count == 3 && !strcmp(arguments[1], "--child"))
		return atoi(arguments[2]) * 3 + 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	arithmetic();
	threads();
	processes("/proc/self/exe");
	signals();
	memory();
	floating_point();
	self_modifying();
	single_step();
	printf("torture: done\n");
	return 0;
}
