/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Session affinity: a client keeps its backend while it is a member of the set and the window has not run out. */
#pragma once
#include "lb.h"

#define NS_PER_SECOND 1000000000ULL

struct choice {
	struct backend *backend;
	__u32 id;
	int reused;
};

/* Chooses a backend of a set that is not empty; `client` keys the affinity. The window slides with each choice. */
static __always_inline struct choice backend_choose(const struct frontend *frontend, union backend_set set,
						    __u64 client, __u64 flow)
{
	struct affinity_key key = {.group = frontend->affinity_group, .client = client};
	struct choice choice = {};
	struct affinity *known;
	__u64 now = 0;

	if (frontend->affinity_timeout) {
		now = bpf_ktime_get_ns();
		known = map_lookup(affinities, &key);
		if (known && now - known->last_used < frontend->affinity_timeout * NS_PER_SECOND &&
		    set_contains(set, known->backend)) {
			choice.backend = backend_lookup(known->backend);
			if (choice.backend && choice.backend->generation == known->generation) {
				known->last_used = now;
				choice.id = known->backend;
				choice.reused = 1;
				return choice;
			}
		}
	}
	choice.id = set_choose(frontend->set, set, flow);
	choice.backend = backend_lookup(choice.id);
	if (choice.backend && frontend->affinity_timeout) {
		struct affinity fresh = {
			.last_used = now, .backend = choice.id, .generation = choice.backend->generation};

		map_update(affinities, &key, &fresh, BPF_ANY);
	}
	return choice;
}
