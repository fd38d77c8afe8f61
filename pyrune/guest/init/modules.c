/*
 * Kernel modules of the first ramdisk: distribution kernels have their virtio and vsock drivers in such files.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The Nitro Secure Module is the one device that may be absent: local VMs do not always have it. */
#define OPTIONAL_MODULE "nsm.ko"

static int may_be_absent(const char *path)
{
	const char *slash = strrchr(path, '/');

	return strcmp(slash ? slash + 1 : path, OPTIONAL_MODULE) == 0;
}

static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fatal("cannot open the kernel module %s", path);
	if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && !(errno == ENODEV && may_be_absent(path)))
		fatal("cannot load the kernel module %s", path);
	close(fd);
}

void load_modules(const char *list_path)
{
	struct list modules = read_list(list_path);

	for (size_t i = 0; i < modules.count; i++)
		if (*modules.entries[i])
			load_module(modules.entries[i]);
}
