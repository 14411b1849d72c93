/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of known flows: to the backend, and back to the client. */
#pragma once
#include "conntrack.h"
#include "route.h"

static __always_inline int flow_translates(const flow_t *flow)
{
	return (flow->flags & (FLOW_DIRECT | FLOW_SOURCE)) != FLOW_DIRECT;
}

/* What a flow makes of the packets of one direction. */
static __always_inline struct rewrite flow_rewrite(const struct packet *p, const flow_t *flow, enum direction direction)
{
	struct rewrite r = rewrite_none(p);

	if (direction == DIRECTION_FORWARD) {
		words_copy(&r.destination, flow->backend);
		r.destination_port = flow->backend_port;
		if (flow->flags & FLOW_SOURCE) {
			words_copy(&r.source, flow->source);
			r.source_port = flow->source_port;
		}
	} else {
		words_copy(&r.source, flow->vip);
		r.source_port = flow->vip_port;
		if (flow->flags & FLOW_SOURCE) {
			words_copy(&r.destination, flow->source);
			r.destination_port = flow->source_port;
		}
	}
	return r;
}

/* A reply that has just arrived, translated, may not go up the stack, since it would come from the node itself. */
static __always_inline enum way flow_way(const struct packet *p, const flow_t *flow, const void *destination,
					 enum direction direction, struct next_hop *hop, address_t *gateway)
{
	int forwards = direction == DIRECTION_REPLY || flow->flags & FLOW_ROUTED;
	enum routed routed;

	if (p->hook == HOOK_TC_OUT) /* it is on its way already */
		return WAY_STACK;
	if (!forwards && (PACKET_XDP || !CONFIG(host_routing) || !(flow->flags & FLOW_LOCAL)))
		return WAY_STACK;
	routed = route_cached(p, destination, hop, gateway);
	return forwards ? route_way(p, hop, routed) : pod_way(p, hop, routed);
}

/* `hop` is the flow's own, or one that is nobody's, since a flow has but one. */
static __always_inline int flow_send(const struct packet *p, const flow_t *flow, enum direction direction,
				     struct next_hop *hop, enum reason reason)
{
	address_t gateway;
	struct rewrite r;
	enum way way;

	if (!flow_translates(flow))
		return packet_pass(p, REASON_DIRECT);
	r = flow_rewrite(p, flow, direction);
	gateway = r.destination;
	count_packet(flow, p, direction);
	way = flow_way(p, flow, &r.destination, direction, hop, &gateway);
	return packet_send(p, &r, way, hop, &gateway, reason);
}

/* Whether an arriving reply is ours to forward. */
static __always_inline flow_t *reply_to_route(const struct packet *p)
{
	flow_t *flow;

	if (CONFIG(host_routing)) {
		flow = flow_reply(p);
		return flow && flow_translates(flow) ? flow : 0;
	}
	if (!is_snat_port(p->destination_port))
		return 0;
	flow = flow_reply_tuple(p);
	return flow && flow->flags & FLOW_ROUTED ? flow : 0;
}

/* Packets that arrive. */
static __always_inline int flow_in(struct packet *p)
{
	flow_t *flow = reply_to_route(p);
	enum noted noted = NOTED_EXPIRED;

	if (flow) {
		if (flow_note_backend(flow, p) == NOTED) {
			if (CONFIG(host_routing) && !(flow->flags & FLOW_REPLY)) {
				struct next_hop other = {}; /* the flow's own leads to the backend */

				return flow_send(p, flow, DIRECTION_REPLY, &other, REASON_REPLY);
			}
			return flow_send(p, flow, DIRECTION_REPLY, &flow->hop, REASON_REPLY);
		}
	} else {
		flow = flow_forward(p);
		if (flow && flow_usable(flow, p))
			noted = flow_note_client(flow, p);
		if (flow && noted == NOTED)
			return flow_send(p, flow, DIRECTION_FORWARD, &flow->hop, REASON_REUSED);
	}
	if (noted == NOTED_NO_REPLY)
		packet_call(p, CALL(PAIR));
	else
		packet_call(p, CALL(NEW));
	return packet_pass(p, REASON_BROKEN);
}

/* Packets that leave. */
static __always_inline int flow_out(struct packet *p)
{
	flow_t *flow = flow_reply(p);

	if (!flow || flow_note_backend(flow, p) != NOTED)
		return packet_pass(p, REASON_NOT_OURS);
	return flow_send(p, flow, DIRECTION_REPLY, &flow->hop, REASON_REPLY);
}
