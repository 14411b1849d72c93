/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors belong to the flow of the packet that they quote, and are translated with it. */
#pragma once
#include "flow.h"
#include "parse.h"

/* A quoted packet; its checksum may be cut off. */
struct quote {
	ip_header *ip;
	struct ports *ports;
	__u16 *checksum; /* of the transport header, or 0 */
	address_t source;
	address_t destination;
	__u8 protocol;
};

static __always_inline int is_icmp_error(__u8 type)
{
#if IS_V4
	return type == 3 || type == 11 || type == 12;
#else
	return type >= 1 && type <= 4;
#endif
}

/* Takes the quoted IP header. Returns the protocol behind it, or -1 if no ports can follow. */
static __always_inline int quote_parse_ip(struct cursor *c, struct quote *q)
{
	ip_header *ip = cursor_take(c, sizeof(*ip));

	if (!ip)
		return -1;
	q->ip = ip;
#if IS_V4
	if (ip->version != 4 || ip->ihl < 5 || ip->frag_off & be16(0x1fff))
		return -1;
	return cursor_take(c, (ip->ihl - 5) * 4 & 0x3f) ? ip->protocol : -1;
#else
	if (ip->version != 6)
		return -1;
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		struct fragment_header *fragment = cursor_take(c, sizeof(*fragment));

		return fragment && !(fragment->offset & be16(0xfff8)) ? fragment->next : -1;
	}
	return ip->nexthdr;
#endif
}

/* Returns 0 if there is a quote that we understand. */
static __always_inline int quote_parse(const struct packet *p, struct quote *q)
{
	struct cursor c = {.at = p->l4 + sizeof(struct icmp_error), .end = packet_end(p->ctx)};
	void *header, *end = c.end;
	int protocol = quote_parse_ip(&c, q);

	if (protocol < 0)
		return -1;
	header = c.at;
	if (header + 8 > end)
		return -1;
	q->protocol = protocol;
	q->ports = header;
	words_copy(&q->source, &q->ip->saddr);
	words_copy(&q->destination, &q->ip->daddr);
	q->checksum = 0;
	if (q->protocol == IPPROTO_UDP) {
		q->checksum = header + 6;
		if (!*q->checksum)
			q->checksum = 0;
		return 0;
	}
	if (q->protocol == IPPROTO_TCP) {
		if (header + 18 <= end)
			q->checksum = header + 16;
		return 0;
	}
	return q->protocol == IPPROTO_SCTP ? 0 : -1;
}

/* A packet that goes the opposite way of the quoted one, to look up its flow. */
static __always_inline struct packet quote_reversed(const struct quote *q)
{
	struct packet p = {
		.source = q->destination,
		.destination = q->source,
		.source_port = q->ports->destination,
		.destination_port = q->ports->source,
		.protocol = q->protocol,
	};

	return p;
}

/* Rewrites the quoted packet, and the checksum of the ICMP message after it. */
static __always_inline void quote_rewrite(const struct packet *p, const struct quote *q, const void *source,
					  __be16 source_port, const void *destination, __be16 destination_port)
{
	struct icmp_error *icmp = p->l4;
	__u64 change = 0, addresses = 0, ports = 0;
	__u16 fresh;

	addresses = sum_change_address(addresses, &q->source, source);
	addresses = sum_change_address(addresses, &q->destination, destination);
	ports = sum_change16(ports, q->ports->source, source_port);
	ports = sum_change16(ports, q->ports->destination, destination_port);
	words_copy(&q->ip->saddr, source);
	words_copy(&q->ip->daddr, destination);
	q->ports->source = source_port;
	q->ports->destination = destination_port;
#if IS_V4
	fresh = csum_changed(q->ip->check, addresses);
	change = sum_change16(change, q->ip->check, fresh);
	q->ip->check = fresh;
#endif
	if (q->checksum) {
		fresh = csum_changed(*q->checksum, addresses + ports);
		if (q->protocol == IPPROTO_UDP && !fresh)
			fresh = MANGLED_ZERO;
		change = sum_change16(change, *q->checksum, fresh);
		*q->checksum = fresh;
	}
	icmp->checksum = csum_changed(icmp->checksum, change + addresses + ports);
}

/* The outer header as it is; so is the start of the message, its new checksum included, which packet_rewrite() takes for ports. */
static __always_inline struct rewrite icmp_rewrite_none(struct packet *p)
{
	struct ports *start = p->l4;

	p->source_port = start->source;
	p->destination_port = start->destination;
	return rewrite_none(p);
}

/* Who sent a packet that had this flow's reply for its opposite. */
static __always_inline address_t icmp_client(const struct quote *q, const flow_t *flow)
{
	address_t client = q->source;

	if (flow->flags & FLOW_SOURCE)
		words_copy(&client, flow->source);
	return client;
}

/*
 * About a packet to the backend, on its way to the client: the quote gets the addresses that the client used. The
 * backend itself speaks as the VIP, a router as itself.
 */
static __always_inline struct rewrite icmp_to_client(struct packet *p, const struct quote *q, const flow_t *flow)
{
	address_t client = icmp_client(q, flow);
	__be16 port = flow->flags & FLOW_SOURCE ? flow->source_port : q->ports->source;
	struct rewrite r;

	quote_rewrite(p, q, &client, port, flow->vip, flow->vip_port);
	r = icmp_rewrite_none(p);
	if (flow->flags & FLOW_SOURCE)
		r.destination = client;
	if (words_equal(&p->source, flow->backend))
		words_copy(&r.source, flow->vip);
	return r;
}

/* About a packet to the client, on its way to the backend. */
static __always_inline struct rewrite icmp_to_backend(struct packet *p, const struct quote *q, const flow_t *flow)
{
	struct rewrite r;

	/* If the source is not translated, flow->source is the client. */
	quote_rewrite(p, q, flow->backend, flow->backend_port, flow->source, flow->source_port);
	r = icmp_rewrite_none(p);
	words_copy(&r.destination, flow->backend);
	if (flow->flags & FLOW_ROUTED)
		words_copy(&r.source, flow->source);
	return r;
}

static __always_inline int icmp_in(struct packet *p)
{
	struct icmp_error *icmp = p->l4;
	struct quote q = {};
	struct packet opposite;
	flow_t *flow = 0;
	address_t gateway;
	struct rewrite r;
	enum routed routed;

	if (!is_icmp_error(icmp->type) || quote_parse(p, &q))
		return packet_pass(p, REASON_NOT_OURS);
	opposite = quote_reversed(&q);
	flow = reply_to_route(&opposite);
	if (flow) {
		struct next_hop hop = {};

		gateway = icmp_client(&q, flow);
		routed = route_lookup(p, &gateway, &hop, &gateway);
		if (route_needs_tc(p, &hop, routed))
			return packet_leave_to_tc(p);
		r = icmp_to_client(p, &q, flow);
		return route_send(p, &r, &hop, routed, &gateway, REASON_ICMP);
	}
	flow = flow_forward(&opposite);
	if (!flow || flow->flags & FLOW_DIRECT || !words_equal(&p->destination, flow->vip))
		return packet_pass(p, REASON_NOT_OURS);
	if (flow->flags & FLOW_ROUTED) {
		words_copy(&gateway, flow->backend);
		routed = route_cached(p, flow->backend, &flow->hop, &gateway);
		if (route_needs_tc(p, &flow->hop, routed))
			return packet_leave_to_tc(p);
		r = icmp_to_backend(p, &q, flow);
		return route_send(p, &r, &flow->hop, routed, &gateway, REASON_ICMP);
	}
	r = icmp_to_backend(p, &q, flow);
	packet_rewrite(p, &r);
	return packet_pass(p, REASON_ICMP);
}

static __always_inline int icmp_out(struct packet *p)
{
	struct icmp_error *icmp = p->l4;
	struct quote q = {};
	struct packet opposite;
	struct rewrite r;
	flow_t *flow;

	if (!is_icmp_error(icmp->type) || quote_parse(p, &q))
		return packet_pass(p, REASON_NOT_OURS);
	opposite = quote_reversed(&q);
	flow = flow_reply(&opposite);
	if (!flow || (flow->flags & (FLOW_DIRECT | FLOW_SOURCE)) == FLOW_DIRECT)
		return packet_pass(p, REASON_NOT_OURS);
	r = icmp_to_client(p, &q, flow);
	packet_rewrite(p, &r);
	return packet_pass(p, REASON_ICMP);
}
