/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load generator of the outside measures: outside CLIENT_NETNS SERVER_NETNS...
 *
 * Client and servers are one process, one thread, on one CPU, with sockets in different network namespaces, so that a
 * figure is the whole cost of an operation, and nobody is woken up. In each server's namespace it listens on PORT. Reads
 * blocks of operations from standard input, a line each, and answers each with a line `DONE NANOSECONDS WRONG`:
 *
 *	KIND SERVER VERIFY ADDRESS PORT COUNT
 *
 * `request`: COUNT times connect, request, answer, close. `stream`: one connection, by which COUNT MiB go to the server.
 * SERVER is the place among the arguments of the one that ought to answer. With VERIFY, what arrives is compared with
 * what was sent; WRONG counts operations that failed.
 */
#include "load.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT = 8080, SERVERS_MAX = 8, REQUEST = 64, REPLY = 128, CHUNK = 128 << 10, MEBIBYTE = 1 << 20 };

struct block {
	char kind[16];
	int server, verify, port, count;
	union {
		struct sockaddr any;
		struct sockaddr_in four;
		struct sockaddr_in6 six;
	} to;
	socklen_t size;
};

static int listeners[SERVERS_MAX][2];
static char sent[CHUNK], received[CHUNK];

static void enter(const char *netns)
{
	int fd = open(netns, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(netns);
	close(fd);
}

static void open_server(int server)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	int one = 1;

	for (int is_six = 0; is_six < 2; is_six++) {
		int fd = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);

		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (is_six)
			setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
		if (bind(fd, is_six ? (void *)&six : (void *)&four, is_six ? sizeof(six) : sizeof(four)) ||
		    listen(fd, 64))
			die("listen");
		listeners[server][is_six] = fd;
	}
}

/* Both ends of a new connection. Returns whether it came to be. */
static int open_pair(const struct block *block, int *client, int *server)
{
	int listener = listeners[block->server][block->to.any.sa_family == AF_INET6];

	*server = -1;
	*client = socket(block->to.any.sa_family, SOCK_STREAM, 0);
	if (connect(*client, &block->to.any, block->size))
		return 0;
	fcntl(listener, F_SETFL, O_NONBLOCK); /* it may have been another server that answered */
	*server = accept(listener, NULL, NULL);
	return *server >= 0;
}

static int request(const struct block *block)
{
	int client, server, good = open_pair(block, &client, &server);

	good = good && write(client, sent, REQUEST) == REQUEST && read(server, received, CHUNK) == REQUEST;
	good = good && (!block->verify || !memcmp(sent, received, REQUEST));
	good = good && write(server, sent, REPLY) == REPLY;
	close(server); /* first, as with HTTP/1.0 */
	good = good && read(client, received, CHUNK) == REPLY && read(client, received, CHUNK) == 0;
	close(client);
	return good;
}

/* Sends so many bytes and receives them. */
static int transfer(const struct block *block, int client, int server, size_t size)
{
	struct pollfd both[] = {{.fd = client}, {.fd = server, .events = POLLIN}};
	size_t out = 0, in = 0;
	ssize_t n, m;

	while (in < size) {
		n = m = 0;
		if (out < size) {
			/* From where the pattern stands, so that the receiver can tell what belongs where. */
			n = write(client, sent + out % CHUNK, CHUNK - out % CHUNK);
			if (n > 0)
				out += n;
		}
		do {
			m = read(server, received, CHUNK - in % CHUNK);
			if (m <= 0)
				break;
			if (block->verify && memcmp(received, sent + in % CHUNK, m))
				return 0;
			in += m;
		} while (in < out);
		if (m == 0 || (n < 0 && errno != EAGAIN))
			return 0;
		both[0].events = out < size ? POLLOUT : 0;
		if (n <= 0 && m < 0 && poll(both, 2, 1000) <= 0)
			return 0;
	}
	return 1;
}

static int stream(const struct block *block, uint64_t *took)
{
	int client, server, good = open_pair(block, &client, &server);
	uint64_t begin;

	fcntl(client, F_SETFL, O_NONBLOCK);
	fcntl(server, F_SETFL, O_NONBLOCK);
	good = good && transfer(block, client, server, (size_t)(block->count / 4 + 1) * MEBIBYTE); /* windows open */
	begin = now();
	good = good && transfer(block, client, server, (size_t)block->count * MEBIBYTE);
	*took = now() - begin;
	close(client);
	close(server);
	return good;
}

static int run(const struct block *block)
{
	uint64_t took = 0;
	int wrong = 0;

	if (!strcmp(block->kind, "stream")) {
		wrong = !stream(block, &took);
	} else if (!strcmp(block->kind, "request")) {
		for (int i = 0; i < block->count / 20 + 10; i++)
			wrong += !request(block);
		took = now();
		for (int i = 0; i < block->count; i++)
			wrong += !request(block);
		took = now() - took;
	} else {
		return -1;
	}
	printf("%d %llu %d\n", block->count, (unsigned long long)took, wrong);
	fflush(stdout);
	return 0;
}

static int parse(const char *line, struct block *block)
{
	char address[64];

	memset(block, 0, sizeof(*block));
	if (sscanf(line, "%15s %d %d %63s %d %d", block->kind, &block->server, &block->verify, address, &block->port,
		   &block->count) != 6)
		return -1;
	if (strchr(address, ':')) {
		block->size = sizeof(block->to.six);
		block->to.six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(block->port)};
		return inet_pton(AF_INET6, address, &block->to.six.sin6_addr) == 1 ? 0 : -1;
	}
	block->size = sizeof(block->to.four);
	block->to.four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(block->port)};
	return inet_pton(AF_INET, address, &block->to.four.sin_addr) == 1 ? 0 : -1;
}

int main(int count, char **arguments)
{
	struct block block;
	char line[256];

	if (count < 3 || count > 2 + SERVERS_MAX)
		return 2;
	for (size_t i = 0; i < sizeof(sent); i++)
		sent[i] = i * 7 + i / 251;
	take_cpu();
	for (int server = 0; server < count - 2; server++) {
		enter(arguments[2 + server]);
		open_server(server);
	}
	enter(arguments[1]);
	while (fgets(line, sizeof(line), stdin)) {
		if (parse(line, &block) || run(&block)) {
			fprintf(stderr, "outside: not understood: %s", line);
			return 2;
		}
	}
	return 0;
}
