/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What cipher.pyx needs of C: AES of libcrypto (OpenSSL 3), found at run time, with a context for each thread. */
#ifndef USERSWAP_CIPHER_H
#define USERSWAP_CIPHER_H

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

/* The stable part of its interface, as evp.h gives it. */
struct cipher_library {
	void *(*fetch)(void *library, const char *algorithm, const char *properties);
	void *(*context_new)(void);
	void (*context_free)(void *context);
	int (*init)(void *context, const void *cipher, void *engine, const unsigned char *key, const unsigned char *iv,
		    int encrypts);
	int (*update)(void *context, unsigned char *into, int *length, const unsigned char *from, int room);
	void *xts;
	pthread_key_t contexts;
};

static struct cipher_library cipher;

/* Whether AES-256-XTS is there. To be called before the others, by one thread. */
static inline int cipher_load(void)
{
	void *library;

	if (cipher.xts)
		return 1;
	library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return 0;
	*(void **)&cipher.fetch = dlsym(library, "EVP_CIPHER_fetch");
	*(void **)&cipher.context_new = dlsym(library, "EVP_CIPHER_CTX_new");
	*(void **)&cipher.context_free = dlsym(library, "EVP_CIPHER_CTX_free");
	*(void **)&cipher.init = dlsym(library, "EVP_CipherInit_ex");
	*(void **)&cipher.update = dlsym(library, "EVP_CipherUpdate");
	if (!cipher.fetch || !cipher.context_new || !cipher.context_free || !cipher.init || !cipher.update)
		return 0;
	if (pthread_key_create(&cipher.contexts, cipher.context_free) != 0)
		return 0;
	cipher.xts = cipher.fetch(NULL, "AES-256-XTS", NULL);
	return cipher.xts != NULL;
}

/* This thread's. NULL without memory. */
static inline void *cipher_context(void)
{
	void *context = pthread_getspecific(cipher.contexts);

	if (!context) {
		context = cipher.context_new();
		if (context && pthread_setspecific(cipher.contexts, context) != 0) {
			cipher.context_free(context);
			return NULL;
		}
	}
	return context;
}

/*
 * En- or decrypts pieces of `piece` bytes that lie one after the other, `from` where they come to lie or elsewhere.
 * `number` is that of the first on its medium, which has the name `medium`: equal bytes look different in each place.
 * Returns whether that was done.
 */
static inline int cipher_pieces(const uint8_t *key, int encrypts, uint64_t medium, uint64_t number, const uint8_t *from,
				uint8_t *into, size_t length, size_t piece)
{
	void *context = cipher_context();
	uint64_t tweak[2] = {number, medium};
	int done = 0;

	if (!context || !cipher.init(context, cipher.xts, NULL, key, (const unsigned char *)tweak, encrypts))
		return 0;
	for (size_t at = 0; at < length; at += piece) {
		tweak[0] = number + at / piece;
		if (!cipher.init(context, NULL, NULL, NULL, (const unsigned char *)tweak, -1) ||
		    !cipher.update(context, into + at, &done, from + at, (int)piece) || done != (int)piece)
			return 0;
	}
	return 1;
}

#endif
