"""`python -m bpfproxy.lab.kernel.survey FILE`: what `bpfproxy check` finds on the kernel that it runs on, as JSON."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from bpfproxy import Settings, api


class Fact(Struct):
    """One finding of `bpfproxy check`."""

    name: str
    available: bool
    consequence: str
    required: bool


class Survey(Struct):
    """What a kernel offers."""

    release: str
    facts: list[Fact]


def take() -> Survey:
    """Ask this kernel."""
    findings = api.check(Settings())
    return Survey(platform.release(), [Fact(f.name, f.available, f.consequence, f.required) for f in findings])


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(take()))
