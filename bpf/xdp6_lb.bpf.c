/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet level in XDP, IPv6. */
#define PACKET_XDP 1
#define PACKET_FAMILY 6
#include "programs.h"

SEC("xdp")
int bp_xdp_in6(struct xdp_md *ctx)
{
	return program_in(ctx);
}

SEC("xdp")
int bp_xdp_new6(struct xdp_md *ctx)
{
	return program_new(ctx);
}

SEC("xdp")
int bp_xdp_source6(struct xdp_md *ctx)
{
	return program_source(ctx);
}

SEC("xdp")
int bp_xdp_pair6(struct xdp_md *ctx)
{
	return program_pair(ctx);
}

SEC("xdp")
int bp_xdp_send6(struct xdp_md *ctx)
{
	return program_send(ctx);
}

SEC("xdp")
int bp_xdp_parsed_in6(struct xdp_md *ctx)
{
	return program_parsed_in(ctx);
}

SEC("xdp")
int bp_xdp_slow_in6(struct xdp_md *ctx)
{
	return program_slow(ctx, HOOK_IN, CALL_PARSED_IN6, CALL_ICMP_IN6);
}

SEC("xdp")
int bp_xdp_icmp_in6(struct xdp_md *ctx)
{
	return program_icmp_in(ctx);
}

SEC("xdp")
int bp_xdp_error6(struct xdp_md *ctx)
{
	return program_error(ctx);
}

LICENSE("Dual BSD/GPL");
