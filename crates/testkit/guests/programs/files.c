/* What programs expect of a file system, tried in a directory: `files DIRECTORY COUNT`.
 * COUNT is how many files "many" are. Prints a line for each check; the exit code is the
 * number of those that failed. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int failures;
static int many;

#define EXPECT(condition) \
	do { \
		if (!(condition)) { \
			printf("files: line %d: %s (%s)\n", __LINE__, #condition, strerror(errno)); \
			return 0; \
		} \
	} while (0)

static int put(const char *name, const char *text)
{
	int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	int done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	return fd >= 0 && close(fd) == 0 && done;
}

static int holds(const char *name, const char *text)
{
	char buffer[4096];
	int fd = open(name, O_RDONLY);
	ssize_t length = fd < 0 ? -1 : read(fd, buffer, sizeof buffer);
	close(fd);
	return length == (ssize_t)strlen(text) && !memcmp(buffer, text, length);
}

static int renaming(void)
{
	struct stat one, two;
	EXPECT(put("a", "a") && put("b", "b"));
	EXPECT(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE) < 0 && errno == EEXIST);
	EXPECT(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0);
	EXPECT(holds("a", "b") && holds("b", "a"));
	EXPECT(stat("a", &one) == 0 && rename("a", "b") == 0);
	EXPECT(holds("b", "b") && access("a", F_OK) < 0 && errno == ENOENT);
	EXPECT(stat("b", &two) == 0 && one.st_ino == two.st_ino);
	EXPECT(mkdir("from", 0755) == 0 && mkdir("to", 0755) == 0 && put("from/x", "x"));
	int fd = open("from/x", O_RDWR);
	EXPECT(fd >= 0 && rename("from", "to/from") == 0);
	EXPECT(write(fd, "y", 1) == 1 && close(fd) == 0 && holds("to/from/x", "y"));
	EXPECT(rmdir("to") < 0 && errno == ENOTEMPTY);
	EXPECT(rename("to", "to/from/to") < 0 && errno == EINVAL);
	return 1;
}

static int links(void)
{
	struct stat one, two;
	char target[64];
	EXPECT(put("file", "text") && link("file", "other") == 0);
	EXPECT(stat("file", &one) == 0 && stat("other", &two) == 0);
	EXPECT(one.st_ino == two.st_ino && two.st_nlink == 2);
	EXPECT(unlink("file") == 0 && holds("other", "text"));
	EXPECT(stat("other", &two) == 0 && two.st_nlink == 1);
	EXPECT(symlink("/etc/passwd", "link") == 0);
	EXPECT(readlink("link", target, sizeof target) == 11 && !memcmp(target, "/etc/passwd", 11));
	EXPECT(open("link", O_RDONLY | O_NOFOLLOW) < 0 && errno == ELOOP);
	EXPECT(lstat("link", &one) == 0 && S_ISLNK(one.st_mode) && one.st_size == 11);
	EXPECT(link("link", "link2") == 0 && lstat("link2", &two) == 0);
	EXPECT(one.st_ino == two.st_ino && S_ISLNK(two.st_mode));
	return 1;
}

static int holes(void)
{
	struct stat it;
	char byte = 'x';
	int fd = open("sparse", O_CREAT | O_RDWR, 0644);
	EXPECT(fd >= 0 && pwrite(fd, &byte, 1, 1 << 30) == 1);
	EXPECT(fstat(fd, &it) == 0 && it.st_size == (1 << 30) + 1 && it.st_blocks < 1024);
	EXPECT(lseek(fd, 0, SEEK_DATA) >= 1 << 29 && lseek(fd, 0, SEEK_HOLE) == 0);
	EXPECT(pread(fd, &byte, 1, 12345) == 1 && byte == 0);
	EXPECT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 30, 1) == 0);
	EXPECT(pread(fd, &byte, 1, 1 << 30) == 1 && byte == 0);
	EXPECT(ftruncate(fd, 10) == 0 && fallocate(fd, 0, 0, 8192) == 0);
	EXPECT(fstat(fd, &it) == 0 && it.st_size == 8192 && close(fd) == 0);
	EXPECT(truncate("sparse", 3) == 0 && stat("sparse", &it) == 0 && it.st_size == 3);
	return 1;
}

/* Whether another process can lock the file. */
static int can_lock(short kind)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		int fd = open("locked", O_RDWR);
		struct flock lock = { .l_type = kind, .l_whence = SEEK_SET, .l_start = 5, .l_len = 5 };
		_exit(fcntl(fd, F_SETLK, &lock) == 0);
	}
	waitpid(child, &status, 0);
	return WEXITSTATUS(status);
}

static int locks(void)
{
	int fd = open("locked", O_CREAT | O_RDWR, 0644);
	int status;
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 8 };
	EXPECT(fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0);
	EXPECT(!can_lock(F_RDLCK));
	lock.l_type = F_RDLCK;
	EXPECT(fcntl(fd, F_SETLK, &lock) == 0 && can_lock(F_RDLCK) && !can_lock(F_WRLCK));
	lock.l_start = 5, lock.l_len = 3, lock.l_type = F_UNLCK;
	EXPECT(fcntl(fd, F_SETLK, &lock) == 0 && can_lock(F_WRLCK));
	/* Who waits gets it in the end. */
	lock.l_start = 0, lock.l_len = 0, lock.l_type = F_WRLCK;
	EXPECT(fcntl(fd, F_SETLK, &lock) == 0);
	pid_t child = fork();
	if (child == 0) {
		int own = open("locked", O_RDWR);
		_exit(fcntl(own, F_SETLKW, &lock) == 0 ? 7 : 1);
	}
	usleep(100000);
	EXPECT(waitpid(child, &status, WNOHANG) == 0);
	lock.l_type = F_UNLCK;
	EXPECT(fcntl(fd, F_SETLK, &lock) == 0);
	EXPECT(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
	int other = open("locked", O_RDWR);
	EXPECT(flock(fd, LOCK_EX) == 0 && flock(other, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	EXPECT(close(fd) == 0 && flock(other, LOCK_EX | LOCK_NB) == 0 && close(other) == 0);
	return 1;
}

static int appending(void)
{
	enum { RECORDS = 300, LENGTH = 40 };
	static char all[2 * RECORDS * LENGTH + 1];
	int status, counts[2] = { 0, 0 };
	pid_t children[2];
	for (int side = 0; side < 2; side++) {
		children[side] = fork();
		if (children[side] == 0) {
			char record[LENGTH];
			memset(record, 'a' + side, LENGTH);
			int fd = open("log", O_CREAT | O_WRONLY | O_APPEND, 0644);
			for (int n = 0; n < RECORDS; n++)
				if (write(fd, record, LENGTH) != LENGTH)
					_exit(1);
			_exit(0);
		}
	}
	for (int side = 0; side < 2; side++)
		EXPECT(waitpid(children[side], &status, 0) > 0 && status == 0);
	int fd = open("log", O_RDONLY);
	ssize_t length, done = 0;
	while ((length = read(fd, all + done, sizeof all - done)) > 0)
		done += length;
	EXPECT(done == 2 * RECORDS * LENGTH && close(fd) == 0);
	for (int n = 0; n < 2 * RECORDS; n++) {
		for (int at = 1; at < LENGTH; at++)
			EXPECT(all[n * LENGTH + at] == all[n * LENGTH]);
		counts[all[n * LENGTH] - 'a']++;
	}
	EXPECT(counts[0] == RECORDS && counts[1] == RECORDS);
	return 1;
}

static int names(void)
{
	char name[300];
	int depth;
	EXPECT(put("Grüße, 世界 🦀", "x") && holds("Grüße, 世界 🦀", "x"));
	memset(name, 'n', 255), name[255] = 0;
	EXPECT(put(name, "x") && holds(name, "x"));
	memset(name, 'n', 256), name[256] = 0;
	EXPECT(!put(name, "x") && errno == ENAMETOOLONG);
	int at = open(".", O_RDONLY | O_DIRECTORY);
	for (depth = 0; depth < 100; depth++) {
		EXPECT(mkdirat(at, "directory", 0755) == 0);
		int below = openat(at, "directory", O_RDONLY | O_DIRECTORY);
		EXPECT(below >= 0 && close(at) == 0);
		at = below;
	}
	int fd = openat(at, "bottom", O_CREAT | O_WRONLY, 0644);
	EXPECT(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0 && close(at) == 0);
	return 1;
}

static int unlinked(void)
{
	struct stat it;
	char text[8] = "";
	int fd = open("gone", O_CREAT | O_EXCL | O_RDWR, 0600);
	EXPECT(fd >= 0 && open("gone", O_CREAT | O_EXCL | O_RDWR, 0600) < 0 && errno == EEXIST);
	EXPECT(unlink("gone") == 0 && write(fd, "still", 5) == 5);
	EXPECT(pread(fd, text, 8, 0) == 5 && !strcmp(text, "still"));
	EXPECT(fstat(fd, &it) == 0 && it.st_nlink == 0 && it.st_size == 5 && close(fd) == 0);
	EXPECT(mkdir("dir", 0700) == 0);
	int directory = open("dir", O_RDONLY | O_DIRECTORY);
	EXPECT(rmdir("dir") == 0 && fstat(directory, &it) == 0 && close(directory) == 0);
	return 1;
}

static int mapping(void)
{
	int fd = open("map", O_CREAT | O_RDWR, 0644);
	EXPECT(fd >= 0 && ftruncate(fd, 8192) == 0);
	char *map = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(map != MAP_FAILED);
	memcpy(map + 4090, "across pages", 12);
	EXPECT(msync(map, 8192, MS_SYNC) == 0);
	char text[12];
	EXPECT(pread(fd, text, 12, 4090) == 12 && !memcmp(text, "across pages", 12));
	EXPECT(pwrite(fd, "ACROSS", 6, 4090) == 6 && !memcmp(map + 4090, "ACROSS pages", 12));
	EXPECT(munmap(map, 8192) == 0 && close(fd) == 0);
	return 1;
}

static int attributes(void)
{
	struct stat it;
	struct statx more;
	char value[16], list[64];
	struct timespec times[2] = { { 1000000000, 123456789 }, { 1100000000, 987654321 } };
	EXPECT(put("file", "text") && chmod("file", 04751) == 0);
	EXPECT(stat("file", &it) == 0 && (it.st_mode & 07777) == 04751);
	EXPECT(utimensat(AT_FDCWD, "file", times, 0) == 0 && stat("file", &it) == 0);
	EXPECT(it.st_atim.tv_sec == 1000000000 && it.st_mtim.tv_nsec == 987654321);
	EXPECT(it.st_uid == 0 && it.st_gid == 0 && chown("file", 0, 0) == 0);
	EXPECT(statx(AT_FDCWD, "file", 0, STATX_ALL, &more) == 0 && more.stx_size == 4);
	EXPECT(setxattr("file", "user.a", "1", 1, XATTR_CREATE) == 0);
	EXPECT(setxattr("file", "user.a", "2", 1, XATTR_CREATE) < 0 && errno == EEXIST);
	EXPECT(setxattr("file", "user.b", "22", 2, 0) == 0);
	EXPECT(getxattr("file", "user.b", value, sizeof value) == 2 && !memcmp(value, "22", 2));
	EXPECT(getxattr("file", "user.b", value, 1) < 0 && errno == ERANGE);
	EXPECT(listxattr("file", list, sizeof list) == 14);
	EXPECT(removexattr("file", "user.a") == 0 && getxattr("file", "user.a", value, 9) < 0);
	int fd = open("readonly", O_CREAT | O_WRONLY, 0444);
	EXPECT(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
	EXPECT(mkfifo("pipe", 0600) == 0 && stat("pipe", &it) == 0 && S_ISFIFO(it.st_mode));
	fd = open("pipe", O_RDWR | O_NONBLOCK);
	EXPECT(fd >= 0 && write(fd, "p", 1) == 1 && read(fd, value, 1) == 1 && close(fd) == 0);
	return 1;
}

static int copying(void)
{
	loff_t from = 1, to = 3;
	EXPECT(put("from", "0123456789") && put("to", "abcdefghij"));
	int source = open("from", O_RDONLY), target = open("to", O_RDWR);
	EXPECT(copy_file_range(source, &from, target, &to, 4, 0) == 4);
	EXPECT(close(source) == 0 && close(target) == 0 && holds("to", "abc1234hij"));
	return 1;
}

static int crowd(void)
{
	char name[32];
	struct dirent *entry;
	int seen = 0;
	EXPECT(mkdir("many", 0755) == 0 && chdir("many") == 0);
	for (int n = 0; n < many; n++) {
		snprintf(name, sizeof name, "file %d", n);
		int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		EXPECT(fd >= 0 && close(fd) == 0);
	}
	DIR *all = opendir(".");
	while ((entry = readdir(all)))
		seen += entry->d_name[0] != '.';
	EXPECT(seen == many && closedir(all) == 0);
	for (int n = 0; n < many; n += 7) {
		struct stat it;
		snprintf(name, sizeof name, "file %d", n);
		EXPECT(stat(name, &it) == 0 && it.st_size == 0);
	}
	for (int n = 0; n < many; n++) {
		snprintf(name, sizeof name, "file %d", n);
		EXPECT(unlink(name) == 0);
	}
	EXPECT(chdir("..") == 0 && rmdir("many") == 0);
	return 1;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*check)(void);
	} checks[] = {
		{ "renaming", renaming }, { "links", links }, { "holes", holes },
		{ "locks", locks }, { "appending", appending }, { "names", names },
		{ "unlinked", unlinked }, { "mapping", mapping }, { "attributes", attributes },
		{ "copying", copying }, { "crowd", crowd },
	};
	if (argc != 3 || chdir(argv[1]))
		return 100;
	many = atoi(argv[2]);
	umask(022);
	for (unsigned n = 0; n < sizeof checks / sizeof *checks; n++) {
		int good = mkdir(checks[n].name, 0755) == 0 && chdir(checks[n].name) == 0
			&& checks[n].check();
		if (chdir(argv[1]))
			return 101;
		printf("files: %s %s\n", checks[n].name, good ? "ok" : "FAILED");
		fflush(stdout);
		failures += !good;
	}
	return failures;
}
