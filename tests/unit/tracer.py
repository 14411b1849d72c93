"""The way of a connection's first packet through the tables of a node, without a kernel: what netfilter would do.

Where chance decides, all ways are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Literal

from bpfproxy.netfilter.rules import Rule, words
from bpfproxy.netfilter.saved import Chain, Tables

Verdict = Literal["ACCEPT", "DROP", "REJECT"]


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, as it is at some place on its way."""

    source: str
    to: tuple[str, int]
    protocol: str
    mark: int = 0
    translated: bool = False
    remembered: frozenset[str] = frozenset()
    """Names of `recent` lists that its source is on."""
    masqueraded: bool = False


@dataclass(frozen=True)
class Outcome:
    """Where it ended up."""

    verdict: Verdict
    packet: Packet
    local: bool
    """Delivered on the node itself."""


@dataclass(frozen=True)
class Tracer:
    """The tables of one family of one node, and the addresses that are the node's own."""

    tables: Tables
    addresses: frozenset[str]

    def from_outside(self, packet: Packet) -> set[Outcome]:
        """What comes in by a device: from clients and from pods."""
        found = set()
        for _, one in self._walk("nat", "PREROUTING", packet):
            local = self.is_local(one.to[0])
            for verdict, passed in self._walk("filter", "INPUT" if local else "FORWARD", one):
                if verdict == "ACCEPT" and not local:
                    found |= {Outcome(verdict, last, local) for _, last in self._walk("nat", "POSTROUTING", passed)}
                else:
                    found.add(Outcome(verdict, passed, local))
        return found

    def from_node(self, packet: Packet) -> set[Outcome]:
        """What a process of the node sends."""
        found = set()
        for _, one in self._walk("nat", "OUTPUT", packet):
            local = self.is_local(one.to[0])
            for verdict, passed in self._walk("filter", "OUTPUT", one):
                if verdict != "ACCEPT":
                    found.add(Outcome(verdict, passed, local))
                    continue
                for _, last in self._walk("nat", "POSTROUTING", passed):
                    if not local:
                        found.add(Outcome(verdict, last, local))
                        continue
                    # Once more through the loopback device; NAT is settled.
                    found |= {Outcome(end, final, local) for end, final in self._walk("filter", "INPUT", last)}
        return found

    def is_local(self, address: str) -> bool:
        """Whether the node has the address."""
        return address in self.addresses or ip_address(address).is_loopback

    def _walk(self, table: str, chain: str, packet: Packet) -> Iterator[tuple[Verdict, Packet]]:
        chains = self.tables[table]
        for verdict, end in self._chain(chains, chain, packet):
            yield verdict or "ACCEPT", end

    def _chain(
        self, chains: Mapping[str, Chain], name: str, packet: Packet, at: int = 0
    ) -> Iterator[tuple[Verdict | None, Packet]]:
        """(verdict, packet) for each way through; no verdict: back to the chain before."""
        rules = chains[name].rules
        while at < len(rules):
            rule = rules[at]
            at += 1
            matching = self._matches(rule, packet)
            if matching is False:
                continue
            if matching is None:  # chance: go on without it, too
                yield from self._chain(chains, name, packet, at)
            for ended, verdict, then in self._do(chains, rule, packet):
                if ended:
                    yield verdict, then
                else:
                    yield from self._chain(chains, name, then, at)
            return
        yield None, packet

    def _do(
        self, chains: Mapping[str, Chain], rule: Rule, packet: Packet
    ) -> Iterator[tuple[bool, Verdict | None, Packet]]:
        """(whether this chain ends, verdict, packet)."""
        options = _target_options(rule)
        packet = self._remember(rule, packet)
        match rule.target:
            case "ACCEPT" | "DROP" | "REJECT" as ending:
                yield True, ending, packet
            case "RETURN":
                yield True, None, packet
            case "MARK":
                yield False, None, replace(packet, mark=_marked(packet.mark, options))
            case "DNAT":
                host, _, port = options["--to-destination"].rpartition(":")
                to = (host.strip("[]"), int(port))
                yield True, "ACCEPT", replace(packet, to=to, translated=True)
            case "MASQUERADE":
                yield True, "ACCEPT", replace(packet, masqueraded=True)
            case "":
                yield False, None, packet
            case chain:
                for verdict, then in self._chain(chains, chain, packet):
                    yield verdict is not None, verdict, then

    def _remember(self, rule: Rule, packet: Packet) -> Packet:
        text = words(rule.text)
        if "--set" not in text or "recent" not in text:
            return packet
        return replace(packet, remembered=packet.remembered | {text[text.index("--name") + 1]})

    def _matches(self, rule: Rule, packet: Packet) -> bool | None:
        """None: by chance."""
        by_chance = False
        selectors, groups, _ = rule.canonical
        conditions: list[tuple[str, str]] = [("", text) for text in selectors]
        conditions += [(group, text) for group, options in groups for text in options]
        names = {text.partition(" ")[2] for group, text in conditions if group == "recent" and "--name" in text}
        for group, text in conditions:
            negated = text.startswith("! ")
            name, _, value = text.removeprefix("! ").partition(" ")
            if (group, name) == ("statistic", "--probability"):
                by_chance = True
                continue
            if (group, name) == ("recent", "--rcheck"):
                result = bool(names & packet.remembered)
            else:
                result = _CONDITIONS[group, name](self, packet, value)
            if result == negated:
                return False
        return None if by_chance else True


def _within(address: str, network: str) -> bool:
    return ip_address(address) in ip_network(network)


def _states(packet: Packet) -> set[str]:
    return {"NEW", "DNAT"} if packet.translated else {"NEW"}


def _mark_is(packet: Packet, value: str) -> bool:
    wanted, mask = (int(part, 0) for part in value.split("/"))
    return packet.mark & mask == wanted


_CONDITIONS: dict[tuple[str, str], Callable[[Tracer, Packet, str], bool]] = {
    ("", "-p"): lambda _, packet, value: packet.protocol == value,
    ("", "-s"): lambda _, packet, value: _within(packet.source, value),
    ("", "-d"): lambda _, packet, value: _within(packet.to[0], value),
    ("tcp", "--dport"): lambda _, packet, value: packet.to[1] == int(value),
    ("udp", "--dport"): lambda _, packet, value: packet.to[1] == int(value),
    ("addrtype", "--src-type"): lambda tracer, packet, value: tracer.is_local(packet.source) == (value == "LOCAL"),
    ("addrtype", "--dst-type"): lambda tracer, packet, value: tracer.is_local(packet.to[0]) == (value == "LOCAL"),
    ("conntrack", "--ctstate"): lambda _, packet, value: bool(_states(packet) & set(value.split(","))),
    ("mark", "--mark"): lambda _, packet, value: _mark_is(packet, value),
    ("comment", "--comment"): lambda _, packet, value: True,
    ("recent", "--name"): lambda _, packet, value: True,
    ("recent", "--set"): lambda _, packet, value: True,
    ("recent", "--seconds"): lambda _, packet, value: True,
    ("recent", "--reap"): lambda _, packet, value: True,
    ("statistic", "--mode"): lambda _, packet, value: True,
}


def _target_options(rule: Rule) -> dict[str, str]:
    return {name: value for name, _, value in (option.partition(" ") for option in rule.canonical[2][1])}


def _marked(mark: int, options: Mapping[str, str]) -> int:
    value, mask = (int(part, 0) for part in options["--set-xmark"].split("/"))
    return (mark & ~mask) ^ value
