/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a flow: which frontend, which backend, whether the source is kept; then its row. */
#pragma once
#include "affinity.h"
#include "draft.h"

/* Affinities of addresses are kept apart from those of the socket level, whose clients are namespaces. */
#define CLIENT_IS_ADDRESS (1ULL << 63)

/* ---- the client ---- */

static __always_inline int client_in_network(const struct packet *p, __u32 owner)
{
	network_key key = {.prefix = 32 + 32 * ADDRESS_WORDS, .owner = owner};

	words_copy(key.address, &p->source);
	return map_lookup(networks, &key) != 0;
}

static __always_inline int client_in_cluster(const struct packet *p)
{
	return client_in_network(p, 0);
}

static __always_inline __u64 client_of(const struct packet *p)
{
#if IS_V4
	return CLIENT_IS_ADDRESS | p->source.word[0];
#else
	__u64 hash = hash_mix(0, (__u64)p->source.word[0] << 32 | p->source.word[1]);

	return CLIENT_IS_ADDRESS | hash_mix(hash, (__u64)p->source.word[2] << 32 | p->source.word[3]);
#endif
}

/* Whether the client's address has to be replaced (rules 7 to 9, 12). */
static __always_inline int masquerades(const struct packet *p, const struct frontend *frontend,
				       const struct backend *backend)
{
	if (words_equal(&p->source, backend->address + 4 - ADDRESS_WORDS))
		return 1; /* it would answer itself, without us */
	if (frontend->masquerade == MASQUERADE_ALWAYS &&
	    (frontend->kind == KIND_CLUSTER_IP || !(backend->flags & BACKEND_LOCAL)))
		return 1;
	return !(backend->flags & BACKEND_LOCAL) && !client_in_cluster(p);
}

/* ---- the first packet ---- */

static __always_inline void draft_begin(const struct packet *p, flow_t *flow)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->vip_port = p->destination_port;
	flow->source_port = p->source_port;
	flow->created = flow->seen = clock_ticks();
	flow->client_side = side_with(0, p);
	words_copy(flow->vip, &p->destination);
	words_copy(flow->source, &p->source);
}

/* Whether a connection may have been opened by the rules of another mode, so that conntrack knows it. */
static __always_inline int others_opened(const struct packet *p)
{
	struct node *row;

	if (p->protocol != IPPROTO_TCP || opens_connection(p))
		return 0;
	row = node_row();
	return row && READ_ONCE(row->flags) & NODE_SHARED;
}

/* Fills the flow's backend. Returns 0, or the verdict on the packet, plus VERDICT_GIVEN. */
static __always_inline int choose_backend(struct packet *p, flow_t *flow)
{
	struct endpoint vip = to_endpoint(&p->destination, p->destination_port);
	struct endpoint source = to_endpoint(&p->source, p->source_port);
	struct endpoint at = vip;
	struct frontend *frontend = frontend_find(&at, IS_V4, p->protocol, 0);
	union backend_set set;
	struct choice choice;

	if (!frontend) {
		endpoint_key known = endpoint_key_of(&p->destination, p->destination_port, p->protocol);
		__u32 *id = map_lookup(backend_ids, &known);

		if (!id && opens_connection(p))
			flow_end(p);
		if (!id)
			return VERDICT_GIVEN + packet_pass(p, REASON_NOT_OURS);
		draft_begin(p, flow);
		flow->flags = FLOW_DIRECT;
		flow->backend_id = *id;
		words_copy(flow->backend, &p->destination);
		flow->backend_port = p->destination_port;
		return 0;
	}
	if (others_opened(p))
		return VERDICT_GIVEN + packet_pass(p, REASON_NOT_SYN);
	if (frontend->flags & (FRONTEND_SCOPED | FRONTEND_SOURCE_RANGES)) {
		int inside = client_in_cluster(p);

		if (!inside && frontend->flags & FRONTEND_SOURCE_RANGES && !client_in_network(p, frontend->id))
			return VERDICT_GIVEN + packet_drop(p, REASON_SOURCE_RANGE);
		if (inside)
			frontend = frontend_inside(frontend, &at, IS_V4, p->protocol);
	}
	set = set_read(frontend->set);
	if (!(set.flags & SET_IN_USE))
		return VERDICT_GIVEN + packet_pass(p, REASON_BROKEN);
	if (!set.count) {
		if (set.flags & SET_DROP)
			return VERDICT_GIVEN + packet_drop(p, REASON_NO_LOCAL_BACKEND);
		return VERDICT_GIVEN + packet_error(p, ICMP_UNREACHABLE, ICMP_CODE_PORT, 0, REASON_NO_BACKEND);
	}
	if (p->protocol == IPPROTO_TCP && !opens_connection(p) && !set.table_log2 && set.count > 1)
		return VERDICT_GIVEN + packet_pass(p, REASON_NOT_SYN);
	choice = backend_choose(frontend, set, client_of(p), flow_hash(&source, p->source_port, &vip, p->protocol));
	if (!choice.backend)
		return VERDICT_GIVEN + packet_pass(p, REASON_BROKEN);
	draft_begin(p, flow);
	flow->frontend = frontend->id;
	flow->backend_id = choice.id;
	flow->backend_generation = choice.backend->generation;
	flow->backend_port = choice.backend->port;
	words_copy(flow->backend, choice.backend->address + 4 - ADDRESS_WORDS);
	if (choice.backend->flags & BACKEND_LOCAL)
		flow->flags = FLOW_LOCAL;
	if (masquerades(p, frontend, choice.backend))
		flow->flags |= FLOW_SOURCE | FLOW_ROUTED | FLOW_PAIRED;
	return 0;
}

static __always_inline int new_flow(struct packet *p)
{
	flow_t *flow = draft(), *primary;
	enum primary state;
	int verdict;

	if (!flow)
		return packet_pass(p, REASON_BROKEN);
	verdict = choose_backend(p, flow);
	if (verdict)
		return verdict - VERDICT_GIVEN;
	if (flow->flags & FLOW_SOURCE)
		goto two_rows;
	primary = primary_of(p);
	state = primary_state(p, primary);
	if (state == PRIMARY_USED || (primary && primary->flags & FLOW_PAIRED) || primary_write(p, flow, state))
		goto two_rows;
	count_connection(flow->frontend, flow->backend_id, ORIGIN_PACKET);
	return draft_send(p, DIRECTION_FORWARD, REASON_TRANSLATED);
two_rows:
	packet_call(p, CALL(SOURCE));
	return packet_pass(p, REASON_BROKEN);
}
