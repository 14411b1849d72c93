/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SCTP's checksum, a CRC32c, follows a change of ports. A program of its own: the verifier walks each round of the
 * loops, once for every way that leads here.
 */
#pragma once
#include "csum.h"

/* All ones if the lowest bit is set. Some verifiers walk both ways where they recognize a bit that becomes a mask. */
static __always_inline __u32 bit_mask(__u32 x)
{
	x &= 1;
	opaque(x);
	return 0 - x;
}

/* x * y modulo the polynomial, in the reflected order of bits that CRC32c has. */
static __always_inline __u32 crc_multiply(__u32 x, __u32 y)
{
	__u32 product = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 32; i++) {
		product ^= y & bit_mask(x >> 31);
		x <<= 1;
		y = (y >> 1) ^ (0x82f63b78 & bit_mask(y));
	}
	return product;
}

/*
 * What a change of the first four bytes of a message of `length` bytes does to its CRC32c. The CRC is linear: no other
 * byte need be read. The change is carried over the bytes behind it, a power of two at a time.
 */
static __always_inline __u32 crc_change(__u32 change, __u32 length)
{
	__u32 power = 0x00800000; /* x^8: one byte */
	__u32 crc, taken;

	/* The four bytes by themselves, in a stream of bytes whose first is the lowest. Branches would be paths. */
	crc = change;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 32; i++)
		crc = (crc >> 1) ^ (0x82f63b78 & bit_mask(crc));
	length -= 4;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 16; i++) {
		taken = bit_mask(length);
		crc = (crc_multiply(crc, power) & taken) | (crc & ~taken);
		power = crc_multiply(power, power);
		length >>= 1;
	}
	return crc;
}

/* The length of the transport message as its IP header has it: small frames are padded. 0: cut short. */
static __always_inline __u32 crc_length(context_t *ctx, __u32 l3, __u32 l4)
{
	void *ip = packet_data(ctx) + (l3 & 0x3f);
	struct iphdr *ip4 = ip;
	struct ipv6hdr *ip6 = ip;
	__u32 end = l3;

	if ((void *)(ip6 + 1) > packet_end(ctx) || ip4->version != 6) {
		if ((void *)(ip4 + 1) > packet_end(ctx))
			return 0;
		end += be16(ip4->tot_len);
	} else {
		end += sizeof(*ip6) + be16(ip6->payload_len);
	}
	return end >= l4 + 12 ? end - l4 : 0;
}

/* Ends the work on a packet whose ports have been changed already. */
static __always_inline int program_crc(context_t *ctx)
{
	struct handover *handover = handover_row();
	void *header = packet_data(ctx);
	__u32 *checksum, at, length, old, fresh;

	if (!handover)
		return VERDICT_DROP;
	at = handover->l4_offset & 0xfff;
	length = crc_length(ctx, handover->l3_offset, at);
	header += at;
	checksum = header + 8;
	if (!length || (void *)(checksum + 1) > packet_end(ctx))
		return VERDICT_DROP;
	old = *checksum;
	fresh = old ^ crc_change(handover->ports_change, length);
	*checksum = fresh;
#if !PACKET_XDP
	skb_csum_update(ctx, sum_fold32(sum_change32(0, old, fresh)));
#endif
	return handover->verdict;
}
