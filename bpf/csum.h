/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Checksums follow changes by difference. XDP writes them; tc goes through helpers, which know how far the
 * checksum of this packet is computed already (CHECKSUM_PARTIAL) and what the device has summed (CHECKSUM_COMPLETE).
 * A difference is a one's complement sum of 32-bit words, kept in 64 bits.
 */
#pragma once
#include "packet.h"

#define MANGLED_ZERO ((__u16)0xffff)

static __always_inline __u64 sum_change32(__u64 sum, __be32 old, __be32 fresh)
{
	return sum + (__u32)~old + fresh;
}

static __always_inline __u64 sum_change16(__u64 sum, __be16 old, __be16 fresh)
{
	return sum + (__u16)~old + fresh;
}

static __always_inline __u64 sum_change_address(__u64 sum, const void *old, const void *fresh)
{
#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++)
		sum = sum_change32(sum, ((const __be32 *)old)[i], ((const __be32 *)fresh)[i]);
	return sum;
}

static __always_inline __u32 sum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u16 sum_fold16(__u64 sum)
{
	__u32 half = sum_fold32(sum);

	half = (half & 0xffff) + (half >> 16);
	return (half & 0xffff) + (half >> 16);
}

/* A checksum field's new value. */
static __always_inline __u16 csum_changed(__u16 checksum, __u64 change)
{
	return ~sum_fold16(change + (__u16)~checksum);
}

/* ---- transport headers ---- */

/* Where the checksum is in the header; 0: none, or nothing in it depends on addresses. */
static __always_inline __u32 l4_checksum_at(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMPV6:
		return IS_V4 ? 0 : 2;
	}
	return 0;
}

/* Whether this packet has one: UDP may go without, by a zero. */
static __always_inline int l4_has_checksum(const struct packet *p)
{
	__u16 *udp = p->l4;

	if (!p->l4 || !l4_checksum_at(p->protocol))
		return 0;
	return p->protocol != IPPROTO_UDP || ((void *)(udp + 4) <= packet_end(p->ctx) && udp[3]);
}

/*
 * Follows a change of addresses and ports, if there is a checksum. Nothing of the packet may be touched afterwards:
 * tc's pointers are invalid.
 */
static __always_inline void l4_checksum_update(const struct packet *p, __u64 addresses, __u64 ports)
{
	__u32 at = l4_checksum_at(p->protocol);

#if PACKET_XDP
	__u16 *checksum = p->l4 + at;
	__u16 fresh;

	/* For the verifier, which may not know the protocol that the header was parsed for. */
	if ((void *)(checksum + 1) > packet_end(p->ctx))
		return;
	fresh = csum_changed(*checksum, addresses + ports);
	if (p->protocol == IPPROTO_UDP && !fresh)
		fresh = MANGLED_ZERO;
	*checksum = fresh;
#else
	__u64 flags = p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	at += p->l4_offset;
	skb_csum_replace(p->ctx, at, 0, sum_fold32(addresses), flags | BPF_F_PSEUDO_HDR);
	/* With IPv6 the address itself is part of what the device has summed, and takes the change back. */
	if (!IS_V4)
		skb_csum_update(p->ctx, sum_fold32(addresses));
	if (ports)
		skb_csum_replace(p->ctx, at, 0, sum_fold32(ports), flags);
#endif
}
