"""What `bpfproxy check` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    available: bool
    detail: str
    """What was found, or why it could not be had."""
    consequence: str
    """What follows if it is not available."""
    required: bool = False
    """Whether the agent cannot run without it."""
