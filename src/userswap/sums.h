/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * CRC-32C, by the instruction that processors since 2008 have; else by a table. Four parts of what is to be summed go
 * side by side, as the instruction takes three cycles and one can begin each cycle; their sums are summed in the end.
 */
#ifndef USERSWAP_SUMS_H
#define USERSWAP_SUMS_H

#include <nmmintrin.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t sums_word(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof word);
	return word;
}

__attribute__((target("sse4.2"))) static inline uint32_t sums_fast(const uint8_t *data, uint32_t length)
{
	const uint32_t part = length / 32 * 8;
	uint64_t a = ~0U, b = ~0U, c = ~0U, d = ~0U;

	for (uint32_t at = 0; at < part; at += 8) {
		a = _mm_crc32_u64(a, sums_word(data + at));
		b = _mm_crc32_u64(b, sums_word(data + part + at));
		c = _mm_crc32_u64(c, sums_word(data + 2 * part + at));
		d = _mm_crc32_u64(d, sums_word(data + 3 * part + at));
	}
	a = _mm_crc32_u64(a, b | c << 32);
	for (uint32_t at = 4 * part; at < length; at++)
		d = _mm_crc32_u8((uint32_t)d, data[at]);
	return (uint32_t)_mm_crc32_u64(a, d);
}

static inline uint64_t sums_step(uint64_t sum, uint64_t word, int bits)
{
	static uint32_t table[256];

	for (uint32_t i = 0; !table[128] && i < 256; i++) { /* any thread may fill it: with the same */
		uint32_t entry = i;
		for (int bit = 0; bit < 8; bit++)
			entry = entry >> 1 ^ (entry & 1 ? 0x82f63b78U : 0);
		__atomic_store_n(&table[i], entry, __ATOMIC_RELEASE);
	}
	for (int bit = 0; bit < bits; bit += 8)
		sum = table[(sum ^ word >> bit) & 0xff] ^ (uint32_t)sum >> 8;
	return sum;
}

/* As sums_fast, on a processor without the instruction. */
static inline uint32_t sums_slow(const uint8_t *data, uint32_t length)
{
	const uint32_t part = length / 32 * 8;
	uint64_t sums[4] = {~0U, ~0U, ~0U, ~0U};

	for (uint32_t at = 0; at < part; at += 8)
		for (uint32_t i = 0; i < 4; i++)
			sums[i] = sums_step(sums[i], sums_word(data + i * part + at), 64);
	sums[0] = sums_step(sums[0], sums[1] | sums[2] << 32, 64);
	for (uint32_t at = 4 * part; at < length; at++)
		sums[3] = sums_step(sums[3], data[at], 8);
	return (uint32_t)sums_step(sums[0], sums[3], 64);
}

static inline uint32_t sums_of(const uint8_t *data, uint32_t length)
{
	return __builtin_cpu_supports("sse4.2") ? sums_fast(data, length) : sums_slow(data, length);
}

#endif
