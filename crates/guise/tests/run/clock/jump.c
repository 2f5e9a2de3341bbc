/* Loaded before the C library: the time of day is as many seconds off as the file says that
 * JUMP names. Other clocks are as they are. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int file = -1;

/* Before there is a jail. */
__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("JUMP");
	if (path)
		file = open(path, O_RDONLY | O_CLOEXEC);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int64_t seconds = 0;
	long result = syscall(SYS_clock_gettime, clock, time);
	if (result == 0 && clock == CLOCK_REALTIME &&
	    pread(file, &seconds, sizeof seconds, 0) == sizeof seconds)
		time->tv_sec += seconds;
	return (int)result;
}
