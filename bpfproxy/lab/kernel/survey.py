"""`python -m bpfproxy.lab.kernel.survey FILE`: what `bpfproxy check` finds on the kernel that it runs on, as JSON.
Its status is 1 if no agent runs there."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Final

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


_IPVS: Final = ("ipvs", "ipset")


def take() -> Survey:
    """Ask this kernel."""
    facts = [Fact(one.name, one.available, one.consequence, one.required) for one in api.check(Settings())]
    ipvs = [one for one in api.check(Settings(proxy_mode="ipvs")) if one.name in _IPVS]
    facts += [Fact(one.name, one.available, "no --proxy-mode ipvs", required=False) for one in ipvs]
    return Survey(platform.release(), facts)


if __name__ == "__main__":
    survey = take()
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(survey))
    sys.exit(any(fact.required and not fact.available for fact in survey.facts))
