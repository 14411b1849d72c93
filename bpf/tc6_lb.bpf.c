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
int bp_tc_new6(struct __sk_buff *ctx)
{
	return program_new(ctx);
}

SEC("tc")
int bp_tc_source6(struct __sk_buff *ctx)
{
	return program_source(ctx);
}

SEC("tc")
int bp_tc_pair6(struct __sk_buff *ctx)
{
	return program_pair(ctx);
}

SEC("tc")
int bp_tc_send6(struct __sk_buff *ctx)
{
	return program_send(ctx);
}

SEC("tc")
int bp_tc_parsed_in6(struct __sk_buff *ctx)
{
	return program_parsed_in(ctx);
}

SEC("tc")
int bp_tc_slow_in6(struct __sk_buff *ctx)
{
	return program_slow(ctx, HOOK_IN, CALL_PARSED_IN6, CALL_ICMP_IN6);
}

SEC("tc")
int bp_tc_icmp_in6(struct __sk_buff *ctx)
{
	return program_icmp_in(ctx);
}

SEC("tc")
int bp_tc_error6(struct __sk_buff *ctx)
{
	return program_error(ctx);
}

SEC("tc")
int bp_tc_out6(struct __sk_buff *ctx)
{
	return program_out(ctx);
}

SEC("tc")
int bp_tc_parsed_out6(struct __sk_buff *ctx)
{
	return program_parsed_out(ctx);
}

SEC("tc")
int bp_tc_slow_out6(struct __sk_buff *ctx)
{
	return program_slow(ctx, HOOK_TC_OUT, CALL_PARSED_OUT6, CALL_ICMP_OUT6);
}

SEC("tc")
int bp_tc_icmp_out6(struct __sk_buff *ctx)
{
	return program_icmp_out(ctx);
}

LICENSE("Dual BSD/GPL");
