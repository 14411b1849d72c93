/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The socket level: hooks on a cgroup v2 directory that translate where a socket is going, not its packets. A
 * connected socket's packets carry the backend's address from the first on.
 */
#include "sock.h"

static __always_inline struct sock_call call4(struct bpf_sock_addr *ctx, enum hook hook)
{
	struct sock_call call = {
		.ctx = ctx,
		.hook = hook,
		.protocol = ctx->protocol,
		.dst = endpoint4(ctx->user_ip4, (__be16)ctx->user_port),
	};

	return call;
}

static __always_inline struct sock_call call6(struct bpf_sock_addr *ctx, enum hook hook)
{
	struct sock_call call = {
		.ctx = ctx,
		.hook = hook,
		.protocol = ctx->protocol,
		.dst = endpoint6(ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3],
				 (__be16)ctx->user_port),
	};

	return call;
}

/* The address that a socket is bound to; one that is not bound has none yet. */
static __always_inline void with_source(struct sock_call *call, int v4)
{
	struct bpf_sock *sk = call->ctx->sk;

	if (!sk)
		return;
	call->src_port = sk->src_port;
	if (v4)
		call->src = endpoint4(sk->src_ip4, 0);
	else
		call->src = endpoint6(sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3], 0);
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct endpoint *e)
{
	ctx->user_ip4 = e->address[3];
	ctx->user_port = e->port;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct endpoint *e)
{
	ctx->user_ip6[0] = e->address[0];
	ctx->user_ip6[1] = e->address[1];
	ctx->user_ip6[2] = e->address[2];
	ctx->user_ip6[3] = e->address[3];
	ctx->user_port = e->port;
}

SEC("cgroup/connect4")
int bp_connect4(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call4(ctx, HOOK_CONNECT4);
	int verdict;

	with_source(&call, 1);
	verdict = sock_connect(&call);
	write4(ctx, &call.dst);
	return verdict;
}

SEC("cgroup/connect6")
int bp_connect6(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call6(ctx, HOOK_CONNECT6);
	int verdict;

	with_source(&call, 0);
	verdict = sock_connect(&call);
	write6(ctx, &call.dst);
	return verdict;
}

SEC("cgroup/sendmsg4")
int bp_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call4(ctx, HOOK_SENDMSG4);
	int verdict;

	with_source(&call, 1);
	verdict = sock_sendmsg(&call);
	write4(ctx, &call.dst);
	return verdict;
}

SEC("cgroup/sendmsg6")
int bp_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call6(ctx, HOOK_SENDMSG6);
	int verdict;

	with_source(&call, 0);
	verdict = sock_sendmsg(&call);
	write6(ctx, &call.dst);
	return verdict;
}

SEC("cgroup/recvmsg4")
int bp_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call4(ctx, HOOK_RECVMSG4);

	if (sock_recvmsg(&call))
		write4(ctx, &call.dst);
	return SOCK_PROCEED;
}

SEC("cgroup/recvmsg6")
int bp_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call6(ctx, HOOK_RECVMSG6);

	if (sock_recvmsg(&call))
		write6(ctx, &call.dst);
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername4")
int bp_getpeername4(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call4(ctx, HOOK_GETPEERNAME4);

	if (sock_getpeername(&call))
		write4(ctx, &call.dst);
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername6")
int bp_getpeername6(struct bpf_sock_addr *ctx)
{
	struct sock_call call = call6(ctx, HOOK_GETPEERNAME6);

	if (sock_getpeername(&call))
		write6(ctx, &call.dst);
	return SOCK_PROCEED;
}

SEC("cgroup/post_bind4")
int bp_post_bind4(struct bpf_sock *ctx)
{
	return sock_post_bind(ctx, HOOK_POST_BIND4, ctx->src_port, ctx->protocol);
}

SEC("cgroup/post_bind6")
int bp_post_bind6(struct bpf_sock *ctx)
{
	return sock_post_bind(ctx, HOOK_POST_BIND6, ctx->src_port, ctx->protocol);
}

SEC("cgroup/sock_release")
int bp_sock_release(struct bpf_sock *ctx)
{
	return sock_release(ctx);
}

LICENSE("Dual BSD/GPL");
