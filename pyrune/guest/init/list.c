/*
 * Files of the ramdisk that hold one entry per line. They are measured, so their author is the image's author.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file's bytes and a final NUL, in memory that is never freed. NULL if there is no such file. */
static char *read_whole(const char *path, size_t *length)
{
	struct stat status;
	size_t filled = 0;
	char *text;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT)
		return NULL;
	if (fd < 0 || fstat(fd, &status) < 0)
		fatal("cannot read %s", path);
	text = malloc((size_t)status.st_size + 1);
	if (!text)
		fatal("no memory for the %lld bytes of %s", (long long)status.st_size, path);
	while (filled < (size_t)status.st_size) {
		ssize_t count = read(fd, text + filled, (size_t)status.st_size - filled);

		if (count < 0)
			fatal("cannot read %s", path);
		if (count == 0)
			break;
		filled += (size_t)count;
	}
	close(fd);
	text[filled] = '\0';
	*length = filled;
	return text;
}

struct list read_list(const char *path)
{
	struct list list = { NULL, 0 };
	size_t length = 0, lines = 0;
	char *text = read_whole(path, &length);

	for (size_t i = 0; i < length; i++)
		lines += text[i] == '\n';
	if (length && text[length - 1] != '\n')
		lines++;
	list.entries = calloc(lines + 1, sizeof *list.entries);
	if (!list.entries)
		fatal("no memory for the %zu lines of %s", lines, path);
	for (char *line = text; list.count < lines; list.count++) {
		list.entries[list.count] = line;
		line += strcspn(line, "\n");
		*line++ = '\0';
	}
	return list;
}
