/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet as XDP or tc hands it over (PACKET_XDP), and the ways in which it leaves a program. */
#pragma once
#include <linux/pkt_cls.h>
#include "family.h"
#include "metrics.h"

#if PACKET_XDP
typedef struct xdp_md context_t;
#define HOOK_IN HOOK_XDP
enum { VERDICT_NEXT = XDP_PASS, VERDICT_DROP = XDP_DROP };
#else
typedef struct __sk_buff context_t;
#define HOOK_IN HOOK_TC_IN
enum { VERDICT_NEXT = TC_ACT_UNSPEC, VERDICT_DROP = TC_ACT_SHOT };
#endif

/* Before the packet, where XDP leaves one to tc. */
#define LEFT_TO_TC 0x62707278

enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

struct packet {
	context_t *ctx;
	struct ethhdr *ethernet; /* 0: the device has no link layer */
	ip_header *ip;
	void *l4; /* 0 in later fragments */
	enum hook hook;
	__u32 l3_offset;
	__u32 l4_offset;
	__u32 length; /* from the IP header on */
	address_t source;
	address_t destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 tagged; /* XDP: with a VLAN tag in the frame */
	__u8 fragment;
	__be32 fragment_id;
};

enum { FRAGMENT_NONE = 0, FRAGMENT_FIRST, FRAGMENT_LATER };

static __always_inline int packet_verdict(const struct packet *p, enum reason reason, int verdict)
{
	count_reason(p->hook, reason);
	return verdict;
}

static __always_inline int packet_pass(const struct packet *p, enum reason reason)
{
	return packet_verdict(p, reason, VERDICT_NEXT);
}

static __always_inline int packet_drop(const struct packet *p, enum reason reason)
{
	return packet_verdict(p, reason, VERDICT_DROP);
}

static __always_inline void *packet_data(context_t *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *packet_end(context_t *ctx)
{
	return (void *)(long)ctx->data_end;
}

static __always_inline __u32 packet_ifindex(context_t *ctx)
{
#if PACKET_XDP
	return ctx->ingress_ifindex;
#else
	return ctx->ifindex;
#endif
}

static __always_inline struct handover *handover_row(void)
{
	__u32 zero = 0;

	return map_lookup(handovers, &zero);
}

/* Calls a program that goes on with the packet as it was parsed here. Returns if there is none. */
static __always_inline void packet_call(const struct packet *p, __u32 slot)
{
	struct handover *handover = handover_row();
	struct ports ports = {.source = p->source_port, .destination = p->destination_port};

	if (!handover)
		return;
	handover->l3_offset = p->l3_offset;
	handover->l4_offset = p->l4_offset;
	__builtin_memcpy(&handover->ports, &ports, sizeof(ports));
	handover->fragment_id = p->fragment_id;
	handover->protocol = p->protocol;
	handover->tcp_flags = p->tcp_flags;
	handover->fragment = p->fragment;
	handover->tagged = p->tagged;
	tail_call(p->ctx, packet_calls, slot);
}

#if !PACKET_XDP
/* Length of the segments that a device is to cut the packet into. */
static __always_inline __u32 segment_length(const struct packet *p)
{
	__u32 l4_length = 8; /* UDP */
	__u8 data_offset;

	if (p->protocol == IPPROTO_TCP && !skb_load(p->ctx, p->l4_offset + 12, &data_offset, sizeof(data_offset)))
		l4_length = (data_offset >> 4) * 4;
	return p->l4_offset - p->l3_offset + l4_length + p->ctx->gso_size;
}
#endif

static __always_inline int packet_exceeds(const struct packet *p, __u32 mtu)
{
#if !PACKET_XDP
	if (p->ctx->gso_segs > 1)
		return segment_length(p) > mtu;
#endif
	return p->length > mtu;
}

/* Hands the packet, which has not been touched, to the tc program of the same device. */
static __always_inline int packet_leave_to_tc(const struct packet *p)
{
#if PACKET_XDP
	context_t *ctx = p->ctx;
	__u32 *mark;

	if (!xdp_adjust_meta(ctx, -(int)sizeof(*mark))) {
		mark = (void *)(long)ctx->data_meta;
		if ((void *)(mark + 1) <= packet_data(ctx))
			*mark = LEFT_TO_TC;
	}
	return packet_pass(p, REASON_NO_NEIGHBOUR);
#else
	return packet_drop(p, REASON_NO_NEIGHBOUR);
#endif
}

/* Answers with an ICMP error: a program of its own, which counts `reason`. */
static __always_inline int packet_error(const struct packet *p, __u32 type, __u32 code, __u32 mtu, enum reason reason)
{
	struct handover *handover = handover_row();

	if (handover) {
		handover->type = type;
		handover->code = code;
		handover->mtu = mtu;
		handover->reason = reason;
		packet_call(p, CALL(ERROR));
	}
	return packet_drop(p, REASON_BROKEN);
}
