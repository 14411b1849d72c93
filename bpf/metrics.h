/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters: each per CPU, so plain increments do. */
#pragma once
#include "maps.h"

static __always_inline void count_reason(enum hook hook, enum reason reason)
{
	__u32 key = hook * REASON_COUNT + reason;
	struct metric *metric = map_lookup(metrics, &key);

	if (metric)
		metric->count++;
}

static __always_inline void count_connection(__u32 frontend_id, __u32 backend_id, enum origin origin)
{
	struct frontend_stats *frontend = map_lookup(frontend_stats, &frontend_id);
	struct backend_stats *backend = map_lookup(backend_stats, &backend_id);

	if (frontend)
		frontend->connections[origin]++;
	if (backend)
		backend->connections++;
}
