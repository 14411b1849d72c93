/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows. A client's port has one row in `flows`, which both directions find by the client's address and port alone:
 * a new flow costs one insert, and a second flow that would give the same replies is seen in the row itself. Rows in
 * `tuples` come in pairs, one per direction (see abi.h).
 */
#pragma once
#include "lb.h"
#include "packet.h"

#define REFRESH_TICKS 64 /* about a second: how much later than true a flow's last packet may be taken for */

/* From jiffies, which the kernel keeps in step with CLOCK_MONOTONIC: other clocks cost a good part of a hit. */
static __always_inline __u32 clock_ticks(void)
{
	return (__u32)(((jiffies64() - CONFIG(clock_base)) * CONFIG(clock_rate)) >> 32);
}

static __always_inline int is_snat_port(__be16 port)
{
	__u16 number = be16(port);

	return CONFIG(snat_first) && number >= CONFIG(snat_first) && number <= CONFIG(snat_last);
}

/* ---- keys ---- */

static __always_inline endpoint_key endpoint_key_of(const void *address, __be16 port, __u8 protocol)
{
	endpoint_key key = {.port = port, .protocol = protocol};

	words_copy(key.address, address);
	return key;
}

static __always_inline tuple_key tuple_key_of(const void *source, __be16 source_port, const void *destination,
					      __be16 destination_port, __u8 protocol, __u8 direction)
{
	tuple_key key = {
		.source_port = source_port,
		.destination_port = destination_port,
		.protocol = protocol,
		.direction = direction,
	};

	words_copy(key.source, source);
	words_copy(key.destination, destination);
	return key;
}

/* ---- states ---- */

static __always_inline int flow_closing(const flow_t *flow)
{
	return (flow->client_side | flow->backend_side) & (SIDE_FIN | SIDE_RESET);
}

/* How long a flow may be idle, by its state. Protocols without one have but the first two. */
struct idle_times {
	__u32 opening;
	__u32 established;
	__u32 closing; /* one side has closed */
	__u32 closed;  /* both have */
	__u32 reset;
};

static __always_inline struct idle_times idle_times_of(__u8 protocol)
{
	struct idle_times times = {};

	if (protocol == IPPROTO_TCP) {
		times.opening = CONFIG(tcp_syn);
		times.established = CONFIG(tcp_established);
		times.closing = CONFIG(tcp_close_wait);
		times.closed = CONFIG(tcp_time_wait);
		times.reset = CONFIG(tcp_reset);
	} else if (protocol == IPPROTO_UDP) {
		times.opening = CONFIG(udp);
		times.established = CONFIG(udp_stream);
	} else {
		times.opening = times.established = CONFIG(sctp);
	}
	return times;
}

static __always_inline __u32 idle_time(const struct idle_times *times, const flow_t *flow)
{
	__u8 client = flow->client_side, backend = flow->backend_side;

	if ((client | backend) & SIDE_RESET)
		return times->reset;
	if (client & backend & SIDE_FIN)
		return times->closed;
	if ((client | backend) & SIDE_FIN)
		return times->closing;
	/* A client that goes on after its SYN got an answer, even if that took another way. */
	return backend || client & SIDE_ANSWERED ? times->established : times->opening;
}

static __always_inline __u32 flow_timeout(const flow_t *flow, __u8 protocol)
{
	struct idle_times times = idle_times_of(protocol);

	return idle_time(&times, flow);
}

/* Ticks since the last packet. Another CPU may have noted one a tick later than this one's clock. */
static __always_inline __s32 flow_idle(const flow_t *flow, __u32 now)
{
	return (__s32)(now - flow->seen);
}

static __always_inline int idle_too_long(const flow_t *flow, const struct idle_times *times, __u32 now)
{
	return flow_idle(flow, now) > (__s32)idle_time(times, flow);
}

static __always_inline int flow_expired(const flow_t *flow, __u8 protocol, __u32 now)
{
	return flow_idle(flow, now) > (__s32)flow_timeout(flow, protocol);
}

/* What a side's byte becomes with this packet. */
static __always_inline __u8 side_with(__u8 side, const struct packet *p)
{
	side |= SIDE_SEEN;
	if (p->protocol != IPPROTO_TCP || !p->l4)
		return side;
	if (!(p->tcp_flags & TCP_SYN))
		side |= SIDE_ANSWERED;
	if (p->tcp_flags & TCP_FIN)
		side |= SIDE_FIN;
	if (p->tcp_flags & TCP_RST)
		side |= SIDE_RESET;
	return side;
}

static __always_inline int opens_connection(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline int accepts_connection(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* Whether a client's packet may use this flow, or needs a new one. UDP sticks to a backend while that is Serving. */
static __always_inline int flow_usable(const flow_t *flow, const struct packet *p)
{
	if (p->protocol == IPPROTO_UDP && !(flow->flags & FLOW_DIRECT))
		return backend_serving(flow->backend_id, flow->backend_generation) != 0;
	return !(opens_connection(p) && flow_closing(flow));
}

/* ---- finding ---- */

static __always_inline int flow_leads_to(const flow_t *flow, const struct packet *p)
{
	return flow->vip_port == p->destination_port && words_equal(flow->vip, &p->destination);
}

static __always_inline int flow_comes_from(const flow_t *flow, const struct packet *p)
{
	return flow->backend_port == p->source_port && words_equal(flow->backend, &p->source);
}

/* The flow of a client's packet. */
static __always_inline flow_t *flow_forward(const struct packet *p)
{
	endpoint_key key = endpoint_key_of(&p->source, p->source_port, p->protocol);
	flow_t *flow = map_lookup(flows, &key);

	if (!flow || flow_leads_to(flow, p))
		return flow;
	if (flow->flags & FLOW_MORE) {
		tuple_key tuple = tuple_key_of(&p->source, p->source_port, &p->destination, p->destination_port,
					       p->protocol, DIRECTION_FORWARD);

		return map_lookup(tuples, &tuple);
	}
	return 0;
}

static __always_inline flow_t *flow_reply_tuple(const struct packet *p)
{
	tuple_key key = tuple_key_of(&p->source, p->source_port, &p->destination, p->destination_port, p->protocol,
				     DIRECTION_REPLY);

	return map_lookup(tuples, &key);
}

/* The flow that a packet answers, where the client has kept its address. */
static __always_inline flow_t *flow_reply(const struct packet *p)
{
	endpoint_key key = endpoint_key_of(&p->destination, p->destination_port, p->protocol);
	flow_t *flow;

	if (is_snat_port(p->destination_port)) {
		flow = flow_reply_tuple(p);
		if (flow)
			return flow;
	}
	flow = map_lookup(flows, &key);
	if (!flow)
		return 0;
	if (flow_comes_from(flow, p) && !(flow->flags & FLOW_SOURCE))
		return flow;
	return flow->flags & FLOW_MORE ? flow_reply_tuple(p) : 0;
}

/* ---- pairs ---- */

/* The row of the other direction, if the two are separate. */
static __always_inline flow_t *flow_partner_reply(const flow_t *flow, __u8 protocol)
{
	tuple_key key = tuple_key_of(flow->backend, flow->backend_port, flow->source, flow->source_port, protocol,
				     DIRECTION_REPLY);

	return map_lookup(tuples, &key);
}

static __always_inline flow_t *flow_partner_forward(const flow_t *reply, __u8 protocol)
{
	endpoint_key key = endpoint_key_of(reply->source, reply->source_port, protocol);
	flow_t *flow = map_lookup(flows, &key);

	if (flow && flow->vip_port == reply->vip_port && words_equal(flow->vip, reply->vip))
		return flow;
	tuple_key tuple = tuple_key_of(reply->source, reply->source_port, reply->vip, reply->vip_port, protocol,
				       DIRECTION_FORWARD);
	return map_lookup(tuples, &tuple);
}

enum noted { NOTED, NOTED_EXPIRED, NOTED_NO_REPLY };

/* Takes down that the client's side has sent a packet. */
static __always_inline enum noted flow_note_client(flow_t *flow, const struct packet *p)
{
	__u32 now = clock_ticks();
	__s32 idle = flow_idle(flow, now);
	__u8 side = side_with(flow->client_side, p);
	flow_t *reply;

	if (idle < REFRESH_TICKS && side == flow->client_side)
		return NOTED;
	if (idle > (__s32)flow_timeout(flow, p->protocol))
		return NOTED_EXPIRED;
	if (flow->flags & FLOW_PAIRED) {
		reply = flow_partner_reply(flow, p->protocol);
		if (!reply)
			return NOTED_NO_REPLY;
		reply->client_side = side;
		reply->seen = now;
	}
	flow->client_side = side;
	flow->seen = now;
	return NOTED;
}

/*
 * The same for the backend's side. A reply to what has expired is as good as none. So is one to an opening that was not
 * seen here: a connection past us has the ports of a flow that has closed.
 */
static __always_inline enum noted flow_note_backend(flow_t *flow, const struct packet *p)
{
	__u32 now = clock_ticks();
	__s32 idle = flow_idle(flow, now);
	__u8 side = side_with(flow->backend_side, p);
	flow_t *forward;

	if (accepts_connection(p) && flow_closing(flow)) {
		flow->seen = now - flow_timeout(flow, p->protocol) - REFRESH_TICKS;
		return NOTED_EXPIRED;
	}
	if (idle < REFRESH_TICKS && side == flow->backend_side)
		return NOTED;
	if (idle > (__s32)flow_timeout(flow, p->protocol))
		return NOTED_EXPIRED;
	if (flow->flags & FLOW_REPLY) {
		forward = flow_partner_forward(flow, p->protocol);
		if (forward) {
			forward->backend_side = side;
			forward->seen = now;
		}
	}
	flow->backend_side = side;
	flow->seen = now;
	return NOTED;
}

/* The client's port goes to a connection that is opened past us: no segment of it may be taken for the flow's. */
static __always_inline void flow_end(const struct packet *p)
{
	flow_t *flow = flow_forward(p), *reply;
	__u32 now = clock_ticks();

	if (!flow)
		return;
	if (flow->flags & FLOW_PAIRED) {
		reply = flow_partner_reply(flow, p->protocol);
		if (reply)
			reply->seen = now - flow_timeout(reply, p->protocol) - REFRESH_TICKS;
	}
	flow->seen = now - flow_timeout(flow, p->protocol) - REFRESH_TICKS;
}

/* ---- counting ---- */

static __always_inline void count_packet(const flow_t *flow, const struct packet *p, enum direction direction)
{
	__u32 frontend_id = flow->frontend, backend_id = flow->backend_id;
	struct frontend_stats *frontend = map_lookup(frontend_stats, &frontend_id);
	struct backend_stats *backend = map_lookup(backend_stats, &backend_id);

	if (frontend) {
		frontend->packets[direction]++;
		frontend->bytes[direction] += p->length;
	}
	if (backend) {
		backend->packets[direction]++;
		backend->bytes[direction] += p->length;
	}
}
