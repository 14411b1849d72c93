/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rewriting a packet: link layer, hop limit, addresses and ports, in the order that tc's helpers ask for. */
#pragma once
#include "csum.h"

struct rewrite {
	address_t source;
	address_t destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 hop_limit; /* decrement */
	__u8 link;	/* write the addresses below */
	__u8 pushed;	/* bytes of a link layer that were put before the packet meanwhile */
	__u8 link_destination[6];
	__u8 link_source[6];
};

/* A rewrite that changes nothing yet. */
static __always_inline struct rewrite rewrite_none(const struct packet *p)
{
	struct rewrite r = {
		.source = p->source,
		.destination = p->destination,
		.source_port = p->source_port,
		.destination_port = p->destination_port,
	};

	return r;
}

static __always_inline __u8 hop_limit(const struct packet *p)
{
#if IS_V4
	return p->ip->ttl;
#else
	return p->ip->hop_limit;
#endif
}

#if IS_V4
static __always_inline void rewrite_ip(const struct packet *p, const struct rewrite *r, __u64 change)
{
	struct iphdr *ip = p->ip;

	if (r->hop_limit) {
		ip->ttl--;
		change = sum_change16(change, be16(0x0100), 0);
	}
	ip->check = csum_changed(ip->check, change);
}
#else
static __always_inline void rewrite_ip(const struct packet *p, const struct rewrite *r, __u64 change)
{
	if (r->hop_limit)
		p->ip->hop_limit--;
}
#endif

/*
 * Last step of all: the verdict, after the change of ports has gone into SCTP's CRC, which covers no address. A
 * program of its own does that.
 */
static __always_inline int packet_finish(const struct packet *p, const struct rewrite *r, int verdict)
{
	__u32 change = (__u32)(p->source_port ^ r->source_port) | (__u32)(p->destination_port ^ r->destination_port)
									  << 16;
	struct handover *handover;

	if (p->protocol != IPPROTO_SCTP || p->fragment == FRAGMENT_LATER || !change)
		return verdict;
	handover = handover_row();
	if (handover) {
		handover->verdict = verdict;
		handover->ports_change = change;
		handover->l3_offset = p->l3_offset + r->pushed;
		handover->l4_offset = p->l4_offset + r->pushed;
		tail_call(p->ctx, packet_calls, CALL_CRC);
	}
	return packet_drop(p, REASON_BROKEN);
}

/*
 * What the device has summed (CHECKSUM_COMPLETE) follows changes that no checksum within the packet makes up for.
 * `l4_change` is that of the transport header where it has no checksum.
 */
static __always_inline void rewrite_device_sum(const struct packet *p, const struct rewrite *r, __u64 addresses,
					       __u64 l4_change)
{
#if !PACKET_XDP
	__u64 change = 0;

	if (!IS_V4 && r->hop_limit)
		change = sum_change16(change, be16(1), 0);
	if (!l4_has_checksum(p)) {
		change += IS_V4 ? 0 : addresses;
		change += p->l4 ? l4_change : 0;
	}
	if (change)
		skb_csum_update(p->ctx, sum_fold32(change));
#endif
}

/* No pointer into the packet is valid afterwards. */
static __always_inline void packet_rewrite(const struct packet *p, const struct rewrite *r)
{
	__u64 addresses = 0, port_change = 0;
	struct ports *ports = p->l4;
	int has_checksum;

	if (r->link && p->ethernet) {
		__builtin_memcpy(p->ethernet->h_dest, r->link_destination, ETH_ALEN);
		__builtin_memcpy(p->ethernet->h_source, r->link_source, ETH_ALEN);
	}
	addresses = sum_change_address(addresses, &p->source, &r->source);
	addresses = sum_change_address(addresses, &p->destination, &r->destination);
	words_copy(&p->ip->saddr, &r->source);
	words_copy(&p->ip->daddr, &r->destination);
	rewrite_ip(p, r, addresses);
	if (r->source_port != p->source_port || r->destination_port != p->destination_port) {
		port_change = sum_change16(port_change, p->source_port, r->source_port);
		port_change = sum_change16(port_change, p->destination_port, r->destination_port);
	}
	if (ports) {
		ports->source = r->source_port;
		ports->destination = r->destination_port;
	}
	has_checksum = l4_has_checksum(p);
	rewrite_device_sum(p, r, addresses, port_change);
	if (has_checksum)
		l4_checksum_update(p, addresses, port_change);
}
