/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packet level is written once and compiled for one family at a time (PACKET_FAMILY is 4 or 6), so that keys are
 * as short as each family allows. This is all in which the two differ by name.
 */
#pragma once
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "packet_maps.h"
#include "address.h"

#define AF_INET_ 2
#define AF_INET6_ 10

#if PACKET_FAMILY == 4
#define IS_V4 1
#define ADDRESS_WORDS 1
#define FAMILY_(name) name##4
#define FAMILY_ETHERTYPE ETH_P_IP
#define FAMILY_ICMP IPPROTO_ICMP
typedef struct iphdr ip_header;
#else
#define IS_V4 0
#define ADDRESS_WORDS 4
#define FAMILY_(name) name##6
#define FAMILY_ETHERTYPE ETH_P_IPV6
#define FAMILY_ICMP IPPROTO_ICMPV6
typedef struct ipv6hdr ip_header;
#endif

typedef struct {
	__be32 word[ADDRESS_WORDS];
} address_t;

#define flows FAMILY_(flows)
#define tuples FAMILY_(tuples)
#define drafts FAMILY_(drafts)
#define fragments FAMILY_(fragments)
#define networks FAMILY_(networks)
#define backend_ids FAMILY_(backend_ids)

#if PACKET_FAMILY == 4
typedef struct flow4 flow_t;
typedef struct endpoint4_key endpoint_key;
typedef struct tuple4_key tuple_key;
typedef struct fragment4_key fragment_key;
typedef struct network4_key network_key;
#else
typedef struct flow6 flow_t;
typedef struct endpoint6_key endpoint_key;
typedef struct tuple6_key tuple_key;
typedef struct fragment6_key fragment_key;
typedef struct network6_key network_key;
#endif

#define CALL(name) FAMILY_(CALL_##name)

/* ICMP errors of both families have one shape. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 info; /* the MTU, where it is one of "too big" */
};

#if PACKET_FAMILY == 4
enum { ICMP_UNREACHABLE = 3, ICMP_TOO_BIG = 3, ICMP_HOPS = 11, ICMP_CODE_PORT = 3, ICMP_CODE_TOO_BIG = 4 };
#else
enum { ICMP_UNREACHABLE = 1, ICMP_TOO_BIG = 2, ICMP_HOPS = 3, ICMP_CODE_PORT = 4, ICMP_CODE_TOO_BIG = 0 };
#endif

/* Addresses stand in headers, keys and rows as words; these copy and compare them wherever they stand. */
static __always_inline void words_copy(void *to, const void *from)
{
#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS; i++)
		((__be32 *)to)[i] = ((const __be32 *)from)[i];
}

static __always_inline int words_equal(const void *a, const void *b)
{
	const __be32 *x = a, *y = b;
	__be32 difference = x[ADDRESS_WORDS - 1] ^ y[ADDRESS_WORDS - 1];

#pragma unroll
	for (int i = 0; i < ADDRESS_WORDS - 1; i++)
		difference |= x[i] ^ y[i];
	return !difference;
}

static __always_inline int words_zero(const void *a)
{
	const __be32 *x = a;
	__be32 all = x[0];

#pragma unroll
	for (int i = 1; i < ADDRESS_WORDS; i++)
		all |= x[i];
	return !all;
}

/* The form in which service tables hold addresses. */
static __always_inline struct endpoint to_endpoint(const address_t *a, __be16 port)
{
#if IS_V4
	return endpoint4(a->word[0], port);
#else
	return endpoint6(a->word[0], a->word[1], a->word[2], a->word[3], port);
#endif
}

static __always_inline address_t from_mapped(const __be32 mapped[4])
{
	address_t a;

	words_copy(&a, mapped + 4 - ADDRESS_WORDS);
	return a;
}
