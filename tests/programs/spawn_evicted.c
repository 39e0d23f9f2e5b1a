// SPDX-License-Identifier: GPL-2.0-or-later
//
// posix_spawn with pages out, its arguments among them: what the new program prints must be the arguments.
#include "check.h"

#include <spawn.h>

extern char **environ;

static void read_all(int fd, char *text, size_t size)
{
	ssize_t got;

	while (size && (got = read(fd, text, size)) > 0) {
		text += got;
		size -= (size_t)got;
	}
	REQUIRE(!size && read(fd, text, 1) == 0);
}

int main(int argc, char **argv)
{
	const size_t size = 8 * MIB, length = 50000;
	char *area = map_filled(size, 1), *text = map(64 * 1024), *got = map(64 * 1024);
	char *arguments[] = {(char *)"printf", (char *)"%s", text, NULL};

	for (size_t i = 0; i < length; i++)
		text[i] = (char)('a' + mix(i) % 26);
	push_out(area, size, ballast_bytes(argc, argv));
	for (int round = 0; round < 5; round++) {
		posix_spawn_file_actions_t actions;
		int ends[2];
		pid_t child;

		REQUIRE(!pipe(ends) && !posix_spawn_file_actions_init(&actions));
		REQUIRE(!posix_spawn_file_actions_adddup2(&actions, ends[1], 1));
		REQUIRE(!posix_spawn_file_actions_addclose(&actions, ends[0]));
		REQUIRE(!posix_spawn_file_actions_addclose(&actions, ends[1]));
		REQUIRE(!posix_spawn(&child, "/usr/bin/printf", &actions, NULL, arguments, environ));
		close(ends[1]);
		read_all(ends[0], got, length);
		close(ends[0]);
		wait_for(child);
		REQUIRE(!memcmp(got, text, length));
		posix_spawn_file_actions_destroy(&actions);
	}
	verify(area, size, 1);
	return done();
}
