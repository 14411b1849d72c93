/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Programs for devices, under the names of the real ones, that count packets and let them pass. */
#include "compat.h"
#include <linux/pkt_cls.h>

MAP(ARRAY, hits, __u32, __u64, 0);

static __always_inline void hit(__u32 index)
{
	__u64 *count = map_lookup(hits, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
}

SEC("xdp")
int bp_xdp(struct xdp_md *ctx)
{
	hit(0);
	return XDP_PASS;
}

SEC("tc")
int bp_tc_in(struct __sk_buff *ctx)
{
	hit(1);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bp_tc_in_left(struct __sk_buff *ctx)
{
	hit(2);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bp_tc_out(struct __sk_buff *ctx)
{
	hit(3);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bp_tc_in_l3(struct __sk_buff *ctx)
{
	hit(4);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bp_tc_out_l3(struct __sk_buff *ctx)
{
	hit(5);
	return TC_ACT_UNSPEC;
}

LICENSE("Dual BSD/GPL");
