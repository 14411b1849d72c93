/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ABI between the datapath and its control plane: every key, value, flag and reason.
 *
 * C includes this file (through compat.h, once) and Python parses the same text with cffi, so it stays within what
 * cffi's cdef takes: enums, structs, unions; no #include, #ifdef or attributes. Padding is explicit and written as
 * zero; abi_check.c asserts the sizes. Addresses and ports are in network byte order, the rest is in the machine's.
 * An address of 16 bytes holds IPv4 as ::ffff:a.b.c.d.
 *
 * Changing a layout here changes the directory in which maps are pinned: an upgraded agent starts with new maps and
 * switches the programs over when they are filled.
 */

/* ---- frontends ------------------------------------------------------------------------------------------------ */

enum scope {
	SCOPE_EXTERNAL = 0,
	SCOPE_INTERNAL = 1,
};

enum frontend_kind {
	KIND_CLUSTER_IP = 0,
	KIND_NODE_PORT = 1,
	KIND_EXTERNAL_IP = 2,
	KIND_LOAD_BALANCER = 3,
};

enum frontend_flag {
	FRONTEND_SCOPED = 1, /* on the external row: there is an internal one too */
};

/* A NodePort has an all-zero address: it answers on every address in node_addresses. */
struct frontend4_key {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 scope;
};

struct frontend6_key {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 scope;
};

struct frontend {
	__u32 set;		/* index into sets */
	__u32 id;		/* rev-NAT id: index into frontend_stats */
	__u64 affinity_group;	/* the same for a ServicePort's frontends of a family */
	__u32 affinity_timeout; /* seconds, 0 without affinity */
	__u8 kind;
	__u8 flags;
	__u8 masquerade;
	__u8 pad;
};

/* ---- sets and backends ---------------------------------------------------------------------------------------- */

enum scheduler {
	SCHEDULER_RANDOM = 0,
	SCHEDULER_ROUND_ROBIN = 1,
	SCHEDULER_MAGLEV = 2,
};

enum set_flag {
	SET_IN_USE = 1,
	SET_DROP = 2, /* empty because of a Local policy: drop, where others are refused */
	SET_SCHEDULER_SHIFT = 4,
};

/*
 * One row flips a set from one extent of slots to the next, so it is read and written as one 64-bit word. Extent:
 *	[base ...]		Maglev table, 2^table_log2 backend ids (none if table_log2 is 0)
 *	[... count]		ids of the backends, ascending
 *	[... 1]			number of draining backends; from here on for user space alone
 *	[... draining]		their ids
 */
union backend_set {
	struct {
		__u32 base; /* first slot of the extent */
		__u16 count;
		__u8 table_log2;
		__u8 flags; /* set_flag; the scheduler from bit SET_SCHEDULER_SHIFT on */
	};
	__u64 word;
};

/* Slots come in pairs, since array values are aligned to 8 bytes. */
struct slot_pair {
	__u32 id[2];
};

enum backend_flag {
	BACKEND_SERVING = 1, /* flows that stick to it may go on */
	BACKEND_LOCAL = 2,   /* runs on this node */
};

struct backend {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 flags;
	__u32 generation; /* grows each time that the id is given to another backend */
};

/* For user space: which set of which Service a set id is. Strings end with a zero. */
struct set_name {
	char name_space[64];
	char service[64];
	char port[64];
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u8 pool;
	__u8 pad;
};

/* ---- the node ------------------------------------------------------------------------------------------------- */

enum node_address_flag {
	NODE_ADDRESS_NODE_PORT = 1, /* NodePorts answer here */
};

/* 127.0.0.0 stands for all of 127.0.0.0/8. */
struct node_address_key {
	__be32 address[4];
};

struct node_address {
	__u32 flags;
};

/* ---- state of flows ------------------------------------------------------------------------------------------- */

struct affinity_key {
	__u64 group;
	__u64 client; /* socket level: network namespace cookie */
};

struct affinity {
	__u64 last_used; /* ns, CLOCK_MONOTONIC */
	__u32 backend;
	__u32 generation;
};

struct endpoint {
	__be32 address[4];
	__be16 port;
	__u16 pad;
};

/* A VIP that an unconnected UDP socket talks to, and the backend that answers for it. */
struct udp_session {
	struct endpoint vip;
	struct endpoint backend;
	__u32 id;
	__u32 generation;
};

enum socket_flag {
	SOCKET_CONNECTED = 1,  /* peer is valid */
	SOCKET_OVERFLOWED = 2, /* has sessions in udp_sessions, too */
};

enum { SOCKET_SESSIONS = 4 };

/* Lives in SK_STORAGE, so it dies with its socket. */
struct socket_state {
	struct udp_session peer;
	struct udp_session sessions[SOCKET_SESSIONS];
	__u32 flags;
	__u32 used; /* sessions in use, from the first */
};

/* Sessions of sockets that talk to more than SOCKET_SESSIONS VIPs, by VIP (forward) and by backend (reply). */
enum direction {
	DIRECTION_FORWARD = 0,
	DIRECTION_REPLY = 1,
};

struct udp_session_key {
	__u64 cookie;
	struct endpoint endpoint;
	__u32 direction;
};

/* Connected UDP sockets by cookie, for SOCK_DESTROY. */
struct udp_socket {
	__u32 id;
	__u32 generation;
};

/* ---- configuration -------------------------------------------------------------------------------------------- */

/* Constants of a loaded program: .rodata in the prebuilt object, -DCFG_<field> with bcc. */
struct config {
	__u64 node_netns; /* cookie of the node's own network namespace */
	__u32 pod_scope4; /* scope of IPv4 clients in other namespaces */
	__u32 pod_scope6; /* the same for IPv6 */
	__u32 snat_first; /* host order, inclusive; 0: no range */
	__u32 snat_last;
	__u32 has_set_retval; /* bpf_set_retval works in these hooks (Linux 6.1) */
	__u32 pad;
};

/* ---- counters ------------------------------------------------------------------------------------------------- */

enum hook {
	HOOK_CONNECT4 = 0,
	HOOK_CONNECT6,
	HOOK_SENDMSG4,
	HOOK_SENDMSG6,
	HOOK_RECVMSG4,
	HOOK_RECVMSG6,
	HOOK_GETPEERNAME4,
	HOOK_GETPEERNAME6,
	HOOK_POST_BIND4,
	HOOK_POST_BIND6,
	HOOK_SOCK_RELEASE,
	HOOK_COUNT,
};

/* Every exit of a program counts one of these. Append only. */
enum reason {
	REASON_NOT_OURS = 0, /* no frontend: passed on untouched */
	REASON_TRANSLATED,
	REASON_REUSED,		 /* translated by a session or an affinity that was there */
	REASON_NO_BACKEND,	 /* no usable endpoint: refused */
	REASON_NO_LOCAL_BACKEND, /* none on this node under a Local policy: dropped */
	REASON_NO_STATE,	 /* translated, but its state could not be kept: replies show the backend */
	REASON_PORT_TAKEN,	 /* bind to a NodePort or into the SNAT range: refused */
	REASON_BROKEN,		 /* a row points nowhere: passed on (a bug, or maps changed by hand) */
	REASON_COUNT,
};

struct metric {
	__u64 count;
};

enum origin {
	ORIGIN_CONNECT = 0,
	ORIGIN_SENDMSG,
	ORIGIN_COUNT,
};

struct frontend_stats {
	__u64 connections[ORIGIN_COUNT];
};

struct backend_stats {
	__u64 connections;
};
