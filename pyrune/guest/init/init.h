/*
 * The first process of an enclave image that pyrune builds: what its parts offer each other.
 *
 * It is static, needs nothing newer than Linux 4.14 (the oldest kernel that AWS ships for enclaves), and is measured:
 * its bytes are part of PCR0 and PCR1. Nothing here is a service: every step happens once, in the order of init.c.
 *
 * No step returns an error. What cannot be done is said in one line on the console, and the enclave ends.
 */
#ifndef PYRUNE_INIT_H
#define PYRUNE_INIT_H

#include <stddef.h>

/* console.c */

/* Make the kernel's console the standard input and outputs of this process and its children; /dev/null if there
 * is none. */
void open_console(void);

/* One line on the console, under this program's name. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* say(), with errno in words where it is not 0; then the enclave ends. */
_Noreturn void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* End the enclave: what was printed goes out first. There is no status: a reboot carries none. */
_Noreturn void end_enclave(void);

/* list.c */

/* Lines of a file, without their ends; entries[count] is NULL, as execve wants it. */
struct list {
	char **entries;
	size_t count;
};

/* A file that does not exist has no lines. A last line needs no end; empty lines count. */
struct list read_list(const char *path);

/* modules.c */

/* Load the kernel modules that this file lists, in its order; no file, no modules. */
void load_modules(const char *list_path);

/* network.c */

/* Bring lo up: a kernel starts with it down, and programs expect 127.0.0.1. */
void bring_loopback_up(void);

/* Tell the parent, by the heartbeat that AWS's own init sends, that the enclave is up; wait for its answer. */
void exchange_heartbeat(void);

/* Wait until the parent has what was sent to it over vsock. */
void flush_vsock(void);

/* mounts.c */

/* Mount devtmpfs on /dev: everything that is said needs it, so a failure is left for open_console to meet. */
void mount_devices(void);

/* Make this directory the root, for good. */
void enter_root(const char *directory);

/* Mount what a program expects of a Linux system. */
void mount_system(void);

/* application.c */

/* Run a program, found by the PATH of its own environment, and reap whatever ends until it does. Returns its status,
 * as wait has it. */
int run_application(char **arguments, char **environment);

/* Say how a program ended, if that was not with 0. */
void report_end(int status);

#endif
