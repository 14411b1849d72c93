"""Where cgroup v2 is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from bpfproxy.datapath.namespaces import ffi, libc
from bpfproxy.errors import UnsupportedError

_MAGIC: Final = 0x63677270


def is_cgroup2(path: Path) -> bool:
    """Whether `path` is a cgroup v2 directory that this process can reach."""
    result = ffi.new("long[64]")
    return bool(libc.statfs(os.fsencode(path), result) == 0 and result[0] & 0xFFFFFFFF == _MAGIC)


def mount_point() -> Path:
    """The cgroup v2 mount of this mount namespace; raises UnsupportedError that says why there is none."""
    hidden: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        if filesystem.split()[0] == "cgroup2":
            path = Path(_unescape(mount.split()[4]))
            if is_cgroup2(path):
                return path
            hidden.append(path)
    if hidden:
        raise UnsupportedError(
            f"the cgroup v2 mount {hidden[0]} is hidden by another mount, as inside `ip netns exec`: "
            "enter the namespace with `nsenter --net`, or name a cgroup with --cgroup"
        )
    raise UnsupportedError("cgroup v2 is not mounted: mount -t cgroup2 cgroup2 DIRECTORY")


def _unescape(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
