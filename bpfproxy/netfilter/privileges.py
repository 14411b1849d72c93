"""What a process needs to write rules."""

from __future__ import annotations

from typing import Final

from bpfproxy import capabilities
from bpfproxy.model.finding import Finding

CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_NET_RAW")
"""The legacy tools open a raw socket."""


def missing() -> list[str]:
    """Capabilities that this thread lacks."""
    return capabilities.missing(CAPABILITIES)


def require() -> None:
    """Raises PermissionsError that names what is missing."""
    capabilities.require(*CAPABILITIES)


def check(consequence: str) -> Finding:
    """Whether this thread has what is needed; without it `consequence` follows."""
    lacking = missing()
    text = f"missing: {', '.join(lacking)}" if lacking else f"held: {', '.join(CAPABILITIES)}"
    return Finding("capabilities", not lacking, text, consequence, required=True)
