/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments: the first one has the ports, and leaves them for the others. */
#pragma once
#include "packet.h"

static __always_inline fragment_key fragment_key_of(const struct packet *p)
{
	fragment_key key = {.id = p->fragment_id};

	words_copy(key.source, &p->source);
	words_copy(key.destination, &p->destination);
	/* IPv6 names what follows the fragment header, which need not be the protocol. */
	if (IS_V4)
		key.protocol = p->protocol;
	return key;
}

static __always_inline void fragment_keep(const struct packet *p)
{
	fragment_key key = fragment_key_of(p);
	struct fragment row = {
		.source_port = p->source_port, .destination_port = p->destination_port, .protocol = p->protocol};

	map_update(fragments, &key, &row, BPF_ANY);
}

/* Gives a later fragment its ports. Returns 0, or -1 if the first one was not seen. */
static __always_inline int fragment_find(struct packet *p)
{
	fragment_key key = fragment_key_of(p);
	struct fragment *row = map_lookup(fragments, &key);

	if (!row)
		return -1;
	p->source_port = row->source_port;
	p->destination_port = row->destination_port;
	p->protocol = row->protocol;
	return 0;
}
