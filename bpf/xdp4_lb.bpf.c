/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet level in XDP, IPv4. */
#define PACKET_XDP 1
#define PACKET_FAMILY 4
#include "programs.h"

SEC("xdp")
int bp_xdp_in4(struct xdp_md *ctx)
{
	return program_in(ctx);
}

SEC("xdp")
int bp_xdp_new4(struct xdp_md *ctx)
{
	return program_new(ctx);
}

SEC("xdp")
int bp_xdp_source4(struct xdp_md *ctx)
{
	return program_source(ctx);
}

LICENSE("Dual BSD/GPL");
