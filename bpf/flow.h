/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of known flows: to the backend, and back to the client. */
#pragma once
#include "send.h"
#include "served.h"

/* Whether an arriving reply is ours to forward: only where the other direction goes past the stack, too. */
static __always_inline flow_t *reply_to_route(const struct packet *p)
{
	flow_t *flow;

	if (CONFIG(host_routing)) {
		flow = flow_reply(p);
		return flow && flow_translates(flow) && flow->flags & (FLOW_ROUTED | FLOW_LOCAL) ? flow : 0;
	}
	if (!is_snat_port(p->destination_port))
		return 0;
	flow = flow_reply_tuple(p);
	return flow && flow->flags & FLOW_ROUTED ? flow : 0;
}

/* Packets that arrive. `at_once`: with the code for it in this program. */
static __always_inline int flow_in(struct packet *p, int at_once)
{
	flow_t *flow = reply_to_route(p);
	struct next_hop other, *hop;
	enum noted noted = NOTED_EXPIRED;

	if (flow) {
		if (flow_note_backend(flow, p) == NOTED) {
			if (!at_once)
				return flow_send_by_draft(p, flow, DIRECTION_REPLY, REASON_REPLY);
			hop = &flow->hop;
			if (CONFIG(host_routing) && !(flow->flags & FLOW_REPLY)) {
				__builtin_memset(&other, 0, sizeof(other));
				hop = &other; /* the flow's own leads to the backend */
			}
			return flow_send(p, flow, DIRECTION_REPLY, hop, REASON_REPLY);
		}
	} else {
		flow = flow_forward(p);
		if (flow && flow_usable(flow, p))
			noted = flow_note_client(flow, p);
		if (flow && noted == NOTED)
			return at_once ? flow_send(p, flow, DIRECTION_FORWARD, &flow->hop, REASON_REUSED) :
					 flow_send_by_draft(p, flow, DIRECTION_FORWARD, REASON_REUSED);
	}
	if (!flow && !destination_served(p))
		return packet_pass(p, REASON_NOT_OURS);
	if (noted == NOTED_NO_REPLY)
		packet_call(p, CALL(PAIR));
	else
		packet_call(p, CALL(NEW));
	return packet_pass(p, REASON_BROKEN);
}

/* Packets that leave. */
static __always_inline int flow_out(struct packet *p, int at_once)
{
	flow_t *flow = flow_reply(p);

	if (!flow || flow_note_backend(flow, p) != NOTED)
		return packet_pass(p, REASON_NOT_OURS);
	return at_once ? flow_send(p, flow, DIRECTION_REPLY, &flow->hop, REASON_REPLY) :
			 flow_send_by_draft(p, flow, DIRECTION_REPLY, REASON_REPLY);
}
