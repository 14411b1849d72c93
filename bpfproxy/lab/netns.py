"""Network namespaces by name, in the place where `ip netns` looks for them: make, enter, remove.

Entering is setns(2) alone, since `ip netns exec` mounts a fresh /sys over the views of bpffs and cgroups. Nothing here
forks, so it is safe in a process that has threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

DIRECTORY = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
_THIS = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def make(name: str) -> None:
    """Make a namespace, its loopback still down; raises OSError, FileExistsError if there is one of this name."""
    _share_directory()
    path = DIRECTORY / name
    path.touch(exist_ok=False)
    with _coming_home():
        _call("unshare", _libc.unshare(_CLONE_NEWNET))
        _call(f"mount {path}", _libc.mount(_THIS.encode(), bytes(path), None, _MS_BIND, None))


def remove(name: str) -> None:
    """Remove a namespace; nothing happens if there is none of this name."""
    path = DIRECTORY / name
    _libc.umount2(bytes(path), _MNT_DETACH)  # fails if making it went no further than the file
    path.unlink(missing_ok=True)


def names(prefix: str) -> list[str]:
    """Named namespaces whose name starts with `prefix`, sorted."""
    return sorted(path.name for path in DIRECTORY.glob(prefix + "*"))


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block, and the processes that it starts, in a namespace. Holds for the calling thread alone."""
    with _coming_home():
        _enter(DIRECTORY / name)
        yield


def _share_directory() -> None:
    """Bind DIRECTORY to itself, once, as `ip netns add` does: it would do so later, and hide what is mounted there."""
    DIRECTORY.mkdir(exist_ok=True)
    path = bytes(DIRECTORY)
    with _locked(DIRECTORY):  # against others of ours, and against `ip`
        if _libc.mount(None, path, None, _MS_SHARED | _MS_REC, None) != 0:
            _call(f"bind {DIRECTORY}", _libc.mount(path, path, None, _MS_BIND | _MS_REC, None))
            _call(f"share {DIRECTORY}", _libc.mount(None, path, None, _MS_SHARED | _MS_REC, None))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _coming_home() -> Iterator[None]:
    home = os.open(_THIS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _call("setns", _libc.setns(home, _CLONE_NEWNET))
        finally:
            os.close(home)


def _enter(path: Path) -> None:
    with path.open() as namespace:
        _call(f"setns {path}", _libc.setns(namespace.fileno(), _CLONE_NEWNET))


def set_sysctl(key: str, value: int) -> None:
    """Write `net.<key>` of the namespace that the calling thread is in."""
    Path("/proc/sys/net", key.replace(".", "/")).write_text(str(value))
