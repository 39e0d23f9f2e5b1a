// SPDX-License-Identifier: GPL-2.0-or-later
//
// Memory for swapoff.py to empty an area under: processes that hold random bits, overwrite them and check them.
//
//     holder PROCESSES MIB SEED BITS
//
// Each process holds MIB / PROCESSES MiB, in words of which the lowest BITS are random and the others 0. Once they are
// filled, and after each command on standard input, one JSON object a line: pages that were written or checked, major
// faults that this took, seconds. Commands:
//
//     age SECONDS     each overwrites pages at random for so long
//     check           each reads all its memory and compares every word with what it must be
//
// The end of standard input ends it. A wrong word ends it with status 1. What a page must hold follows from its
// process, its number and how often it was written, which is kept beside the memory.
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / sizeof(uint64_t), MAX_PROCESSES = 1024, CLOCK_EVERY = 16 };

struct order {
	char what; // 'f'ill, 'a'ge, 'c'heck
	double seconds;
};

struct answer {
	uint64_t pages;
	uint64_t faults;
};

static uint64_t *area;
static uint8_t *generation; // of each page: how often it was written
static uint64_t pages;
static uint64_t seed; // of this process
static uint64_t draws;
static uint64_t mask;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t major_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (uint64_t)usage.ru_majflt;
}

static uint64_t first_word(uint64_t page)
{
	return mix(seed ^ page ^ ((uint64_t)generation[page] << 56));
}

static void write_page(uint64_t page)
{
	uint64_t word;

	generation[page]++;
	word = first_word(page);
	for (int i = 0; i < WORDS; i++)
		area[page * WORDS + i] = mix(word + i) & mask;
}

static void check_page(uint64_t page)
{
	uint64_t word = first_word(page);

	for (int i = 0; i < WORDS; i++) {
		if (area[page * WORDS + i] == (mix(word + i) & mask))
			continue;
		fprintf(stderr, "holder: page %" PRIu64 ", word %d is wrong\n", page, i);
		_exit(1);
	}
}

static uint64_t fill(void)
{
	for (uint64_t page = 0; page < pages; page++)
		write_page(page);
	return pages;
}

static uint64_t age(double seconds)
{
	double end = now() + seconds;
	uint64_t done = 0;

	while (done % CLOCK_EVERY || now() < end) {
		write_page(mix(seed + draws++) % pages);
		done++;
	}
	return done;
}

static uint64_t check(void)
{
	for (uint64_t page = 0; page < pages; page++)
		check_page(page);
	return pages;
}

static void hold(int orders)
{
	struct order order;
	struct answer answer;

	generation = calloc(pages, 1);
	area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!generation || area == MAP_FAILED)
		_exit(2);
	madvise(area, pages * PAGE, MADV_NOHUGEPAGE); // one page size for all sides
	while (read(orders, &order, sizeof order) == sizeof order) {
		answer.faults = major_faults();
		answer.pages = order.what == 'f' ? fill() : order.what == 'a' ? age(order.seconds) : check();
		answer.faults = major_faults() - answer.faults;
		if (write(orders, &answer, sizeof answer) != sizeof answer)
			break;
	}
	_exit(0);
}

static int sockets[MAX_PROCESSES];
static int processes;

static void start_holder(uint64_t whole_seed)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0 || (pid = fork()) < 0) {
		perror("holder");
		exit(2);
	}
	if (pid == 0) {
		// Who keeps the others' ends would keep them alive.
		for (int i = 0; i < processes; i++)
			close(sockets[i]);
		close(pair[0]);
		seed = mix(whole_seed + (uint64_t)processes);
		hold(pair[1]);
	}
	close(pair[1]);
	sockets[processes++] = pair[0];
}

// All of them at the same time.
static void carry_out(struct order order)
{
	struct answer one, sum = {0, 0};
	double start = now();

	for (int i = 0; i < processes; i++)
		if (write(sockets[i], &order, sizeof order) != sizeof order)
			exit(1);
	for (int i = 0; i < processes; i++) {
		if (read(sockets[i], &one, sizeof one) != sizeof one) {
			fprintf(stderr, "holder: process %d has ended\n", i);
			exit(1);
		}
		sum.pages += one.pages;
		sum.faults += one.faults;
	}
	printf("{\"pages\": %" PRIu64 ", \"faults\": %" PRIu64 ", \"seconds\": %.6f}\n", sum.pages, sum.faults,
	       now() - start);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[64];
	int count = argc == 5 ? atoi(argv[1]) : 0;
	int bits = argc == 5 ? atoi(argv[4]) : 0;

	mask = bits >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << (bits & 63)) - 1;
	if (bits < 1 || count < 1 || count > MAX_PROCESSES ||
	    (pages = (strtoull(argv[2], NULL, 10) << 8) / (uint64_t)count) == 0) {
		fprintf(stderr, "usage: holder PROCESSES MIB SEED BITS\n");
		return 2;
	}
	while (processes < count)
		start_holder(mix(strtoull(argv[3], NULL, 10)) << 16);
	carry_out((struct order){'f', 0});
	while (fgets(line, sizeof line, stdin))
		carry_out((struct order){line[0], strtod(line + strcspn(line, " \n"), NULL)});
	for (int i = 0; i < processes; i++)
		close(sockets[i]);
	while (wait(NULL) > 0)
		;
	return 0;
}
