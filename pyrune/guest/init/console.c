/*
 * The console: the only way out for words. On Nitro nobody reads it unless the enclave is in debug mode.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>

/* Longer lines are cut: a path may have 4096 bytes, a console line is for reading. */
#define LINE_BYTES 1024

/* Bytes leave the console as they were written: a terminal at the far end adds its own carriage returns. */
static void write_verbatim(int fd)
{
	struct termios mode;

	if (tcgetattr(fd, &mode) == 0) {
		mode.c_oflag &= ~(tcflag_t)OPOST;
		tcsetattr(fd, TCSANOW, &mode);
	}
}

void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	/* A kernel without a console device: programs still want three open descriptors. */
	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	if (fd < 0)
		return;
	for (int standard = STDIN_FILENO; standard <= STDERR_FILENO; standard++)
		if (fd != standard)
			dup2(fd, standard);
	if (fd > STDERR_FILENO)
		close(fd);
	write_verbatim(STDOUT_FILENO);
}

/* One write per line, so that lines of several processes do not mix. `problem` is an errno, or 0. */
static void write_line(const char *format, va_list values, int problem)
{
	static const char name[] = "pyrune-init: ";
	char line[LINE_BYTES];
	const char *words = problem ? strerror(problem) : "";
	size_t room = sizeof line - sizeof name - strlen(words) - sizeof ": \n";
	size_t end = sizeof name - 1;
	int length;

	memcpy(line, name, end);
	length = vsnprintf(line + end, room, format, values);
	end += length < 0 ? 0 : (size_t)length < room ? (size_t)length : room - 1;
	if (problem)
		end += (size_t)sprintf(line + end, ": %s", words);
	line[end++] = '\n';
	if (write(STDERR_FILENO, line, end) < 0)
		return; /* there is no other place to say it */
}

void say(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	write_line(format, values, 0);
	va_end(values);
}

void fatal(const char *format, ...)
{
	va_list values;
	int problem = errno;

	va_start(values, format);
	write_line(format, values, problem);
	va_end(values);
	end_enclave();
}

/* The kernel announces a reboot, at its highest level, after the application's last word. A panic before this point is
 * still shown, which it would not be with loglevel=0 on the command line. */
static void silence_kernel(void)
{
	int fd = open("/proc/sys/kernel/printk", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "0", 1) == 1)
		close(fd);
}

void end_enclave(void)
{
	flush_vsock();
	silence_kernel();
	/* A serial port sends for a while after the last write, and a reset does not wait for it. */
	tcdrain(STDOUT_FILENO);
	sync();
	reboot(RB_AUTOBOOT);
	/* Not reached on any machine that runs enclaves; without panic= on the command line, returning would hang. */
	reboot(RB_POWER_OFF);
	_exit(1);
}
