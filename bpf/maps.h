/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* All maps of the datapath. Their sizes come from the agent's settings. */
#pragma once
#include "compat.h"

/* Service tables, written by user space alone, in the order backends, slots, sets, frontends. */
MAP(HASH, frontends4, struct frontend4_key, struct frontend, BPF_F_NO_PREALLOC);
MAP(HASH, frontends6, struct frontend6_key, struct frontend, BPF_F_NO_PREALLOC);
MAP(ARRAY, sets, __u32, union backend_set, BPF_F_MMAPABLE);
MAP(ARRAY, slots, __u32, struct slot_pair, BPF_F_MMAPABLE);
MAP(ARRAY, backends, __u32, struct backend, BPF_F_MMAPABLE);
MAP(HASH, node_addresses, struct node_address_key, struct node_address, BPF_F_NO_PREALLOC);

/* For user space: what a set id stands for, so that a restarted agent finds its way. */
MAP(HASH, set_names, __u32, struct set_name, BPF_F_NO_PREALLOC);

/* State of flows, written by the programs. */
MAP_SOCKET_STORAGE(sockets, struct socket_state);
MAP(HASH, tcp_peers, __u64, struct tcp_peer, BPF_F_NO_PREALLOC);
MAP(LRU_HASH, affinities, struct affinity_key, struct affinity, 0);
MAP(LRU_HASH, udp_sessions, struct udp_session_key, struct udp_session, 0);
MAP(LRU_HASH, udp_sockets, __u64, struct udp_socket, 0);
MAP(ARRAY, round_robin, __u32, __u64, 0);

/* Counters. */
MAP(PERCPU_ARRAY, metrics, __u32, struct metric, 0);
MAP(PERCPU_ARRAY, frontend_stats, __u32, struct frontend_stats, 0);
MAP(PERCPU_ARRAY, backend_stats, __u32, struct backend_stats, 0);
