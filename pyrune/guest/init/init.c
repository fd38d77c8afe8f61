/*
 * The order of things, from the kernel's hand-over to the end of the enclave.
 *
 * The image is laid out as nitro-cli does it: a first ramdisk holds this program (/init), /dev, and the kernel's modules
 * with their list; a second one holds the application: its root file system, and its arguments and environment with
 * one entry per line. The kernel has unpacked both into its first root.
 */
#include "init.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODULES "/modules.load"
#define ARGUMENTS "/cmd"
#define ENVIRONMENT "/env"
#define ROOT "/rootfs"

/* Anywhere but in an enclave, the end of this program would restart somebody's machine. */
static void refuse_other_places(void)
{
	static const char text[] = "pyrune-init: this is the first process of an enclave; it runs nowhere else\n";

	if (getpid() == 1)
		return;
	if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
		_exit(3);
	_exit(2);
}

int main(void)
{
	struct list arguments, environment;

	/* Kernels pass what they do not understand of their command line, such as AWS's "nomodules": no arguments here. */
	refuse_other_places();
	umask(022);
	mount_devices();
	open_console();

	load_modules(MODULES);
	bring_loopback_up();

	arguments = read_list(ARGUMENTS);
	environment = read_list(ENVIRONMENT);
	if (arguments.count == 0) {
		errno = 0;
		fatal("the image names no program: %s is missing or empty", ARGUMENTS);
	}
	enter_root(ROOT);
	mount_system();

	exchange_heartbeat();
	report_end(run_application(arguments.entries, environment.entries));
	end_enclave();
}
