/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps that the packet level has beside those of maps.h. */
#pragma once
#include "maps.h"

/* Written by user space alone. */
MAP(LPM_TRIE, networks4, struct network4_key, __u32, BPF_F_NO_PREALLOC);
MAP(LPM_TRIE, networks6, struct network6_key, __u32, BPF_F_NO_PREALLOC);
MAP(HASH, backend_ids4, struct endpoint4_key, __u32, BPF_F_NO_PREALLOC);
MAP(HASH, backend_ids6, struct endpoint6_key, __u32, BPF_F_NO_PREALLOC);
MAP(ARRAY, served_ports, __u32, struct served_ports, BPF_F_MMAPABLE);
MAP(ARRAY, node, __u32, struct node, 0);
MAP(HASH, devices, __u32, struct device, BPF_F_NO_PREALLOC);

/* State of flows. */
MAP(LRU_HASH, flows4, struct endpoint4_key, struct flow4, 0);
MAP(LRU_HASH, flows6, struct endpoint6_key, struct flow6, 0);
MAP(LRU_HASH, tuples4, struct tuple4_key, struct flow4, 0);
MAP(LRU_HASH, tuples6, struct tuple6_key, struct flow6, 0);
MAP(LRU_HASH, fragments4, struct fragment4_key, struct fragment, 0);
MAP(LRU_HASH, fragments6, struct fragment6_key, struct fragment, 0);

/* From program to program. */
MAP(PERCPU_ARRAY, drafts4, __u32, struct flow4, 0);
MAP(PERCPU_ARRAY, drafts6, __u32, struct flow6, 0);
MAP(PERCPU_ARRAY, allowances, __u32, struct allowance, 0);
MAP(PERCPU_ARRAY, handovers, __u32, struct handover, 0);
MAP(PROG_ARRAY, xdp_calls, __u32, __u32, 0);
MAP(PROG_ARRAY, tc_calls, __u32, __u32, 0);
#if PACKET_XDP
#define packet_calls xdp_calls
#else
#define packet_calls tc_calls
#endif
