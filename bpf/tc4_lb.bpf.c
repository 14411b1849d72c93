/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet level in tc, IPv4. */
#define PACKET_XDP 0
#define PACKET_FAMILY 4
#include "programs.h"

SEC("tc")
int bp_tc_in4(struct __sk_buff *ctx)
{
	return program_in(ctx);
}

SEC("tc")
int bp_tc_new4(struct __sk_buff *ctx)
{
	return program_new(ctx);
}

SEC("tc")
int bp_tc_source4(struct __sk_buff *ctx)
{
	return program_source(ctx);
}

SEC("tc")
int bp_tc_pair4(struct __sk_buff *ctx)
{
	return program_pair(ctx);
}

SEC("tc")
int bp_tc_send4(struct __sk_buff *ctx)
{
	return program_send(ctx);
}

SEC("tc")
int bp_tc_parsed_in4(struct __sk_buff *ctx)
{
	return program_parsed_in(ctx);
}

SEC("tc")
int bp_tc_slow_in4(struct __sk_buff *ctx)
{
	return program_slow(ctx, HOOK_IN, CALL_PARSED_IN4, CALL_ICMP_IN4);
}

SEC("tc")
int bp_tc_icmp_in4(struct __sk_buff *ctx)
{
	return program_icmp_in(ctx);
}

SEC("tc")
int bp_tc_error4(struct __sk_buff *ctx)
{
	return program_error(ctx);
}

SEC("tc")
int bp_tc_out4(struct __sk_buff *ctx)
{
	return program_out(ctx);
}

SEC("tc")
int bp_tc_parsed_out4(struct __sk_buff *ctx)
{
	return program_parsed_out(ctx);
}

SEC("tc")
int bp_tc_slow_out4(struct __sk_buff *ctx)
{
	return program_slow(ctx, HOOK_TC_OUT, CALL_PARSED_OUT4, CALL_ICMP_OUT4);
}

SEC("tc")
int bp_tc_icmp_out4(struct __sk_buff *ctx)
{
	return program_icmp_out(ctx);
}

LICENSE("Dual BSD/GPL");
