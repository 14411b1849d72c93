/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of the bench: packets OBJECT SCHEDSTAT
 *
 * OBJECT is packets.bpf.c, compiled, SCHEDSTAT that file of the last CPU's ksoftirqd. Works on that CPU, reads commands from standard input, a line each, and answers
 * each with a line. Programs are named as in OBJECT, or by the kernel's id; LAYER is xdp or tc.
 *
 *	traffic FAMILY SOURCE PORT DESTINATION PORT DESTINATIONS FLOWS FIRST ETHERNET
 *		what packets are made from now on (see packets.h), beginning with flow FIRST; to the link address
 *		ETHERNET: `0`
 *	test LAYER PROGRAM IFINDEX COUNT
 *		gives so many packets to a program, as if they came by a device: `NANOSECONDS VERDICT FRAME`, with the
 *		last frame as the program has left it, in hex, if COUNT is 1
 *	bare LAYER PROGRAM IFINDEX COUNT
 *		the same with one packet that the program gets again and again: `NANOSECONDS VERDICT`
 *	attach PROGRAM NETNS IFINDEX
 *		XDP, natively, on a device in a network namespace: `0`
 *	send IFINDEX COUNT FORWARD_TO ARRIVING_PORT VERIFY
 *		sends packets by a device to a node from which they come to `sink`, whose count begins anew:
 *		`NANOSECONDS ARRIVED`, with what this CPU's ksoftirqd has done meanwhile
 *	clear MAP
 *		removes all rows of a map of OBJECT, or of one that is pinned: their number
 */
#include "load.h"
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <netinet/ether.h>
#include <string.h>
#include <unistd.h>
#include "packets.h"

enum { ROWS_AT_ONCE = 4096, BATCH = 64 };

static struct bpf_object *object;
static int traffic_map;
static const char *ksoftirqd;
static __u32 frame_length;
static const __u8 source_ethernet[ETH_ALEN] = {2, 0, 0, 0, 0, 0xfe};

static void fail(const char *what, const char *which)
{
	fprintf(stderr, "packets: %s %s: %s\n", what, which, strerror(errno));
	exit(1);
}

/* ---- traffic ---- */

static __u32 sum16(const void *data, size_t size)
{
	const __u16 *word = data;
	__u32 sum = 0;

	for (size_t i = 0; i < size / 2; i++)
		sum += word[i];
	return sum;
}

static __u32 last_word(const struct in6_addr *address, int family)
{
	__u32 word;

	memcpy(&word, address->s6_addr + (family == 4 ? 0 : 12), 4);
	return ntohl(word);
}

static struct traffic read_traffic(void)
{
	__u32 zero = 0;
	struct traffic t;

	if (bpf_map_lookup_elem(traffic_map, &zero, &t))
		die("traffic");
	return t;
}

static void write_traffic(const struct traffic *t)
{
	__u32 zero = 0;

	if (bpf_map_update_elem(traffic_map, &zero, t, 0))
		die("traffic");
}

/* What is the same in all packets goes into the frame and the sums, what differs is left out of both. */
static void make_headers(struct traffic *t, const struct in6_addr *source, const struct in6_addr *destination,
			 __u16 port)
{
	struct ethhdr *ethernet = (void *)t->frame;
	void *l3 = t->frame + ETH_HLEN;
	size_t ip_size = t->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u16 length = UDP_LENGTH;
	struct udphdr *udp = l3 + ip_size;
	struct ipv6hdr *six = l3;
	struct iphdr *four = l3;

	frame_length = ETH_HLEN + ip_size + length;
	ethernet->h_proto = htons(t->family == 4 ? ETH_P_IP : ETH_P_IPV6);
	udp->dest = htons(port);
	udp->len = htons(length);
	t->udp_sum = htons(IPPROTO_UDP) + htons(length) + sum16(udp, sizeof(*udp));
	if (t->family == 4) {
		*four = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
		four->tot_len = htons(length + ip_size);
		four->frag_off = htons(0x4000);
		t->ip_sum = sum16(four, sizeof(*four));
	} else {
		*six = (struct ipv6hdr){.version = 6, .hop_limit = 64, .nexthdr = IPPROTO_UDP};
		six->payload_len = htons(length);
		memcpy(&six->saddr, source, 16);
		memcpy(&six->daddr, destination, 16);
		t->udp_sum += sum16(source, 12) + sum16(destination, 12);
	}
}

static int set_traffic(const char *line)
{
	unsigned int family, port, to_port, first;
	char source[64], destination[64], ethernet[32];
	struct in6_addr from, to;
	struct traffic t = {};
	struct ether_addr *link;

	if (sscanf(line, "%u %63s %u %63s %u %u %u %u %31s", &family, source, &port, destination, &to_port,
		   &t.destinations, &t.flows, &first, ethernet) != 9)
		return -1;
	t.family = family;
	t.port = port;
	t.flow = first;
	link = ether_aton(ethernet);
	if (!link || inet_pton(family == 4 ? AF_INET : AF_INET6, source, &from) != 1 ||
	    inet_pton(family == 4 ? AF_INET : AF_INET6, destination, &to) != 1)
		return -1;
	t.source = last_word(&from, family);
	t.destination = last_word(&to, family);
	make_headers(&t, &from, &to, to_port);
	memcpy(t.frame, link, ETH_ALEN);
	memcpy(t.frame + ETH_ALEN, source_ethernet, ETH_ALEN);
	write_traffic(&t);
	puts("0");
	return 0;
}

/* ---- programs ---- */

static int program_fd(const char *name)
{
	struct bpf_program *program;
	int fd;

	if (isdigit(name[0])) {
		fd = bpf_prog_get_fd_by_id(atoi(name));
		if (fd < 0)
			fail("program", name);
		return fd;
	}
	program = bpf_object__find_program_by_name(object, name);
	if (!program)
		fail("program", name);
	return dup(bpf_program__fd(program));
}

/* Returns nanoseconds: this thread's own, since a run that ends waits for all CPUs, in multiples of a tick. */
static uint64_t run(int fd, int xdp, int ifindex, int count, struct bpf_test_run_opts *options)
{
	static __u8 frame[FRAME_MAX];
	struct xdp_md xdp_context = {.data_end = frame_length, .ingress_ifindex = ifindex};
	struct __sk_buff tc_context = {.ifindex = ifindex};
	struct traffic t = read_traffic();
	uint64_t begin;

	memcpy(frame, t.frame, frame_length);
	options->data_in = frame;
	options->data_size_in = frame_length;
	options->repeat = count;
	if (ifindex) {
		options->ctx_in = xdp ? (void *)&xdp_context : (void *)&tc_context;
		options->ctx_size_in = xdp ? sizeof(xdp_context) : sizeof(tc_context);
	}
	begin = cpu_time();
	if (bpf_prog_test_run_opts(fd, options))
		die("BPF_PROG_TEST_RUN");
	return cpu_time() - begin;
}

static int test(const char *line, int generated)
{
	char layer[8], name[64], generator[16], array[32];
	LIBBPF_OPTS(bpf_test_run_opts, options);
	int ifindex, count, fd, xdp;
	__u8 out[FRAME_MAX];
	uint64_t took;
	__u32 zero = 0;

	if (sscanf(line, "%7s %63s %d %d", layer, name, &ifindex, &count) != 4)
		return -1;
	xdp = !strcmp(layer, "xdp");
	fd = program_fd(name);
	if (generated) {
		snprintf(array, sizeof(array), "%s_under_test", layer);
		if (bpf_map_update_elem(bpf_object__find_map_fd_by_name(object, array), &zero, &fd, 0))
			fail("program", name);
		close(fd);
		snprintf(generator, sizeof(generator), "test_%s", layer);
		fd = program_fd(generator);
	}
	options.data_out = out;
	options.data_size_out = sizeof(out);
	took = run(fd, xdp, ifindex, count, &options);
	close(fd);
	printf("%llu %d", (unsigned long long)took, (int)options.retval);
	if (generated && count == 1) {
		putchar(' ');
		for (__u32 i = 0; i < options.data_size_out; i++)
			printf("%02x", out[i]);
	}
	putchar('\n');
	return 0;
}

/* ---- devices ---- */

static int attach(const char *line)
{
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), ifindex, there, program;
	char name[64], path[256];

	if (sscanf(line, "%63s %255s %d", name, path, &ifindex) != 3)
		return -1;
	program = program_fd(name);
	there = open(path, O_RDONLY | O_CLOEXEC);
	if (home < 0 || there < 0 || setns(there, CLONE_NEWNET))
		fail("namespace", path);
	errno = -bpf_xdp_attach(ifindex, program, XDP_FLAGS_DRV_MODE, NULL);
	if (errno)
		fail("attaching", name);
	if (setns(home, CLONE_NEWNET))
		fail("namespace", path);
	close(program);
	close(there);
	close(home);
	puts("0");
	return 0;
}

/* What ksoftirqd has had of this CPU: it receives packets when the kernel thinks that they are too many. */
static uint64_t ksoftirqd_time(void)
{
	FILE *file = fopen(ksoftirqd, "r");
	unsigned long long time = 0;

	if (file) {
		if (fscanf(file, "%llu", &time) != 1)
			time = 0;
		fclose(file);
	}
	return time;
}

static int send_packets(const char *line)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .flags = BPF_F_TEST_XDP_LIVE_FRAMES, .batch_size = BATCH);
	struct traffic t = read_traffic();
	unsigned int port, verify;
	uint64_t took, elsewhere;
	int count, fd;

	if (sscanf(line, "%u %d %u %u %u", &t.ifindex, &count, &t.forward_to, &port, &verify) != 5)
		return -1;
	t.arriving_port = htons(port);
	t.verify = verify;
	t.arrived = 0;
	write_traffic(&t);
	fd = program_fd("send");
	elsewhere = ksoftirqd_time();
	took = run(fd, 1, 0, count, &options);
	elsewhere = ksoftirqd_time() - elsewhere;
	close(fd);
	t = read_traffic();
	printf("%llu %llu\n", (unsigned long long)(took + elsewhere), t.arrived);
	return 0;
}

/* ---- maps ---- */

static int clear(const char *name)
{
	int pinned = name[0] == '/', fd = pinned ? bpf_obj_get(name) : bpf_object__find_map_fd_by_name(object, name);
	static __u8 keys[ROWS_AT_ONCE * 64], values[ROWS_AT_ONCE * 512];
	LIBBPF_OPTS(bpf_map_batch_opts, options);
	__u32 batch, rows = ROWS_AT_ONCE, total = 0;
	void *from = NULL;
	int result;

	if (fd < 0)
		fail("map", name);
	do {
		rows = ROWS_AT_ONCE;
		result = bpf_map_lookup_and_delete_batch(fd, from, &batch, keys, values, &rows, &options);
		total += rows;
		from = &batch;
	} while (!result);
	if (result != -ENOENT)
		fail("map", name);
	if (pinned)
		close(fd);
	printf("%u\n", total);
	return 0;
}

static int command(const char *word, const char *rest)
{
	if (!strcmp(word, "traffic"))
		return set_traffic(rest);
	if (!strcmp(word, "test"))
		return test(rest, 1);
	if (!strcmp(word, "bare"))
		return test(rest, 0);
	if (!strcmp(word, "attach"))
		return attach(rest);
	if (!strcmp(word, "send"))
		return send_packets(rest);
	if (!strcmp(word, "clear"))
		return clear(rest);
	return -1;
}

int main(int count, char **arguments)
{
	char line[512], word[16];
	int at;

	if (count != 3)
		return 2;
	ksoftirqd = arguments[2];
	object = bpf_object__open(arguments[1]);
	if (!object || bpf_object__load(object))
		fail("object", arguments[1]);
	traffic_map = bpf_object__find_map_fd_by_name(object, "traffic");
	take_cpu();
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "%15s %n", word, &at) != 1 || command(word, line + at)) {
			fprintf(stderr, "packets: not understood: %s\n", line);
			return 2;
		}
		fflush(stdout);
	}
	return 0;
}
