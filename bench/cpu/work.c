/* The workloads of the processor benchmark: one static program, run natively and in
 * guests. `work NAME [ROUNDS]` does one of them and prints a checksum, which must be
 * the same everywhere; `work list` prints their names, `user` or `kernel` before each. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint8_t u8;

static u64 seed = 88172645463325252ull;

static u64 next(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static u64 integer(u64 rounds) {
    u64 a = 1, b = 2, c = 3;
    for (u64 i = 0; i < rounds * 1000000; i++) {
        a = a * 6364136223846793005ull + b;
        b ^= a >> 17 | c << 3;
        c += b % 1000 + (a & 255 ? a : i);
    }
    return a ^ b ^ c;
}

static u32 rotate(u32 x, int by) { return x >> by | x << (32 - by); }

static u64 sha256(u64 rounds) {
    static u32 k[64];
    u32 h[8] = {1, 2, 3, 4, 5, 6, 7, 8}, w[64];
    for (int i = 0; i < 64; i++) k[i] = (u32)next();
    for (u64 n = 0; n < rounds * 10000; n++) {
        for (int i = 0; i < 16; i++) w[i] = h[i & 7] + (u32)n * (u32)i;
        for (int i = 16; i < 64; i++) {
            u32 s = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
            u32 t = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + s + w[i - 7] + t;
        }
        u32 v[8];
        memcpy(v, h, sizeof v);
        for (int i = 0; i < 64; i++) {
            u32 s = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
            u32 t = v[7] + s + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
            u32 m = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
            u32 j = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
            memmove(v + 1, v, 7 * sizeof *v);
            v[4] += t;
            v[0] = t + m + j;
        }
        for (int i = 0; i < 8; i++) h[i] += v[i];
    }
    return (u64)h[0] << 32 | h[1];
}

static u64 compress(u64 rounds) {
    enum { SIZE = 1 << 16 };
    static u8 text[SIZE], out[SIZE * 2];
    static int heads[4096];
    u64 sum = 0;
    for (int i = 0; i < SIZE; i++) text[i] = (u8)("abracadabra and other words "[next() % 28]);
    for (u64 n = 0; n < rounds * 20; n++) {
        size_t to = 0;
        memset(heads, 0xff, sizeof heads);
        for (int at = 0; at + 4 < SIZE;) {
            u32 four;
            memcpy(&four, text + at, 4);
            u32 hash = four * 2654435761u >> 20;
            int before = heads[hash], length = 0;
            heads[hash] = at;
            if (before >= 0)
                while (at + length < SIZE && text[before + length] == text[at + length] && length < 200)
                    length++;
            if (length >= 4) {
                out[to++] = (u8)(128 + length / 2);
                out[to++] = (u8)(at - before);
                at += length;
            } else {
                out[to++] = text[at++];
            }
        }
        sum = sum * 31 + to + out[to / 2];
        text[n % SIZE] ^= 1;
    }
    return sum;
}

static int order(const void *a, const void *b) {
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return (x > y) - (x < y);
}

static u64 sort(u64 rounds) {
    enum { COUNT = 20000 };
    static u64 values[COUNT];
    u64 sum = 0;
    for (u64 n = 0; n < rounds * 10; n++) {
        for (int i = 0; i < COUNT; i++) values[i] = next();
        qsort(values, COUNT, sizeof *values, order);
        sum = sum * 31 + values[COUNT / 3];
    }
    return sum;
}

static u64 floating(u64 rounds) {
    double p[5][3], v[5][3] = {{0}}, m[5];
    for (int i = 0; i < 5; i++) {
        m[i] = 1.0 / (i + 1);
        for (int k = 0; k < 3; k++) p[i][k] = (double)(next() % 1000) / 100;
    }
    for (u64 n = 0; n < rounds * 100000; n++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                double d[3], s = 0.01;
                for (int k = 0; k < 3; k++) {
                    d[k] = p[i][k] - p[j][k];
                    s += d[k] * d[k];
                }
                double f = 0.001 / (s * __builtin_sqrt(s));
                for (int k = 0; k < 3; k++) {
                    v[i][k] -= d[k] * m[j] * f;
                    v[j][k] += d[k] * m[i] * f;
                }
            }
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 3; k++) p[i][k] += 0.001 * v[i][k];
    }
    u64 sum;
    memcpy(&sum, &p[2][1], 8);
    return sum;
}

typedef float four __attribute__((vector_size(16)));

static u64 sse(u64 rounds) {
    enum { N = 64 };
    static four a[N][N / 4], b[N][N / 4], c[N][N / 4];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N / 4; j++)
            for (int k = 0; k < 4; k++) {
                a[i][j][k] = (float)(next() % 100);
                b[i][j][k] = (float)(next() % 100);
            }
    for (u64 n = 0; n < rounds * 200; n++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N / 4; j++) {
                four sum = c[i][j] * 0.5f;
                for (int k = 0; k < N; k++) {
                    float x = a[i][k / 4][k & 3];
                    sum += b[k][j] * (four){x, x, x, x};
                }
                c[i][j] = sum;
            }
    return (u64)c[3][4][1];
}

static u64 copies(u64 rounds, size_t size) {
    u8 *from = malloc(size + 64), *to = malloc(size + 64);
    memset(from, 7, size + 64);
    for (u64 n = 0; n < rounds; n++) {
        from[n % size] = (u8)n;
        memcpy(to, from, size);
        __asm__ volatile("" ::: "memory");
    }
    return to[size / 2];
}

static u64 copy_4k(u64 rounds) { return copies(rounds * 200000, 4096); }
static u64 copy_16m(u64 rounds) { return copies(rounds * 10, 16 << 20); }

static u64 chase(u64 rounds) {
    enum { COUNT = 1 << 20 };
    static u32 to[COUNT];
    for (u32 i = 0; i < COUNT; i++) to[i] = i;
    for (u32 i = COUNT - 1; i > 0; i--) {
        u32 j = (u32)(next() % i), t = to[i];
        to[i] = to[j];
        to[j] = t;
    }
    u32 at = 0;
    for (u64 n = 0; n < rounds * 200000; n++) at = to[at];
    return at;
}

static u64 bytecode(u64 rounds) {
    static const u8 program[] = {0, 1, 2, 3, 4, 1, 5, 2, 0, 6};
    u64 r[4] = {1, 2, 3, rounds * 1000000};
    for (size_t at = 0;; at++)
        switch (program[at]) {
        case 0: r[0] += r[1]; break;
        case 1: r[1] ^= r[0] >> 3; break;
        case 2: r[2] = r[0] * 5 + r[1]; break;
        case 3: r[0] = r[2] & 0xffffff; break;
        case 4: r[1] += 7; break;
        case 5: r[2]--; break;
        case 6:
            if (--r[3] == 0) return r[0] + r[1] + r[2];
            at = (size_t)-1;
        }
}

static __attribute__((noinline)) u64 fib(u64 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static u64 calls(u64 rounds) {
    u64 sum = 0;
    for (u64 n = 0; n < rounds; n++) sum += fib(30 + (n & 1));
    return sum;
}

static u64 f0(u64 x) { return x + 1; }
static u64 f1(u64 x) { return x * 3; }
static u64 f2(u64 x) { return x ^ x >> 5; }
static u64 f3(u64 x) { return x - 9; }
static u64 virtuals(u64 rounds) {
    u64 (*volatile table[4])(u64) = {f0, f1, f2, f3};
    u64 x = 1;
    for (u64 n = 0; n < rounds * 2000000; n++) x = table[(x ^ n) & 3](x);
    return x;
}

static u64 patches(u64 rounds) {
    u8 *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static const u8 function[] = {0xb8, 0, 0, 0, 0, 0xc3}; /* mov eax, imm32; ret */
    u64 sum = 0;
    memcpy(code, function, sizeof function);
    for (u32 n = 0; n < rounds * 2000; n++) {
        memcpy(code + 1, &n, 4);
        sum = sum * 31 + ((u32(*)(void))code)();
    }
    return sum;
}

static u64 syscalls(u64 rounds) {
    u64 sum = 0;
    for (u64 n = 0; n < rounds * 200000; n++) sum += syscall(SYS_getppid) > 0;
    return sum != 0;
}

static u64 faults(u64 rounds) {
    for (u64 n = 0; n < rounds * 20; n++) {
        u8 *memory = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t at = 0; at < 4 << 20; at += 4096) memory[at] = 1;
        munmap(memory, 4 << 20);
    }
    return rounds;
}

static u64 forks(u64 rounds) {
    for (u64 n = 0; n < rounds * 300; n++) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        waitpid(child, 0, 0);
    }
    return rounds;
}

static u64 execs(u64 rounds) {
    for (u64 n = 0; n < rounds * 150; n++) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "work", "nothing", (char *)0);
            _exit(1);
        }
        waitpid(child, 0, 0);
    }
    return rounds;
}

static u64 pipes(u64 rounds) {
    int there[2], back[2];
    if (pipe(there) || pipe(back)) return 0;
    char byte = 1;
    if (fork() == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1) break;
        _exit(0);
    }
    for (u64 n = 0; n < rounds * 20000; n++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 0;
    close(there[1]);
    wait(0);
    return rounds;
}

static volatile u64 handled;
static void handler(int signal) { handled += (u64)signal; }
static u64 signals(u64 rounds) {
    signal(SIGUSR1, handler);
    for (u64 n = 0; n < rounds * 50000; n++) raise(SIGUSR1);
    return handled;
}

static u64 files(u64 rounds) {
    static u8 block[4096];
    u64 sum = 0;
    for (u64 n = 0; n < rounds * 50; n++) {
        int file = open("/tmp/guise-work", O_CREAT | O_RDWR | O_TRUNC, 0600);
        for (int i = 0; i < 256; i++) {
            block[0] = (u8)i;
            sum += (u64)write(file, block, sizeof block);
        }
        lseek(file, 0, SEEK_SET);
        while (read(file, block, sizeof block) > 0) sum += block[0];
        close(file);
    }
    unlink("/tmp/guise-work");
    return sum;
}

static u64 nothing(u64 rounds) { return rounds; }

/* What two threads get done in a time, in hundredths of what one does: the wall-clock
 * time of one, and then of two with as much to do each. */
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *busy(void *rounds) {
    static __thread volatile u64 sum;
    sum = integer(*(u64 *)rounds);
    return 0;
}

static u64 pair(u64 rounds) {
    pthread_t other;
    busy(&rounds);
    double start = seconds();
    busy(&rounds);
    double alone = seconds() - start;
    start = seconds();
    if (pthread_create(&other, 0, busy, &rounds)) return 0;
    busy(&rounds);
    pthread_join(other, 0);
    return (u64)(200 * alone / (seconds() - start));
}

static const struct {
    const char *name, *kind;
    u64 (*work)(u64);
    u64 rounds;
} all[] = {
    {"integer", "user", integer, 200},    {"sha256", "user", sha256, 120},
    {"compression", "user", compress, 120}, {"sort", "user", sort, 54},
    {"floating", "user", floating, 50},   {"sse", "user", sse, 30},
    {"copy-4k", "user", copy_4k, 60},     {"copy-16m", "user", copy_16m, 30},
    {"chase", "user", chase, 75},         {"byte-code", "user", bytecode, 60},
    {"calls", "user", calls, 240},        {"virtual-calls", "user", virtuals, 240},
    {"self-modifying", "kernel", patches, 40},
    {"syscalls", "kernel", syscalls, 10}, {"page-faults", "kernel", faults, 10},
    {"fork", "kernel", forks, 5},         {"exec", "kernel", execs, 5},
    {"pipes", "kernel", pipes, 5},        {"signals", "kernel", signals, 8},
    {"files", "kernel", files, 10},       {"nothing", "none", nothing, 1},
    {"pair", "figure", pair, 200},
};

int main(int count, char **arguments) {
    const char *name = count > 1 ? arguments[1] : "list";
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, "list")) {
            if (!strcmp(all[i].kind, "user") || !strcmp(all[i].kind, "kernel"))
                printf("%s %s\n", all[i].kind, all[i].name);
        } else if (!strcmp(name, all[i].name)) {
            u64 rounds = count > 2 ? strtoull(arguments[2], 0, 10) : all[i].rounds;
            int says = strcmp(all[i].kind, "none");
            if (says) {
                printf("begin %s\n", name);
                fflush(stdout);
            }
            u64 sum = all[i].work(rounds);
            if (says) printf("work %s %016llx\n", name, (unsigned long long)sum);
            return 0;
        }
    return strcmp(name, "list") != 0;
}
