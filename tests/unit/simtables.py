"""The tables of one family, in memory: takes what `iptables-restore --noflush` takes and refuses what that refuses.

So that orders of changes can be tried by the thousand without a kernel; tests/lab tries the same with one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from bpfproxy.model.address import Family
from bpfproxy.netfilter.command import RestoreError
from bpfproxy.netfilter.rules import Rule
from bpfproxy.netfilter.saved import Chain, Tables

BUILT_IN = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
VERDICTS = {"", "ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "DNAT", "MASQUERADE"}


class SimIptables:
    """`refuses` says which lines the kernel will not take; `runs` counts what was restored."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.tables: Tables = {
            table: {chain: Chain("ACCEPT", []) for chain in chains} for table, chains in BUILT_IN.items()
        }
        self.refuses: Callable[[str], bool] = lambda line: False
        self.lines: list[str] = []
        """Of all commits that were taken."""
        self.commits = 0

    def save(self, tables: Iterable[str]) -> Tables:
        return {table: copy.deepcopy(self.tables[table]) for table in tables}

    def restore(self, text: str) -> None:
        draft: dict[str, Chain] = {}
        table, lines = "", list[str]()
        for line in text.splitlines():
            if line.startswith("*"):
                table, lines = line[1:], []
                draft = copy.deepcopy(self.tables[table])
            elif line == "COMMIT":
                self._check(draft)
                self.tables[table] = draft
                self.lines += lines
                self.commits += 1
            else:
                if self.refuses(line):
                    raise RestoreError(f"refused: {line}")
                self._do(draft, line)
                lines.append(line)

    def _do(self, draft: dict[str, Chain], line: str) -> None:
        what, _, rest = line.partition(" ")
        chain, _, rule = rest.partition(" ")
        if what.startswith(":"):
            draft[what[1:]] = Chain("-", [])
            return
        if what == "-N":
            if chain in draft:
                raise RestoreError(f"{chain} is there already")
            draft[chain] = Chain("-", [])
            return
        if chain not in draft:
            raise RestoreError(f"no chain {chain}")
        if what == "-X":
            if draft[chain].rules:
                raise RestoreError(f"{chain} is not empty")
            del draft[chain]
        elif what == "-A":
            draft[chain].rules.append(Rule(rule))
        elif what == "-I":
            draft[chain].rules.insert(0, Rule(rule))
        elif what == "-D":
            if Rule(rule) not in draft[chain].rules:
                raise RestoreError(f"no such rule in {chain}: {rule}")
            draft[chain].rules.remove(Rule(rule))
        else:
            raise RestoreError(f"what is {line!r}?")

    def _check(self, draft: dict[str, Chain]) -> None:
        for name, chain in draft.items():
            for rule in chain.rules:
                if rule.target not in VERDICTS and rule.target not in draft:
                    raise RestoreError(f"{name} leads to {rule.target}, which is not there")
