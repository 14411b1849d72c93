/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where a packet leaves that we forward ourselves. */
#pragma once
#include "nat.h"

enum routed {
	ROUTED = 0,
	ROUTED_NO_NEIGHBOUR, /* the hop has a device, but no link address yet */
	ROUTED_NOWHERE,
	ROUTED_TOO_BIG,
};

static __always_inline struct node *node_row(void)
{
	__u32 zero = 0;

	return map_lookup(node, &zero);
}

/* The node's address on a device, or else its main one. Returns 0 if there is one. */
static __always_inline int node_address_on(__u32 ifindex, void *address)
{
	struct device *device = map_lookup(devices, &ifindex);
	struct node *row;

	if (device) {
		words_copy(address, FAMILY_(device->address));
		if (!words_zero(address))
			return 0;
	}
	row = node_row();
	if (!row)
		return -1;
	words_copy(address, FAMILY_(row->address));
	return words_zero(address) ? -1 : 0;
}

/* Asks the kernel's tables. `gateway`: the neighbour to send to. */
static __always_inline enum routed route_lookup(const struct packet *p, const void *destination, struct next_hop *hop,
						address_t *gateway)
{
	struct bpf_fib_lookup fib = {.ifindex = packet_ifindex(p->ctx), .l4_protocol = p->protocol, .tot_len = 1};
	long result;

#if IS_V4
	fib.family = AF_INET_;
	fib.tos = p->ip->tos;
	words_copy(&fib.ipv4_src, &p->source);
	words_copy(&fib.ipv4_dst, destination);
#else
	fib.family = AF_INET6_;
	fib.flowinfo = *(__be32 *)p->ip & be32(0x0fffffff);
	words_copy(fib.ipv6_src, &p->source);
	words_copy(fib.ipv6_dst, destination);
#endif
	fib.sport = p->source_port;
	fib.dport = p->destination_port;
	result = fib_lookup(p->ctx, &fib);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return ROUTED_NOWHERE;
	hop->ifindex = fib.ifindex;
	hop->mtu = fib.tot_len > 1 ? fib.tot_len : 0xffff; /* older kernels do not tell it */
	__builtin_memcpy(hop->destination, fib.dmac, ETH_ALEN);
	__builtin_memcpy(hop->source, fib.smac, ETH_ALEN);
#if IS_V4
	words_copy(gateway, &fib.ipv4_dst);
#else
	words_copy(gateway, fib.ipv6_dst);
#endif
	return result ? ROUTED_NO_NEIGHBOUR : ROUTED;
}

/* The same through the hop that a flow remembers. */
static __always_inline enum routed route_cached(const struct packet *p, const void *destination, struct next_hop *hop,
						address_t *gateway)
{
	struct node *row = node_row();
	__u32 generation = row ? READ_ONCE(row->route_generation) : 0;
	enum routed result;

	if (generation && READ_ONCE(hop->generation) == generation)
		return ROUTED;
	hop->generation = 0;
	result = route_lookup(p, destination, hop, gateway);
	if (result == ROUTED)
		*(volatile __u32 *)&hop->generation = generation;
	return result;
}

/* Whether what is sent to a device arrives in one pod of this node. */
static __always_inline int leads_to_pod(__u32 ifindex)
{
	struct device *device = map_lookup(devices, &ifindex);

	return device && device->flags & DEVICE_POD;
}

/* XDP's redirects reach only devices that run XDP; pods' veths may not be ready for them, and tags are a device's own. */
static __always_inline int takes_xdp(const struct packet *p, __u32 ifindex)
{
	struct device *device = map_lookup(devices, &ifindex);

	return device && (device->flags & (DEVICE_XDP | DEVICE_POD)) == DEVICE_XDP && !p->tagged;
}

/* Whether only tc can send the packet: to be asked before it is touched. */
static __always_inline int route_needs_tc(const struct packet *p, const struct next_hop *hop, enum routed routed)
{
#if PACKET_XDP
	return routed == ROUTED_NO_NEIGHBOUR ||
	       (routed == ROUTED && hop->ifindex != packet_ifindex(p->ctx) && !takes_xdp(p, hop->ifindex));
#else
	return 0;
#endif
}

static __always_inline int may_be_cut(const struct packet *p)
{
#if IS_V4
	return !(p->ip->frag_off & be16(0x4000));
#else
	return 0;
#endif
}

/* Where a translated packet goes, or why it does not. */
enum way {
	WAY_STACK,     /* up, or on its way out, as it was */
	WAY_DEVICE,    /* to a device, with the link addresses of the hop */
	WAY_NEIGHBOUR, /* to a device; the kernel looks the neighbour up, or asks for it */
	WAY_POD,       /* straight into the pod, past the stack */
	WAY_TC,	       /* XDP cannot send it */
	WAY_NONE,
	WAY_TTL,
	WAY_TOO_BIG,
};

static __always_inline enum way route_way(const struct packet *p, const struct next_hop *hop, enum routed routed)
{
	if (routed == ROUTED_NOWHERE)
		return WAY_NONE;
	if (hop_limit(p) <= 1)
		return WAY_TTL;
	if (routed == ROUTED && packet_exceeds(p, hop->mtu))
		return WAY_TOO_BIG;
	if (route_needs_tc(p, hop, routed))
		return WAY_TC;
	return routed == ROUTED ? WAY_DEVICE : WAY_NEIGHBOUR;
}

/* The same for a pod of this node, past the stack if that is possible. What is to be cut into fragments is left to it. */
static __always_inline enum way pod_way(const struct packet *p, const struct next_hop *hop, enum routed routed)
{
	int exceeds = packet_exceeds(p, hop->mtu);

	if (routed != ROUTED || !p->ethernet || !leads_to_pod(hop->ifindex) || (exceeds && may_be_cut(p)))
		return WAY_STACK;
	if (hop_limit(p) <= 1)
		return WAY_TTL;
	return exceeds ? WAY_TOO_BIG : WAY_POD;
}

static __always_inline void rewrite_link(struct rewrite *r, const struct next_hop *hop)
{
	r->link = 1;
	__builtin_memcpy(r->link_destination, hop->destination, ETH_ALEN);
	__builtin_memcpy(r->link_source, hop->source, ETH_ALEN);
}

#if !PACKET_XDP
/* For a packet that has none: redirects ask for one, and take it off again where the other device has none either. */
static __always_inline long link_layer_add(context_t *ctx, struct rewrite *r)
{
	struct ethhdr link;

	__builtin_memcpy(link.h_dest, r->link_destination, ETH_ALEN);
	__builtin_memcpy(link.h_source, r->link_source, ETH_ALEN);
	link.h_proto = be16(FAMILY_ETHERTYPE);
	r->pushed = ETH_HLEN;
	return skb_change_head(ctx, ETH_HLEN) || skb_store(ctx, 0, &link, sizeof(link), 0);
}

/* The kernel looks the neighbour up, or asks for it. */
static __always_inline int packet_redirect_to(__u32 ifindex, const address_t *gateway)
{
	struct bpf_redir_neigh neighbour = {};

#if IS_V4
	neighbour.nh_family = AF_INET_;
	words_copy(&neighbour.ipv4_nh, gateway);
#else
	neighbour.nh_family = AF_INET6_;
	words_copy(neighbour.ipv6_nh, gateway);
#endif
	return packet_redirect_neigh(ifindex, &neighbour, sizeof(neighbour));
}
#endif

static __always_inline int packet_leave_by(const struct packet *p, struct rewrite *r, enum way way, __u32 ifindex,
					   const address_t *gateway)
{
#if PACKET_XDP
	if (way == WAY_DEVICE)
		return ifindex == packet_ifindex(p->ctx) ? XDP_TX : packet_redirect(ifindex);
#else
	if (way != WAY_POD && way != WAY_STACK && !p->ethernet && link_layer_add(p->ctx, r))
		return VERDICT_DROP;
	if (way == WAY_DEVICE)
		return packet_redirect(ifindex);
	if (way == WAY_NEIGHBOUR)
		return packet_redirect_to(ifindex, gateway);
	if (way == WAY_POD)
		return packet_redirect_peer(ifindex);
#endif
	return VERDICT_NEXT;
}

/* Rewrites the packet and sends it on its way. `hop` and `gateway` count for nothing on that through the stack. */
static __always_inline int packet_send(const struct packet *p, struct rewrite *r, enum way way,
				       const struct next_hop *hop, const address_t *gateway, enum reason reason)
{
	__u32 ifindex = 0;

	if (way == WAY_NONE)
		return packet_drop(p, REASON_NO_ROUTE);
	if (way == WAY_TTL)
		return packet_error(p, ICMP_HOPS, 0, 0, REASON_TTL);
	/* Nobody fragments here, and the stack cannot: to it the packet would come from the node itself. So the sender
	 * is told even where IPv4 would have allowed it. */
	if (way == WAY_TOO_BIG)
		return packet_error(p, ICMP_TOO_BIG, ICMP_CODE_TOO_BIG, hop->mtu, REASON_TOO_BIG);
	if (way == WAY_TC)
		return packet_leave_to_tc(p);
	if (way != WAY_STACK) {
		ifindex = hop->ifindex;
		r->hop_limit = 1;
		if (way != WAY_NEIGHBOUR)
			rewrite_link(r, hop);
	}
	packet_rewrite(p, r);
	count_reason(p->hook, reason);
	return packet_finish(p, r, packet_leave_by(p, r, way, ifindex, gateway));
}

static __always_inline int route_send(const struct packet *p, struct rewrite *r, const struct next_hop *hop,
				      enum routed routed, const address_t *gateway, enum reason reason)
{
	return packet_send(p, r, route_way(p, hop, routed), hop, gateway, reason);
}
