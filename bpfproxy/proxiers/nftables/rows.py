"""The rows of the nftables proxier: sets, their elements, and chains with all their rules, in nft's own words."""

from __future__ import annotations

from msgspec import Struct

from bpfproxy.model.address import Family


class SetKey(Struct, frozen=True, order=True, gc=False):
    """Key: a set, or a map to verdicts."""

    family: Family
    name: str


class SetRow(Struct, frozen=True, gc=False):
    """What a set holds."""

    type: str
    """As nft writes it: `inet_proto . inet_service`."""
    verdicts: bool = False
    """It is a map."""
    timeout: int = 0
    """Seconds after which an element that packets added is gone; 0: packets do not add any."""
    comment: str = ""


class ElementKey(Struct, frozen=True, order=True, gc=False):
    """Key: an element of a set."""

    family: Family
    set: str
    element: str
    """As nft writes it: `10.96.0.1 . tcp . 80`."""
    owner: str = ""
    """The Service that it is for, where several may ask for one element."""


class ElementRow(Struct, frozen=True, gc=False):
    """What an element says."""

    verdict: str = ""
    """Of a map's: `goto CHAIN` or `drop`."""
    comment: str = ""


class ChainKey(Struct, frozen=True, order=True, gc=False):
    """Key: a chain."""

    family: Family
    name: str


class Hook(Struct, frozen=True, gc=False):
    """Where packets enter a base chain."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"


class ChainRow(Struct, frozen=True, gc=False):
    """All rules of a chain."""

    rules: tuple[str, ...]
    """As kube-proxy writes them, a comment included. What nobody here writes is in nft's JSON."""
    hook: Hook | None = None


class OtherKey(Struct, frozen=True, order=True, gc=False):
    """Key: something in the table that nobody here writes, such as a counter. Its row is True."""

    family: Family
    kind: str
    name: str


Key = SetKey | ElementKey | ChainKey | OtherKey
Row = SetRow | ElementRow | ChainRow | bool
