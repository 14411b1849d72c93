/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Most packets of a node are none of ours. One bit shows that of most of those, before any table is asked. */
#pragma once
#include "packet.h"

static __always_inline __u32 served_row(__u8 protocol, __u32 port)
{
	__u32 first = protocol == IPPROTO_TCP ? 0 : protocol == IPPROTO_UDP ? SERVED_ROWS : 2 * SERVED_ROWS;

	return first + (port >> 6);
}

/* Whether a Service or a backend may be where the packet goes. */
static __always_inline int destination_served(const struct packet *p)
{
	__u32 port = (__u16)be16(p->destination_port);
	__u32 key = served_row(p->protocol, port);
	struct served_ports *row = map_lookup(served_ports, &key);

	return row && READ_ONCE(row->bits) >> (port & 63) & 1;
}
