/*
 * The other end of the benchmarks' streams: the same program inside an enclave and, for comparison, on this machine.
 *
 *   streams vsock PORT   serve on a vsock port (only ever inside an enclave)
 *   streams unix PATH    serve on a unix socket
 *   streams exit         end at once, with status 0
 *
 * The first byte of a connection says what happens to it:
 *   d   discard everything up to the end of the stream, then send one byte
 *   s   send as many bytes as the next eight say, little-endian, then close
 *   e   send back whatever comes
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char data[65536];

static _Noreturn void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void put(int peer, size_t size)
{
	size_t done = 0;
	ssize_t now;

	while (done < size) {
		now = write(peer, data + done, size - done);
		if (now <= 0)
			_exit(1);
		done += (size_t)now;
	}
}

static void discard(int peer)
{
	while (read(peer, data, sizeof(data)) > 0)
		;
	put(peer, 1);
}

static void echo(int peer)
{
	ssize_t got;

	while ((got = read(peer, data, sizeof(data))) > 0)
		put(peer, (size_t)got);
}

static void send_bytes(int peer)
{
	unsigned char wish[8];
	uint64_t left = 0;
	size_t now;
	int i;

	for (i = 0; i < 8; i++) {
		if (read(peer, wish + i, 1) != 1)
			_exit(1);
		left |= (uint64_t)wish[i] << (8 * i);
	}
	for (; left; left -= now) {
		now = left < sizeof(data) ? (size_t)left : sizeof(data);
		put(peer, now);
	}
}

static _Noreturn void serve_one(int peer)
{
	char what;

	if (read(peer, &what, 1) == 1) {
		if (what == 'd')
			discard(peer);
		else if (what == 's')
			send_bytes(peer);
		else if (what == 'e')
			echo(peer);
	}
	_exit(0);
}

static int vsock(const char *port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	int sock = socket(AF_VSOCK, SOCK_STREAM, 0);

	address.svm_port = (unsigned int)strtoul(port, NULL, 10);
	if (sock < 0 || bind(sock, (struct sockaddr *)&address, sizeof(address)))
		fail("vsock");
	return sock;
}

static int unix_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		return -1;
	strcpy(address.sun_path, path);
	if (sock < 0 || bind(sock, (struct sockaddr *)&address, sizeof(address)))
		fail("unix socket");
	return sock;
}

int main(int argc, char **argv)
{
	int listener, peer;

	if (argc == 2 && !strcmp(argv[1], "exit"))
		return 0;
	if (argc != 3)
		return 2;
	listener = strcmp(argv[1], "vsock") ? unix_socket(argv[2]) : vsock(argv[2]);
	if (listener < 0 || listen(listener, 16))
		fail("listen");
	for (;;) {
		peer = accept(listener, NULL, NULL);
		if (peer < 0)
			fail("accept");
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (fork() == 0) {
			close(listener);
			serve_one(peer);
		}
		close(peer);
	}
}
