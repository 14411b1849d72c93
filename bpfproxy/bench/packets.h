/* SPDX-License-Identifier: Apache-2.0 */
/* What packets.c and packets.bpf.c have in common. */
#pragma once

enum { FRAME_MAX = 128, UDP_LENGTH = 32 }; /* UDP_LENGTH: header and data */

/*
 * The packets to be made, row 0 of the map `traffic`: UDP over IPv4 or IPv6, whatever is the same in all of them is in
 * `frame`. Flow n comes from the address n >> 15 behind the frame's and from the port n & 0x7fff behind the frame's;
 * packet i goes to the address i % destinations behind the frame's. Sums are one's complement ones of what is the same.
 */
struct traffic {
	__u8 frame[FRAME_MAX];
	__u32 ip_sum;
	__u32 udp_sum;
	__u32 source; /* last word of the address, host order; likewise below */
	__u32 destination;
	__u16 port;
	__u16 family;
	__u32 flows; /* the first one comes again after so many */
	__u32 destinations;
	__u32 flow;	      /* of the next packet */
	__u32 offset;	      /* of the next packet's destination */
	__u32 ifindex;	      /* where `send` sends them */
	__u32 forward_to;     /* where `forward` does */
	__be16 arriving_port; /* what `sink` is to see */
	__u16 verify;	      /* `sink` looks at checksums, too */
	__u32 pad;
	__u64 arrived;
};
