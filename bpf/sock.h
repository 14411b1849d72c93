/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Socket-level translation, one body for both families. A hook hands over the destination that its socket asks for
 * and writes back what is left in `dst`.
 */
#pragma once
#include "affinity.h"

#define ECONNREFUSED_ 111
#define EADDRINUSE_ 98
#define EHOSTUNREACH_ 113

/* What a cgroup program returns. */
enum { SOCK_REFUSE = 0, SOCK_PROCEED = 1 };

struct sock_call {
	struct bpf_sock_addr *ctx;
	struct endpoint dst;
	struct endpoint src; /* all zero while the socket is not bound */
	__u16 src_port;	     /* host order */
	__u8 protocol;
	enum hook hook;
};

static __always_inline int refuse(enum hook hook, enum reason reason, int error)
{
	count_reason(hook, reason);
	if (CONFIG(has_set_retval))
		set_retval(-error);
	return SOCK_REFUSE; /* EPERM without the helper */
}

static __always_inline int is_node(void *ctx)
{
	return netns_cookie(ctx) == CONFIG(node_netns);
}

/* ---- sessions of unconnected UDP sockets ---- */

static __always_inline struct udp_session *session_find(struct socket_state *state, const struct endpoint *vip)
{
#pragma unroll
	for (__u32 i = 0; i < SOCKET_SESSIONS; i++)
		if (i < state->used && endpoint_equal(&state->sessions[i].vip, vip))
			return &state->sessions[i];
	return 0;
}

static __always_inline struct udp_session *session_find_reply(struct socket_state *state,
							      const struct endpoint *backend)
{
#pragma unroll
	for (__u32 i = 0; i < SOCKET_SESSIONS; i++)
		if (i < state->used && endpoint_equal(&state->sessions[i].backend, backend))
			return &state->sessions[i];
	return 0;
}

static __always_inline struct udp_session_key session_key(void *ctx, const struct endpoint *e, __u32 direction)
{
	struct udp_session_key key = {.cookie = socket_cookie(ctx), .endpoint = *e, .direction = direction};

	return key;
}

/* Keeps a session in the socket itself while there is room, else in the overflow map under both directions. */
static __always_inline int session_keep(struct bpf_sock_addr *ctx, struct socket_state *state,
					const struct udp_session *session)
{
	struct udp_session *known;
	__u32 used;

	if (!state)
		return -1;
	known = session_find(state, &session->vip);
	if (known) {
		*known = *session;
		return 0;
	}
	used = state->used;
	if (used < SOCKET_SESSIONS) {
		state->sessions[used & (SOCKET_SESSIONS - 1)] = *session;
		state->used = used + 1;
		return 0;
	}
	struct udp_session_key key = session_key(ctx, &session->vip, DIRECTION_FORWARD);

	if (map_update(udp_sessions, &key, session, BPF_ANY))
		return -1;
	key.endpoint = session->backend;
	key.direction = DIRECTION_REPLY;
	if (map_update(udp_sessions, &key, session, BPF_ANY))
		return -1;
	state->flags |= SOCKET_OVERFLOWED;
	return 0;
}

static __always_inline struct udp_session *session_of_vip(struct bpf_sock_addr *ctx, struct socket_state *state,
							  const struct endpoint *vip)
{
	struct udp_session *session = session_find(state, vip);

	if (!session && state->flags & SOCKET_OVERFLOWED) {
		struct udp_session_key key = session_key(ctx, vip, DIRECTION_FORWARD);

		session = map_lookup(udp_sessions, &key);
	}
	return session;
}

static __always_inline struct udp_session *session_of_backend(struct bpf_sock_addr *ctx, struct socket_state *state,
							      const struct endpoint *backend)
{
	struct udp_session *session = session_find_reply(state, backend);

	if (!session && state->flags & SOCKET_OVERFLOWED) {
		struct udp_session_key key = session_key(ctx, backend, DIRECTION_REPLY);

		session = map_lookup(udp_sessions, &key);
	}
	return session;
}

/* ---- forward ---- */

/* Finds and chooses; fills `session` and rewrites call->dst. Returns what the hook is to return. */
static __always_inline int translate(struct sock_call *call, struct udp_session *session, int *translated)
{
	__u64 client = netns_cookie(call->ctx);
	int client_is_node = client == CONFIG(node_netns);
	__u8 pod_scope = endpoint_is_v4(&call->dst) ? CONFIG(pod_scope4) : CONFIG(pod_scope6);
	__u8 scope = client_is_node ? SCOPE_INTERNAL : pod_scope;
	struct endpoint at = call->dst;
	int v4 = endpoint_is_v4(&at);
	struct frontend *frontend = frontend_find(&at, v4, call->protocol, client_is_node);
	union backend_set set;
	struct choice choice;
	__u64 flow = 0;

	if (!frontend) {
		count_reason(call->hook, REASON_NOT_OURS);
		return SOCK_PROCEED;
	}
	if (scope == SCOPE_INTERNAL)
		frontend = frontend_inside(frontend, &at, v4, call->protocol);
	set = set_read(frontend->set);
	if (!(set.flags & SET_IN_USE)) {
		count_reason(call->hook, REASON_BROKEN);
		return SOCK_PROCEED;
	}
	if (!set.count) {
		if (set.flags & SET_DROP)
			return refuse(call->hook, REASON_NO_LOCAL_BACKEND, EHOSTUNREACH_);
		return refuse(call->hook, REASON_NO_BACKEND, ECONNREFUSED_);
	}
	if (set.table_log2)
		flow = flow_hash(&call->src, call->src_port ? call->src_port : socket_cookie(call->ctx), &call->dst,
				 call->protocol);
	choice = backend_choose(frontend, set, client, flow);
	if (!choice.backend) {
		count_reason(call->hook, REASON_BROKEN);
		return SOCK_PROCEED;
	}
	session->vip = call->dst;
	session->backend = backend_endpoint(choice.backend);
	session->id = choice.id;
	session->generation = choice.backend->generation;
	call->dst = session->backend;
	*translated = 1;
	count_connection(frontend->id, choice.id, call->hook <= HOOK_CONNECT6 ? ORIGIN_CONNECT : ORIGIN_SENDMSG);
	count_reason(call->hook, choice.reused ? REASON_REUSED : REASON_TRANSLATED);
	return SOCK_PROCEED;
}

/* A row of an earlier try of the same socket does no harm: it is believed only if the peer is its backend. */
static __always_inline void tcp_keep_peer(struct sock_call *call, const struct udp_session *session)
{
	struct tcp_peer peer = {.vip = session->vip, .backend = session->backend};
	__u64 cookie = socket_cookie(call->ctx);

	if (map_update(tcp_peers, &cookie, &peer, BPF_ANY))
		count_reason(call->hook, REASON_NO_STATE);
}

static __always_inline void udp_keep_peer(struct sock_call *call, const struct udp_session *session)
{
	struct socket_state *state = socket_storage(sockets, call->ctx->sk, BPF_SK_STORAGE_GET_F_CREATE);
	struct udp_socket row = {.id = session->id, .generation = session->generation};
	__u64 cookie = socket_cookie(call->ctx);

	if (!state) {
		count_reason(call->hook, REASON_NO_STATE);
		return;
	}
	state->peer = *session;
	state->flags |= SOCKET_CONNECTED;
	map_update(udp_sockets, &cookie, &row, BPF_ANY);
}

/* Connected to a VIP before, now to something else. */
static __always_inline void udp_forget_peer(struct sock_call *call)
{
	struct socket_state *state = socket_storage(sockets, call->ctx->sk, 0);
	__u64 cookie;

	if (state && state->flags & SOCKET_CONNECTED) {
		state->flags &= ~SOCKET_CONNECTED;
		cookie = socket_cookie(call->ctx);
		map_delete(udp_sockets, &cookie);
	}
}

/* connect(): the one choice that a connected socket needs. */
static __always_inline int sock_connect(struct sock_call *call)
{
	struct udp_session session = {};
	int translated = 0, verdict;

	if (call->protocol != IPPROTO_TCP && call->protocol != IPPROTO_UDP)
		return SOCK_PROCEED;
	verdict = translate(call, &session, &translated);
	if (call->protocol == IPPROTO_TCP) {
		if (translated)
			tcp_keep_peer(call, &session);
		return verdict;
	}
	if (!call->ctx->sk)
		return verdict;
	if (translated)
		udp_keep_peer(call, &session);
	else
		udp_forget_peer(call);
	return verdict;
}

/* sendto(): an unconnected socket keeps one backend per VIP while that is Serving. */
static __always_inline int sock_sendmsg(struct sock_call *call)
{
	struct udp_session session = {}, *known;
	struct socket_state *state;
	struct backend *backend;
	int translated = 0, verdict;

	if (call->protocol != IPPROTO_UDP || !call->ctx->sk)
		return SOCK_PROCEED;
	state = socket_storage(sockets, call->ctx->sk, 0);
	if (state) {
		known = session_of_vip(call->ctx, state, &call->dst);
		if (known) {
			backend = backend_serving(known->id, known->generation);
			if (backend) {
				call->dst = known->backend;
				count_reason(call->hook, REASON_REUSED);
				return SOCK_PROCEED;
			}
		}
	}
	verdict = translate(call, &session, &translated);
	if (!translated)
		return verdict;
	if (!state)
		state = socket_storage(sockets, call->ctx->sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (session_keep(call->ctx, state, &session))
		count_reason(call->hook, REASON_NO_STATE);
	return verdict;
}

/* ---- reverse ---- */

/* recvmsg(), recvfrom(): the sender that the socket is shown is the VIP. Returns whether call->dst was rewritten. */
static __always_inline int sock_recvmsg(struct sock_call *call)
{
	struct udp_session *session;
	struct socket_state *state;

	if (!call->ctx->sk)
		return 0;
	state = socket_storage(sockets, call->ctx->sk, 0);
	if (!state)
		return 0;
	if (state->flags & SOCKET_CONNECTED && endpoint_equal(&state->peer.backend, &call->dst)) {
		call->dst = state->peer.vip;
	} else {
		session = session_of_backend(call->ctx, state, &call->dst);
		if (!session)
			return 0;
		call->dst = session->vip;
	}
	count_reason(call->hook, REASON_TRANSLATED);
	return 1;
}

static __always_inline int sock_getpeername(struct sock_call *call)
{
	if (call->protocol == IPPROTO_TCP) {
		__u64 cookie = socket_cookie(call->ctx);
		struct tcp_peer *peer = map_lookup(tcp_peers, &cookie);

		if (!peer || !endpoint_equal(&peer->backend, &call->dst))
			return 0;
		call->dst = peer->vip;
	} else {
		struct socket_state *state = call->ctx->sk ? socket_storage(sockets, call->ctx->sk, 0) : 0;

		if (!state || !(state->flags & SOCKET_CONNECTED) || !endpoint_equal(&state->peer.backend, &call->dst))
			return 0;
		call->dst = state->peer.vip;
	}
	count_reason(call->hook, REASON_TRANSLATED);
	return 1;
}

/* ---- bind ---- */

static __always_inline int node_port_taken(__u16 port, __u8 protocol, int v4)
{
	struct endpoint at = node_port_endpoint(be16(port), v4);

	return frontend_lookup(&at, v4, protocol, SCOPE_EXTERNAL) != 0;
}

/* bind() on the node itself: a NodePort in use and the SNAT range are taken. `port` is in host order. */
static __always_inline int sock_post_bind(struct bpf_sock *ctx, enum hook hook, __u16 port, __u8 protocol)
{
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return SOCK_PROCEED;
	if (!is_node(ctx))
		return SOCK_PROCEED;
	if ((CONFIG(snat_first) && port >= CONFIG(snat_first) && port <= CONFIG(snat_last)) ||
	    node_port_taken(port, protocol, 1) || (hook == HOOK_POST_BIND6 && node_port_taken(port, protocol, 0)))
		return refuse(hook, REASON_PORT_TAKEN, EADDRINUSE_);
	return SOCK_PROCEED;
}

/* ---- close ---- */

static __always_inline int sock_release(struct bpf_sock *ctx)
{
	__u64 cookie;

	if (ctx->protocol == IPPROTO_TCP) {
		cookie = socket_cookie(ctx);
		if (map_lookup(tcp_peers, &cookie)) /* without the lock that a deletion takes */
			map_delete(tcp_peers, &cookie);
	} else if (ctx->protocol == IPPROTO_UDP) {
		cookie = socket_cookie(ctx);
		map_delete(udp_sockets, &cookie);
	}
	return SOCK_PROCEED;
}
