"""What this thread is allowed to do to the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bpfproxy.errors import PermissionsError, UnsupportedError

CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""Name → bit."""
_STANDS_FOR: Final = {"CAP_BPF": "CAP_SYS_ADMIN", "CAP_PERFMON": "CAP_SYS_ADMIN"}


def held() -> frozenset[str]:
    """Those of CAPABILITIES that are in effect."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)
    raise UnsupportedError("/proc/thread-self/status shows no capabilities")


def missing(names: Iterable[str]) -> list[str]:
    """Those of `names` that this thread lacks. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as in the kernel."""
    present = held()
    return [name for name in names if name not in present and _STANDS_FOR.get(name) not in present]


def require(*names: str) -> None:
    """Raises PermissionsError that names what is missing."""
    if absent := missing(names):
        raise PermissionsError(f"missing {', '.join(absent)}: run as root, or grant them")
