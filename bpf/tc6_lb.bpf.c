/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet level in tc, IPv6. */
#define PACKET_XDP 0
#define PACKET_FAMILY 6
#include "programs.h"

SEC("tc")
int bp_tc_in6(struct __sk_buff *ctx)
{
	return program_in(ctx);
}

SEC("tc")
int bp_tc_out6(struct __sk_buff *ctx)
{
	return program_out(ctx);
}

SEC("tc")
int bp_tc_new6(struct __sk_buff *ctx)
{
	return program_new(ctx);
}

SEC("tc")
int bp_tc_source6(struct __sk_buff *ctx)
{
	return program_source(ctx);
}

LICENSE("Dual BSD/GPL");
