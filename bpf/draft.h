/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows in the making, and the row of the client's port that they are to get. */
#pragma once
#include "send.h"

/* Added to a verdict where 0 says that there is none yet. */
#define VERDICT_GIVEN 0x100

static __always_inline flow_t *primary_of(const struct packet *p)
{
	endpoint_key key = endpoint_key_of(&p->source, p->source_port, p->protocol);

	return map_lookup(flows, &key);
}

/* What is in the row of the client's port. */
enum primary {
	PRIMARY_FREE,  /* there is none */
	PRIMARY_USED,  /* another flow of this port */
	PRIMARY_STALE, /* what is there can be replaced */
};

static __always_inline enum primary primary_state(const struct packet *p, const flow_t *primary)
{
	if (!primary)
		return PRIMARY_FREE;
	if (flow_leads_to(primary, p) || flow_expired(primary, p->protocol, clock_ticks()))
		return PRIMARY_STALE;
	return p->protocol == IPPROTO_TCP && primary->client_side & primary->backend_side & SIDE_FIN ? PRIMARY_STALE :
												       PRIMARY_USED;
}

/* Fails if another CPU has been faster. */
static __always_inline long primary_write(const struct packet *p, flow_t *flow, enum primary state)
{
	endpoint_key key = endpoint_key_of(&p->source, p->source_port, p->protocol);
	flow_t *former = state == PRIMARY_STALE ? map_lookup(flows, &key) : 0;

	if (former) /* the port's further flows live on, and are found through this row */
		flow->flags |= former->flags & FLOW_MORE;
	return map_update(flows, &key, flow, state == PRIMARY_FREE ? BPF_NOEXIST : BPF_ANY);
}
