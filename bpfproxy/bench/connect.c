/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load generator of the connect measures: connect PLAIN_CGROUP HOOKED_CGROUP
 *
 * Client and servers are one process on one CPU, so that a figure is the whole cost of an operation, and arms differ in
 * the cgroup that the process is in and in the address alone. Reads blocks of operations from standard input, a line
 * each, and answers each with a line `DONE NANOSECONDS WRONG`:
 *
 *	KIND HOOKED VERIFY ADDRESS TARGETS PORT COUNT SEED
 *
 * COUNT operations go to the TARGETS addresses from ADDRESS on, in random order. With VERIFY each one checks that the
 * client sees the address that it asked for; WRONG counts those that did not, and those that failed.
 */
#include "load.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PLAIN, HOOKED, PLACES };
enum { LOCKSTEP_PORT = 8080, THREAD_PORT = 8090 }; /* in the hooked cgroup; one higher in the plain one */
enum { REQUEST = 64, REPLY = 128 };

struct block {
	char kind[16];
	int place, verify, targets, port, count;
	struct in6_addr base;
	int family;
	uint64_t seed;
};

static int tcp_listener[PLACES][2], udp_server[PLACES][2];
static char buffer[256];

static void enter(const char *cgroup)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1)
		die(path);
	close(fd);
}

static int open_socket(int family, int type, int port)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(family, type, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, family == AF_INET6 ? (void *)&six : (void *)&four,
		 family == AF_INET6 ? sizeof(six) : sizeof(four)))
		die("bind");
	if (type == SOCK_STREAM && listen(fd, 1024))
		die("listen");
	return fd;
}

/* Answers one request per connection, and closes first, as HTTP/1.0 does. */
static void *serve(void *listener)
{
	char data[256];

	for (;;) {
		int fd = accept((int)(intptr_t)listener, NULL, NULL);

		if (fd < 0)
			continue;
		if (read(fd, data, sizeof(data)) > 0 && write(fd, data, REPLY) < 0)
			perror("reply");
		close(fd);
	}
	return NULL;
}

static void open_servers(int place)
{
	pthread_t thread;

	for (int six = 0; six < 2; six++) {
		int family = six ? AF_INET6 : AF_INET, port = LOCKSTEP_PORT + (place == PLAIN);
		int listener = open_socket(family, SOCK_STREAM, THREAD_PORT + (place == PLAIN));

		tcp_listener[place][six] = open_socket(family, SOCK_STREAM, port);
		udp_server[place][six] = open_socket(family, SOCK_DGRAM, port);
		if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener))
			die("pthread_create");
	}
}

/* ---- targets ---- */

union address {
	struct sockaddr any;
	struct sockaddr_in four;
	struct sockaddr_in6 six;
};

static socklen_t next_target(struct block *block, union address *to)
{
	uint32_t last, index;

	block->seed ^= block->seed << 13;
	block->seed ^= block->seed >> 7;
	block->seed ^= block->seed << 17;
	index = (block->seed >> 32) % block->targets;
	memset(to, 0, sizeof(*to));
	if (block->family == AF_INET) {
		memcpy(&last, &block->base, 4);
		to->four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(block->port)};
		to->four.sin_addr.s_addr = htonl(ntohl(last) + index);
		return sizeof(to->four);
	}
	to->six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(block->port)};
	to->six.sin6_addr = block->base;
	memcpy(&last, &to->six.sin6_addr.s6_addr[12], 4);
	last = htonl(ntohl(last) + index);
	memcpy(&to->six.sin6_addr.s6_addr[12], &last, 4);
	return sizeof(to->six);
}

static int same(const union address *a, const union address *b)
{
	if (a->any.sa_family != b->any.sa_family)
		return 0;
	if (a->any.sa_family == AF_INET)
		return a->four.sin_port == b->four.sin_port && a->four.sin_addr.s_addr == b->four.sin_addr.s_addr;
	return a->six.sin6_port == b->six.sin6_port && !memcmp(&a->six.sin6_addr, &b->six.sin6_addr, 16);
}

static int peer_is(int fd, const union address *wanted)
{
	union address found = {};
	socklen_t size = sizeof(found);

	return !getpeername(fd, &found.any, &size) && same(&found, wanted);
}

/* ---- operations: each returns whether all went well ---- */

static int tcp_connect(struct block *block, int type)
{
	static const struct linger reset = {.l_onoff = 1}; /* no TIME_WAIT, in which tuples would collide */
	union address to;
	socklen_t size = next_target(block, &to);
	int fd = socket(block->family, SOCK_STREAM, 0), peer, good;

	(void)type;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	good = !connect(fd, &to.any, size);
	if (good) {
		peer = accept(tcp_listener[block->place][block->family == AF_INET6], NULL, NULL);
		good = peer >= 0 && (!block->verify || peer_is(fd, &to));
		close(fd);
		close(peer);
		return good;
	}
	close(fd);
	return 0;
}

static int tcp_request(struct block *block, int type)
{
	union address to;
	socklen_t size = next_target(block, &to);
	int fd = socket(block->family, SOCK_STREAM, 0), good;

	(void)type;
	good = !connect(fd, &to.any, size) && (!block->verify || peer_is(fd, &to)) &&
	       write(fd, buffer, REQUEST) == REQUEST && read(fd, buffer, sizeof(buffer)) == REPLY &&
	       read(fd, buffer, sizeof(buffer)) == 0;
	close(fd);
	return good;
}

static int udp_connect(struct block *block, int type)
{
	union address to;
	socklen_t size = next_target(block, &to);
	int fd = socket(block->family, SOCK_DGRAM, 0), good;

	(void)type;
	good = !connect(fd, &to.any, size) && (!block->verify || peer_is(fd, &to));
	close(fd);
	return good;
}

/* A datagram from an unconnected socket that lasts; with `exchange` its answer, too. */
static int udp_send(struct block *block, int fd, int exchange)
{
	int server = udp_server[block->place][block->family == AF_INET6];
	union address to, from = {};
	socklen_t size = next_target(block, &to), from_size = sizeof(from);

	if (sendto(fd, buffer, REQUEST, 0, &to.any, size) != REQUEST ||
	    recvfrom(server, buffer, sizeof(buffer), 0, &from.any, &from_size) != REQUEST)
		return 0;
	if (!exchange)
		return 1;
	if (sendto(server, buffer, REPLY, 0, &from.any, from_size) != REPLY)
		return 0;
	from_size = sizeof(from);
	return recvfrom(fd, buffer, sizeof(buffer), 0, &from.any, &from_size) == REPLY &&
	       (!block->verify || same(&from, &to));
}

static int udp_send_only(struct block *block, int fd)
{
	return udp_send(block, fd, 0);
}

static int udp_exchange(struct block *block, int fd)
{
	return udp_send(block, fd, 1);
}

static const struct operation {
	const char *kind;
	int (*run)(struct block *block, int fd);
	int keeps_socket;
} operations[] = {
	{"tcp-connect", tcp_connect, 0}, {"tcp-request", tcp_request, 0},   {"udp-connect", udp_connect, 0},
	{"udp-send", udp_send_only, 1},	 {"udp-exchange", udp_exchange, 1},
};

static void run(struct block *block)
{
	const struct operation *operation = NULL;
	uint64_t begin, end;
	int wrong = 0, fd = -1;

	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		if (!strcmp(operations[i].kind, block->kind))
			operation = &operations[i];
	if (!operation) {
		fprintf(stderr, "no such kind: %s\n", block->kind);
		exit(2);
	}
	if (operation->keeps_socket)
		fd = socket(block->family, SOCK_DGRAM, 0);
	for (int i = 0; i < block->count / 20 + 10; i++) /* warm caches, predictors and, with `fd`, the session */
		wrong += !operation->run(block, fd);
	begin = now();
	for (int i = 0; i < block->count; i++)
		wrong += !operation->run(block, fd);
	end = now();
	if (fd >= 0)
		close(fd);
	printf("%d %llu %d\n", block->count, (unsigned long long)(end - begin), wrong);
	fflush(stdout);
}

int main(int count, char **arguments)
{
	char line[512], address[64];
	struct block block;
	int place = HOOKED;

	if (count != 1 + PLACES)
		return 2;
	take_cpu();
	for (int i = PLAIN; i < PLACES; i++) {
		enter(arguments[1 + i]);
		open_servers(i);
	}
	while (fgets(line, sizeof(line), stdin)) {
		memset(&block, 0, sizeof(block));
		if (sscanf(line, "%15s %d %d %63s %d %d %d %lu", block.kind, &block.place, &block.verify, address,
			   &block.targets, &block.port, &block.count, &block.seed) != 8)
			return 2;
		block.family = strchr(address, ':') ? AF_INET6 : AF_INET;
		if (inet_pton(block.family, address, &block.base) != 1)
			return 2;
		if (block.place != place)
			enter(arguments[1 + block.place]);
		place = block.place;
		run(&block);
	}
	return 0;
}
