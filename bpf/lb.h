/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Service tables: frontend -> set -> backend. Nothing here knows sockets or packets. */
#pragma once
#include "hash.h"
#include "metrics.h"

/* ---- frontends ---- */

static __always_inline struct frontend *frontend_lookup(const struct endpoint *vip, __u8 protocol, __u8 scope)
{
	if (endpoint_is_v4(vip)) {
		struct frontend4_key key = {
			.address = vip->address[3], .port = vip->port, .protocol = protocol, .scope = scope};

		return map_lookup(frontends4, &key);
	}
	struct frontend6_key key = {
		.address = {vip->address[0], vip->address[1], vip->address[2], vip->address[3]},
		.port = vip->port,
		.protocol = protocol,
		.scope = scope,
	};

	return map_lookup(frontends6, &key);
}

/* The wildcard of a family, under which NodePorts are kept. */
static __always_inline struct endpoint node_port_endpoint(const struct endpoint *e)
{
	return endpoint6(0, 0, endpoint_is_v4(e) ? be32(0xffff) : 0, 0, e->port);
}

static __always_inline int address_is_loopback(const struct endpoint *e)
{
	if (endpoint_is_v4(e))
		return (e->address[3] & be32(0xff000000)) == be32(0x7f000000);
	return !e->address[0] && !e->address[1] && !e->address[2] && e->address[3] == be32(1);
}

/* Whether NodePorts answer on this address. The loopback addresses are the node's own only for its own sockets. */
static __always_inline int answers_node_ports(const struct endpoint *e, int client_is_node)
{
	struct node_address_key key = {.address = {e->address[0], e->address[1], e->address[2], e->address[3]}};
	struct node_address *address;

	if (address_is_loopback(e)) {
		if (!client_is_node)
			return 0;
		if (endpoint_is_v4(e))
			key.address[3] = be32(0x7f000000);
	}
	address = map_lookup(node_addresses, &key);
	return address && address->flags & NODE_ADDRESS_NODE_PORT;
}

static __always_inline struct frontend *frontend_find(const struct endpoint *vip, __u8 protocol, __u8 scope,
						      int client_is_node)
{
	struct endpoint at = *vip;
	struct frontend *frontend = frontend_lookup(&at, protocol, SCOPE_EXTERNAL);
	struct frontend *internal;

	if (!frontend) {
		at = node_port_endpoint(vip);
		frontend = frontend_lookup(&at, protocol, SCOPE_EXTERNAL);
		if (!frontend || !answers_node_ports(vip, client_is_node))
			return 0;
	}
	if (frontend->flags & FRONTEND_SCOPED && scope == SCOPE_INTERNAL) {
		internal = frontend_lookup(&at, protocol, SCOPE_INTERNAL);
		if (internal)
			return internal;
	}
	return frontend;
}

/* ---- sets ---- */

static __always_inline union backend_set set_read(__u32 id)
{
	union backend_set *row = map_lookup(sets, &id), set = {};

	if (row)
		set.word = READ_ONCE(row->word);
	return set;
}

static __always_inline __u32 slot_read(__u32 slot)
{
	__u32 key = slot >> 1;
	struct slot_pair *pair = map_lookup(slots, &key);

	return pair ? pair->id[slot & 1] : 0;
}

static __always_inline __u32 set_members(union backend_set set)
{
	return set.table_log2 ? set.base + (1U << (set.table_log2 & 31)) : set.base;
}

/*
 * Binary search among the ascending ids of a set. It walks slots, not offsets: a base that the verifier does not know
 * lets it merge the two ways of each step, where known offsets would be 2^16 paths.
 */
static __always_inline int set_contains(union backend_set set, __u32 id)
{
	__u32 at = set_members(set), end = at + set.count, next;

	if (!set.count)
		return 0;
#pragma unroll
	for (__u32 step = 1 << 15; step; step >>= 1) {
		next = at + step;
		if (next < end && slot_read(next) <= id)
			at = next;
	}
	return slot_read(at) == id;
}

/* The id of a backend of a set that is not empty. `flow` counts for Maglev alone. */
static __always_inline __u32 set_choose(__u32 set_id, union backend_set set, __u64 flow)
{
	__u32 scheduler = set.flags >> SET_SCHEDULER_SHIFT;
	__u64 *turn;

	if (set.count == 1)
		return slot_read(set_members(set));
	if (scheduler == SCHEDULER_MAGLEV && set.table_log2)
		return slot_read(set.base + (__u32)(flow >> (64 - (set.table_log2 & 31))));
	if (scheduler == SCHEDULER_ROUND_ROBIN) {
		turn = map_lookup(round_robin, &set_id);
		if (turn) {
			/* Two CPUs may read the same turn: a harmless repetition, where fetch-and-add needs 5.12. */
			__u64 now = READ_ONCE(*turn);

			__sync_fetch_and_add(turn, 1);
			return slot_read(set_members(set) + (__u32)(now % set.count));
		}
	}
	return slot_read(set_members(set) + (__u32)(((__u64)bpf_get_prandom_u32() * set.count) >> 32));
}

/* ---- backends ---- */

static __always_inline struct backend *backend_lookup(__u32 id)
{
	return map_lookup(backends, &id);
}

/* The backend of a flow that sticks to it, if it is still the same one and may go on. */
static __always_inline struct backend *backend_serving(__u32 id, __u32 generation)
{
	struct backend *backend = backend_lookup(id);

	if (backend && backend->flags & BACKEND_SERVING && backend->generation == generation)
		return backend;
	return 0;
}
