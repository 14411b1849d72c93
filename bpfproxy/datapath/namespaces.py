"""Calls inside other namespaces. Each runs in a thread of its own that is thrown away, so nothing has to be undone."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import cffi

T = TypeVar("T")

CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000

ffi: Final[Any] = cffi.FFI()
ffi.cdef(
    """
    int setns(int fd, int type);
    int unshare(int flags);
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);
    int umount2(const char *target, int flags);
    int statfs(const char *path, void *result);
    """
)
libc: Final[Any] = ffi.dlopen(None)


def check(result: int, call: str) -> None:
    """Raises OSError with the name of the call, if it returned -1."""
    if result < 0:
        raise OSError(ffi.errno, f"{call}: {os.strerror(ffi.errno)}")


def enter_network(fd: int) -> None:
    """Move the calling thread, and it alone, into a network namespace."""
    check(libc.setns(fd, CLONE_NEWNET), "setns to a network namespace")


def in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a new thread and wait for it; what it enters ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def in_mount_namespace(fd: int, function: Callable[[], T]) -> T:
    """Run `function` where the mounts of another namespace are seen. Raises OSError where that is not allowed."""

    def enter() -> T:
        check(libc.unshare(CLONE_FS), "unshare of the working directory")
        check(libc.setns(fd, CLONE_NEWNS), "setns to a mount namespace")
        return function()

    return in_thread(enter)
