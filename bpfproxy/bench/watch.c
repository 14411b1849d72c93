/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tells when a map changes: watch PINNED_MAP BYTES
 *
 * Maps the first BYTES of a memory-mappable array. For each line on standard input: remembers what is there, says
 * `armed`, polls until something differs, and says the moment in nanoseconds of CLOCK_MONOTONIC, or `0` after 60 s.
 */
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const uint64_t patience = 60000000000ull;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int count, char **arguments)
{
	union bpf_attr open;
	char line[16];
	void *map, *before;
	size_t size;
	int fd;

	if (count != 3)
		return 2;
	memset(&open, 0, sizeof(open)); /* a descriptor that is read-only could not be mapped */
	open.pathname = (uintptr_t)arguments[1];
	fd = syscall(SYS_bpf, BPF_OBJ_GET, &open, sizeof(open));
	size = strtoul(arguments[2], NULL, 10);
	map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	before = malloc(size);
	if (fd < 0 || map == MAP_FAILED || !before) {
		perror(arguments[1]);
		return 1;
	}
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t begin = now(), at = begin;

		memcpy(before, map, size);
		puts("armed");
		fflush(stdout);
		while (!memcmp(before, map, size) && at - begin < patience)
			at = now();
		at = now();
		printf("%llu\n", at - begin < patience ? (unsigned long long)at : 0ull);
		fflush(stdout);
	}
	return 0;
}
