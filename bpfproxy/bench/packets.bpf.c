/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The bench's own programs: those that make packets, those that do as little as possible with them, and those that do
 * one thing alone with a map.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "packets.h"

#define MAP(map_type, name, map_key, map_value, rows)                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_##map_type);                                                                 \
		__type(key, map_key);                                                                                  \
		__type(value, map_value);                                                                              \
		__uint(max_entries, rows);                                                                             \
	} name SEC(".maps")

MAP(ARRAY, traffic, __u32, struct traffic, 1);
MAP(PROG_ARRAY, xdp_under_test, __u32, __u32, 1);
MAP(PROG_ARRAY, tc_under_test, __u32, __u32, 1);

static __always_inline struct traffic *traffic_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&traffic, &zero);
}

/* ---- making packets ---- */

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

struct frame4 {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

struct frame6 {
	struct ethhdr ethernet;
	struct ipv6hdr ip;
	struct udphdr udp;
} __attribute__((packed));

/* Writes all headers of the next packet, whatever an earlier run has left. Returns the row, 0 if there is no room. */
static __always_inline struct traffic *next_packet(void *data, void *end)
{
	struct traffic *t = traffic_row();
	struct frame4 *four = data;
	struct frame6 *six = data;
	__be32 source, destination;
	__be16 port;
	__u64 sum;

	if (!t)
		return 0;
	source = bpf_htonl(t->source + (t->flow >> 15));
	port = bpf_htons(t->port + (t->flow & 0x7fff));
	destination = bpf_htonl(t->destination + t->offset);
	sum = (__u64)source + destination;
	if (++t->flow == t->flows)
		t->flow = 0;
	if (++t->offset == t->destinations)
		t->offset = 0;
	if (t->family == 4) {
		if ((void *)(four + 1) > end)
			return 0;
		__builtin_memcpy(four, t->frame, sizeof(*four));
		four->ip.saddr = source;
		four->ip.daddr = destination;
		four->ip.check = ~fold(sum + t->ip_sum);
		four->udp.source = port;
		four->udp.check = ~fold(sum + t->udp_sum + port);
	} else {
		if ((void *)(six + 1) > end)
			return 0;
		__builtin_memcpy(six, t->frame, sizeof(*six));
		six->ip.saddr.in6_u.u6_addr32[3] = source;
		six->ip.daddr.in6_u.u6_addr32[3] = destination;
		six->udp.source = port;
		six->udp.check = ~fold(sum + t->udp_sum + port);
	}
	return t;
}

SEC("xdp")
int test_xdp(struct xdp_md *ctx)
{
	if (next_packet((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		bpf_tail_call(ctx, &xdp_under_test, 0);
	return XDP_ABORTED;
}

SEC("tc")
int test_tc(struct __sk_buff *ctx)
{
	if (next_packet((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		bpf_tail_call(ctx, &tc_under_test, 0);
	return -1;
}

/* ---- the least that can be done with a packet ---- */

SEC("xdp")
int xdp_nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("tc")
int tc_nothing(struct __sk_buff *ctx)
{
	return 0;
}

static __always_inline int swap_ethernet(struct xdp_md *ctx)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	__u8 source[ETH_ALEN];

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return -1;
	__builtin_memcpy(source, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, source, ETH_ALEN);
	return 0;
}

SEC("xdp")
int xdp_back(struct xdp_md *ctx)
{
	return swap_ethernet(ctx) ? XDP_ABORTED : XDP_TX;
}

/* ---- from the generator to the sink ---- */

/* Makes packets and sends them (BPF_F_TEST_XDP_LIVE_FRAMES). */
SEC("xdp")
int send(struct xdp_md *ctx)
{
	struct traffic *t = next_packet((void *)(long)ctx->data, (void *)(long)ctx->data_end);

	return t ? bpf_redirect(t->ifindex, 0) : XDP_ABORTED;
}

/* From one device to another, whatever it is: the least that forwarding can cost. */
SEC("xdp")
int forward(struct xdp_md *ctx)
{
	struct traffic *t = traffic_row();

	return !t || swap_ethernet(ctx) ? XDP_ABORTED : bpf_redirect(t->forward_to, 0);
}

static __always_inline int udp4_is_right(struct frame4 *frame, void *end)
{
	__u32 pseudo = bpf_htons(IPPROTO_UDP) + frame->udp.len;
	void *udp = &frame->udp;
	__s64 sum;

	if (udp + UDP_LENGTH > end)
		return 0;
	sum = bpf_csum_diff(0, 0, udp, UDP_LENGTH, pseudo);
	sum = bpf_csum_diff(0, 0, (void *)&frame->ip.saddr, 8, sum);
	return fold(sum) == 0xffff && fold(bpf_csum_diff(0, 0, (void *)&frame->ip, sizeof(frame->ip), 0)) == 0xffff;
}

static __always_inline int udp6_is_right(struct frame6 *frame, void *end)
{
	__u32 pseudo = bpf_htons(IPPROTO_UDP) + frame->udp.len;
	void *udp = &frame->udp;
	__s64 sum;

	if (udp + UDP_LENGTH > end)
		return 0;
	sum = bpf_csum_diff(0, 0, udp, UDP_LENGTH, pseudo);
	return fold(bpf_csum_diff(0, 0, (void *)&frame->ip.saddr, 32, sum)) == 0xffff;
}

/* Counts the packets that arrive as they should, and drops all. */
SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct traffic *t = traffic_row();
	struct frame4 *four = data;
	struct frame6 *six = data;

	if (!t)
		return XDP_ABORTED;
	if (t->family == 4 && (void *)(four + 1) <= end && four->ethernet.h_proto == bpf_htons(ETH_P_IP))
		t->arrived += four->udp.dest == t->arriving_port && (!t->verify || udp4_is_right(four, end));
	else if (t->family == 6 && (void *)(six + 1) <= end && six->ethernet.h_proto == bpf_htons(ETH_P_IPV6))
		t->arrived += six->udp.dest == t->arriving_port && (!t->verify || udp6_is_right(six, end));
	return XDP_DROP;
}

/* ---- one thing with one map; keys, values and sizes are those of the datapath ---- */

#define ROWS 131072

MAP(HASH, hash4, struct frontend4_key, struct frontend, ROWS);
MAP(HASH, hash6, struct frontend6_key, struct frontend, ROWS);
MAP(LRU_HASH, lru4, struct endpoint4_key, struct flow4, ROWS);
MAP(LRU_HASH, lru6, struct endpoint6_key, struct flow6, ROWS);
MAP(ARRAY, array, __u32, struct backend, ROWS);

static __always_inline int key_of4(struct xdp_md *ctx, struct endpoint4_key *key)
{
	struct frame4 *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	key->address[0] = frame->ip.saddr;
	key->port = frame->udp.source;
	key->protocol = frame->ip.protocol;
	key->pad = 0;
	return 0;
}

static __always_inline int key_of6(struct xdp_md *ctx, struct endpoint6_key *key)
{
	struct frame6 *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	__builtin_memcpy(key->address, &frame->ip.saddr, sizeof(key->address));
	key->port = frame->udp.source;
	key->protocol = frame->ip.nexthdr;
	key->pad = 0;
	return 0;
}

_Static_assert(sizeof(struct endpoint4_key) == sizeof(struct frontend4_key), "one key for both maps");
_Static_assert(sizeof(struct endpoint6_key) == sizeof(struct frontend6_key), "one key for both maps");

/* Programs find_MAP and insert_MAP: XDP_PASS if there was, or now is, a row for the client's port. */
#define WITH_MAP(map, family, value_type)                                                                              \
	SEC("xdp")                                                                                                     \
	int find_##map(struct xdp_md *ctx)                                                                             \
	{                                                                                                              \
		struct endpoint##family##_key key;                                                                     \
                                                                                                                       \
		if (key_of##family(ctx, &key))                                                                         \
			return XDP_ABORTED;                                                                            \
		return bpf_map_lookup_elem(&map, &key) ? XDP_PASS : XDP_ABORTED;                                       \
	}                                                                                                              \
                                                                                                                       \
	SEC("xdp")                                                                                                     \
	int insert_##map(struct xdp_md *ctx)                                                                           \
	{                                                                                                              \
		struct endpoint##family##_key key;                                                                     \
		value_type value = {};                                                                                 \
                                                                                                                       \
		if (key_of##family(ctx, &key))                                                                         \
			return XDP_ABORTED;                                                                            \
		return bpf_map_update_elem(&map, &key, &value, BPF_NOEXIST) ? XDP_ABORTED : XDP_PASS;                  \
	}

WITH_MAP(hash4, 4, struct frontend)
WITH_MAP(hash6, 6, struct frontend)
WITH_MAP(lru4, 4, struct flow4)
WITH_MAP(lru6, 6, struct flow6)

SEC("xdp")
int find_array(struct xdp_md *ctx)
{
	struct frame4 *frame = (void *)(long)ctx->data;
	__u32 index;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	index = bpf_ntohs(frame->udp.source);
	return bpf_map_lookup_elem(&array, &index) ? XDP_PASS : XDP_ABORTED;
}

char _license[] SEC("license") = "Dual BSD/GPL";
