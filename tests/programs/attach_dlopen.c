// SPDX-License-Identifier: GPL-2.0-or-later
//
// Loads and unloads a library all the time, in four threads, and checks memory of its own meanwhile, until its standard
// input can be read. Prints "ready", and at the end "good" and how often.
#include "check.h"

#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>

static _Atomic unsigned rounds;
static _Atomic bool over;

static void *load(void *argument)
{
	(void)argument;
	while (!over) {
		void *library = dlopen("libm.so.6", RTLD_NOW | RTLD_LOCAL);

		REQUIRE(library);
		REQUIRE(((double (*)(double))(uintptr_t)dlsym(library, "floor"))(3.5) == 3.0);
		REQUIRE(!dlclose(library));
		rounds++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const size_t size = ballast_bytes(argc, argv);
	char *area = map_filled(size, 1);
	struct pollfd input = {.fd = 0, .events = POLLIN};
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, load, NULL));
	printf("ready\n");
	fflush(stdout);
	while (poll(&input, 1, 0) == 0)
		verify(area, size, 1);
	over = true;
	for (int i = 0; i < 4; i++)
		REQUIRE(!pthread_join(threads[i], NULL));
	printf("good %u\n", rounds);
	return 0;
}
