/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What each program of a family does with its packet. */
#pragma once
#include "error.h"
#include "fragment.h"
#include "icmp.h"
#include "new_flow.h"
#include "parse.h"
#include "source.h"

/* Packets that the common path leaves alone, or to another program. */
static __always_inline int leave(struct packet *p, enum parsed parsed, __u32 slow, __u32 icmp)
{
	switch (parsed) {
	case PARSED_SLOW:
		tail_call(p->ctx, packet_calls, slow);
		break;
	case PARSED_ICMP:
		packet_call(p, icmp);
		break;
	case PARSED_MALFORMED:
		return packet_pass(p, REASON_MALFORMED);
	default:
		return packet_pass(p, REASON_OTHER_PROTOCOL);
	}
	return packet_pass(p, REASON_BROKEN);
}

static __always_inline int program_in(context_t *ctx)
{
	struct packet p = {};
	enum parsed parsed = packet_parse(ctx, &p, HOOK_IN, 0);

	if (parsed != PARSED)
		return leave(&p, parsed, CALL(SLOW_IN), CALL(ICMP_IN));
	return flow_in(&p, 1);
}

static __always_inline int program_parsed_in(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return flow_in(&p, 0);
}

static __always_inline int program_slow(context_t *ctx, enum hook hook, __u32 known, __u32 icmp)
{
	struct packet p = {};
	enum parsed parsed = packet_parse(ctx, &p, hook, 1);

	/* SCTP's checksum covers the whole message, of which no fragment tells the length. */
	if (parsed == PARSED && p.fragment && p.protocol == IPPROTO_SCTP)
		return packet_pass(&p, REASON_FRAGMENT);
	if (parsed == PARSED && p.fragment == FRAGMENT_LATER) {
		if (fragment_find(&p))
			return packet_pass(&p, REASON_FRAGMENT);
	} else if (parsed == PARSED && p.fragment == FRAGMENT_FIRST) {
		fragment_keep(&p);
	}
	if (parsed != PARSED)
		return leave(&p, parsed, known, icmp);
	packet_call(&p, known);
	return packet_pass(&p, REASON_BROKEN);
}

static __always_inline int program_icmp_in(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return p.fragment ? packet_pass(&p, REASON_FRAGMENT) : icmp_in(&p);
}

static __always_inline int program_error(context_t *ctx)
{
	struct handover *handover = handover_row();
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED || !handover)
		return packet_drop(&p, REASON_MALFORMED);
	return send_error(&p, handover);
}

static __always_inline int program_new(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return new_flow(&p);
}

static __always_inline int program_source(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return new_source(&p);
}

static __always_inline int program_pair(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return pair_again(&p);
}

static __always_inline int program_send(context_t *ctx)
{
	struct handover *handover = handover_row();
	struct packet p = {};
	flow_t *flow = draft();

	if (packet_parsed(ctx, &p, HOOK_IN) != PARSED || !handover || !flow)
		return packet_drop(&p, REASON_BROKEN);
	if (!PACKET_XDP)
		p.hook = handover->hook;
	if (handover->direction == DIRECTION_REPLY)
		return flow_send(&p, flow, DIRECTION_REPLY, &flow->hop, handover->reason);
	return flow_send(&p, flow, DIRECTION_FORWARD, &flow->hop, handover->reason);
}

#if !PACKET_XDP
static __always_inline int program_out(context_t *ctx)
{
	struct packet p = {};
	enum parsed parsed = packet_parse(ctx, &p, HOOK_TC_OUT, 0);

	if (parsed != PARSED)
		return leave(&p, parsed, CALL(SLOW_OUT), CALL(ICMP_OUT));
	return flow_out(&p, 1);
}

static __always_inline int program_parsed_out(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_TC_OUT) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return flow_out(&p, 0);
}

static __always_inline int program_icmp_out(context_t *ctx)
{
	struct packet p = {};

	if (packet_parsed(ctx, &p, HOOK_TC_OUT) != PARSED)
		return packet_pass(&p, REASON_MALFORMED);
	return p.fragment ? packet_pass(&p, REASON_FRAGMENT) : icmp_out(&p);
}
#endif
