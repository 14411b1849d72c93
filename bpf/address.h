/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Endpoints: an address of either family, v4-mapped, and a port. */
#pragma once
#include "compat.h"

static __always_inline struct endpoint endpoint4(__be32 address, __be16 port)
{
	struct endpoint e = {.address = {0, 0, be32(0xffff), address}, .port = port};

	return e;
}

static __always_inline struct endpoint endpoint6(__be32 a, __be32 b, __be32 c, __be32 d, __be16 port)
{
	struct endpoint e = {.address = {a, b, c, d}, .port = port};

	return e;
}

static __always_inline int endpoint_is_v4(const struct endpoint *e)
{
	return !(e->address[0] | e->address[1] | (e->address[2] ^ be32(0xffff)));
}

static __always_inline int endpoint_equal(const struct endpoint *a, const struct endpoint *b)
{
	return !((a->address[0] ^ b->address[0]) | (a->address[1] ^ b->address[1]) | (a->address[2] ^ b->address[2]) |
		 (a->address[3] ^ b->address[3]) | (a->port ^ b->port));
}

static __always_inline struct endpoint backend_endpoint(const struct backend *backend)
{
	return endpoint6(backend->address[0], backend->address[1], backend->address[2], backend->address[3],
			 backend->port);
}
