/* How fast a disk is: `io DEVICE SECONDS`, past the page cache. Overwrites the disk. Before
 * and after each measurement a line says so, for whoever counts the host's seconds. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

#define MOST 32
#define LARGEST (1 << 20)

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static unsigned long long seed = 88172645463325252ull;
static unsigned long long next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void measure(int fd, unsigned long long size, double seconds, const char *name, int opcode,
		    unsigned length, int depth, int random)
{
	static char *buffers[MOST];
	struct iocb requests[MOST], *pointer;
	struct io_event events[MOST];
	aio_context_t context = 0;
	unsigned long long done = 0, at = 0, blocks = size / length;
	if (syscall(SYS_io_setup, MOST, &context) < 0) {
		perror("io: io_setup");
		exit(1);
	}
	printf("begin %s\n", name);
	fflush(stdout);
	double start = now(), end = start + seconds;
	int under_way = 0;
	for (int n = 0; n < depth; n++) {
		if (!buffers[n] && posix_memalign((void **)&buffers[n], 4096, LARGEST))
			exit(1);
		events[n].data = n;
	}
	int free_slots = depth;
	for (;;) {
		int stop = now() >= end;
		for (int n = 0; n < free_slots && !stop; n++) {
			int slot = events[n].data;
			unsigned long long block = random ? next_random() % blocks : at++ % blocks;
			requests[slot] = (struct iocb){ .aio_data = slot, .aio_lio_opcode = opcode,
				.aio_fildes = fd, .aio_buf = (unsigned long)buffers[slot],
				.aio_nbytes = length, .aio_offset = block * length };
			pointer = &requests[slot];
			if (syscall(SYS_io_submit, context, 1, &pointer) != 1) {
				perror("io: io_submit");
				exit(1);
			}
			under_way++;
		}
		if (!under_way)
			break;
		free_slots = syscall(SYS_io_getevents, context, 1, MOST, events, 0);
		for (int n = 0; n < free_slots; n++)
			if (events[n].res != length) {
				fprintf(stderr, "io: a request came back with %lld\n", (long long)events[n].res);
				exit(1);
			}
		done += free_slots;
		under_way -= free_slots;
	}
	printf("end %s %llu %.3f\n", name, done, now() - start);
	fflush(stdout);
	syscall(SYS_io_destroy, context);
}

int main(int argc, char **argv)
{
	unsigned long long size;
	int fd = argc == 3 ? open(argv[1], O_RDWR | O_DIRECT) : -1;
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size)) {
		perror("io: DEVICE SECONDS");
		return 1;
	}
	double seconds = atof(argv[2]);
	measure(fd, size, seconds, "write-1m", IOCB_CMD_PWRITE, LARGEST, 4, 0);
	measure(fd, size, seconds, "read-1m", IOCB_CMD_PREAD, LARGEST, 4, 0);
	measure(fd, size, seconds, "randread-4k-1", IOCB_CMD_PREAD, 4096, 1, 1);
	measure(fd, size, seconds, "randread-4k-32", IOCB_CMD_PREAD, 4096, 32, 1);
	measure(fd, size, seconds, "randwrite-4k-1", IOCB_CMD_PWRITE, 4096, 1, 1);
	measure(fd, size, seconds, "randwrite-4k-32", IOCB_CMD_PWRITE, 4096, 32, 1);
	return 0;
}
