/*
 * Mounts: the devices for this program, then the application's root and what Linux programs expect in it.
 */
#include "init.h"

#include <errno.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

struct mount_point {
	const char *path;
	const char *type;
	unsigned long flags;
	const char *options;
};

static const struct mount_point system_mounts[] = {
	{ "/dev", "devtmpfs", MS_NOSUID, "mode=0755" },
	{ "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666" },
	{ "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" },
	{ "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
	{ "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
	{ "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755" },
	{ "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" },
};

static const struct {
	const char *target;
	const char *path;
} device_links[] = {
	{ "/proc/self/fd", "/dev/fd" },
	{ "/proc/self/fd/0", "/dev/stdin" },
	{ "/proc/self/fd/1", "/dev/stdout" },
	{ "/proc/self/fd/2", "/dev/stderr" },
};

void mount_devices(void)
{
	mkdir("/dev", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
}

void enter_root(const char *directory)
{
	/* The kernel's first root cannot be left by pivot_root; it is covered instead. A mount can be moved, so make one. */
	if (mount(directory, directory, NULL, MS_BIND, NULL) < 0)
		fatal("the image has no usable root file system in %s", directory);
	if (chdir(directory) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fatal("cannot make %s the root", directory);
}

static void mount_one(const struct mount_point *point)
{
	if (mkdir(point->path, 0755) < 0 && errno != EEXIST)
		fatal("cannot make the directory %s", point->path);
	if (mount(point->type, point->path, point->type, point->flags, point->options) == 0)
		return;
	/* The kernel was built without it: programs that need it will tell. */
	if (errno != ENODEV)
		fatal("cannot mount %s on %s", point->type, point->path);
	say("this kernel has no %s: nothing is mounted on %s", point->type, point->path);
}

void mount_system(void)
{
	for (size_t i = 0; i < sizeof system_mounts / sizeof *system_mounts; i++)
		mount_one(&system_mounts[i]);
	for (size_t i = 0; i < sizeof device_links / sizeof *device_links; i++)
		if (symlink(device_links[i].target, device_links[i].path) < 0 && errno != EEXIST)
			fatal("cannot make the link %s", device_links[i].path);
}
