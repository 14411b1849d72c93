/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's short names, which bcc's own headers use. */
#pragma once
#include <uapi/linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef unsigned long uintptr_t;

#define false 0
#define true 1
#define NULL ((void *)0)
