/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * New flows that take two rows: the source is translated, or the client's port has another flow already. A program of
 * its own, to which new_flow() hands its draft.
 */
#pragma once
#include "draft.h"

#define SOURCE_PORT_TRIES 32
#define SOURCE_PORT_STEP 7919 /* away from runs of ports that are taken */

/* A flow as it stands in the row of replies, and back: there the source is the client, and the hop leads to it. */
struct reply_form {
	address_t source;
	__be16 port;
	__u32 flags;
	__u32 generation;
};

static __always_inline struct reply_form reply_form_take(const struct packet *p, flow_t *flow)
{
	struct reply_form form = {.port = flow->source_port, .flags = flow->flags, .generation = flow->hop.generation};

	words_copy(&form.source, flow->source);
	words_copy(flow->source, &p->source);
	flow->source_port = p->source_port;
	flow->flags |= FLOW_REPLY;
	flow->hop.generation = 0;
	return form;
}

static __always_inline void reply_form_end(flow_t *flow, const struct reply_form *form)
{
	words_copy(flow->source, &form->source);
	flow->source_port = form->port;
	flow->flags = form->flags;
	flow->hop.generation = form->generation;
}

/* Inserts a row of replies, or takes over one that has expired. Returns 0 unless another flow has these replies. */
static __always_inline long reply_row_write(const tuple_key *key, const flow_t *reply, const struct idle_times *times,
					    __u32 now)
{
	flow_t *known;

	if (!map_update(tuples, key, reply, BPF_NOEXIST))
		return 0;
	known = map_lookup(tuples, key);
	return known && idle_too_long(known, times, now) ? map_update(tuples, key, reply, BPF_ANY) : -1;
}

/*
 * Finds a port of the range with which the reply's tuple is nobody else's, and takes it: inserts the row of replies.
 * flow->source is the address to be used. Returns 0 or -1.
 */
static __always_inline int source_port_take(const struct packet *p, flow_t *flow)
{
	tuple_key key = tuple_key_of(flow->backend, flow->backend_port, flow->source, 0, p->protocol, DIRECTION_REPLY);
	__u32 first = CONFIG(snat_first), span = CONFIG(snat_last) - first + 1;
	__u32 at = bpf_get_prandom_u32(), now = clock_ticks();
	struct idle_times times = idle_times_of(p->protocol);
	struct reply_form form;
	int taken = 0;

	if (!first)
		return -1;
	form = reply_form_take(p, flow);
#pragma clang loop unroll(disable)
	for (int i = 0; i < SOURCE_PORT_TRIES && !taken; i++) {
		key.destination_port = be16(first + at % span);
		taken = !reply_row_write(&key, flow, &times, now);
		at += SOURCE_PORT_STEP;
	}
	form.port = key.destination_port;
	reply_form_end(flow, &form);
	return taken ? 0 : -1;
}

/* The same for a flow whose source is settled. */
static __always_inline long reply_row_insert(const struct packet *p, flow_t *flow)
{
	tuple_key key = tuple_key_of(flow->backend, flow->backend_port, flow->source, flow->source_port, p->protocol,
				     DIRECTION_REPLY);
	struct idle_times times = idle_times_of(p->protocol);
	struct reply_form form = reply_form_take(p, flow);
	long result = reply_row_write(&key, flow, &times, clock_ticks());

	reply_form_end(flow, &form);
	return result;
}

static __always_inline void reply_row_delete(const flow_t *flow, __u8 protocol)
{
	tuple_key key = tuple_key_of(flow->backend, flow->backend_port, flow->source, flow->source_port, protocol,
				     DIRECTION_REPLY);

	map_delete(tuples, &key);
}

/* ---- rows ---- */

static __always_inline int replies_clash(const flow_t *a, const flow_t *b)
{
	return !(a->flags & FLOW_SOURCE) && a->backend_port == b->backend_port && words_equal(a->backend, b->backend);
}

/* Where the source is translated: to which address. Returns 0, or the verdict on the packet, plus VERDICT_GIVEN. */
static __always_inline int source_choose(const struct packet *p, flow_t *flow)
{
	address_t gateway;
	enum routed routed = route_cached(p, flow->backend, &flow->hop, &gateway);

	if (routed == ROUTED_NOWHERE)
		return VERDICT_GIVEN + packet_drop(p, REASON_NO_ROUTE);
#if PACKET_XDP
	if (routed != ROUTED)
		return VERDICT_GIVEN + packet_leave_to_tc(p);
#endif
	if (node_address_on(flow->hop.ifindex, flow->source))
		return VERDICT_GIVEN + packet_drop(p, REASON_NO_SOURCE);
	return 0;
}

/* The client's row, or where another flow has that, one beside it. Returns 0 or -1. */
static __always_inline long client_row_write(const struct packet *p, flow_t *flow)
{
	tuple_key key = tuple_key_of(&p->source, p->source_port, &p->destination, p->destination_port, p->protocol,
				     DIRECTION_FORWARD);
	flow_t *primary = primary_of(p);
	enum primary state = primary_state(p, primary);

	if (state != PRIMARY_USED) {
		if (primary && primary->flags & FLOW_PAIRED)
			reply_row_delete(primary, p->protocol);
		if (!primary_write(p, flow, state))
			return 0;
		primary = primary_of(p); /* another CPU was faster */
	}
	if (!primary)
		return -1;
	primary->flags |= FLOW_MORE;
	return map_update(tuples, &key, flow, BPF_ANY);
}

/*
 * Goes on where new_flow() left. Little is known to the verifier when it comes to the search for a port, which it walks
 * once for each state in which that may begin.
 */
static __always_inline int new_source(struct packet *p)
{
	flow_t *flow = draft(), *primary;
	int verdict;

	if (!flow)
		return packet_pass(p, REASON_BROKEN);
	if (!(flow->flags & FLOW_SOURCE)) {
		primary = primary_of(p);
		if (primary && primary_state(p, primary) == PRIMARY_USED) {
			flow->flags |= FLOW_PAIRED;
			/* Where its replies could not be told from another flow's, it gets another port. */
			if (replies_clash(primary, flow) || reply_row_insert(p, flow))
				flow->flags |= FLOW_SOURCE;
		}
	}
	if (flow->flags & FLOW_ROUTED) {
		verdict = source_choose(p, flow);
		if (verdict)
			return verdict - VERDICT_GIVEN;
	}
	if (flow->flags & FLOW_SOURCE && source_port_take(p, flow))
		return packet_drop(p, REASON_SNAT_EXHAUSTED);
	if (client_row_write(p, flow))
		return packet_drop(p, REASON_NO_FLOW);
	count_connection(flow->frontend, flow->backend_id, ORIGIN_PACKET);
	return draft_send(p, DIRECTION_FORWARD, REASON_TRANSLATED);
}

/* A flow goes on whose row of replies has been lost: the maps drop what was used least recently. */
static __always_inline int pair_again(struct packet *p)
{
	flow_t *known = flow_forward(p), *flow = draft();

	if (!flow || !known)
		return packet_pass(p, REASON_BROKEN);
	*flow = *known;
	if (reply_row_insert(p, flow))
		return packet_drop(p, REASON_NO_FLOW);
	return draft_send(p, DIRECTION_FORWARD, REASON_REUSED);
}
