/*
 * What runs inside the enclaves of the tests: one static program with many modes, as an application or, with its mode
 * behind `--` on the kernel's command line, as the init itself.
 *
 *   sleep            say `ready`, then wait for ever
 *   print N          print N numbered lines
 *   spam             print without end
 *   echo PORT        listen on a vsock port, say `ready`, and send back whatever comes on any number of connections
 *   beacon PORT N    connect to the parent's port N times, each time sending one line, and say `done`
 *   panic            have the kernel panic
 *   poweroff, halt   as the kernel understands them
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define PARENT_CID 3U
#define CHUNK 65536

static _Noreturn void fail(const char *what)
{
	printf("%s failed: %s\n", what, strerror(errno));
	exit(1);
}

static void wait_for_ever(void)
{
	for (;;)
		pause();
}

static int vsock(void)
{
	int sock = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (sock < 0)
		fail("socket");
	return sock;
}

/* A pipe's worth is moved at a time; what one side closes is closed on the other. */
static void echo_one(int peer)
{
	static char data[CHUNK];
	ssize_t got, put, done;

	while ((got = read(peer, data, sizeof(data))) > 0)
		for (done = 0; done < got; done += put) {
			put = write(peer, data + done, (size_t)(got - done));
			if (put < 0)
				_exit(1);
		}
	shutdown(peer, SHUT_WR);
	_exit(0);
}

static void echo(unsigned int port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
	int peer, listener = vsock();

	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 512))
		fail("listen");
	printf("ready\n");
	for (;;) {
		peer = accept(listener, NULL, NULL);
		if (peer < 0)
			fail("accept");
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (fork() == 0) {
			close(listener);
			echo_one(peer);
		}
		close(peer);
	}
}

static void beacon(unsigned int port, int times)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = port };
	char line[32];
	int i, sock, length;

	for (i = 0; i < times; i++) {
		sock = vsock();
		if (connect(sock, (struct sockaddr *)&address, sizeof(address)))
			fail("connect");
		length = snprintf(line, sizeof(line), "beacon %d\n", i);
		if (write(sock, line, (size_t)length) != length)
			fail("write");
		close(sock);
	}
	printf("done\n");
}

static void panic(void)
{
	int trigger;

	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	trigger = open("/proc/sysrq-trigger", O_WRONLY);
	if (trigger < 0 || write(trigger, "c", 1) < 0)
		fail("sysrq");
	wait_for_ever();
}

/* As the init there may be no console yet: /dev is empty until devtmpfs is mounted. */
static void open_console(void)
{
	int console;

	mkdir("/dev", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		dup2(console, 0);
		dup2(console, 1);
		dup2(console, 2);
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long number = argc > 2 ? atol(argv[2]) : 0;
	long i;

	if (getpid() == 1)
		open_console();
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(mode, "sleep")) {
		printf("ready\n");
		wait_for_ever();
	} else if (!strcmp(mode, "print")) {
		for (i = 1; i <= number; i++)
			printf("line %ld\n", i);
	} else if (!strcmp(mode, "spam")) {
		for (i = 1;; i++)
			printf("spam %ld\n", i);
	} else if (!strcmp(mode, "echo")) {
		echo((unsigned int)number);
	} else if (!strcmp(mode, "beacon")) {
		beacon((unsigned int)number, argc > 3 ? atoi(argv[3]) : 1);
	} else if (!strcmp(mode, "panic")) {
		panic();
	} else if (!strcmp(mode, "poweroff")) {
		reboot(RB_POWER_OFF);
	} else if (!strcmp(mode, "halt")) {
		printf("halting\n");
		sleep(1);
		reboot((int)RB_HALT_SYSTEM);
	} else {
		printf("no mode %s\n", mode);
		return 1;
	}
	return 0;
}
