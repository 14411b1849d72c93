"""Ops on rows of chains and rules → `iptables-restore`: only what differs, each table in one commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from bpfproxy.errors import DatapathError
from bpfproxy.model.address import Family
from bpfproxy.netfilter.command import RestoreError
from bpfproxy.netfilter.rows import ONCE, ChainKey, Layout, RuleKey, SharedChainKey, TableKey, rows_of
from bpfproxy.netfilter.saved import Tables, restore_input

Change = tuple[TableKey, Any]
"""A key and its new row; None: it is to go."""
Refused = tuple[TableKey, str]
"""A key whose change could not be made, and why."""


_REFUSED_MAX: Final = 64
"""So many changes are refused one by one; then it is not the changes that are wrong."""


class Tools(Protocol):
    """See `command.Iptables`."""

    def save(self, tables: Iterable[str]) -> Tables: ...  # noqa: D102
    def restore(self, text: str) -> None: ...  # noqa: D102


class _Known(Struct):
    """What is there of ours in one family, as far as it matters for writing."""

    chains: set[tuple[str, str]]
    """(table, chain) of all chains that are not built in."""
    visited: set[tuple[str, str]]
    """Those in which there are rules of others."""
    copies: dict[RuleKey, int]
    """How often each rule of ours is there."""


class RuleWriter:
    """Keeps the rows of one proxier in the kernel, in the families of `tools`.

    It remembers what is there, so that a sync does not have to read it; after a failure it reads it anew.
    """

    def __init__(self, tools: Mapping[Family, Tools], layout: Layout) -> None:
        self._tools = tools
        self._layout = layout
        self._known: dict[Family, _Known] = {}

    @property
    def families(self) -> frozenset[Family]:
        """Those that it writes."""
        return frozenset(self._tools)

    def read(self) -> dict[TableKey, Any]:
        """All rows of ours that the kernel holds. Raises DatapathError."""
        return {key: row for family in self._tools for key, row in self._read(family).items()}

    def apply(self, changes: Sequence[Change]) -> list[Refused]:
        """Make `changes`. Where the kernel refuses, they are taken apart until only those that it does not take are
        left out; a change that needs one of these is refused with it. Changes come in an order such that each needs
        only earlier ones. Raises nothing."""
        refused: list[Refused] = []
        for family in self._tools:
            mine = [change for change in changes if change[0].family == family]
            if mine:
                found: list[Refused] = []
                self._apply(family, mine, found, again=True)
                refused += found
        others = [key for key, _ in changes if key.family not in self._tools]
        return refused + [(key, f"no tools for IPv{key.family}") for key in others]

    def _read(self, family: Family) -> dict[TableKey, Any]:
        tables = self._tools[family].save(self._layout.tables)
        rows = dict(rows_of(tables, family, self._layout))
        self._known[family] = _known(tables, rows, self._layout)
        return rows

    def _apply(self, family: Family, changes: Sequence[Change], refused: list[Refused], *, again: bool = False) -> None:
        if len(refused) >= _REFUSED_MAX:
            refused += [(key, "not tried, since too many others were refused") for key, _ in changes]
            return
        try:
            self._commit(family, changes)
        except RestoreError as error:
            if again:  # others may have changed what we thought was there
                self._apply(family, changes, refused)
            elif len(changes) == 1:
                refused.append((changes[0][0], str(error)))
            else:
                half = len(changes) // 2
                self._apply(family, changes[:half], refused)
                self._apply(family, changes[half:], refused)
        except DatapathError as error:
            refused += [(key, str(error)) for key, _ in changes]

    def _commit(self, family: Family, changes: Sequence[Change]) -> None:
        if family not in self._known:
            self._read(family)
        known = self._known[family]
        text = _text(changes, known, self._layout)
        if text:
            del self._known[family]  # until it is certain that all of it was done
            self._tools[family].restore(text)
            _remember(changes, known)
            self._known[family] = known


def _known(tables: Tables, rows: Mapping[TableKey, Any], layout: Layout) -> _Known:
    known = _Known(set(), set(), {key: row for key, row in rows.items() if isinstance(key, RuleKey)})
    for table, chains in tables.items():
        for name, chain in chains.items():
            if not chain.built_in:
                known.chains.add((table, name))
            if layout.kind(table, name) == "joint" and not all(layout.owns(table, name, rule) for rule in chain.rules):
                known.visited.add((table, name))
    return known


def _remember(changes: Iterable[Change], known: _Known) -> None:
    for key, row in changes:
        if isinstance(key, RuleKey):
            if row is None:
                known.copies.pop(key, None)
            else:
                known.copies[key] = ONCE
        elif row is None:
            known.chains -= {(key.table, key.chain)} - known.visited
        else:
            known.chains.add((key.table, key.chain))


# ---- text --------------------------------------------------------------------------------------------------------


class _Lines(Struct):
    """The lines of one table, in the order in which they have to come."""

    chains: list[str] = []
    """Made, or made empty."""
    rules: list[str] = []
    first: list[str] = []
    last: list[str] = []
    stale: list[str] = []
    """Rules and chains that go."""

    def written(self) -> list[str]:
        # iptables-nft looks for each new chain's place in a sorted list, from its beginning (1.8.9: 14,000 chains cost
        # 5 s in any order, 1.3 s in this one). What goes to the beginning of a chain does so last one first.
        return [*sorted(self.chains, reverse=True), *self.rules, *reversed(self.first), *self.last]


_FILTER: Final = "filter"


def _text(changes: Iterable[Change], known: _Known, layout: Layout) -> str:
    """The input of `iptables-restore` for `changes`.

    Filter rules are written before NAT rules and removed after them, so that a frontend that gains or loses its last
    endpoint is refused or translated at every moment, and never let through.
    """
    tables: defaultdict[str, _Lines] = defaultdict(_Lines)
    for key, row in changes:
        lines = tables[key.table]
        match key:
            case ChainKey():
                _chain_lines(lines, key, row, known)
            case SharedChainKey():
                _shared_chain_lines(lines, key, row, known)
            case RuleKey():
                _rule_lines(lines, key, row, known, layout.is_last)
    first = tables.pop(_FILTER, _Lines())
    others = [(table, [*lines.written(), *lines.stale]) for table, lines in tables.items()]
    if not any(lines for _, lines in others):
        return restore_input([(_FILTER, [*first.written(), *first.stale])])
    return restore_input([(_FILTER, first.written()), *others, (_FILTER, first.stale)])


def _chain_lines(lines: _Lines, key: ChainKey, row: Any, known: _Known) -> None:
    there = (key.table, key.chain) in known.chains
    if row is not None:
        lines.chains.append(f":{key.chain} - [0:0]")
        lines.rules += [f"-A {key.chain} {rule.text}" for rule in row]
    elif there:
        # Emptied with the first lines, so that chains which lead to each other can go in any order.
        (lines.stale if key.table == _FILTER else lines.chains).append(f":{key.chain} - [0:0]")
        lines.stale.append(f"-X {key.chain}")


def _shared_chain_lines(lines: _Lines, key: SharedChainKey, row: Any, known: _Known) -> None:
    name = (key.table, key.chain)
    if row is not None and name not in known.chains:
        lines.chains.append(f"-N {key.chain}")
    elif row is None and name in known.chains - known.visited:
        lines.stale.append(f"-X {key.chain}")


def _rule_lines(lines: _Lines, key: RuleKey, row: Any, known: _Known, is_last: Callable[[RuleKey], bool]) -> None:
    copies = known.copies.get(key, 0)
    surplus = copies - (0 if row is None else ONCE)
    if surplus < 0 and is_last(key):
        lines.last.append(f"-A {key.chain} {key.rule.text}")
    elif surplus < 0:
        lines.first.append(f"-I {key.chain} {key.rule.text}")
    else:
        lines.stale += [f"-D {key.chain} {key.rule.text}"] * surplus
