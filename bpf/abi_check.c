/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Compiled with the object, never loaded: the sizes that abi.h promises, and no hidden padding. */
#include "compat.h"

#define HAS_SIZE(type, size) _Static_assert(sizeof(type) == (size), #type " has an unexpected size")

HAS_SIZE(struct frontend4_key, 8);
HAS_SIZE(struct frontend6_key, 20);
HAS_SIZE(struct frontend, 24);
HAS_SIZE(union backend_set, 8);
HAS_SIZE(struct slot_pair, 8);
HAS_SIZE(struct backend, 24);
HAS_SIZE(struct set_name, 196);
HAS_SIZE(struct node_address_key, 16);
HAS_SIZE(struct node_address, 4);
HAS_SIZE(struct affinity_key, 16);
HAS_SIZE(struct affinity, 16);
HAS_SIZE(struct endpoint, 20);
HAS_SIZE(struct udp_session, 48);
HAS_SIZE(struct tcp_peer, 40);
HAS_SIZE(struct socket_state, 248);
HAS_SIZE(struct udp_session_key, 32);
HAS_SIZE(struct udp_socket, 8);
HAS_SIZE(struct config, 80);
HAS_SIZE(struct network4_key, 12);
HAS_SIZE(struct network6_key, 24);
HAS_SIZE(struct served_ports, 8);
HAS_SIZE(struct node, 28);
HAS_SIZE(struct device, 24);
HAS_SIZE(struct endpoint4_key, 8);
HAS_SIZE(struct endpoint6_key, 20);
HAS_SIZE(struct tuple4_key, 16);
HAS_SIZE(struct tuple6_key, 40);
HAS_SIZE(struct next_hop, 24);
HAS_SIZE(struct flow4, 68);
HAS_SIZE(struct flow6, 104);
HAS_SIZE(struct fragment4_key, 16);
HAS_SIZE(struct fragment6_key, 40);
HAS_SIZE(struct ports, 4);
HAS_SIZE(struct fragment, 8);
HAS_SIZE(struct allowance, 16);
HAS_SIZE(struct handover, 56);
HAS_SIZE(struct frontend_stats, 56);
HAS_SIZE(struct backend_stats, 40);
