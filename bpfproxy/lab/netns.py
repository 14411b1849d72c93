"""Network namespaces by name: make, enter, remove.

Entering is setns(2) alone, since `ip netns exec` mounts a fresh /sys over the views of bpffs and cgroups.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import netns

DIRECTORY = Path("/run/netns")


def make(name: str) -> None:
    """Make a namespace with loopback still down; raises OSError if there is one of this name."""
    netns.create(name)


def remove(name: str) -> None:
    """Remove a namespace; nothing happens if there is none of this name."""
    with contextlib.suppress(FileNotFoundError):
        netns.remove(name)


def names(prefix: str) -> list[str]:
    """Named namespaces whose name starts with `prefix`, sorted."""
    if not DIRECTORY.is_dir():
        return []
    return sorted(path.name for path in DIRECTORY.iterdir() if path.name.startswith(prefix))


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block, and the processes that it starts, in a namespace. Holds for the calling thread alone."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.setns(name, flags=0)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def set_sysctl(key: str, value: int) -> None:
    """Write `net.<key>` of the namespace that the calling thread is in."""
    Path("/proc/sys/net", key.replace(".", "/")).write_text(str(value))
