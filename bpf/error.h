/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors of our own: the packet is turned into one, and goes back where it came from. */
#pragma once
#include "route.h"

#define NS_PER_SECOND_ 1000000000ULL
#define ERROR_BURST 50 /* the kernel's own, net.ipv4.icmp_msgs_burst */
#define ERROR_HOPS 64

/* As much as tells the packet's flow. */
struct error_message {
	struct icmp_error icmp;
	ip_header ip;
	__u8 transport[8];
};

/* Token bucket, per CPU. */
static __always_inline int error_allowed(void)
{
	__u32 zero = 0;
	struct allowance *allowance = map_lookup(allowances, &zero);
	__u64 now = bpf_ktime_get_ns(), fresh;

	if (!allowance || !CONFIG(error_rate))
		return 0;
	fresh = (now - allowance->refilled) * CONFIG(error_rate) / NS_PER_SECOND_;
	if (fresh) {
		allowance->refilled = now;
		fresh += allowance->tokens;
		allowance->tokens = fresh > ERROR_BURST ? ERROR_BURST : fresh;
	}
	if (!allowance->tokens)
		return 0;
	allowance->tokens--;
	return 1;
}

/* Whether an address stands for one host, which may be told. */
static __always_inline int is_one_host(const address_t *a)
{
#if IS_V4
	__u32 first = be32(a->word[0]) >> 24;

	return first && first != 127 && first < 224;
#else
	return (a->word[0] & be32(0xff000000)) != be32(0xff000000) && !words_zero(a);
#endif
}

/* Errors are never answered, nor what went to many, nor later fragments; nor headers with more parts than we quote. */
static __always_inline int error_is_due(const struct packet *p)
{
	return p->protocol != FAMILY_ICMP && p->fragment != FRAGMENT_LATER &&
	       !(p->ethernet && p->ethernet->h_dest[0] & 1) && is_one_host(&p->source) &&
	       is_one_host(&p->destination) && p->l4_offset == p->l3_offset + sizeof(ip_header);
}

static __always_inline int packet_resize(const struct packet *p, __u32 size)
{
#if PACKET_XDP
	return xdp_adjust_tail(p->ctx, (int)size - (int)(p->l3_offset + p->length));
#else
	return skb_change_tail(p->ctx, size);
#endif
}

/* That nobody serves the port is said by the VIP; what a router has to say comes from the node. */
static __always_inline void error_source(const struct packet *p, enum reason reason, address_t *from)
{
	if (reason == REASON_NO_BACKEND || node_address_on(packet_ifindex(p->ctx), from))
		*from = p->destination;
}

static __always_inline void error_ip_header(ip_header *ip, const struct packet *p, const address_t *from)
{
	__builtin_memset(ip, 0, sizeof(*ip));
#if IS_V4
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = be16(sizeof(*ip) + sizeof(struct error_message));
	ip->ttl = ERROR_HOPS;
	ip->protocol = IPPROTO_ICMP;
#else
	ip->version = 6;
	ip->payload_len = be16(sizeof(struct error_message));
	ip->hop_limit = ERROR_HOPS;
	ip->nexthdr = IPPROTO_ICMPV6;
#endif
	words_copy(&ip->saddr, from);
	words_copy(&ip->daddr, &p->source);
#if IS_V4
	ip->check = ~sum_fold16(checksum_of(ip, sizeof(*ip)));
#endif
}

/* What the message's checksum covers beside the message. */
static __always_inline __u64 error_pseudo_header(const struct packet *p, const address_t *from)
{
	__u64 sum = 0;

#if !IS_V4
	for (int i = 0; i < ADDRESS_WORDS; i++)
		sum += (__u64)p->source.word[i] + from->word[i];
	sum += be32(sizeof(struct error_message)) + be32(IPPROTO_ICMPV6);
#endif
	return sum;
}

/*
 * A packet of a local socket may come without its checksum (CHECKSUM_PARTIAL), and stays so: whoever completes it on
 * the way back writes where it once was. Over veths nobody does. Behind a virtio device with a real one behind it,
 * the answer to a TCP client would be spoilt, and its connect() times out instead of being refused.
 */
static __always_inline int send_error(struct packet *p, const struct handover *handover)
{
	struct error_message message = {};
	__u8 link_to[ETH_ALEN], link_from[ETH_ALEN];
	__u32 mtu = handover->mtu, type = handover->type, code = handover->code, reason = handover->reason;
	context_t *ctx = p->ctx;
	void *at = p->ip, *data;
	address_t from;
	ip_header ip;

	if (!error_is_due(p) || at + sizeof(message) - sizeof(message.icmp) > packet_end(ctx) || !error_allowed())
		return packet_drop(p, REASON_ERROR_LIMITED);
	__builtin_memcpy(&message.ip, at, sizeof(message.ip) + sizeof(message.transport));
	if (p->ethernet) {
		__builtin_memcpy(link_to, p->ethernet->h_source, ETH_ALEN);
		__builtin_memcpy(link_from, p->ethernet->h_dest, ETH_ALEN);
	}
	error_source(p, reason, &from);
	message.icmp.type = type;
	message.icmp.code = code;
	message.icmp.info = be32(mtu);
	message.icmp.checksum = ~sum_fold16(checksum_of(&message, sizeof(message)) + error_pseudo_header(p, &from));
	error_ip_header(&ip, p, &from);
	if (packet_resize(p, p->l3_offset + sizeof(ip) + sizeof(message))) {
#if PACKET_XDP
		return packet_leave_to_tc(p); /* a small packet, and no room behind it */
#else
		return packet_drop(p, REASON_ERROR_LIMITED);
#endif
	}
	data = packet_data(ctx);
	at = data + (p->l3_offset & 0x3f);
	if (at + sizeof(ip) + sizeof(message) > packet_end(ctx) || data + ETH_HLEN > packet_end(ctx))
		return packet_drop(p, REASON_ERROR_LIMITED);
	__builtin_memcpy(at, &ip, sizeof(ip));
	__builtin_memcpy(at + sizeof(ip), &message, sizeof(message));
	if (p->ethernet) {
		__builtin_memcpy(data, link_to, ETH_ALEN);
		__builtin_memcpy(data + ETH_ALEN, link_from, ETH_ALEN);
	}
	count_reason(p->hook, reason);
#if PACKET_XDP
	return XDP_TX;
#else
	return packet_redirect(ctx->ifindex);
#endif
}
