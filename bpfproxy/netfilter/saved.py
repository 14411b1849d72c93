"""What `iptables-save` prints, as tables of chains; and its opposite, the input of `iptables-restore`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from bpfproxy.netfilter.rules import Rule


class Chain(Struct):
    """A chain and its rules, in order."""

    policy: str
    """Of a chain that is built in; `-` if it is not."""
    rules: list[Rule]

    @property
    def built_in(self) -> bool:
        """Whether the kernel's hooks lead to it."""
        return self.policy != "-"


Tables = dict[str, dict[str, Chain]]
"""Chains by name, by table."""


def parse(text: str) -> Tables:
    """The tables in the output of `iptables-save`, with or without counters. Raises ValueError at a line that is
    none of it."""
    tables: Tables = {}
    chains: dict[str, Chain] = {}
    for line in text.splitlines():
        kind = line[:1]
        if kind == "-" and line.startswith("-A "):
            _, chain, rule = line.split(" ", 2) if line.count(" ") > 1 else (*line.split(" "), "")
            chains[chain].rules.append(Rule(rule))
        elif kind == ":":
            name, policy, *_ = line[1:].split()
            chains[name] = Chain(policy, [])
        elif kind == "*":
            chains = tables.setdefault(line[1:].strip(), {})
        elif kind == "[":
            _, _, rule = line.partition("] -A ")
            chain, _, rule = rule.partition(" ")
            chains[chain].rules.append(Rule(rule))
        elif line.strip() and kind != "#" and line != "COMMIT":
            raise ValueError(f"expected a line of iptables-save, not {line!r}")
    return tables


def restore_input(sections: Iterable[tuple[str, Sequence[str]]]) -> str:
    """(table, lines) → the input of `iptables-restore`; sections without lines are left out. Each section is one
    commit: the kernel takes it whole or not at all."""
    return "".join("\n".join((f"*{table}", *lines, "COMMIT\n")) for table, lines in sections if lines)
