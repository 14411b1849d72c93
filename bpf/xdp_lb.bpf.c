/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet level in XDP: the program that is attached. The rest is in xdp4_lb.bpf.c and xdp6_lb.bpf.c. */
#define PACKET_XDP 1
#define PACKET_FAMILY 4
#include "crc.h"
#include "parse.h"

SEC("xdp")
int bp_xdp(struct xdp_md *ctx)
{
	struct cursor c = {.at = packet_data(ctx), .end = packet_end(ctx)};
	struct ethhdr *ethernet;
	int ethertype = parse_ethernet(&c, &ethernet);

	if (ethertype == be16(ETH_P_IP))
		tail_call(ctx, xdp_calls, CALL_IN4);
	else if (ethertype == be16(ETH_P_IPV6))
		tail_call(ctx, xdp_calls, CALL_IN6);
	count_reason(HOOK_XDP, reason_left_alone(ethertype));
	return XDP_PASS;
}

SEC("xdp")
int bp_xdp_crc(struct xdp_md *ctx)
{
	return program_crc(ctx);
}

LICENSE("Dual BSD/GPL");
