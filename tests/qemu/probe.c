/*
 * An application for tests of the guest's init: prints what it finds, makes orphans, and ends as it is told.
 *
 *     probe facts | exit STATUS | signal NUMBER | lines COUNT
 */
#include <dirent.h>
#include <limits.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void print_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (ioctl(fd, SIOCGIFFLAGS, &request) == 0)
		printf("lo=%s\n", request.ifr_flags & IFF_UP ? "up" : "down");
	close(fd);
}

static void print_mounts(void)
{
	char line[1024], path[256], type[64];
	FILE *mounts = fopen("/proc/self/mounts", "r");

	while (mounts && fgets(line, sizeof line, mounts))
		if (sscanf(line, "%*s %255s %63s", path, type) == 2)
			printf("mount=%s %s\n", path, type);
	if (mounts)
		fclose(mounts);
}

static void print_descriptors(void)
{
	struct dirent *entry;
	char target[PATH_MAX];
	DIR *directory = opendir("/proc/self/fd");

	while (directory && (entry = readdir(directory))) {
		ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);

		if (length > 0 && atoi(entry->d_name) != dirfd(directory))
			printf("fd=%s %.*s\n", entry->d_name, (int)length, target);
	}
	if (directory)
		closedir(directory);
}

/* The state letter of a process, from /proc; '-' if there is none. */
static char state_of(pid_t pid)
{
	char path[64], state = '-';
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	file = fopen(path, "r");
	if (file && fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = '?';
	if (file)
		fclose(file);
	return state;
}

/* A grandchild whose parent ends first falls to the first process, which must reap it. */
static void print_orphan(void)
{
	int ends[2];
	pid_t orphan = 0, child;
	char state = '?';

	if (pipe(ends) < 0)
		return;
	child = fork();
	if (child == 0) {
		orphan = fork();
		if (orphan == 0)
			_exit(0);
		_exit(write(ends[1], &orphan, sizeof orphan) != sizeof orphan);
	}
	waitpid(child, NULL, 0);
	if (read(ends[0], &orphan, sizeof orphan) != sizeof orphan)
		return;
	for (int i = 0; i < 500 && (state = state_of(orphan)) != '-'; i++)
		usleep(10000);
	printf("orphan=%s\n", state == '-' ? "reaped" : "left");
	close(ends[0]);
	close(ends[1]);
}

static void print_facts(int argc, char **argv)
{
	char directory[PATH_MAX];

	for (int i = 0; i < argc; i++)
		printf("argument=%s\n", argv[i]);
	for (char **variable = environ; *variable; variable++)
		printf("variable=%s\n", *variable);
	printf("parent=%d\nleader=%s\n", (int)getppid(), getsid(0) == getpid() ? "yes" : "no");
	printf("directory=%s\n", getcwd(directory, sizeof directory));
	print_loopback();
	print_mounts();
	print_descriptors();
	print_orphan();
}

int main(int argc, char **argv)
{
	int value = argc > 2 ? atoi(argv[2]) : 0;

	if (argc < 2)
		return 2;
	if (strcmp(argv[1], "facts") == 0)
		print_facts(argc, argv);
	else if (strcmp(argv[1], "exit") == 0)
		return value;
	else if (strcmp(argv[1], "signal") == 0)
		raise(value);
	else if (strcmp(argv[1], "lines") == 0)
		for (int i = 1; i <= value; i++)
			printf("line %d of %d\n", i, value);
	return 0;
}
