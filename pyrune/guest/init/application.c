/*
 * The application: one process that the image names, and whatever it leaves behind.
 */
#include "init.h"

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* What shells say of a program that is not there, and of one that does not run. */
#define STATUS_NOT_FOUND 127
#define STATUS_NOT_RUNNABLE 126

extern char **environ;

static _Noreturn void become(char **arguments, char **environment)
{
	int problem;

	setsid();
	/* execvp searches the PATH of the environment that is current, which is then the one that the program gets. */
	environ = environment;
	execvp(arguments[0], arguments);
	problem = errno;
	say("cannot run %s: %s", arguments[0], strerror(problem));
	_exit(problem == ENOENT ? STATUS_NOT_FOUND : STATUS_NOT_RUNNABLE);
}

int run_application(char **arguments, char **environment)
{
	int status;
	pid_t ended, application = fork();

	if (application < 0)
		fatal("cannot start a process");
	if (application == 0)
		become(arguments, environment);
	/* Orphans of the application end up here too. */
	do
		ended = wait(&status);
	while (ended != application && (ended > 0 || errno == EINTR));
	if (ended < 0)
		fatal("lost the application");
	return status;
}

void report_end(int status)
{
	if (WIFSIGNALED(status))
		say("the application was ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else if (WEXITSTATUS(status) != 0)
		say("the application ended with status %d", WEXITSTATUS(status));
}
