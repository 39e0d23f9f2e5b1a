// SPDX-License-Identifier: GPL-2.0-or-later
// MIB COUNT: uses so much memory, then forks so often. Prints the microseconds that each fork took its parent.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t bytes = argc > 2 ? strtoul(argv[1], NULL, 10) << 20 : 0;
	char *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (argc < 3 || area == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < bytes; i += 64)
		area[i] = (char)(i * 7);
	for (long left = strtol(argv[2], NULL, 10); left > 0; left--) {
		struct timespec start, end;
		pid_t child;

		clock_gettime(CLOCK_MONOTONIC, &start);
		child = fork();
		if (child == 0)
			_exit(0);
		clock_gettime(CLOCK_MONOTONIC, &end);
		if (child < 0 || waitpid(child, NULL, 0) != child)
			return 1;
		printf("%ld\n", (end.tv_sec - start.tv_sec) * 1000000 + (end.tv_nsec - start.tv_nsec) / 1000);
	}
	return 0;
}
