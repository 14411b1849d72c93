/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Headers. One contract for every parse_*(): it checks that its header is there, moves the cursor behind it and
 * returns what comes next (an ethertype, a protocol), or -1 and leaves the cursor.
 */
#pragma once
#include "packet.h"

#define VLAN_TAGS 2
#define VLAN_ID 0x0fff
#define MAX_L4_OFFSET 0xfff
#define EXTENSION_HEADERS 6

struct cursor {
	void *at;
	void *end;
};

static __always_inline void *cursor_take(struct cursor *c, __u32 size)
{
	void *header = c->at;

	if (header + size > c->end)
		return 0;
	c->at = header + size;
	return header;
}

struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

static __always_inline int is_vlan(__be16 ethertype)
{
	return ethertype == be16(ETH_P_8021Q) || ethertype == be16(ETH_P_8021AD);
}

/*
 * Returns the ethertype behind the tags, in network order. Packets of a VLAN belong to its own device, so their tag is
 * not looked behind; one of VLAN 0 is a mere priority.
 */
static __always_inline int parse_ethernet(struct cursor *c, struct ethhdr **header)
{
	struct ethhdr *ethernet = cursor_take(c, sizeof(*ethernet));
	struct vlan_tag *tag;
	__be16 ethertype;

	if (!ethernet)
		return -1;
	*header = ethernet;
	ethertype = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (!is_vlan(ethertype))
			break;
		tag = cursor_take(c, sizeof(*tag));
		if (!tag)
			return -1;
		if (tag->tci & be16(VLAN_ID))
			break;
		ethertype = tag->ethertype;
	}
	return ethertype;
}

/* Why a frame did not get as far as a program of its family. */
static __always_inline enum reason reason_left_alone(int ethertype)
{
	if (ethertype < 0)
		return REASON_MALFORMED;
	if (is_vlan(ethertype))
		return REASON_TAGGED;
	return ethertype == be16(ETH_P_IP) || ethertype == be16(ETH_P_IPV6) ? REASON_BROKEN : REASON_OTHER_PROTOCOL;
}

enum parsed {
	PARSED = 0,
	PARSED_ICMP,
	PARSED_SLOW,	  /* has parts that only the slow path reads */
	PARSED_OTHER,	  /* a protocol without ports */
	PARSED_MALFORMED, /* cut short, or not to be understood */
};

/* From the IP header on, as that has it: frames may be padded. */
static __always_inline __u32 ip_length(const ip_header *ip)
{
#if IS_V4
	return be16(ip->tot_len);
#else
	return sizeof(*ip) + be16(ip->payload_len);
#endif
}

#if IS_V4

static __always_inline int parse_ip(struct cursor *c, struct packet *p, int slow)
{
	struct iphdr *ip = cursor_take(c, sizeof(*ip));
	__u32 options;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return -1;
	p->ip = ip;
	words_copy(&p->source, &ip->saddr);
	words_copy(&p->destination, &ip->daddr);
	if (!slow)
		return ip->protocol;
	options = (ip->ihl - 5) * 4;
	if (!cursor_take(c, options & 0x3f))
		return -1;
	p->l4_offset += options;
	if (ip->frag_off & be16(0x3fff)) {
		p->fragment = ip->frag_off & be16(0x1fff) ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->fragment_id = ip->id;
	}
	return ip->protocol;
}

static __always_inline int ip_is_slow(const struct iphdr *ip)
{
	return ip->ihl != 5 || ip->frag_off & be16(0x3fff);
}

#else

static __always_inline int is_extension(int protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_DSTOPTS;
}

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

static __always_inline int parse_ip(struct cursor *c, struct packet *p, int slow)
{
	struct ipv6hdr *ip = cursor_take(c, sizeof(*ip));
	int next;

	if (!ip || ip->version != 6)
		return -1;
	p->ip = ip;
	words_copy(&p->source, &ip->saddr);
	words_copy(&p->destination, &ip->daddr);
	next = ip->nexthdr;
	if (!slow)
		return next;
#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		if (next == IPPROTO_FRAGMENT) {
			struct fragment_header *fragment = cursor_take(c, sizeof(*fragment));

			if (!fragment)
				return -1;
			p->l4_offset += sizeof(*fragment);
			if (fragment->offset & be16(0xfff9)) {
				p->fragment = fragment->offset & be16(0xfff8) ? FRAGMENT_LATER : FRAGMENT_FIRST;
				p->fragment_id = fragment->id;
			}
			next = fragment->next;
			if (p->fragment == FRAGMENT_LATER)
				return next;
		} else if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_ROUTING) {
			struct ipv6_opt_hdr *extension = cursor_take(c, sizeof(*extension));
			__u32 more;

			/* With segments left, the destination is not the last one. */
			if (!extension || next == IPPROTO_ROUTING)
				return -1;
			more = extension->hdrlen * 8U + 6;
			next = extension->nexthdr;
			if (!cursor_take(c, more & 0xfff))
				return -1;
			p->l4_offset += more + 2;
		} else {
			break;
		}
	}
	return is_extension(next) || p->l4_offset > MAX_L4_OFFSET ? -1 : next;
}

#endif

/* The ports, and what else of the transport header matters. */
static __always_inline enum parsed parse_transport(struct cursor *c, struct packet *p)
{
	struct ports *ports;
	__u8 *header;

	switch (p->protocol) {
	case IPPROTO_TCP:
		header = cursor_take(c, 20);
		if (!header)
			return PARSED_MALFORMED;
		p->tcp_flags = header[13];
		break;
	case IPPROTO_UDP:
		header = cursor_take(c, 8);
		break;
	case IPPROTO_SCTP:
		header = ip_length(p->ip) < p->l4_offset - p->l3_offset + 12 ? 0 : cursor_take(c, 12);
		break;
	case FAMILY_ICMP:
		return PARSED_ICMP;
	default:
		return PARSED_OTHER;
	}
	if (!header)
		return PARSED_MALFORMED;
	ports = (void *)header;
	p->l4 = header;
	p->source_port = ports->source;
	p->destination_port = ports->destination;
	return PARSED;
}

/* Where the IP header is. tc's first program has left it in cb. */
static __always_inline int parse_link(struct cursor *c, struct packet *p)
{
#if PACKET_XDP
	if (parse_ethernet(c, &p->ethernet) < 0)
		return -1;
	p->tagged = is_vlan(p->ethernet->h_proto);
	p->l3_offset = c->at - packet_data(p->ctx);
#else
	p->l3_offset = p->ctx->cb[0] ? ETH_HLEN : 0;
	if (p->l3_offset) {
		p->ethernet = cursor_take(c, ETH_HLEN);
		if (!p->ethernet)
			return -1;
	}
#endif
	return 0;
}

/* The packet as the calling program has parsed it. */
static __always_inline enum parsed packet_parsed(context_t *ctx, struct packet *p, enum hook hook)
{
	struct handover *handover = handover_row();
	void *data = packet_data(ctx), *end = packet_end(ctx);
	struct ports ports;
	__u32 l3, l4;

	p->ctx = ctx;
	p->hook = hook;
	if (!handover)
		return PARSED_MALFORMED;
	l3 = handover->l3_offset & 0x3f;
	l4 = handover->l4_offset & MAX_L4_OFFSET;
	__builtin_memcpy(&ports, &handover->ports, sizeof(ports));
	p->l3_offset = l3;
	p->l4_offset = l4;
	p->source_port = ports.source;
	p->destination_port = ports.destination;
	p->protocol = handover->protocol;
	p->tcp_flags = handover->tcp_flags;
	p->fragment = handover->fragment;
	p->fragment_id = handover->fragment_id;
	p->tagged = handover->tagged;
	if (l3) {
		p->ethernet = data;
		if ((void *)(p->ethernet + 1) > end)
			return PARSED_MALFORMED;
	}
	p->ip = data + l3;
	if ((void *)(p->ip + 1) > end)
		return PARSED_MALFORMED;
	words_copy(&p->source, &p->ip->saddr);
	words_copy(&p->destination, &p->ip->daddr);
#if PACKET_XDP
	p->length = end - (void *)p->ip;
#else
	p->length = ctx->len - l3;
#endif
	if (p->fragment == FRAGMENT_LATER)
		return PARSED;
	p->l4 = data + l4;
	return p->l4 + (p->protocol == IPPROTO_TCP ? 18 : 8) > end ? PARSED_MALFORMED : PARSED;
}

static __always_inline enum parsed packet_parse(context_t *ctx, struct packet *p, enum hook hook, int slow)
{
	struct cursor c = {.at = packet_data(ctx), .end = packet_end(ctx)};
	int next;

	p->ctx = ctx;
	p->hook = hook;
	if (parse_link(&c, p))
		return PARSED_MALFORMED;
	p->l4_offset = p->l3_offset + sizeof(ip_header);
#if PACKET_XDP
	p->length = c.end - c.at;
#else
	p->length = ctx->len - p->l3_offset;
#endif
	next = parse_ip(&c, p, slow);
	if (next < 0)
		return PARSED_MALFORMED;
	p->protocol = next;
#if IS_V4
	if (!slow && ip_is_slow(p->ip))
		return PARSED_SLOW;
#else
	if (!slow && is_extension(next))
		return PARSED_SLOW;
#endif
	if (p->fragment == FRAGMENT_LATER)
		return PARSED;
	return parse_transport(&c, p);
}
