/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* bcc includes this before all else. */
#define CONFIG_BPF_SYSCALL 1
#define __LINUX_BPF_H__ /* bcc force-includes a bpf.h of its own */
#define _LINUX_IF_H	/* through it linux/icmp.h drags in the C library */
