/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Empty: bcc includes it, the datapath needs nothing of it. */
