/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow hash: socket level and packet level must choose alike, so there is one. */
#pragma once
#include "address.h"

static __always_inline __u64 hash_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9fb21c651e98df25ULL;
	return hash ^ (hash >> 32);
}

/* `source_port` of an unbound socket is not known yet: its cookie takes the place. */
static __always_inline __u64 flow_hash(const struct endpoint *source, __u64 source_port, const struct endpoint *vip,
				       __u8 protocol)
{
	__u64 hash = hash_mix(protocol, (__u64)vip->address[3] << 16 | vip->port);

	hash = hash_mix(hash, (__u64)vip->address[1] << 32 | vip->address[2]);
	hash = hash_mix(hash, (__u64)source->address[0] << 32 | source->address[1]);
	hash = hash_mix(hash, (__u64)source->address[2] << 32 | source->address[3]);
	hash = hash_mix(hash, source_port);
	return hash_mix(hash, hash >> 29);
}
