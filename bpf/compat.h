/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One C tree, two compilers: bcc compiles it on the node (-DLB_BCC), clang + libbpf ahead of time.
 *
 * Both see UAPI headers alone. The common subset: always-inline functions, no globals but `config`, no bpf-to-bpf
 * calls, no bpf_loop, no kfuncs.
 */
#pragma once
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#undef __always_inline /* linux/stddef.h makes it a plain "inline" */
#define __always_inline inline __attribute__((__always_inline__))

#include "abi.h"

#ifdef LB_BCC
#define SEC(name)
#define LICENSE(text) /* bcc declares GPL by itself */
#define CONFIG(field) CFG_##field

/*
 * bcc's rewriter knows m.lookup() in the main file only, not in macros or included files. Use what lies below it:
 * until bcc patches in the descriptor, the n-th declared map is pseudo descriptor -n.
 */
enum { map_counter_base = __COUNTER__ };
#ifdef PIN_DIR
#define PIN(name) ":" PIN_DIR "/" #name
#else
#define PIN(name)
#endif
#define MAP_(type, name, key, value, max, flags)                                                                       \
	enum { name##_pseudo_fd = map_counter_base - __COUNTER__ };                                                    \
	BPF_F_TABLE(type PIN(name), key, value, name, max, flags)
#define MAP(type, name, key, value, flags) MAP_(MAP_TYPE_##type, name, key, value, MAX_##name, flags)
#define MAP_SOCKET_STORAGE(name, value) MAP_("sk_storage", name, int, value, 0, BPF_F_NO_PREALLOC)
#define MAP_TYPE_HASH "hash"
#define MAP_TYPE_LRU_HASH "lru_hash"
#define MAP_TYPE_ARRAY "array"
#define MAP_TYPE_PERCPU_ARRAY "percpu_array"
#define MAP_TYPE_LPM_TRIE "lpm_trie"
#define MAP_TYPE_PROG_ARRAY "prog"
#define map_ref(m) ((void *)bpf_pseudo_fd(1, m##_pseudo_fd))

#else /* clang + libbpf */
#include <bpf/bpf_helpers.h>
#define LICENSE(text) char _license[] SEC("license") = text
#define CONFIG(field) (config.field)
const volatile struct config config = {};

/* max_entries is set by the loader. */
#define MAP(map_type, name, map_key, map_value, flags)                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_##map_type);                                                                 \
		__type(key, map_key);                                                                                  \
		__type(value, map_value);                                                                              \
		__uint(max_entries, 1);                                                                                \
		__uint(map_flags, flags);                                                                              \
	} name SEC(".maps")
#define MAP_SOCKET_STORAGE(name, map_value)                                                                            \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                                                 \
		__type(key, int);                                                                                      \
		__type(value, map_value);                                                                              \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
	} name SEC(".maps")
#define map_ref(m) ((void *)&m)
#endif

#define map_lookup(m, key) bpf_map_lookup_elem(map_ref(m), (void *)(key))
#define map_update(m, key, value, flags) bpf_map_update_elem(map_ref(m), (void *)(key), (void *)(value), flags)
#define map_delete(m, key) bpf_map_delete_elem(map_ref(m), (void *)(key))

/*
 * Helpers by their own types: bcc's bpf_get_socket_cookie truncates to 32 bits, and old copies of either header lack
 * the newer ones.
 */
#define socket_cookie(ctx) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(ctx))
#define netns_cookie(ctx) (((__u64(*)(void *))BPF_FUNC_get_netns_cookie)(ctx))
#define set_retval(value) (((int (*)(int))BPF_FUNC_set_retval)(value))
#define socket_storage(m, sk, flags)                                                                                   \
	(((void *(*)(void *, void *, void *, __u64))BPF_FUNC_sk_storage_get)(map_ref(m), sk, (void *)0, flags))

/* Packets. */
#define jiffies64() (((__u64(*)(void))BPF_FUNC_jiffies64)())
/*
 * A slot that is a constant where it is called makes a jump of it; one in a register is an indirect call, which
 * retpolines make expensive. So calls that differ in the slot alone must not be merged.
 */
#define tail_call(ctx, m, slot)                                                                                        \
	do {                                                                                                           \
		((void (*)(void *, void *, __u32))BPF_FUNC_tail_call)(ctx, map_ref(m), slot);                          \
		asm volatile("" : : "i"(slot));                                                                        \
	} while (0)
#define packet_redirect(ifindex) (((long (*)(__u32, __u64))BPF_FUNC_redirect)(ifindex, 0))
#define packet_redirect_peer(ifindex) (((long (*)(__u32, __u64))BPF_FUNC_redirect_peer)(ifindex, 0))
#define packet_redirect_neigh(ifindex, hop, size)                                                                      \
	(((long (*)(__u32, struct bpf_redir_neigh *, int, __u64))BPF_FUNC_redirect_neigh)(ifindex, hop, size, 0))
#define fib_lookup(ctx, params)                                                                                        \
	(((long (*)(void *, struct bpf_fib_lookup *, int, __u32))BPF_FUNC_fib_lookup)(ctx, params, sizeof(*(params)),  \
										      0))
#define checksum_of(data, size)                                                                                        \
	(((__s64(*)(void *, __u32, void *, __u32, __u32))BPF_FUNC_csum_diff)((void *)0, 0, data, size, 0))
#define skb_pull_data(skb, size) (((long (*)(struct __sk_buff *, __u32))BPF_FUNC_skb_pull_data)(skb, size))
#define skb_csum_update(skb, sum) (((__s64(*)(struct __sk_buff *, __u32))BPF_FUNC_csum_update)(skb, sum))
#define skb_csum_replace(skb, at, from, to, flags)                                                                     \
	(((long (*)(struct __sk_buff *, __u32, __u64, __u64, __u64))BPF_FUNC_l4_csum_replace)(skb, at, from, to, flags))
#define skb_load(skb, at, data, size)                                                                                  \
	(((long (*)(const struct __sk_buff *, __u32, void *, __u32))BPF_FUNC_skb_load_bytes)(skb, at, data, size))
#define skb_store(skb, at, data, size, flags)                                                                          \
	(((long (*)(struct __sk_buff *, __u32, const void *, __u32, __u64))BPF_FUNC_skb_store_bytes)(skb, at, data,    \
												     size, flags))
#define skb_change_tail(skb, size)                                                                                     \
	(((long (*)(struct __sk_buff *, __u32, __u64))BPF_FUNC_skb_change_tail)(skb, size, 0))
#define skb_change_head(skb, size)                                                                                     \
	(((long (*)(struct __sk_buff *, __u32, __u64))BPF_FUNC_skb_change_head)(skb, size, 0))
#define skb_vlan_pop(skb) (((long (*)(struct __sk_buff *))BPF_FUNC_skb_vlan_pop)(skb))
#define skb_adjust_room(skb, size)                                                                                     \
	(((long (*)(struct __sk_buff *, __s32, __u32, __u64))BPF_FUNC_skb_adjust_room)(skb, size, BPF_ADJ_ROOM_MAC, 0))
#define xdp_adjust_head(xdp, size) (((long (*)(struct xdp_md *, int))BPF_FUNC_xdp_adjust_head)(xdp, size))
#define xdp_adjust_tail(xdp, size) (((long (*)(struct xdp_md *, int))BPF_FUNC_xdp_adjust_tail)(xdp, size))
#define xdp_adjust_meta(xdp, size) (((long (*)(struct xdp_md *, int))BPF_FUNC_xdp_adjust_meta)(xdp, size))

/* Neither compiler nor verifier knows this value any more, nor where it is from. */
#define opaque(x) asm volatile("" : "+r"(x))
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define be32(x) ((__be32)__builtin_bswap32((__u32)(x)))
#else
#define be16(x) ((__be16)(x))
#define be32(x) ((__be32)(x))
#endif
