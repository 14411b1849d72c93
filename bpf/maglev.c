/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Maglev tables, for user space: the control plane calls this through cffi.
 *
 * A table depends on nothing but which backends there are: neither their order nor their ids matter, so every node
 * makes the same one. When a backend goes, few slots but its own change.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* No backend's id: marks a slot that is free yet. */
#define FREE UINT32_MAX

struct candidate {
	uint64_t identity;
	uint32_t id;
	uint32_t next; /* the slot that it wants next */
	uint32_t skip; /* odd, so coprime to the size of the table: it gets round to every slot */
};

/* The finalizer of splitmix64: each bit of the input changes half of the output's. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

/* Hashes `count` keys of `size` bytes each: FNV-1a, mixed. The same on machines of either byte order. */
void maglev_identities(uint64_t *identities, const uint8_t *keys, uint32_t size, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++, keys += size) {
		uint64_t hash = 0xcbf29ce484222325ULL;

		for (uint32_t j = 0; j < size; j++)
			hash = (hash ^ keys[j]) * 0x100000001b3ULL;
		identities[i] = mix(hash);
	}
}

static int by_identity(const void *left, const void *right)
{
	const struct candidate *a = left, *b = right;

	if (a->identity != b->identity)
		return a->identity < b->identity ? -1 : 1;
	return a->id < b->id ? -1 : a->id > b->id;
}

/*
 * Fills the 2^log2_size slots of `table` with the ids of `count` backends, in turns: each takes the next slot of its
 * own permutation that is free. Returns 0, -EINVAL (no backend, more backends than slots, or an id of all ones) or
 * -ENOMEM.
 */
int maglev_fill(uint32_t *table, uint32_t log2_size, const uint64_t *identities, const uint32_t *ids, uint32_t count)
{
	struct candidate *candidates;
	uint32_t mask, filled = 0;

	if (log2_size > 31 || !count || count > 1U << log2_size)
		return -EINVAL;
	mask = (1U << log2_size) - 1;
	candidates = malloc(count * sizeof(*candidates));
	if (!candidates)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t permutation = mix(identities[i] + 0x9e3779b97f4a7c15ULL);

		if (ids[i] == FREE) {
			free(candidates);
			return -EINVAL;
		}
		candidates[i] = (struct candidate){
			.identity = identities[i],
			.id = ids[i],
			.next = permutation & mask,
			.skip = ((permutation >> 32) & mask) | 1,
		};
	}
	qsort(candidates, count, sizeof(*candidates), by_identity);

	memset(table, 0xff, sizeof(*table) << log2_size);
	for (struct candidate *c = candidates; filled <= mask; filled++) {
		while (table[c->next] != FREE)
			c->next = (c->next + c->skip) & mask;
		table[c->next] = c->id;
		if (++c == candidates + count)
			c = candidates;
	}
	free(candidates);
	return 0;
}
