// SPDX-License-Identifier: GPL-2.0-or-later
//
// How long a fault takes, as a program sees it.
//
//     fault_probe SECONDS MIB INTERVAL
//
// Reads random words of MIB of its own, a thousand a second at most, checks each, and every INTERVAL seconds says
// for those whose page was not there how many they were and what they took, in microseconds:
// "faults=N p50=... p99=... p999=... most=...".
#include "check.h"

#include <fcntl.h>
#include <stdbool.h>
#include <time.h>

enum {
	ROOM = 1 << 20,
	PAUSE_US = 1000,
};

static double took[ROOM];

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int ascending(const void *one, const void *other)
{
	const double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

static bool is_there(int pagemap, const char *at)
{
	uint64_t entry;

	REQUIRE(pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)at / PAGE * sizeof(entry))) == sizeof(entry));
	return entry >> 63;
}

static void say(size_t count)
{
	qsort(took, count, sizeof(*took), ascending);
	printf("faults=%zu p50=%.0f p99=%.0f p999=%.0f most=%.0f\n", count, took[count / 2], took[count * 99 / 100],
	       took[count * 999 / 1000], count ? took[count - 1] : 0);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	REQUIRE(argc == 4);
	const double end = now_us() + atof(argv[1]) * 1e6, interval = atof(argv[3]) * 1e6;
	const size_t size = strtoul(argv[2], NULL, 10) * MIB;
	const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double next = now_us() + interval;
	size_t count = 0;
	uint64_t turn = 0;

	REQUIRE(pagemap >= 0 && area != MAP_FAILED);
	fill(area, size, 1);
	while (now_us() < end) {
		const uint64_t page = mix(turn++) % (size / PAGE);
		const bool there = is_there(pagemap, area + page * PAGE);
		const double start = now_us();
		const uint64_t got = *(volatile uint64_t *)(area + page * PAGE);

		if (!there && count < ROOM)
			took[count++] = now_us() - start;
		if (got != page_word(1, page, 0))
			wrong_word(area + page * PAGE, page, page_word(1, page, 0), got);
		if (now_us() > next) {
			say(count);
			count = 0;
			next += interval;
		}
		usleep(PAUSE_US);
	}
	puts("ok");
	return 0;
}
