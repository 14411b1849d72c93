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

/*
 * A backend and its permutation of the slots: at = offset, offset + skip, ..., scrambled. An odd skip is coprime to the
 * size of the table, and a multiplication by an odd number can be undone, so no slot is left out. Without scrambling,
 * two backends with similar skips get in each other's way: up to a third of a small table then changed hands.
 */
struct candidate {
	uint64_t identity;
	uint32_t id;
	uint32_t at;
	uint32_t skip;
	uint32_t scramble[2];
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

static struct candidate candidate(uint64_t identity, uint32_t id)
{
	uint64_t start = mix(identity + 0x9e3779b97f4a7c15ULL), scramble = mix(start);

	return (struct candidate){
		.identity = identity,
		.id = id,
		.at = (uint32_t)start,
		.skip = (uint32_t)(start >> 32) | 1,
		.scramble = {(uint32_t)scramble | 1, (uint32_t)(scramble >> 32) | 1},
	};
}

static uint32_t next_slot(struct candidate *c, uint32_t log2_size)
{
	uint32_t mask = (1U << log2_size) - 1, half = (log2_size + 1) / 2, slot = c->at & mask;

	c->at += c->skip;
	for (int i = 0; i < 2; i++)
		slot = ((slot ^ (slot >> half)) * c->scramble[i]) & mask;
	return slot;
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
	uint64_t size = log2_size < 32 ? 1ULL << log2_size : 0;

	if (!count || count > size)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		if (ids[i] == FREE)
			return -EINVAL;
	candidates = malloc(count * sizeof(*candidates));
	if (!candidates)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		candidates[i] = candidate(identities[i], ids[i]);
	qsort(candidates, count, sizeof(*candidates), by_identity);

	memset(table, 0xff, size * sizeof(*table));
	for (uint64_t filled = 0; filled < size; filled++) {
		struct candidate *c = &candidates[filled % count];
		uint32_t slot;

		do
			slot = next_slot(c, log2_size);
		while (table[slot] != FREE);
		table[slot] = c->id;
	}
	free(candidates);
	return 0;
}
