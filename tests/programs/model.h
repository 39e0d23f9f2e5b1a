/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The torture test's idea of memory: for each page, beside it, what it must hold.
 *
 * A page's content follows from (id, generation, poke). The id goes with the page when it is moved or
 * copied, the generation rises with each write of the whole page, and a poke is one word written alone. So a
 * wrong word says what it is: another page's, an older generation's, zeros, or torn. */
#ifndef MODEL_H
#define MODEL_H

#include "check.h"

enum state {
	ZERO,    /* never written since it was made or given back: must be zeros */
	WRITTEN, /* must be exactly (id, generation, poke) */
	FREED,   /* MADV_FREE: what WRITTEN says, or zeros */
};

struct page {
	uint64_t id;
	uint32_t generation;
	uint16_t poke; /* 1 + index of the word that was written alone; 0: none */
	uint8_t state;
	uint8_t by; /* the operation that made it so */
};

/* A mapping, or a piece of one, that one thread owns. */
struct area {
	char *base;
	size_t pages;
	struct page *model;
};

static inline uint64_t poke_word(const struct page *p)
{
	return mix(p->id ^ ((uint64_t)p->generation << 24) ^ p->poke);
}

/* The kinds of content that an engine treats differently, by generation: bits that do not compress, small
 * numbers, one repeated word, zeros after a header, and zeros that were written. */
static inline uint64_t model_word(const struct page *p, size_t i)
{
	uint64_t base = mix(p->id ^ ((uint64_t)p->generation << 44));

	if (p->poke && i == p->poke - 1u)
		return poke_word(p);
	switch (p->generation % 5) {
	case 0:
		return i < 2 ? (i ? p->generation : p->id) : 0;
	case 1:
		return i < 2 ? (i ? p->generation : p->id) : (base + i) * 0x9e3779b97f4a7c15u;
	case 2:
		return i < 2 ? (i ? p->generation : p->id) : (base + i) & 0xffff;
	case 3:
		return base;
	default:
		return 0;
	}
}

static inline char *page_at(const struct area *a, size_t index)
{
	return a->base + index * PAGE;
}

/* Who is at it, for the report; set by each thread for itself. */
extern __thread const char *whoami;
extern __thread uint8_t operation_now;
const char *history(void);
const char *operation_name(unsigned operation);

static inline void explain(const uint64_t *words, const struct page *p)
{
	struct page older = *p;
	size_t zeros = 0, wrong = 0;

	for (size_t i = 0; i < WORDS; i++) {
		zeros += !words[i];
		wrong += words[i] != model_word(p, i);
	}
	fprintf(stderr, "torture: in this page %zu of %zu words are wrong, %zu are zero\n", wrong, WORDS, zeros);
	for (older.poke = 0; older.generation-- > 0 && p->generation - older.generation < 1000;)
		for (size_t i = 2; i < WORDS && words[i] == model_word(&older, i) && words[i]; i++)
			if (i == WORDS - 1)
				fprintf(stderr, "torture: it is its own generation %u\n", older.generation);
}

static inline _Noreturn void wrong_byte(const uint64_t *words, const struct page *p, size_t i)
{
	uint64_t want = p->state == ZERO ? 0 : model_word(p, i);
	uint64_t again = *(const volatile uint64_t *)(words + i);

	fprintf(stderr,
		"torture: WRONG BYTES at address %p (%s): page id %" PRIx64 " generation %u poke %u state %d by %s, word %zu: "
		"expected %016" PRIx64 ", got %016" PRIx64 "\ntorture: page begins %016" PRIx64 " %016" PRIx64 " %016" PRIx64
		"\ntorture: last operations: %s\n",
		(const void *)(words + i), whoami, p->id, p->generation, p->poke, p->state, operation_name(p->by), i, want, again, words[0],
		words[1], words[2], history());
	explain(words, p);
	abort();
}

static inline int page_is_zero(const uint64_t *words)
{
	for (size_t i = 0; i < WORDS; i++)
		if (words[i])
			return 0;
	return 1;
}

static inline void page_verify(const char *at, const struct page *p)
{
	const uint64_t *words = (const uint64_t *)at;

	if (p->state == FREED && page_is_zero(words))
		return;
	for (size_t i = 0; i < WORDS; i++)
		if (words[i] != (p->state == ZERO ? 0 : model_word(p, i)))
			wrong_byte(words, p, i);
}

/* The whole page, in its next generation. */
static inline void page_write(char *at, struct page *p)
{
	uint64_t *words = (uint64_t *)at;

	p->generation++;
	p->poke = 0;
	for (size_t i = 0; i < WORDS; i++)
		words[i] = model_word(p, i);
	p->state = WRITTEN;
	p->by = operation_now;
}

/* One word, and the one that was poked before put right. */
static inline void page_poke(char *at, struct page *p, size_t i)
{
	uint64_t *words = (uint64_t *)at;
	size_t before = p->poke;

	p->poke = 0;
	if (before)
		words[before - 1] = model_word(p, before - 1);
	p->poke = (uint16_t)(i + 1);
	words[i] = poke_word(p);
	p->by = operation_now;
}

static inline void range_verify(const struct area *a, size_t first, size_t count)
{
	for (size_t i = first; i < first + count; i++)
		page_verify(page_at(a, i), &a->model[i]);
}

static inline void range_write(struct area *a, size_t first, size_t count)
{
	for (size_t i = first; i < first + count; i++)
		page_write(page_at(a, i), &a->model[i]);
}

static inline void range_is_now(struct area *a, size_t first, size_t count, enum state state)
{
	for (size_t i = first; i < first + count; i++) {
		/* Freeing what was zeros leaves zeros. */
		if (state == FREED && a->model[i].state == ZERO)
			continue;
		a->model[i].state = (uint8_t)state;
		a->model[i].by = operation_now;
		if (state == ZERO)
			a->model[i].poke = 0;
	}
}

/* Nobody knows which of the two a freed page is: write it, so that it can be copied. */
static inline void range_settle(struct area *a, size_t first, size_t count)
{
	for (size_t i = first; i < first + count; i++)
		if (a->model[i].state == FREED)
			page_write(page_at(a, i), &a->model[i]);
}

#endif
