/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a flow makes of a packet: translated, and sent on its way. */
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
	if (!forwards && (!CONFIG(host_routing) || !(flow->flags & FLOW_LOCAL)))
		return WAY_STACK;
	/* Only tc can go past the stack, and a flow has to do so in both directions, or conntrack finds it invalid. */
	if (!forwards && PACKET_XDP)
		return WAY_TC;
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
	way = flow_way(p, flow, &r.destination, direction, hop, &gateway);
	if (way != WAY_TC)
		count_packet(flow, p, direction);
	return packet_send(p, &r, way, hop, &gateway, reason);
}

/* ---- by a program of its own, which spares the rarer ones a copy of all this ---- */

/* A flow of this CPU. Handed from program to program: the packet is the same. */
static __always_inline flow_t *draft(void)
{
	__u32 zero = 0;

	return map_lookup(drafts, &zero);
}

static __always_inline int draft_send(const struct packet *p, enum direction direction, enum reason reason)
{
	struct handover *handover = handover_row();

	if (handover) {
		handover->direction = direction;
		handover->hook = p->hook;
		handover->reason = reason;
		packet_call(p, CALL(SEND));
	}
	return packet_drop(p, REASON_BROKEN);
}

static __always_inline int flow_send_by_draft(const struct packet *p, const flow_t *flow, enum direction direction,
					      enum reason reason)
{
	flow_t *copy = draft();

	if (!copy)
		return packet_drop(p, REASON_BROKEN);
	*copy = *flow;
	if (direction == DIRECTION_REPLY && !(flow->flags & FLOW_REPLY))
		copy->hop.generation = 0; /* it leads to the backend */
	return draft_send(p, direction, reason);
}
