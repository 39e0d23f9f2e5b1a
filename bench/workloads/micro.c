// SPDX-License-Identifier: GPL-2.0-or-later
//
// The small workloads of the benchmark: phases on one private anonymous area, each timed from inside and
// each checked. It knows nothing of who swaps it.
//
//     micro MIB OPS SEED FOLD
//
// prints one JSON object: seconds and units (pages, or operations) of each phase. The area is an array of
// 16-byte records of pseudo-random bits, so that compression gains nothing and the comparison is about
// paging; with a FOLD above 1 each page holds so many times the same. What a record must hold follows from its index
// and from the writes that were made to it; `sum` is kept from what must be there, never from what was read.
#define _GNU_SOURCE
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STRIDE = 16, THREADS = 4 };
#define FAULT 3e-6 // seconds

struct record {
	uint64_t key;
	uint64_t value;
};

enum { RECORDS_PER_PAGE = PAGE / sizeof(struct record) };

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint64_t seed;
static uint64_t fold; // how often the same records come in a page
static struct record *area;
static uint8_t *generation; // of each page's first record: how often it was written since the fill
static uint64_t sum;	    // of record_hash over all that must be in the area
static size_t pages;

static struct record expected(uint64_t index, unsigned gen)
{
	uint64_t at = index % RECORDS_PER_PAGE;
	uint64_t key = mix((index - at + at % (RECORDS_PER_PAGE / fold)) ^ seed ^ ((uint64_t)gen << 48));

	return (struct record){key, mix(key)};
}

static uint64_t record_hash(struct record r)
{
	return (r.key ^ (r.value >> 7)) * 0x9e3779b97f4a7c15u ^ r.value;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void wrong(const char *phase, uint64_t index)
{
	fprintf(stderr, "micro: %s: record %" PRIu64 " is wrong: %016" PRIx64 " %016" PRIx64 "\n", phase, index,
		area[index].key, area[index].value);
	abort();
}

static void check(const char *phase, uint64_t index, unsigned gen)
{
	struct record want = expected(index, gen);

	if (area[index].key != want.key || area[index].value != want.value)
		wrong(phase, index);
}

static uint64_t fill(void)
{
	for (uint64_t i = 0; i < pages * RECORDS_PER_PAGE; i++) {
		area[i] = expected(i, 0);
		sum += record_hash(area[i]);
	}
	return pages;
}

static uint64_t scan(void)
{
	for (uint64_t i = 0; i < pages * RECORDS_PER_PAGE; i++)
		check("scan", i, 0);
	return pages;
}

static uint64_t reverse_scan(void)
{
	for (uint64_t i = pages * RECORDS_PER_PAGE; i-- > 0;)
		check("reverse scan", i, 0);
	return pages;
}

// Columns of a matrix: one record of every STRIDE-th page, then of the next ones.
static uint64_t strided(void)
{
	for (uint64_t first = 0; first < STRIDE; first++)
		for (uint64_t page = first; page < pages; page += STRIDE)
			check("strided", page * RECORDS_PER_PAGE + first, 0);
	return pages;
}

// Ranks by Zipf's law with exponent 0.99, as in YCSB: Gray et al., Quickly Generating Billion-Record
// Synthetic Databases, SIGMOD 1994. A rank's page is anywhere.
static uint64_t zipf_reads(uint64_t ops)
{
	const double theta = 0.99, alpha = 1 / (1 - theta);
	double zeta = 0, two = 1 + pow(0.5, theta);

	for (uint64_t i = 1; i <= pages; i++)
		zeta += pow(1 / (double)i, theta);
	double eta = (1 - pow(2.0 / (double)pages, 1 - theta)) / (1 - two / zeta);
	for (uint64_t k = 0; k < ops; k++) {
		double u = (double)(mix(seed * 3 + k) >> 11) * 0x1p-53, uz = u * zeta;
		uint64_t rank = uz < 1 ? 0 : uz < two ? 1 : (uint64_t)((double)pages * pow(eta * u - eta + 1, alpha));

		check("zipf reads", mix(seed ^ rank) % pages * RECORDS_PER_PAGE, 0);
	}
	return ops;
}

static void *scan_part(void *part)
{
	uint64_t each = pages / THREADS * RECORDS_PER_PAGE, first = (uint64_t)(uintptr_t)part * each;

	for (uint64_t i = first; i < first + each; i++)
		check("scan by threads", i, 0);
	return NULL;
}

static uint64_t scan_by_threads(void)
{
	pthread_t threads[THREADS];

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, scan_part, (void *)i))
			abort();
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return pages / THREADS * THREADS;
}

// A child that looks at a few pages, most of them swapped, and ends.
static uint64_t fork_once(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		for (uint64_t k = 0; k < 256; k++)
			check("fork", mix(seed * 5 + k) % pages * RECORDS_PER_PAGE, 0);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		abort();
	return pages;
}

// How long each took goes to `seconds`.
static uint64_t random_reads(uint64_t ops, double *seconds)
{
	double before = now();

	for (uint64_t k = 0; k < ops; k++) {
		check("random reads", mix(seed + k) % (pages * RECORDS_PER_PAGE), 0);
		double after = now();
		seconds[k] = after - before;
		before = after;
	}
	return ops;
}

// Writes without reading first, as a program that stores does; the sort's check finds what was lost.
static uint64_t random_writes(uint64_t ops)
{
	for (uint64_t k = 0; k < ops; k++) {
		uint64_t page = mix(~seed + k) % pages;
		uint64_t index = page * RECORDS_PER_PAGE;

		sum -= record_hash(expected(index, generation[page]));
		area[index] = expected(index, ++generation[page]);
		sum += record_hash(expected(index, generation[page]));
	}
	return ops;
}

static void swap(struct record *a, struct record *b)
{
	struct record t = *a;

	*a = *b;
	*b = t;
}

static void insertion_sort(struct record *a, size_t n)
{
	for (size_t i = 1; i < n; i++)
		for (size_t j = i; j > 0 && a[j].key < a[j - 1].key; j--)
			swap(&a[j], &a[j - 1]);
}

static uint64_t median_of_three(const struct record *a, size_t n)
{
	uint64_t x = a[0].key, y = a[n / 2].key, z = a[n - 1].key;

	if (x < y)
		return y < z ? y : (x < z ? z : x);
	return x < z ? x : (y < z ? z : y);
}

// Hoare's quicksort: in place, sequential from both ends, as most library sorts are at this size.
static void quicksort(struct record *a, size_t n)
{
	while (n > 24) {
		uint64_t pivot = median_of_three(a, n);
		size_t i = 0, j = n - 1;

		for (;; i++, j--) {
			while (a[i].key < pivot)
				i++;
			while (a[j].key > pivot)
				j--;
			if (i >= j)
				break;
			swap(&a[i], &a[j]);
		}
		quicksort(a, i);
		a += i;
		n -= i;
	}
	insertion_sort(a, n);
}

static uint64_t sort(void)
{
	quicksort(area, pages * RECORDS_PER_PAGE);
	return pages;
}

static uint64_t verify(void)
{
	uint64_t got = 0;

	for (uint64_t i = 0; i < pages * RECORDS_PER_PAGE; i++) {
		if ((i && area[i - 1].key > area[i].key) || area[i].value != mix(area[i].key))
			wrong("sort", i);
		got += record_hash(area[i]);
	}
	if (got != sum) {
		fprintf(stderr, "micro: a record was lost: sum %016" PRIx64 ", not %016" PRIx64 "\n", got, sum);
		abort();
	}
	return pages;
}

static uint64_t teardown(void)
{
	if (munmap(area, pages * PAGE))
		abort();
	return pages;
}

static void report(const char *name, double start, uint64_t units, const char *end)
{
	printf("\"%s\": {\"seconds\": %.6f, \"units\": %" PRIu64 "}%s", name, now() - start, units, end);
	fflush(stdout);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

// The median and the 99th percentile of the reads that found no page in memory: even the quickest of swaps takes longer
// than FAULT, and nothing else does as a rule.
static void report_faults(double *seconds, uint64_t ops)
{
	uint64_t first = 0;

	qsort(seconds, ops, sizeof(*seconds), compare);
	while (first < ops && seconds[first] < FAULT)
		first++;
	if (first == ops) // all was in memory
		return;
	printf("\"a random fault, median\": {\"seconds\": %.7f, \"units\": 1}, ", seconds[first + (ops - first) / 2]);
	printf("\"a random fault, p99\": {\"seconds\": %.7f, \"units\": 1}, ",
	       seconds[first + (ops - first) * 99 / 100]);
}

int main(int argc, char **argv)
{
	uint64_t ops;
	double t, *seconds;

	if (argc != 5) {
		fprintf(stderr, "usage: micro MIB OPS SEED FOLD\n");
		return 2;
	}
	pages = strtoull(argv[1], NULL, 10) << 8;
	ops = strtoull(argv[2], NULL, 10);
	seed = mix(strtoull(argv[3], NULL, 10));
	fold = strtoull(argv[4], NULL, 10);
	generation = calloc(pages, 1);
	area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	seconds = calloc(ops, sizeof(*seconds));
	if (!pages || !fold || fold > RECORDS_PER_PAGE || !generation || !seconds || area == MAP_FAILED) {
		perror("micro");
		return 2;
	}
	// One page size for all: the kernel's huge pages would make the first fill another benchmark.
	madvise(area, pages * PAGE, MADV_NOHUGEPAGE);

	putchar('{');
	t = now(), report("first fill", t, fill(), ", ");
	t = now(), report("sequential scan", t, scan(), ", ");
	t = now(), report("reverse scan", t, reverse_scan(), ", ");
	t = now(), report("strided", t, strided(), ", ");
	t = now(), report("scan by threads", t, scan_by_threads(), ", ");
	t = now(), report("random reads", t, random_reads(ops, seconds), ", ");
	report_faults(seconds, ops);
	t = now(), report("zipf reads", t, zipf_reads(ops), ", ");
	t = now(), report("fork", t, fork_once(), ", ");
	t = now(), report("random writes", t, random_writes(ops), ", ");
	t = now(), report("sort", t, sort(), ", ");
	t = now(), report("scan of the sorted", t, verify(), ", ");
	t = now(), report("teardown", t, teardown(), "}\n");
	return 0;
}
