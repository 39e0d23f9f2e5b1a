/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What codec.pyx needs of C: liblz4 and libzstd, found at run time (every distribution has them, few the headers), and
 * the splitting of a page into its words' bytes, which no library of the base system does. */
#ifndef USERSWAP_CODEC_H
#define USERSWAP_CODEC_H

#include <dlfcn.h>
#include <emmintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* The stable part of their interfaces, as lz4.h and zstd.h give it. */
struct codec_libraries {
	int (*lz4_state_size)(void);
	int (*lz4_compress)(void *state, const char *from, char *into, int length, int room, int acceleration);
	int (*lz4_decompress)(const char *from, char *into, int length, int room);
	void *(*zstd_new_compressor)(void);
	size_t (*zstd_free_compressor)(void *);
	size_t (*zstd_compress)(void *, void *into, size_t room, const void *from, size_t length, int level);
	void *(*zstd_new_decompressor)(void);
	size_t (*zstd_free_decompressor)(void *);
	size_t (*zstd_decompress)(void *, void *into, size_t room, const void *from, size_t length);
	unsigned (*zstd_is_error)(size_t);
};

static inline void *codec_symbol(void *library, const char *name, int *missing)
{
	void *symbol = library ? dlsym(library, name) : NULL;

	*missing |= !symbol;
	return symbol;
}

/* Returns what is there: bit 0 for lz4, bit 1 for zstd. */
static inline int codec_load(struct codec_libraries *found)
{
	void *lz4 = dlopen("liblz4.so.1", RTLD_NOW | RTLD_LOCAL);
	void *zstd = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
	int no_lz4 = 0, no_zstd = 0;

	*(void **)&found->lz4_state_size = codec_symbol(lz4, "LZ4_sizeofState", &no_lz4);
	*(void **)&found->lz4_compress = codec_symbol(lz4, "LZ4_compress_fast_extState", &no_lz4);
	*(void **)&found->lz4_decompress = codec_symbol(lz4, "LZ4_decompress_safe", &no_lz4);
	*(void **)&found->zstd_new_compressor = codec_symbol(zstd, "ZSTD_createCCtx", &no_zstd);
	*(void **)&found->zstd_free_compressor = codec_symbol(zstd, "ZSTD_freeCCtx", &no_zstd);
	*(void **)&found->zstd_compress = codec_symbol(zstd, "ZSTD_compressCCtx", &no_zstd);
	*(void **)&found->zstd_new_decompressor = codec_symbol(zstd, "ZSTD_createDCtx", &no_zstd);
	*(void **)&found->zstd_free_decompressor = codec_symbol(zstd, "ZSTD_freeDCtx", &no_zstd);
	*(void **)&found->zstd_decompress = codec_symbol(zstd, "ZSTD_decompressDCtx", &no_zstd);
	*(void **)&found->zstd_is_error = codec_symbol(zstd, "ZSTD_isError", &no_zstd);
	return (no_lz4 ? 0 : 1) | (no_zstd ? 0 : 2);
}

/* All even bytes, then all odd ones. `length` is a multiple of 32. */
static inline void codec_split(const uint8_t *from, uint8_t *into, size_t length)
{
	const __m128i low = _mm_set1_epi16(0xFF);
	uint8_t *odd = into + length / 2;

	for (size_t at = 0; at < length; at += 32) {
		__m128i a = _mm_loadu_si128((const __m128i *)(from + at));
		__m128i b = _mm_loadu_si128((const __m128i *)(from + at + 16));
		__m128i evens = _mm_packus_epi16(_mm_and_si128(a, low), _mm_and_si128(b, low));
		__m128i odds = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
		_mm_storeu_si128((__m128i *)(into + at / 2), evens);
		_mm_storeu_si128((__m128i *)(odd + at / 2), odds);
	}
}

static inline void codec_join(const uint8_t *from, uint8_t *into, size_t length)
{
	const uint8_t *odd = from + length / 2;

	for (size_t at = 0; at < length; at += 32) {
		__m128i a = _mm_loadu_si128((const __m128i *)(from + at / 2));
		__m128i b = _mm_loadu_si128((const __m128i *)(odd + at / 2));
		_mm_storeu_si128((__m128i *)(into + at), _mm_unpacklo_epi8(a, b));
		_mm_storeu_si128((__m128i *)(into + at + 16), _mm_unpackhi_epi8(a, b));
	}
}

#endif
