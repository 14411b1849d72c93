"""cgroup v2 directories: find the mount, make, empty and remove trees."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from bpfproxy.lab.wait import wait_until


def mount_point() -> Path:
    """Where cgroup v2 is mounted; raises FileNotFoundError if it is not."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            return Path(fields.split()[4])
    raise FileNotFoundError("cgroup v2 is not mounted")


def directories(top: Path) -> list[Path]:
    """`top` and all cgroups below it, the deepest first."""
    if not top.is_dir():
        return []
    below = [Path(at) for at, _, _ in os.walk(top)]
    return sorted(below, key=lambda path: len(path.parts), reverse=True)


def inode(directory: Path) -> int:
    """The id by which the kernel knows a cgroup; -1 if it is gone."""
    try:
        return directory.stat().st_ino
    except FileNotFoundError:
        return -1


def members(top: Path) -> Iterator[int]:
    """Processes of `top` and of all cgroups below it. Ids of zero belong to other pid namespaces and are left out."""
    for directory in directories(top):
        with contextlib.suppress(OSError):
            for line in (directory / "cgroup.procs").read_text().split():
                if int(line):
                    yield int(line)


def kill(top: Path, timeout: float = 5.0) -> None:
    """Kill every process of `top` and below, and wait until none is left; raises TimeoutError."""

    def emptied() -> bool:
        for pid in members(top):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not any(members(top))

    wait_until(emptied, timeout, f"the processes of {top} end")


def remove(top: Path, timeout: float = 5.0) -> None:
    """Kill the members of a tree and remove it; nothing happens if it is not there. Raises TimeoutError."""
    if not top.is_dir():
        return
    kill(top, timeout)

    def removed() -> bool:
        # A killed process keeps its cgroup busy for a moment after it left cgroup.procs.
        with contextlib.suppress(OSError):
            for directory in directories(top):
                directory.rmdir()
        return not top.is_dir()

    wait_until(removed, timeout, f"{top} is removed")
