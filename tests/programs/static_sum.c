// SPDX-License-Identifier: GPL-2.0-or-later
//
// For builds without a dynamic linker or with another C library: fills an array, sorts it by counting on
// malloc'ed buckets, and prints a checksum of it.
//
//     static_sum MIB
#include "check.h"

static uint64_t checksum(const uint64_t *words, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum = (sum ^ words[i]) * 0x100000001b3u;
	return sum;
}

// One pass of a radix sort by the highest byte.
static void distribute(const uint64_t *from, uint64_t *to, size_t n)
{
	size_t start[257] = {0};

	for (size_t i = 0; i < n; i++)
		start[(from[i] >> 56) + 1]++;
	for (size_t b = 0; b < 256; b++)
		start[b + 1] += start[b];
	for (size_t i = 0; i < n; i++)
		to[start[from[i] >> 56]++] = from[i];
}

int main(int argc, char **argv)
{
	size_t n = ballast_bytes(argc, argv) / sizeof(uint64_t) / 2;
	uint64_t *words = malloc(n * sizeof(*words)), *sorted = malloc(n * sizeof(*sorted));

	REQUIRE(words && sorted);
	for (size_t i = 0; i < n; i++)
		words[i] = mix(i);
	distribute(words, sorted, n);
	for (size_t i = 0; i < n; i++)
		REQUIRE(words[i] == mix(i));
	printf("%016" PRIx64 "\n", checksum(sorted, n));
	free(words);
	free(sorted);
	return done();
}
