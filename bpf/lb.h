/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Service tables: frontend -> set -> backend. Nothing here knows sockets or packets. */
#pragma once
#include "hash.h"
#include "metrics.h"

/* ---- frontends: the caller knows the family, packets before they are compiled ---- */

static __always_inline struct frontend *frontend_lookup(const struct endpoint *vip, int v4, __u8 protocol, __u8 scope)
{
	if (v4) {
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
static __always_inline struct endpoint node_port_endpoint(__be16 port, int v4)
{
	return endpoint6(0, 0, v4 ? be32(0xffff) : 0, 0, port);
}

static __always_inline int address_is_loopback(const struct endpoint *e, int v4)
{
	if (v4)
		return (e->address[3] & be32(0xff000000)) == be32(0x7f000000);
	return !(e->address[0] | e->address[1] | e->address[2] | (e->address[3] ^ be32(1)));
}

/* Whether NodePorts answer on this address. The loopback addresses are the node's own only for its own sockets. */
static __always_inline int answers_node_ports(const struct endpoint *e, int v4, int client_is_node)
{
	struct node_address_key key = {.address = {e->address[0], e->address[1], e->address[2], e->address[3]}};
	struct node_address *address;

	if (address_is_loopback(e, v4)) {
		if (!client_is_node)
			return 0;
		if (v4)
			key.address[3] = be32(0x7f000000);
	}
	address = map_lookup(node_addresses, &key);
	return address && address->flags & NODE_ADDRESS_NODE_PORT;
}

/* The external frontend; `at` becomes what it is found by. */
static __always_inline struct frontend *frontend_find(struct endpoint *at, int v4, __u8 protocol, int client_is_node)
{
	struct frontend *frontend = frontend_lookup(at, v4, protocol, SCOPE_EXTERNAL);
	struct endpoint vip = *at;

	if (frontend)
		return frontend;
	*at = node_port_endpoint(vip.port, v4);
	frontend = frontend_lookup(at, v4, protocol, SCOPE_EXTERNAL);
	return frontend && answers_node_ports(&vip, v4, client_is_node) ? frontend : 0;
}

/* What takes its place for clients inside the cluster, if there is such a one. */
static __always_inline struct frontend *frontend_inside(struct frontend *external, const struct endpoint *at, int v4,
							__u8 protocol)
{
	struct frontend *internal = 0;

	if (external->flags & FRONTEND_SCOPED)
		internal = frontend_lookup(at, v4, protocol, SCOPE_INTERNAL);
	return internal ? internal : external;
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
