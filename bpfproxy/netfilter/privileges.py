"""What a process needs to write rules."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bpfproxy.errors import PermissionsError

CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
"""By bit; the legacy tools open a raw socket."""


def missing() -> list[str]:
    """Capabilities that the calling thread lacks."""
    status = Path("/proc/thread-self/status").read_text()
    held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]


def require() -> None:
    """Raises PermissionsError that names what is missing."""
    if names := missing():
        raise PermissionsError(f"missing {', '.join(names)}: run as root, or grant them")
