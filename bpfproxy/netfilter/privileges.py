"""What a process needs to write rules."""

from __future__ import annotations

from typing import Final

from bpfproxy import capabilities

CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_NET_RAW")
"""The legacy tools open a raw socket."""


def missing() -> list[str]:
    """Capabilities that this thread lacks."""
    return capabilities.missing(CAPABILITIES)


def require() -> None:
    """Raises PermissionsError that names what is missing."""
    capabilities.require(*CAPABILITIES)
