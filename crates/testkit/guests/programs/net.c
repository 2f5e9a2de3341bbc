/* Connections of many kinds, for tests of networks: `net KIND ...` says in one line how it
 * went. Data is a fixed row of numbers, so that a hash at the other end shows all of it. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE (64 << 10)
#define MOST 4096

static unsigned char piece[PIECE];
static unsigned long long state = 88172645463325252ull;
static unsigned long long hash = 0xcbf29ce484222325ull;

static void fail(const char *what)
{
	printf("net: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The next bytes of the row. */
static void fill(void)
{
	for (int at = 0; at < PIECE; at += 8) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memcpy(piece + at, &state, 8);
	}
}

/* Eight bytes at a time: guests have better to do. */
static void digest(const unsigned char *bytes, size_t size)
{
	static unsigned char rest[8];
	static size_t have;
	while (size > 0) {
		size_t take = 8 - have < size ? 8 - have : size;
		unsigned long long word;
		memcpy(rest + have, bytes, take);
		have += take;
		bytes += take;
		size -= take;
		if (have < 8)
			return;
		memcpy(&word, rest, 8);
		hash = (hash ^ word) * 0x100000001b3ull;
		have = 0;
	}
}

static socklen_t address(struct sockaddr_storage *to, const char *host, const char *port)
{
	struct sockaddr_in *four = (void *)to;
	struct sockaddr_in6 *six = (void *)to;
	memset(to, 0, sizeof *to);
	if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(atoi(port));
		return sizeof *four;
	}
	if (inet_pton(AF_INET6, host, &six->sin6_addr) != 1)
		fail(host);
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(atoi(port));
	return sizeof *six;
}

static int open_to(const char *host, const char *port, int buffer)
{
	struct sockaddr_storage to;
	socklen_t size = address(&to, host, port);
	int fd = socket(to.ss_family, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	if (buffer && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer))
		fail("buffer");
	if (connect(fd, (void *)&to, size))
		fail("connect");
	return fd;
}

static void put(int fd, const void *bytes, size_t size)
{
	const char *at = bytes;
	while (size > 0) {
		ssize_t some = write(fd, at, size);
		if (some < 0)
			fail("write");
		at += some;
		size -= some;
	}
}

static void get(int fd, void *bytes, size_t size)
{
	char *at = bytes;
	while (size > 0) {
		ssize_t some = read(fd, at, size);
		if (some < 0)
			fail("read");
		if (some == 0) {
			printf("net: the end came early\n");
			exit(1);
		}
		at += some;
		size -= some;
	}
}

static void take(int fd)
{
	unsigned long long bytes = 0;
	ssize_t some;
	while ((some = read(fd, piece, sizeof piece)) > 0) {
		digest(piece, some);
		bytes += some;
	}
	if (some < 0)
		fail("read");
	printf("took %llu %016llx\n", bytes, hash);
}

static void send_all(int fd, int mebibytes)
{
	for (int n = 0; n < mebibytes * 16; n++) {
		fill();
		digest(piece, PIECE);
		put(fd, piece, PIECE);
	}
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	/* The other end closes when it has everything. */
	if (read(fd, piece, 1) != 0)
		fail("end");
	printf("sent %016llx\n", hash);
}

/* Asks, ends its own direction, and takes an answer of any length. */
static void half(int fd)
{
	put(fd, "question", 8);
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	take(fd);
}

static void reset(int fd)
{
	ssize_t some;
	while ((some = read(fd, piece, sizeof piece)) > 0)
		;
	printf(some < 0 && errno == ECONNRESET ? "was reset\n" : "was not reset\n");
}

static void give_up(int fd)
{
	struct linger now = { 1, 0 };
	put(fd, "x", 1);
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now))
		fail("linger");
	close(fd);
	printf("gave up\n");
}

static void many(const char *host, const char *port, int count)
{
	static int all[MOST];
	struct rlimit limit = { MOST + 64, MOST + 64 };
	if (count > MOST || setrlimit(RLIMIT_NOFILE, &limit))
		fail("limit");
	for (int n = 0; n < count; n++)
		all[n] = open_to(host, port, 0);
	for (int n = 0; n < count; n++)
		put(all[n], &n, sizeof n);
	for (int n = 0; n < count; n++) {
		int back;
		get(all[n], &back, sizeof back);
		if (back != n) {
			printf("net: connection %d has what is for %d\n", n, back);
			exit(1);
		}
	}
	printf("had %d at once\n", count);
}

static int listener(const char *port, int type)
{
	struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, type, 0), yes = 1;
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) ||
	    bind(fd, (void *)&own, sizeof own) || (type == SOCK_STREAM && listen(fd, 8)))
		fail("listen");
	printf("serving\n");
	fflush(stdout);
	return fd;
}

/* Gives back to one client what it sends, until that ends. */
static void serve(const char *port)
{
	int fd = accept(listener(port, SOCK_STREAM), NULL, NULL);
	unsigned long long bytes = 0;
	ssize_t some;
	if (fd < 0)
		fail("accept");
	while ((some = read(fd, piece, sizeof piece)) > 0) {
		put(fd, piece, some);
		bytes += some;
	}
	printf("gave back %llu\n", bytes);
}

/* Takes what one client sends. */
static void sink(const char *port)
{
	int fd = accept(listener(port, SOCK_STREAM), NULL, NULL);
	if (fd < 0)
		fail("accept");
	take(fd);
}

/* Gives back one datagram. */
static void mirror(const char *port)
{
	int fd = listener(port, SOCK_DGRAM);
	struct sockaddr_storage from;
	socklen_t size = sizeof from;
	ssize_t length = recvfrom(fd, piece, sizeof piece, 0, (void *)&from, &size);
	if (length < 0 || sendto(fd, piece, length, 0, (void *)&from, size) != length)
		fail("datagram");
	printf("mirrored %zd\n", length);
}

/* Sends a datagram and wants it back; datagrams may get lost. */
static void datagram(const char *host, const char *port, size_t length)
{
	static unsigned char back[PIECE];
	struct sockaddr_storage to;
	socklen_t size = address(&to, host, port);
	int fd = socket(to.ss_family, SOCK_DGRAM, 0);
	fill();
	if (fd < 0 || length > PIECE || connect(fd, (void *)&to, size))
		fail("socket");
	for (int tries = 0; tries < 10; tries++) {
		struct pollfd wait = { fd, POLLIN, 0 };
		if (send(fd, piece, length, 0) != (ssize_t)length)
			fail("send");
		if (poll(&wait, 1, 6000) <= 0)
			continue;
		if (recv(fd, back, sizeof back, 0) == (ssize_t)length &&
		    !memcmp(back, piece, length)) {
			printf("got %zu back\n", length);
			return;
		}
	}
	printf("got nothing back\n");
}

int main(int count, char **words)
{
	const char *kind = count > 2 ? words[1] : "";
	const char *port = count > 3 ? words[3] : "";
	int number = count > 4 ? atoi(words[4]) : 0;
	if (!strcmp(kind, "serve"))
		serve(words[2]);
	else if (!strcmp(kind, "sink"))
		sink(words[2]);
	else if (!strcmp(kind, "mirror"))
		mirror(words[2]);
	else if (!strcmp(kind, "many"))
		many(words[2], port, number);
	else if (!strcmp(kind, "datagram"))
		datagram(words[2], port, number);
	else if (!strcmp(kind, "send"))
		send_all(open_to(words[2], port, 0), number);
	else if (!strcmp(kind, "take"))
		take(open_to(words[2], port, 0));
	else if (!strcmp(kind, "half"))
		half(open_to(words[2], port, 0));
	else if (!strcmp(kind, "reset"))
		reset(open_to(words[2], port, 0));
	else if (!strcmp(kind, "give-up"))
		give_up(open_to(words[2], port, 0));
	else if (!strcmp(kind, "slow")) {
		/* Nothing is read until the window has long been closed. */
		int fd = open_to(words[2], port, 4096);
		sleep(3);
		take(fd);
	} else {
		printf("net: what is '%s'?\n", kind);
		return 2;
	}
	return 0;
}
