/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of known flows: to the backend, and back to the client. */
#pragma once
#include "conntrack.h"
#include "route.h"

/* A client's packet. `hop` is the flow's own, or its copy's while the flow is not in the map yet. */
static __always_inline int send_forward(const struct packet *p, const flow_t *flow, struct next_hop *hop,
					enum reason reason)
{
	struct rewrite r = rewrite_none(p);
	address_t gateway;
	enum routed routed;
	__u32 flags = flow->flags;

	if (flags & FLOW_DIRECT && !(flags & FLOW_SOURCE))
		return packet_pass(p, REASON_DIRECT);
#if PACKET_XDP
	/* Only tc can go past the stack, and a flow has to do so in both directions, or conntrack finds it invalid. */
	if (CONFIG(host_routing) && (flags & (FLOW_LOCAL | FLOW_ROUTED)) == FLOW_LOCAL)
		return packet_leave_to_tc(p);
#endif
	words_copy(&r.destination, flow->backend);
	r.destination_port = flow->backend_port;
	if (flags & FLOW_SOURCE) {
		words_copy(&r.source, flow->source);
		r.source_port = flow->source_port;
	}
	count_packet(flow, p, DIRECTION_FORWARD);
	if (flags & FLOW_ROUTED) {
		words_copy(&gateway, flow->backend);
		routed = route_cached(p, flow->backend, hop, &gateway);
		return route_send(p, &r, hop, routed, &gateway, reason);
	}
#if !PACKET_XDP
	if (CONFIG(host_routing) && flags & FLOW_LOCAL) {
		gateway = r.destination;
		routed = route_cached(p, flow->backend, hop, &gateway);
		if (routed == ROUTED && leads_straight_to_pod(p, hop))
			return route_to_pod(p, &r, hop, reason);
	}
#endif
	packet_rewrite(p, &r);
	return packet_finish(p, &r, packet_pass(p, reason));
}

/* A reply, on a device by which it leaves. */
static __always_inline int send_reply(const struct packet *p, const flow_t *flow)
{
	struct rewrite r = rewrite_none(p);

	if (flow->flags & FLOW_DIRECT && !(flow->flags & FLOW_SOURCE))
		return packet_pass(p, REASON_DIRECT);
	words_copy(&r.source, flow->vip);
	r.source_port = flow->vip_port;
	if (flow->flags & FLOW_SOURCE) {
		words_copy(&r.destination, flow->source);
		r.destination_port = flow->source_port;
	}
	count_packet(flow, p, DIRECTION_REPLY);
	packet_rewrite(p, &r);
	return packet_finish(p, &r, packet_pass(p, REASON_REPLY));
}

/* A reply that has just arrived: translated, it may not go up the stack, since it would come from the node itself. */
static __always_inline int route_reply(const struct packet *p, flow_t *flow)
{
	struct rewrite r = rewrite_none(p);
	struct next_hop *hop = &flow->hop, other = {};
	address_t gateway;
	enum routed routed;

	if (CONFIG(host_routing) && !(flow->flags & FLOW_REPLY))
		hop = &other; /* the flow's own leads to the backend */
	words_copy(&r.source, flow->vip);
	r.source_port = flow->vip_port;
	if (flow->flags & FLOW_SOURCE) {
		words_copy(&r.destination, flow->source);
		r.destination_port = flow->source_port;
	}
	gateway = r.destination;
	count_packet(flow, p, DIRECTION_REPLY);
	routed = route_cached(p, &r.destination, hop, &gateway);
	return route_send(p, &r, hop, routed, &gateway, REASON_REPLY);
}

/* Whether an arriving reply is ours to forward. */
static __always_inline flow_t *reply_to_route(const struct packet *p)
{
	flow_t *flow;

	if (CONFIG(host_routing)) {
		flow = flow_reply(p);
		return flow && (flow->flags & (FLOW_DIRECT | FLOW_SOURCE)) != FLOW_DIRECT ? flow : 0;
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

	if (flow) {
		if (flow_note_backend(flow, p) == NOTED)
			return route_reply(p, flow);
	} else {
		flow = flow_forward(p);
		if (flow && flow_usable(flow, p) && flow_note_client(flow, p) == NOTED)
			return send_forward(p, flow, &flow->hop, REASON_REUSED);
	}
	packet_call(p, CALL(NEW));
	return packet_pass(p, REASON_BROKEN);
}

/* Packets that leave. */
static __always_inline int flow_out(struct packet *p)
{
	flow_t *flow = flow_reply(p);

	if (!flow || flow_note_backend(flow, p) != NOTED)
		return packet_pass(p, REASON_NOT_OURS);
	return send_reply(p, flow);
}
