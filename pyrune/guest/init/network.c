/*
 * The loopback device, and the one exchange with the parent that every enclave makes.
 *
 * The heartbeat is AWS's: their init (aws-nitro-enclaves-sdk-bootstrap, init/init.c) connects to port 9000 of CID 3,
 * the parent as seen from an enclave, sends one byte and waits to get it back. `nitro-cli run-enclave` and pyrune take
 * that for "it has booted".
 */
#include "init.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* After <sys/socket.h>: the kernel's header needs its types. */
#include <linux/vm_sockets.h>

#define PARENT_CID 3
#define HEARTBEAT_PORT 9000
#define HEARTBEAT_BYTE 0xB7
/* A port that no program listens on: the last one, which is not VMADDR_PORT_ANY. */
#define UNSERVED_PORT 0xFFFFFFFEU

/* The parent listens before it boots us, so that the first attempt is the rule; a device may still be on its way. */
#define HEARTBEAT_DEADLINE_S 30
#define ANSWER_TIMEOUT_S 10
#define PAUSE_NS 100000000L

void bring_loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 && errno == EAFNOSUPPORT)
		return; /* a kernel without IPv4 has no 127.0.0.1 to offer */
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		fatal("cannot bring the loopback device up");
	close(fd);
}

/* Send the byte and take it back. Returns 0 or an errno. */
static int exchange_byte(int fd)
{
	unsigned char byte = HEARTBEAT_BYTE;
	ssize_t count;

	if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
		return errno;
	count = recv(fd, &byte, 1, 0);
	if (count < 0)
		return errno == EAGAIN ? ETIMEDOUT : errno;
	if (count == 0)
		return ECONNRESET;
	return byte == HEARTBEAT_BYTE ? 0 : EPROTO;
}

/* One connection, one exchange. Returns 0 or an errno. */
static int attempt_heartbeat(void)
{
	const struct sockaddr_vm parent = {
		.svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = HEARTBEAT_PORT
	};
	const struct timeval timeout = { .tv_sec = ANSWER_TIMEOUT_S };
	int problem = 0;
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fatal("the kernel offers no vsock (are its modules in the image?)");
	/* A connect gives up by itself after two seconds: the kernel's default for vsock. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) < 0 ||
	    connect(fd, (const struct sockaddr *)&parent, sizeof parent) < 0)
		problem = errno;
	else
		problem = exchange_byte(fd);
	close(fd);
	return problem;
}

static time_t seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

void exchange_heartbeat(void)
{
	const struct timespec pause = { .tv_nsec = PAUSE_NS };
	time_t deadline = seconds_now() + HEARTBEAT_DEADLINE_S;
	int problem;

	while ((problem = attempt_heartbeat()) != 0) {
		errno = problem;
		if (problem == EPROTO || seconds_now() >= deadline)
			fatal("no heartbeat from the parent on vsock %d:%d", PARENT_CID, HEARTBEAT_PORT);
		nanosleep(&pause, NULL);
	}
}

/* What the kernel still has in its own queue is lost when the machine is reset. The queue is first in, first out: once
 * the parent has refused this connection, all that was sent before has reached it. */
void flush_vsock(void)
{
	const struct sockaddr_vm parent = {
		.svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = UNSERVED_PORT
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	/* It fails, as it should; after two seconds at the latest. */
	(void)!connect(fd, (const struct sockaddr *)&parent, sizeof parent);
	close(fd);
}
