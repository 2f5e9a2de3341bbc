/* Standard input and output over a socket to the host.
 *
 *   vsock connect PORT     connects to a port of the host
 *   vsock listen PORT      takes one connection to a port of this machine
 *
 * The end of the input closes one direction; the program ends with the other. */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static int fail(const char *doing)
{
	fprintf(stderr, "vsock: %s: %s\n", doing, strerror(errno));
	return 1;
}

/* Passes on some bytes. 1 at the end, -1 on an error. */
static int pass(int from, int to)
{
	static char buffer[65536];
	ssize_t length = read(from, buffer, sizeof buffer);
	if (length <= 0)
		return length == 0 ? 1 : -1;
	for (ssize_t done = 0; done < length;) {
		ssize_t written = write(to, buffer + done, length - done);
		if (written < 0)
			return -1;
		done += written;
	}
	return 0;
}

static int copy(int socket)
{
	struct pollfd fds[] = { { 0, POLLIN, 0 }, { socket, POLLIN, 0 } };
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			return fail("waiting");
		if (fds[0].revents) {
			int end = pass(0, socket);
			if (end < 0)
				return fail("sending");
			if (end) {
				shutdown(socket, SHUT_WR);
				fds[0].fd = -1;
				fds[0].revents = 0;
			}
		}
		if (fds[1].revents) {
			int end = pass(socket, 1);
			if (end)
				return end < 0 ? fail("receiving") : 0;
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: vsock connect|listen PORT\n");
		return 2;
	}
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = strtoul(argv[2], 0, 0) };
	int own = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (own < 0)
		return fail("making a socket");
	if (!strcmp(argv[1], "connect")) {
		address.svm_cid = VMADDR_CID_HOST;
		if (connect(own, (struct sockaddr *)&address, sizeof address))
			return fail("connecting");
		return copy(own);
	}
	address.svm_cid = VMADDR_CID_ANY;
	if (bind(own, (struct sockaddr *)&address, sizeof address) || listen(own, 8))
		return fail("listening");
	printf("listening\n");
	fflush(stdout);
	int client = accept(own, 0, 0);
	if (client < 0)
		return fail("accepting");
	return copy(client);
}
