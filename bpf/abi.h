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
 * switches the programs over when they are filled. What programs write in the maps of flows and sockets is taken over by
 * the names of fields: a field whose meaning changes gets another name.
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
	FRONTEND_SCOPED = 1,	    /* on the external row: there is an internal one too */
	FRONTEND_SOURCE_RANGES = 2, /* clients outside the cluster must be in networks4/6 under the frontend's id */
};

/* When the client's address is replaced by the node's (packet level). */
enum masquerade {
	MASQUERADE_NEVER = 0,
	MASQUERADE_NOT_LOCAL = 1, /* unless the client is in the pod network */
	MASQUERADE_FROM_NODE = 2,
	MASQUERADE_ALWAYS = 3,
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

/*
 * Networks of clients: under owner 0 the cluster's pod networks, under a frontend's id the ranges that it admits.
 * prefix counts the owner's 32 bits, too. The value counts for nothing.
 */
struct network4_key {
	__u32 prefix;
	__u32 owner;
	__be32 address[1];
};

struct network6_key {
	__u32 prefix;
	__u32 owner;
	__be32 address[4];
};

/*
 * Ports at which a frontend or a backend is, on any address: bit n % 64 of row n / 64 of the protocol's rows, which
 * begin with those of TCP, then UDP, then SCTP. A packet to another port that is of no known flow is none of ours.
 */
enum { SERVED_ROWS = 1024 };

struct served_ports {
	__u64 bits;
};

enum node_flag {
	NODE_SHARED = 1, /* other modes serve here as well, or did: what no flow is known of may be conntrack's */
};

/* What may change while programs run: row 0 of `node`. */
struct node {
	__u32 route_generation; /* grows with each change of routes, neighbours, links; 0: nothing is cached */
	__u32 flags;		/* enum node_flag */
	__be32 address4[1];	/* source of translated packets; all zero: there is none */
	__be32 address6[4];
};

enum device_flag {
	DEVICE_POD = 1, /* leads to one pod: redirect_peer gets there */
	DEVICE_XDP = 2, /* runs XDP, so it takes what XDP redirects; others would lose it */
};

/* By ifindex. Devices without a row use the addresses of `node`. */
struct device {
	__u32 flags;
	__be32 address4[1];
	__be32 address6[4];
};

/* ---- state of sockets ---------------------------------------------------------------------------------------- */

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

/*
 * Where a connected TCP socket was going, by its cookie. To make a SK_STORAGE for it would cost four times as much as
 * all the rest of a connect; sock_release removes the row.
 */
struct tcp_peer {
	struct endpoint vip;
	struct endpoint backend;
};

/* Of a UDP socket. Lives in SK_STORAGE, so it dies with its socket. */
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

/* ---- state of flows (packet level) ---------------------------------------------------------------------------- */

/*
 * A client's port has one row in flows4/6, found from both directions, since its address and port stand in both: the
 * flow's destination tells packets of the client, its backend those that come back. Everything else is in tuples4/6
 * by the whole tuple: further flows of the same port (both directions), and the replies to translated sources.
 */
struct endpoint4_key {
	__be32 address[1];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

struct endpoint6_key {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

struct tuple4_key {
	__be32 source[1];
	__be32 destination[1];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 direction; /* enum direction */
	__u16 pad;
};

struct tuple6_key {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 direction;
	__u16 pad;
};

/* Where a packet leaves: valid while `generation` is node.route_generation. */
struct next_hop {
	__u32 generation;
	__u32 ifindex;
	__u8 destination[6];
	__u8 source[6];
	__u16 mtu;
	__u16 pad;
};

enum flow_flag {
	FLOW_DIRECT = 1,  /* the client talks to the backend itself: nothing is translated */
	FLOW_MORE = 2,	  /* the client's port has further flows, in tuples */
	FLOW_SOURCE = 4,  /* the source is translated: replies are found in tuples */
	FLOW_ROUTED = 8,  /* to a node address: we forward it, the stack would take it for an impostor */
	FLOW_LOCAL = 16,  /* the backend is on this node */
	FLOW_REPLY = 32,  /* a row for replies, in tuples */
	FLOW_PAIRED = 64, /* replies have a row of their own */
};

/* What each side was seen to do. Each side's byte is written by its own packets alone. */
enum side_flag {
	SIDE_SEEN = 1,
	SIDE_ANSWERED = 2, /* TCP: sent more than the SYN */
	SIDE_FIN = 4,
	SIDE_RESET = 8,
};

/*
 * In a reply's row `source` is the client. Times are in ticks of 2^TICK_SHIFT ns of CLOCK_MONOTONIC, and wrap.
 */
enum { TICK_SHIFT = 24 };

struct flow4 {
	__be32 vip[1];
	__be32 backend[1];
	__be32 source[1]; /* the client as its backend sees it */
	__be16 vip_port;
	__be16 backend_port;
	__be16 source_port;
	__u8 client_side; /* enum side_flag */
	__u8 backend_side;
	__u32 flags; /* enum flow_flag */
	__u32 created;
	__u32 seen;
	__u32 frontend; /* id; 0 if direct */
	__u32 backend_id;
	__u32 backend_generation;
	struct next_hop hop;
};

struct flow6 {
	__be32 vip[4];
	__be32 backend[4];
	__be32 source[4];
	__be16 vip_port;
	__be16 backend_port;
	__be16 source_port;
	__u8 client_side;
	__u8 backend_side;
	__u32 flags;
	__u32 created;
	__u32 seen;
	__u32 frontend;
	__u32 backend_id;
	__u32 backend_generation;
	struct next_hop hop;
};

/* The ports of a fragmented packet, for its later fragments. */
struct fragment4_key {
	__be32 source[1];
	__be32 destination[1];
	__be32 id;
	__u32 protocol;
};

struct fragment6_key {
	__be32 source[4];
	__be32 destination[4];
	__be32 id;
	__u32 protocol;
};

struct ports {
	__be16 source;
	__be16 destination;
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

/* Per CPU: allowance for ICMP errors of our own. */
struct allowance {
	__u64 refilled; /* ns */
	__u32 tokens;
	__u32 pad;
};

/* Per CPU: what a program hands to the one that it calls. */
struct handover {
	/* the packet, as it was parsed */
	__u32 l3_offset;
	__u32 l4_offset;
	__u32 ports; /* struct ports */
	__be32 fragment_id;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 fragment;
	__u8 tagged;
	/* an ICMP error to be sent */
	__u32 type;
	__u32 code;
	__u32 mtu;
	__u32 reason; /* that is counted when it, or the packet, is sent */
	/* a packet to be sent as the draft says */
	__u32 direction;
	__u32 hook;
	/* SCTP's CRC */
	__u32 verdict;
	__u32 ports_change; /* old ports xor new ones */
	__u32 pad;
};

/*
 * Slots of xdp_calls and tc_calls: CALL_IN4 is for program bp_xdp_in4, or bp_tc_in4, and so on. A slot without a
 * program of that name stays empty.
 */
enum call {
	CALL_IN4 = 0, /* packets that arrive */
	CALL_IN6,
	CALL_OUT4, /* packets that leave */
	CALL_OUT6,
	CALL_NEW4, /* no flow is known */
	CALL_NEW6,
	CALL_SOURCE4, /* a new flow that takes two rows */
	CALL_SOURCE6,
	CALL_PAIR4, /* a flow that has lost its row of replies */
	CALL_PAIR6,
	CALL_SEND4, /* translates as the draft of a flow says */
	CALL_SEND6,
	CALL_PARSED_IN4, /* as CALL_IN4, for packets that CALL_SLOW_IN4 has parsed */
	CALL_PARSED_IN6,
	CALL_PARSED_OUT4,
	CALL_PARSED_OUT6,
	CALL_SLOW_IN4, /* fragments, options, extension headers */
	CALL_SLOW_IN6,
	CALL_SLOW_OUT4,
	CALL_SLOW_OUT6,
	CALL_ICMP_IN4,
	CALL_ICMP_IN6,
	CALL_ICMP_OUT4,
	CALL_ICMP_OUT6,
	CALL_ERROR4, /* answers with an ICMP error */
	CALL_ERROR6,
	CALL_CRC,
	CALL_COUNT,
};

/* ---- configuration -------------------------------------------------------------------------------------------- */

/* Constants of a loaded program: .rodata in the prebuilt object, -DCFG_<field> with bcc. */
struct config {
	__u64 node_netns; /* cookie of the node's own network namespace */
	__u64 clock_base; /* ticks are (jiffies - clock_base) * clock_rate / 2^32 */
	__u32 clock_rate;
	__u32 pod_scope4; /* scope of IPv4 clients in other namespaces */
	__u32 pod_scope6; /* the same for IPv6 */
	__u32 snat_first; /* host order, inclusive; 0: no range */
	__u32 snat_last;
	__u32 has_set_retval; /* bpf_set_retval works in these hooks (Linux 6.1) */
	__u32 host_routing;   /* straight to the pods of this node, past the stack */
	__u32 error_rate;     /* ICMP errors of our own, per second and CPU; 0: none */
	/* Idle times after which a flow is forgotten, in ticks (see TICK_SHIFT). */
	__u32 tcp_syn;
	__u32 tcp_established;
	__u32 tcp_close_wait; /* one side has closed */
	__u32 tcp_time_wait;  /* both have */
	__u32 tcp_reset;
	__u32 udp; /* no answer yet */
	__u32 udp_stream;
	__u32 sctp;
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
	HOOK_XDP,
	HOOK_TC_IN,
	HOOK_TC_OUT,
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
	/* packet level */
	REASON_REPLY,	       /* translated back */
	REASON_DIRECT,	       /* of a flow that is known and not translated */
	REASON_ICMP,	       /* an ICMP error, translated with the packet that it quotes */
	REASON_ERROR_LIMITED,  /* one would be due, the rate or the packet's kind forbids it: dropped */
	REASON_SOURCE_RANGE,   /* the client is in none of the frontend's ranges: dropped */
	REASON_NOT_SYN,	       /* TCP without SYN and flow, whose backend is not sure: passed on */
	REASON_SNAT_EXHAUSTED, /* no source port is free: dropped */
	REASON_NO_SOURCE,      /* no node address to translate to: dropped */
	REASON_NO_ROUTE,       /* dropped */
	REASON_NO_NEIGHBOUR,   /* XDP leaves the packet to tc */
	REASON_TTL,	       /* used up where we forward: answered, if the rate allows */
	REASON_TOO_BIG,	       /* for the next device: answered, if the rate allows */
	REASON_FRAGMENT,       /* a later fragment whose first was not seen: passed on */
	REASON_MALFORMED,      /* headers cut short or not understood: passed on */
	REASON_OTHER_PROTOCOL, /* passed on */
	REASON_NO_FLOW,	       /* the flow could not be kept: dropped */
	REASON_TAGGED,	       /* of a VLAN, whose own device sees it again: passed on */
	REASON_COUNT,
};

struct metric {
	__u64 count;
};

enum origin {
	ORIGIN_CONNECT = 0,
	ORIGIN_SENDMSG,
	ORIGIN_PACKET,
	ORIGIN_COUNT,
};

/* Packets and bytes (from the IP header on) by enum direction; the socket level has none. */
struct frontend_stats {
	__u64 connections[ORIGIN_COUNT];
	__u64 packets[2];
	__u64 bytes[2];
};

struct backend_stats {
	__u64 connections;
	__u64 packets[2];
	__u64 bytes[2];
};
