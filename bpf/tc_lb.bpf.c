/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet level in tc: the programs that are attached. The rest is in tc4_lb.bpf.c and tc6_lb.bpf.c. */
#define PACKET_XDP 0
#define PACKET_FAMILY 4
#include "crc.h"
#include "parse.h"

#define HEADERS_SIZE 128U /* made linear: link, IP and transport headers, unless there are long options */

static __always_inline int dispatch(struct __sk_buff *ctx, enum hook hook, __u32 l3_offset, __u32 call4, __u32 call6)
{
	__u32 linear = ctx->data_end - ctx->data;

	if (linear < HEADERS_SIZE && linear < ctx->len)
		skb_pull_data(ctx, ctx->len < HEADERS_SIZE ? ctx->len : HEADERS_SIZE);
	ctx->cb[0] = l3_offset;
	if (ctx->protocol == be16(ETH_P_IP))
		tail_call(ctx, tc_calls, call4);
	else if (ctx->protocol == be16(ETH_P_IPV6))
		tail_call(ctx, tc_calls, call6);
	count_reason(hook, reason_left_alone(ctx->protocol));
	return TC_ACT_UNSPEC;
}

/* Packets with a tag belong to a VLAN device, and are seen there; a mere priority does not leave with the packet. */
static __always_inline int dispatch_in(struct __sk_buff *ctx)
{
	if (ctx->vlan_present && !(ctx->vlan_tci & VLAN_ID))
		skb_vlan_pop(ctx);
	if (ctx->vlan_present) {
		count_reason(HOOK_TC_IN, REASON_TAGGED);
		return TC_ACT_UNSPEC;
	}
	return dispatch(ctx, HOOK_TC_IN, ETH_HLEN, CALL_IN4, CALL_IN6);
}

SEC("tc")
int bp_tc_in(struct __sk_buff *ctx)
{
	return dispatch_in(ctx);
}

/* Beside XDP on the same device: what that leaves. Anything else has been counted there. */
SEC("tc")
int bp_tc_in_left(struct __sk_buff *ctx)
{
	__u32 *mark = (void *)(long)ctx->data_meta;

	if ((void *)(mark + 1) > (void *)(long)ctx->data || *mark != LEFT_TO_TC)
		return TC_ACT_UNSPEC;
	return dispatch_in(ctx);
}

SEC("tc")
int bp_tc_out(struct __sk_buff *ctx)
{
	return dispatch(ctx, HOOK_TC_OUT, ETH_HLEN, CALL_OUT4, CALL_OUT6);
}

/* The same for devices without a link layer, such as tunnels. */
SEC("tc")
int bp_tc_in_l3(struct __sk_buff *ctx)
{
	return dispatch(ctx, HOOK_TC_IN, 0, CALL_IN4, CALL_IN6);
}

SEC("tc")
int bp_tc_out_l3(struct __sk_buff *ctx)
{
	return dispatch(ctx, HOOK_TC_OUT, 0, CALL_OUT4, CALL_OUT6);
}

SEC("tc")
int bp_tc_crc(struct __sk_buff *ctx)
{
	return program_crc(ctx);
}

LICENSE("Dual BSD/GPL");
