/* Litmus tests of the memory order: what x86 forbids never happens. Two processors, and
   four for the last. Each test runs many times, and the processors meet before each. */
#include "processors.h"

#define RUNS 4000

struct run {
	volatile u32 x;
	u32 gap[15];
	volatile u32 y;
	u32 gap_too[15];
};
static struct run runs[RUNS] __attribute__((aligned(64)));
static volatile u32 seen[4][RUNS][2];

static inline void fence(void) { asm volatile("mfence" : : : "memory"); }
static inline u32 locked_swap(volatile u32 *at, u32 value)
{
	asm volatile("xchg %0, %1" : "+r"(value), "+m"(*at) : : "memory");
	return value;
}
static inline void locked_nothing(void) { asm volatile("lock orl $0, (%%rsp)" : : : "memory"); }

/* Delays that differ from run to run, so that the processors do not go in step. */
static inline void stagger(u32 me, u32 run)
{
	for (volatile u32 i = (run * 7 + me * 13) % 23; i; i--)
		;
}

enum test { STORE_FENCE, STORE_SWAP, STORE_LOCK, MESSAGE, LOAD, WRITES, INDEPENDENT, TESTS };

static void act(enum test test, u32 me, struct run *run, volatile u32 *mine)
{
	volatile u32 *here = me & 1 ? &run->y : &run->x, *there = me & 1 ? &run->x : &run->y;
	switch (test) {
	case STORE_FENCE:
		*here = 1;
		fence();
		mine[0] = *there;
		break;
	case STORE_SWAP:
		locked_swap(here, 1);
		mine[0] = *there;
		break;
	case STORE_LOCK:
		*here = 1;
		locked_nothing();
		mine[0] = *there;
		break;
	case MESSAGE:
		if (me == 0) {
			run->x = 1;
			run->y = 1;
		} else {
			mine[0] = run->y;
			mine[1] = run->x;
		}
		break;
	case LOAD:
		mine[0] = *there;
		*here = 1;
		break;
	case WRITES:
		*here = me + 1;
		*there = me + 1;
		break;
	case INDEPENDENT:
		if (me == 0)
			run->x = 1;
		else if (me == 1)
			run->y = 1;
		else if (me == 2) {
			mine[0] = run->x;
			mine[1] = run->y;
		} else {
			mine[0] = run->y;
			mine[1] = run->x;
		}
		break;
	default:
		break;
	}
}

/* Whether a run ended as it must not. */
static int forbidden(enum test test, u32 n)
{
	volatile u32(*a)[2] = seen[0], (*b)[2] = seen[1], (*c)[2] = seen[2], (*d)[2] = seen[3];
	switch (test) {
	case STORE_FENCE:
	case STORE_SWAP:
	case STORE_LOCK:
		return !a[n][0] && !b[n][0];
	case MESSAGE:
		return b[n][0] && !b[n][1];
	case LOAD:
		return a[n][0] && b[n][0];
	case WRITES:
		/* x = 1, y = 1 and y = 2, x = 2: both first writes cannot be the last. */
		return runs[n].x == 1 && runs[n].y == 2;
	case INDEPENDENT:
		return c[n][0] && !c[n][1] && d[n][0] && !d[n][1];
	default:
		return 0;
	}
}

static struct meeting two = { 2, 0 }, four = { 4, 0 };

/* Those who meet there run the tests from `first` on, before `last`. */
static void take_part(u32 me, struct meeting *place, enum test first, enum test last)
{
	u32 turn = 0;
	u32 runs_now = place == &two ? RUNS : RUNS / 4;
	for (enum test test = first; test < last; test++) {
		if (me == 0)
			for (u32 n = 0; n < RUNS; n++) {
				runs[n].x = runs[n].y = 0;
				for (u32 who = 0; who < 4; who++)
					seen[who][n][0] = seen[who][n][1] = 0;
			}
		for (u32 n = 0; n < runs_now; n++) {
			/* Several in a row before they meet again: meeting takes long. */
			if (n % 8 == 0)
				meet(place, &turn);
			stagger(me, n);
			act(test, me, &runs[n], seen[me][n]);
		}
		meet(place, &turn);
		if (me == 0) {
			static const char *names[TESTS] = {
				"store, mfence, load", "exchange, load", "store, locked, load",
				"message passing",     "load buffering", "two writes each",
				"independent reads",
			};
			u32 wrong = 0;
			for (u32 n = 0; n < runs_now; n++)
				wrong += forbidden(test, n);
			print_number(names[test], wrong);
		}
		meet(place, &turn);
	}
}

void ap_main(void)
{
	apic_enable();
	u32 me = my_number();
	arrive();
	if (me == 1)
		take_part(me, &two, 0, INDEPENDENT);
	take_part(me, &four, INDEPENDENT, TESTS);
	for (;;)
		asm volatile("hlt");
}

int main(void)
{
	apic_enable();
	start_processors(1, 1);
	take_part(0, &two, 0, INDEPENDENT);
	start_processors(2, 3);
	take_part(0, &four, INDEPENDENT, TESTS);
	return 0;
}
