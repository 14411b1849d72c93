"""Chains and rules as a proxier's rows.

A chain of our own is one row, its rules in order. In a chain that Services share each rule is a row, so that a change
costs what changed; so is each rule that leads from a chain that is not ours to one that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, Protocol

from msgspec import Struct

from bpfproxy.model.address import Family
from bpfproxy.netfilter.rules import Rule
from bpfproxy.netfilter.saved import Chain, Tables


class ChainKey(Struct, frozen=True, order=True, gc=False):
    """A chain that is ours alone. Its row: a tuple of `Rule`s."""

    family: Family
    table: str
    chain: str

    def __str__(self) -> str:
        return f"IPv{self.family} {self.table} {self.chain}"


class SharedChainKey(Struct, frozen=True, order=True, gc=False):
    """A chain whose rules are rows of their own. Its row is True: the chain is there."""

    family: Family
    table: str
    chain: str

    def __str__(self) -> str:
        return f"IPv{self.family} {self.table} {self.chain}"


class RuleKey(Struct, frozen=True, gc=False):
    """A rule in a chain that others write to as well. Its row says how often it is there: `ONCE`."""

    family: Family
    table: str
    chain: str
    rule: Rule

    def __str__(self) -> str:
        return f"IPv{self.family} {self.table} {self.chain} {self.rule}"


TableKey = ChainKey | SharedChainKey | RuleKey
ChainRow = tuple[Rule, ...]
ONCE: Final = 1


Kind = Literal["own", "shared", "joint", "foreign"]
"""`own`: the whole chain is a row. `shared`: it is ours, and each of its rules is a row. `joint`: others use it, too;
it is made if need be, and removed if nothing of theirs is in it. `foreign`: it is somebody else's."""


class Layout(Protocol):
    """Which chains and rules are a proxier's."""

    tables: tuple[str, ...]
    """Where they are."""

    def kind(self, table: str, chain: str) -> Kind:
        """How a chain is dealt with. Those that are built in are foreign, and are not asked about."""
        ...

    def owns(self, table: str, chain: str, rule: Rule) -> bool:
        """Whether a rule of a joint or foreign chain is ours."""
        ...

    def is_last(self, key: RuleKey) -> bool:
        """Whether a rule goes to the end of its chain; others go to the beginning."""
        ...


def rows_of(tables: Tables, family: Family, layout: Layout) -> Iterator[tuple[TableKey, Any]]:
    """The rows of a proxier among all chains. A rule that is there more than once comes once, with its count."""
    counts: dict[RuleKey, int] = {}
    for table, chains in tables.items():
        for name, chain in chains.items():
            kind = kind_of(chain, table, name, layout)
            if kind == "own":
                yield ChainKey(family, table, name), tuple(chain.rules)
                continue
            if kind != "foreign":
                yield SharedChainKey(family, table, name), True
            for rule in chain.rules:
                if kind == "shared" or layout.owns(table, name, rule):
                    key = RuleKey(family, table, name, rule)
                    counts[key] = counts.get(key, 0) + 1
    yield from counts.items()


def kind_of(chain: Chain, table: str, name: str, layout: Layout) -> Kind:
    """See `Kind`."""
    return "foreign" if chain.built_in else layout.kind(table, name)
